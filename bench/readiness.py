"""Probing from the host when an instance gives its first useful reply.

A fresh non-blocking connection is begun every δ, by one rule for every arm: δ is 1 ms or
half a percent of the time since the launch was requested, whichever is longer, at most
20 ms. A knock costs who is knocked at (refusing a thousand a second took a fifth of an
emulated CPU), so a start that takes long is not asked more finely than it can be told.
How late a reply may have been noticed is recorded with it.

A connection is given up after 25 ms unless it was established: an unanswered SYN is
retransmitted by the kernel only after a second, and would quantise the figure. Once a
connection is up, the request is sent on it and the reply awaited.

A health check is a command run inside, by the agent, at its own interval.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.model import Execution, Healthcheck, Readiness, ReadyKind

INTERVAL_NS = 1_000_000
INTERVAL_MOST_NS = 20_000_000
INTERVAL_PART = 200  # of the time since the request
CONNECT_LIFE_NS = 25_000_000
REPLY_LIFE_NS = 1_000_000_000
REPLY_LIMIT = 65536

CHECK_LEAST_S = 0.01
CHECK_MOST_S = 1.0
"""Between two health checks until one succeeds, whatever the image declares: with the 30 s that
container engines have by default, nothing could be said about a start."""

NETWORK_KINDS = frozenset({ReadyKind.TCP, ReadyKind.REPLY, ReadyKind.HTTP})
OUTPUT_KINDS = frozenset({ReadyKind.OUTPUT, ReadyKind.LINE})


class OutputWatch:
    """Finds the first byte, or the first matching line, in streamed stdout."""

    def __init__(self, ready: Readiness) -> None:
        self._pattern = re.compile(ready.pattern.encode()) if ready.pattern else None
        self._line = b""
        self.ready_ns: int | None = None

    def __call__(self, stream: str, data: bytes, stamp_ns: int) -> None:
        """Take a chunk of output that arrived at `stamp_ns`."""
        if stream != "stdout" or self.ready_ns is not None or not data:
            return
        if self._pattern is None:
            self.ready_ns = stamp_ns
            return
        *lines, self._line = (self._line + data).split(b"\n")
        # An unfinished line counts too: a prompt has no newline.
        if any(self._pattern.search(line) for line in (*lines, self._line)):
            self.ready_ns = stamp_ns
        self._line = self._line[-REPLY_LIMIT:]


def request_of(ready: Readiness, host: str) -> bytes:
    """What is sent on a fresh connection."""
    if ready.kind is ReadyKind.HTTP:
        return f"GET {ready.path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    return ready.send if ready.kind is ReadyKind.REPLY else b""


def satisfied(ready: Readiness, reply: bytes) -> bool | None:
    """True: the useful reply. False: a wrong one, try anew. None: not yet complete."""
    if ready.kind is ReadyKind.HTTP:
        line, newline, _ = reply.partition(b"\n")
        if not newline:
            return None
        return re.match(rb"HTTP/1\.[01] 200\b", line) is not None
    if ready.expect in reply:
        return True
    return False if len(reply) >= REPLY_LIMIT else None


@dataclass(frozen=True)
class Reached:
    """The first useful reply.

    Attributes:
        stamp_ns: when it was complete (for TCP: when the connection was established).
        resolution_ns: how much earlier it could have been had: the time from the attempt
            before this one, which failed, to the beginning of this one.
    """

    stamp_ns: int
    resolution_ns: int


def interval_ns(since_request_ns: int) -> int:
    """δ: the time between two attempts, so long after the launch was requested."""
    return min(INTERVAL_MOST_NS, max(INTERVAL_NS, since_request_ns // INTERVAL_PART))


def probe(
    ready: Readiness,
    host: str,
    deadline_ns: int,
    alive: Callable[[float], bool],
    *,
    requested_ns: int | None = None,
    started_ns: int | None = None,
) -> Reached | None:
    """Probe until the first useful reply.

    Args:
        host: address to connect to.
        deadline_ns: CLOCK_MONOTONIC nanoseconds after which to give up.
        alive: called between attempts with the seconds it may wait; handles what the
            instance reported and returns False once it cannot become ready any more.
        requested_ns: when the launch was requested; from it δ is reckoned (default: now).
        started_ns: since when it could have been ready (default: now).

    Returns:
        When it was ready, or None.
    """
    request = request_of(ready, host)
    last_ns = time.monotonic_ns() if started_ns is None else started_ns
    asked_ns = time.monotonic_ns() if requested_ns is None else requested_ns
    with selectors.DefaultSelector() as selector:
        begun: dict[socket.socket, tuple[int, bytearray | None]] = {}
        doubt: dict[socket.socket, int] = {}  # from the attempt before it
        try:
            next_ns = time.monotonic_ns()
            while (now := time.monotonic_ns()) < deadline_ns:
                talking = any(reply is not None for _, reply in begun.values())
                if now >= next_ns and not talking:
                    link = _begin(selector, begun, host, ready.port, now)
                    if link is not None:
                        doubt[link] = now - last_ns
                    last_ns = now
                    next_ns = max(next_ns + interval_ns(now - asked_ns), now)
                _give_up(selector, begun, now)
                for key, _ in selector.select(max(0.0, (next_ns - time.monotonic_ns()) / 1e9)):
                    stamp = _advance(selector, begun, key.fileobj, ready, request)  # type: ignore[arg-type]
                    if stamp is not None:
                        return Reached(stamp, max(0, doubt[key.fileobj]))  # type: ignore[index]
                if talking:
                    now = time.monotonic_ns()
                    next_ns = now + interval_ns(now - asked_ns)
                if not alive(0.0):
                    return None
            return None
        finally:
            for link in begun:
                link.close()


def check_interval_s(check: Healthcheck) -> float:
    """How often a health check is run until it succeeds: as declared, within bounds."""
    declared = check.start_interval_s or check.interval_s
    return min(CHECK_MOST_S, max(CHECK_LEAST_S, declared))


def await_healthy(
    check: Healthcheck,
    execute: Callable[[Sequence[str], float], Execution],
    deadline_ns: int,
    alive: Callable[[float], bool],
    *,
    started_ns: int,
) -> tuple[Reached | None, str]:
    """Run a health check, at once and then at its interval, until it ends with status 0.

    Args:
        execute: runs a command inside for at most so many seconds.
        alive: as for `probe`.
        started_ns: since when it could have been healthy.

    Returns:
        When it was healthy, or None; and what the last check that failed said.
    """
    interval = int(check_interval_s(check) * 1e9)
    said, before_ns = "no check has ended", started_ns
    while (now := time.monotonic_ns()) < deadline_ns:
        result = execute(check.command, min(check.timeout_s, (deadline_ns - now) / 1e9))
        if result.code == 0:
            return Reached(result.ended_ns, max(0, now - before_ns)), ""
        ending = "" if result.code is None else f"status {result.code}: "
        said, before_ns = ending + " ".join(result.said.split())[-200:], now
        while (left := now + interval - time.monotonic_ns()) > 0:
            if not alive(left / 1e9):
                return None, said
        if not alive(0.0):
            return None, said
    return None, said


def _begin(
    selector: selectors.BaseSelector,
    begun: dict[socket.socket, tuple[int, bytearray | None]],
    host: str,
    port: int,
    now: int,
) -> socket.socket | None:
    link = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        link.connect((host, port))
    except BlockingIOError:
        pass
    except OSError:  # refused at once, or no route yet: the next one may do
        link.close()
        return None
    begun[link] = (now, None)
    selector.register(link, selectors.EVENT_WRITE)
    return link


def _give_up(
    selector: selectors.BaseSelector,
    begun: dict[socket.socket, tuple[int, bytearray | None]],
    now: int,
) -> None:
    for link, (since, reply) in list(begun.items()):
        if now - since > (CONNECT_LIFE_NS if reply is None else REPLY_LIFE_NS):
            _drop(selector, begun, link)


def _drop(
    selector: selectors.BaseSelector,
    begun: dict[socket.socket, tuple[int, bytearray | None]],
    link: socket.socket,
) -> None:
    selector.unregister(link)
    del begun[link]
    link.close()


def _advance(
    selector: selectors.BaseSelector,
    begun: dict[socket.socket, tuple[int, bytearray | None]],
    link: socket.socket,
    ready: Readiness,
    request: bytes,
) -> int | None:
    if link not in begun:
        return None
    _, reply = begun[link]
    try:
        if reply is None:
            failed = link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            # Knocking at a closed port of our own host can end in being connected to
            # ourselves, when the kernel picks that very port for our end.
            if failed or link.getsockname() == link.getpeername():
                _drop(selector, begun, link)
                return None
            if ready.kind is ReadyKind.TCP:
                return time.monotonic_ns()
            link.send(request)
            begun[link] = (time.monotonic_ns(), bytearray())
            selector.modify(link, selectors.EVENT_READ)
            return None
        data = link.recv(REPLY_LIMIT)
        stamp = time.monotonic_ns()
    except BlockingIOError:
        return None
    except OSError:
        _drop(selector, begun, link)
        return None
    reply += data
    verdict = satisfied(ready, bytes(reply))
    if verdict:
        return stamp
    if verdict is False or not data:
        _drop(selector, begun, link)
    return None
