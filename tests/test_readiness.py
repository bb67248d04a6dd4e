"""Readiness: the first useful reply and nothing before it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from bench.model import Readiness, ReadyKind
from bench.readiness import OutputWatch, interval_ns, probe, satisfied


def serve(port: int, delay_s: float, answer: Callable[[bytes], bytes]) -> threading.Thread:
    """Listen after `delay_s`, then answer every connection until one was answered usefully."""

    def work() -> None:
        time.sleep(delay_s)
        # Whoever was satisfied asks no more; a thread that then complains fails another test.
        with suppress(TimeoutError), socket.create_server(("127.0.0.1", port)) as server:
            server.settimeout(5)
            for _ in range(3):
                link, _ = server.accept()
                with link:
                    link.sendall(answer(link.recv(1024)))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as link:
        link.bind(("127.0.0.1", 0))
        return int(link.getsockname()[1])


def test_http_is_ready_at_the_first_200_not_before() -> None:
    """A 503 while starting up does not count."""
    port, seen = free_port(), []

    def answer(_: bytes) -> bytes:
        seen.append(time.monotonic_ns())
        return b"HTTP/1.1 503 no\r\n\r\n" if len(seen) < 3 else b"HTTP/1.1 200 OK\r\n\r\n"

    serve(port, 0.05, answer)
    ready = Readiness(ReadyKind.HTTP, port=port)
    reached = probe(ready, "127.0.0.1", time.monotonic_ns() + 5 * 10**9, lambda _: True)
    assert reached is not None
    assert len(seen) == 3
    assert reached.stamp_ns > seen[2]


def test_a_reply_needs_the_expected_bytes() -> None:
    """PING gets its PONG."""
    port = free_port()
    serve(port, 0.02, lambda request: b"+PONG\r\n" if request == b"PING\r\n" else b"-ERR\r\n")
    ready = Readiness(ReadyKind.REPLY, port=port, send=b"PING\r\n", expect=b"+PONG")
    assert probe(ready, "127.0.0.1", time.monotonic_ns() + 5 * 10**9, lambda _: True)


def test_how_late_readiness_was_noticed_is_known() -> None:
    """The resolution reaches back to an attempt that failed: the port opened in between."""
    port, opened = free_port(), []

    def work() -> None:
        time.sleep(0.05)
        with socket.create_server(("127.0.0.1", port)) as server:
            opened.append(time.monotonic_ns())
            server.accept()[0].close()

    threading.Thread(target=work, daemon=True).start()
    ready = Readiness(ReadyKind.TCP, port=port)
    reached = probe(ready, "127.0.0.1", time.monotonic_ns() + 5 * 10**9, lambda _: True)
    assert reached is not None
    assert reached.stamp_ns - reached.resolution_ns - 5_000_000 < opened[0] < reached.stamp_ns


def test_long_starts_are_probed_more_seldom_by_one_rule() -> None:
    """δ is 1 ms, later half a percent of the time since the request, at most 20 ms."""
    assert [interval_ns(ms * 10**6) / 10**6 for ms in (0, 5, 200, 1000, 2000, 60000)] == [
        1, 1, 1, 5, 10, 20,
    ]  # fmt: skip


def test_a_port_that_never_opens_is_no_readiness() -> None:
    """Probing ends at the deadline."""
    ready = Readiness(ReadyKind.TCP, port=free_port())
    assert probe(ready, "127.0.0.1", time.monotonic_ns() + 10**8, lambda _: True) is None


def test_probing_ends_when_the_instance_does() -> None:
    """There is no use in knocking at a dead instance."""
    ready = Readiness(ReadyKind.TCP, port=free_port())
    began = time.monotonic()
    assert probe(ready, "127.0.0.1", time.monotonic_ns() + 10**10, lambda _: False) is None
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("pattern", "chunks", "expected"),
    [
        ("", [(b"x", 5)], 5),
        ("^ready$", [(b"not ready\nrea", 5), (b"dy\n", 9)], 9),
        ("login:", [(b"login:", 7)], 7),
        ("never", [(b"something\n", 7)], None),
    ],
)
def test_output_readiness(
    pattern: str, chunks: list[tuple[bytes, int]], expected: int | None
) -> None:
    """The first byte, or the first matching line even across chunks."""
    kind = ReadyKind.LINE if pattern else ReadyKind.OUTPUT
    watch = OutputWatch(Readiness(kind, pattern=pattern))
    watch("stderr", b"ready\nlogin:never", 1)
    for data, stamp in chunks:
        watch("stdout", data, stamp)
    assert watch.ready_ns == expected


def test_an_incomplete_status_line_is_not_judged() -> None:
    """The verdict waits for the whole line."""
    ready = Readiness(ReadyKind.HTTP, port=1)
    assert satisfied(ready, b"HTTP/1.1 2") is None
    assert satisfied(ready, b"HTTP/1.1 2000 \r\n") is False
    assert satisfied(ready, b"HTTP/1.1 200 \r\n") is True
