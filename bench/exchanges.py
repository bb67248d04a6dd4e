"""Round trips between the host and a server that is ready: its link is in the path of each.

One connection, one exchange at a time, from the harness's own CPUs. What is timed is the
whole way: host's stack, bridge, veth or tap and virtio, the instance's stack, the server, and
back. The median stands for the instance.
"""

from __future__ import annotations

import socket
import statistics
import time

from bench.errors import HvctError
from bench.model import Readiness
from bench.readiness import REPLY_LIMIT

REPLY_LIMIT_S = 5.0
"""For one reply; a server that takes longer has hung."""

MOST_EXCHANGES = 100_000


def round_trip_s(ready: Readiness, host: str, count: int) -> float:
    """The median of so many exchanges of what `ready` sends and expects, in seconds.

    Raises:
        HvctError: the server closed the connection, or a reply did not come.
    """
    times: list[float] = []
    try:
        with socket.create_connection((host, ready.port), REPLY_LIMIT_S) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(count):
                began = time.perf_counter()
                link.sendall(ready.send)
                reply = b""
                while ready.expect not in reply:
                    data = link.recv(REPLY_LIMIT)
                    if not data or len(reply) > REPLY_LIMIT:
                        raise HvctError(
                            f"exchange {len(times) + 1} of {count} had no such reply",
                            "the server must answer every request on a connection that stays",
                        )
                    reply += data
                times.append(time.perf_counter() - began)
    except OSError as error:
        raise HvctError(
            f"exchange {len(times) + 1} of {count} failed: {error.strerror or error}",
            "look at the trial's log",
        ) from error
    return statistics.median(times)
