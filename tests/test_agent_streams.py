"""What passes through the agent: output, input and the terminal, whole and without blocking."""

from __future__ import annotations

import hashlib
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.agent.session import AgentSession
from bench.model import Event, OutputMode

Launch = Callable[..., AgentSession]


def soon(seconds: float = 40.0) -> int:
    """A deadline that a working agent never reaches."""
    return time.monotonic_ns() + int(seconds * 1e9)


@pytest.fixture
def launch(agents: Any) -> Launch:
    """Start an agent and send it RUN for a command; keywords are InstanceSpec's."""
    return agents.launch  # type: ignore[no-any-return]


def finished(session: AgentSession) -> AgentSession:
    """The same session once the workload has ended."""
    assert session.wait(Event.EXITED, soon())
    return session


@pytest.mark.parametrize("mode", list(OutputMode))
def test_output_is_complete_and_apart(launch: Launch, mode: OutputMode) -> None:
    """64 MiB on each of stdout and stderr arrive whole, unmixed, in both modes."""
    write = (
        "import os, threading, hashlib\n"
        "def put(fd, byte):\n"
        "    for i in range(1024):\n"
        "        data = bytes([byte, i % 251]) * 32768\n"
        "        while data: data = data[os.write(fd, data):]\n"
        "two = threading.Thread(target=put, args=(2, 7)); two.start(); put(1, 3); two.join()"
    )
    session = finished(launch(sys.executable, "-c", write, output=mode))
    for byte, got in ((3, session.stdout), (7, session.stderr)):
        expected = hashlib.sha256()
        for i in range(1024):
            expected.update(bytes([byte, i % 251]) * 32768)
        assert len(got) == 64 << 20
        assert hashlib.sha256(got).hexdigest() == expected.hexdigest()
    assert session.receipt["stdout_bytes"] == str(64 << 20)
    assert session.receipt["stderr_dropped"] == "0"


@pytest.mark.parametrize("mode", list(OutputMode))
def test_output_beyond_the_limit_is_counted(launch: Launch, mode: OutputMode) -> None:
    """The first bytes are kept, the rest is counted, and the workload never notices."""
    text = "head -c 300000 /dev/zero; echo some >&2"
    session = finished(launch("sh", "-c", text, output=mode, output_limit_bytes=100000))
    assert session.exit is not None and session.exit.code == 0
    assert len(session.stdout) == 100000 and session.stderr == b"some\n"
    assert session.receipt["stdout_dropped"] == "200000"


def test_back_pressure(launch: Launch, agents: Any) -> None:
    """While the host does not read, a stream waits in the workload, not in the agent's memory."""
    session = launch("sh", "-c", "yes", output=OutputMode.STREAM)
    assert session.wait(Event.STARTED, soon())
    agent = agents.last.pid
    written = 0
    for _ in range(2):
        time.sleep(0.3)
        before, written = written, sum(_written(agent))
    assert written == before < 4 << 20
    session.signal(signal.SIGKILL)
    finished(session)
    assert session.exit is not None and session.exit.signal == 9


def _written(pid: int) -> list[int]:
    """wchar of a process and all its descendants."""
    counts = []
    text = Path(f"/proc/{pid}/io").read_text().split()
    counts.append(int(text[text.index("wchar:") + 1]))
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            counts += _written(int(child))
    return counts


def test_stdin_is_passed_whole(launch: Launch) -> None:
    """More stdin than any buffer arrives unchanged, and closing it is the end of file."""
    data = secrets.token_bytes(3 << 20)
    session = launch("cat", stdin=True)
    session.send_stdin(data)
    session.send_stdin(b"")
    assert finished(session).stdout == data


def test_unread_stdin_blocks_nothing(launch: Launch) -> None:
    """A workload that reads no stdin can still be pinged and signalled; a closed one, fed."""
    session = launch("sleep", "600", stdin=True, shared_clock=False)
    session.send_stdin(b"x" * (1 << 20))
    assert session.wait(Event.STARTED, soon())
    session.ping(3)
    session.signal(signal.SIGTERM)
    assert finished(session).exit is not None
    session = launch("sh", "-c", "exec <&-; sleep 0.3", stdin=True)
    session.send_stdin(b"x" * (1 << 20))
    session.send_stdin(b"")
    assert finished(session).exit is not None


def test_no_stdin_is_end_of_file(launch: Launch) -> None:
    """Without stdin the workload reads an end of file at once."""
    assert finished(launch("wc", "-c")).stdout.split() == [b"0"]


def test_terminal(launch: Launch) -> None:
    """With a terminal, all three are it, it controls the session, has a size, and takes ^C."""
    text = "test -t 0 && test -t 1 && test -t 2 && read x && stty size && exec sleep 600"
    session = launch("sh", "-c", text, tty=True, stdin=True)
    session.window(33, 101)
    session.send_stdin(b"go\n")
    deadline = soon()
    while b"33 101" not in session.stdout and time.monotonic_ns() < deadline:
        session.pump(0.1)
    assert session.stdout.endswith(b"33 101\r\n")
    session.send_stdin(b"\x03")
    finished(session)
    assert session.exit is not None and session.exit.signal == signal.SIGINT


def test_terminal_ends_with_its_input(launch: Launch) -> None:
    """Closing stdin of a terminal is ^D."""
    session = launch("sh", "-c", "stty -echo; echo up; cat; echo end", tty=True, stdin=True)
    deadline = soon()
    while b"up" not in session.stdout and time.monotonic_ns() < deadline:
        session.pump(0.1)
    session.send_stdin(b"text\n")
    session.send_stdin(b"")
    assert finished(session).stdout == b"up\r\ntext\r\nend\r\n"
