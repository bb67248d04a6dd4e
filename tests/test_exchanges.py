"""Round trips to a server: timed whole, and a server that does not answer is a failed trial."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bench import controls, plan
from bench.errors import BadInput, HvctError
from bench.exchanges import MOST_EXCHANGES, round_trip_s
from bench.model import Readiness, ReadyKind

LATE_S = 0.02


@contextlib.contextmanager
def server(answer: Callable[[socket.socket, int], bool]) -> Iterator[Readiness]:
    """One connection; `answer` gets each request's number and says whether to go on."""

    def serve() -> None:
        link, _ = listener.accept()
        with link:
            number = 0
            while link.recv(64) and answer(link, number):
                number += 1

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        yield Readiness(ReadyKind.REPLY, port=port, send=b"ask", expect=b"told")
        thread.join()


def test_the_median_is_of_whole_round_trips() -> None:
    """What the server holds back is in every one of them, replies in pieces too."""
    requests = []

    def late(link: socket.socket, number: int) -> bool:
        requests.append(number)
        link.sendall(b"to")
        time.sleep(LATE_S)
        link.sendall(b"ld")
        return True

    with server(late) as ready:
        assert round_trip_s(ready, "127.0.0.1", 5) >= LATE_S
    assert requests == [0, 1, 2, 3, 4]


def test_a_server_that_hangs_up_is_a_failed_trial() -> None:
    """Never a figure of the exchanges before."""

    def twice(link: socket.socket, number: int) -> bool:
        if number < 2:
            link.sendall(b"told")
        return number < 2

    with server(twice) as ready, pytest.raises(HvctError, match="exchange 3 of 9"):
        round_trip_s(ready, "127.0.0.1", 9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exchanges": -1}, "exchanges are 0 to"),
        ({"exchanges": MOST_EXCHANGES + 1}, "exchanges are 0 to"),
        ({"ready": Readiness(ReadyKind.TCP, port=1)}, "readiness by reply"),
    ],
)
def test_what_cannot_be_exchanged_is_refused(changes: dict[str, object], said: str) -> None:
    """Before anything runs; the control itself is allowed."""
    plan.check_workload(controls.NETWORK.base)
    with pytest.raises(BadInput) as caught:
        plan.check_workload(dataclasses.replace(controls.NETWORK.base, **changes))  # type: ignore[arg-type]
    assert said in f"{caught.value.message} {caught.value.hint}"
