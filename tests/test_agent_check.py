"""A health check beside the workload, in every way the agent is started."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from bench.agent.frames import Frame, pack
from bench.agent.session import AgentSession
from bench.errors import HvctError, LaunchFailed
from bench.model import Event, Ids

PATH = ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")


def running(agents: Any, *argv: str, **fields: Any) -> AgentSession:
    """A session whose workload has started; it waits for ever by default."""
    session: AgentSession = agents.launch(*(argv or ("sleep", "1000")), **fields)
    assert session.wait(Event.STARTED, time.monotonic_ns() + 40_000_000_000)
    return session


def test_status_and_output_of_a_check(agents: Any) -> None:
    """A check's status and both its streams come back, again and again, the workload untouched."""
    session = running(agents)
    for status in (0, 1, 77):
        done = session.execute(["sh", "-c", f"echo out; echo err >&2; exit {status}"], 30)
        assert (done.code, done.said) == (status, "out\nerr\n")
    assert session.exit is None and session.stdout == session.stderr == b""


def test_a_check_runs_as_the_workload(agents: Any, tmp_path: Path) -> None:
    """Environment, folder, umask and limits are the workload's; its stdin is empty."""
    say = "echo $MARK; pwd; umask; ulimit -n; cat"
    fields = {"env": (PATH, ("MARK", "x y")), "workdir": str(tmp_path)}
    session = running(agents, "sh", "-c", f"{say}; touch said; exec sleep 1000", **fields)
    patient = "while ! [ -e said ]; do sleep 0.01; done"
    told = session.execute(["sh", "-c", f"{patient}; {say}"], 30).said
    session.stop(9)
    assert told == session.stdout.decode() != ""


@pytest.mark.root
def test_a_check_has_the_workloads_user(agents: Any) -> None:
    """User, group and groups are the workload's, not the agent's."""
    session = running(agents, ids=Ids(1234, 4321, (77,)))
    assert session.execute(["sh", "-c", "id -u; id -g; id -G"], 30).said == "1234\n4321\n4321 77\n"


def test_what_is_too_long_is_cut(agents: Any) -> None:
    """A check that prints without end is neither stopped by that, nor fills anything."""
    session = running(agents)
    done = session.execute(["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; exit 3"], 60)
    assert done.code == 3 and set(done.said) == {"x"} and 100 < len(done.said) < 10_000
    assert session.execute(["printf", r"a\000b\377"], 30).said == "a b\N{REPLACEMENT CHARACTER}"


def test_a_check_that_hangs_is_killed(agents: Any, tmp_path: Path) -> None:
    """After its time it is killed with its children, and the next check runs."""
    session = running(agents)
    child = f"sleep 5; touch '{tmp_path}/survived'"
    began = time.monotonic()
    done = session.execute(["sh", "-c", f"({child}) & trap '' TERM INT; sleep 1000"], 0.3)
    assert done.code is None and "longer than 0.3 s" in done.said
    assert time.monotonic() - began < 4.5
    assert session.execute(["true"], 30).code == 0
    leave = "sleep 1000 & echo $! >&2; exit 0"
    left = session.execute(["sh", "-c", leave], 30).said.strip()
    gone = time.monotonic() + 20
    while session.execute(["sh", "-c", f"kill -0 {left}"], 30).code == 0:
        assert time.monotonic() < gone, "what a check leaves behind is ended with it"
    assert not (tmp_path / "survived").exists()


def test_a_check_that_cannot_start(agents: Any) -> None:
    """A missing program is told in words, as for a workload; the workload runs on."""
    session = running(agents)
    done = session.execute(["no-such-program"], 30)
    assert done.code is None and "no-such-program: not found in the image's PATH" in done.said
    assert session.execute(["true"], 30).code == 0


def test_a_check_dies_with_the_workload(agents: Any) -> None:
    """When the workload ends, a check under way ends too, and the exit is reported."""
    session = running(agents, "sleep", "0.4")
    assert session.execute(["sleep", "1000"], 60).code is None
    assert session.wait(Event.EXITED, time.monotonic_ns() + 40_000_000_000)
    done = session.execute(["true"], 30)
    assert done.code is None and "nothing runs" in done.said


@pytest.mark.parametrize("payload", [b"", b"uid=0\0", b"arg=true\0env=A=1\0", b"arg=true"])
def test_a_malformed_check_ends_the_channel(agents: Any, payload: bytes) -> None:
    """EXEC holds arguments alone, and at least one; anything else is a violation."""
    session = running(agents)
    session._channel.setblocking(True)
    session._channel.sendall(pack(Frame.EXEC, payload))
    with pytest.raises((LaunchFailed, HvctError), match=r"EXEC|malformed"):
        session.wait("never", time.monotonic_ns() + 20_000_000_000)


def test_two_checks_at_once_end_the_channel(agents: Any) -> None:
    """One check at a time: a second one is a violation."""
    session = running(agents)
    session._channel.setblocking(True)
    session._channel.sendall(2 * pack(Frame.EXEC, b"arg=sleep\0arg=9\0"))
    with pytest.raises(LaunchFailed, match="second EXEC"):
        session.wait("never", time.monotonic_ns() + 20_000_000_000)
