"""The agent runs a workload as it was told, in every way it is started."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.agent.build import agent_path
from bench.agent.launch_record import run_record
from bench.agent.session import AgentSession
from bench.errors import HvctError, LaunchFailed
from bench.model import Event, Ids, Image, ImageConfig, InstanceSpec, OutputMode

PATH = ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")

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


def alive(marker: str) -> list[str]:
    """Names of processes that carry a marker in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes():
                found.append((folder / "comm").read_text().strip())
        except OSError:
            continue
    return found


def gone(marker: str) -> bool:
    """Whether none is alive; looked at often, since one has no environment while it executes."""
    return not any(alive(marker) for _ in range(20))


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether a condition becomes true in time; what is seen once counts."""
    deadline = soon(seconds)
    while not (seen := condition()) and time.monotonic_ns() < deadline:
        time.sleep(0.01)
    return seen


def test_arguments_and_environment_arrive_unchanged(launch: Launch) -> None:
    """argv and the environment are exactly what was given: spaces, newlines, UTF-8, nothing."""
    words = ("a b", "", "line\nbreak", "ü=ö", "*")
    session = finished(launch("sh", "-c", 'printf "%s|" "$0" "$@"', *words))
    assert session.stdout.decode() == "|".join(words) + "|"
    session = finished(launch("env", env=(PATH, ("A", "1 =2"), ("B", ""))))
    assert set(session.stdout.decode().splitlines()) == {f"PATH={PATH[1]}", "A=1 =2", "B="}


def test_working_directory_is_made_and_entered(launch: Launch, tmp_path: Path) -> None:
    """A working directory that does not exist is created, as container engines do."""
    place = tmp_path / "not" / "there yet"
    session = finished(launch("sh", "-c", "pwd; umask", workdir=str(place)))
    assert session.stdout.decode().splitlines() == [str(place), "0022"]


@pytest.mark.root
def test_user_and_groups(launch: Launch) -> None:
    """The workload has the uid, gid and supplementary groups given, and no others."""
    if os.geteuid() != 0:
        pytest.skip("changing user needs root")
    session = finished(
        launch("sh", "-c", "id -u; id -g; id -G; echo x > /dev/stdout", ids=Ids(65534, 12, (1, 2)))
    )
    assert session.stdout.decode().splitlines() == ["65534", "12", "12 1 2", "x"]


def test_exit_status_signal_and_usage(launch: Launch) -> None:
    """Exit codes, killing signals and rusage come back as the parent saw them."""
    session = finished(launch("sh", "-c", "exit 7"))
    assert session.exit is not None and (session.exit.code, session.exit.signal) == (7, None)
    session = finished(launch("sh", "-c", "kill -SEGV $$"))
    assert session.exit is not None and (session.exit.code, session.exit.signal) == (None, 11)
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    session = finished(launch(sys.executable, "-c", burn))
    assert session.exit is not None and session.exit.code == 0
    assert 0.29 < session.exit.user_s + session.exit.system_s < 1.0
    assert 1 << 20 < session.exit.max_rss_bytes < 1 << 30


def test_workload_starts_clean(launch: Launch) -> None:
    """It has descriptors 0 to 2 only, a session of its own, no signal blocked or ignored."""
    text = "ls /proc/self/fd | tr '\\n' ' '; grep -E '^Sig(Blk|Ign)' /proc/self/status | cut -f2"
    session = finished(launch("bash", "-c", text))
    assert session.stdout.decode().split()[:4] == ["0", "1", "2", "3"]  # 3 is ls's own
    assert session.stdout.decode().split()[4:] == ["0" * 16] * 2


def test_signals_that_libc_keeps_are_reset_as_well() -> None:
    """glibc's posix_spawn, which Python 3.13 starts programs with, ignores two of them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        agent = str(agent_path())
        became = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
        pid = os.posix_spawn(agent, [agent, "--channel=3"], os.environ, file_actions=became)
        theirs.close()
        ignored = int(Path(f"/proc/{pid}/status").read_text().split("SigIgn:")[1].split()[0], 16)
        assert ignored >> 31, "nothing to reset: this posix_spawn is another"
        session = AgentSession(ours, shared_clock=True)
        image = Image("none", "", Path("/"), 0, "", "amd64", ImageConfig(), "")
        argv = ("/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
        session.send_run(run_record(InstanceSpec(id="t", image=image, argv=argv)))
        finished(session)
        assert session.stdout.decode().split()[1::2] == ["0" * 16] * 2
    assert os.waitpid(pid, 0)[1] == 0


def test_signals_are_forwarded(launch: Launch) -> None:
    """SIGNAL reaches the workload's process, which may handle it."""
    seen: list[tuple[str, bytes]] = []
    session = launch(
        "sh", "-c", "trap 'echo caught; exit 9' USR1; echo up; while :; do sleep 0.05; done",
        output=OutputMode.STREAM,
    )  # fmt: skip
    session.on_output = lambda name, data, _stamp: seen.append((name, data))
    deadline = soon()
    while not seen and time.monotonic_ns() < deadline:
        session.pump(0.1)
    assert seen == [("stdout", b"up\n")]
    session.signal(signal.SIGUSR1)
    finished(session)
    assert session.exit is not None and session.exit.code == 9
    assert session.stdout == b"up\ncaught\n"


def test_stop_kills_what_ignores_the_signal(launch: Launch) -> None:
    """Stopping ends with SIGKILL after the grace."""
    session = launch("sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
    assert session.wait(Event.STARTED, soon())
    time.sleep(0.2)  # for the trap to be set
    session.stop(grace_s=0.2)
    assert session.exit is not None and session.exit.signal == 9


def test_orphans_are_reaped_and_the_rest_killed(launch: Launch) -> None:
    """Orphans leave no zombie; what outlives the workload is killed before EXIT."""
    marker = f"HVCT_TEST={secrets.token_hex(8)}"
    zombies = "for i in 1 2 3 4 5; do (sleep 0.02 &); done; sleep 0.2; ps -eo stat,comm"
    name, _, value = marker.partition("=")
    session = finished(launch("sh", "-c", zombies, env=(PATH, (name, value))))
    assert "Z" not in "".join(
        line.split()[0] for line in session.stdout.decode().splitlines() if "sleep" in line
    )
    left = "for i in 1 2 3 4 5 6 7 8; do setsid sh -c '(sleep 600 &) ; sleep 600' & done; sleep 0.2"
    session = finished(launch("sh", "-c", left, env=(PATH, (name, value))))
    assert session.exit is not None and session.exit.code == 0
    assert gone(marker)


def test_channel_loss_kills_everything(launch: Launch) -> None:
    """When the host goes away the workload and its daemons die, and the agent ends."""
    marker = f"HVCT_TEST={secrets.token_hex(8)}"
    name, _, value = marker.partition("=")
    daemon = "setsid sh -c '(trap \"\" TERM HUP; sleep 600) & ' & (sleep 600 &) ; exec sleep 600"
    session = launch("sh", "-c", daemon, env=(PATH, (name, value)))
    assert session.wait(Event.STARTED, soon())
    assert eventually(lambda: alive(marker) == ["sleep"] * 3)
    session.close()
    assert eventually(lambda: gone(marker))


def test_quit_ends_the_agent(launch: Launch) -> None:
    """QUIT kills the workload and closes the channel."""
    marker = f"HVCT_TEST={secrets.token_hex(8)}"
    name, _, value = marker.partition("=")
    session = launch("sleep", "600", env=(PATH, (name, value)))
    assert session.wait(Event.STARTED, soon())
    session.quit()
    assert session.drain(soon())
    assert eventually(lambda: gone(marker))


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of things that cannot be run."""
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    (tmp_path / "interpreter").write_text("#!/no/such/interpreter\n")
    (tmp_path / "format").write_bytes(b"\x7fELF nonsense")
    for name in ("interpreter", "format"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nosuch", "nosuch: not found in the image's PATH"),
        ("", ": not found in the image's PATH"),
        ("{}/nosuch", "not found in the image, or its interpreter is missing"),
        ("{}/interpreter", "not found in the image, or its interpreter is missing"),
        ("{}/plain", "permission denied: not executable"),
        ("plain", "permission denied: not executable"),
        ("{}/folder", "permission denied: not executable"),
        ("{}/format", "not a program this CPU runs"),
    ],
)
def test_what_cannot_be_run(launch: Launch, programs: Path, name: str, said: str) -> None:
    """A program that is missing or not one is told apart, and counts as no start."""
    session = launch(name.format(programs), env=(("PATH", f"/none:{programs}"),))
    with pytest.raises(LaunchFailed, match=said):
        session.wait(Event.STARTED, soon())
    assert session.events.keys() <= {"init"}
    assert session.ping() is not None  # the agent still serves


def test_impossible_place_and_user(launch: Launch, programs: Path) -> None:
    """A working directory that is a file, and a limit that is none, are named."""
    session = launch("true", workdir=f"{programs}/plain")
    with pytest.raises(LaunchFailed, match=r"working directory .*/plain: Not a directory"):
        session.wait(Event.EXITED, soon())


@pytest.mark.root
def test_user_without_the_right(launch: Launch, programs: Path) -> None:
    """Execute permission is that of the workload's user, not ours."""
    if os.geteuid() != 0:
        pytest.skip("changing user needs root")
    (programs / "plain").chmod(0o700)
    programs.chmod(0o755)
    session = launch(f"{programs}/plain", ids=Ids(65534, 65534))
    with pytest.raises(LaunchFailed, match="permission denied"):
        session.wait(Event.STARTED, soon())


def test_listening_is_reported(launch: Launch) -> None:
    """LISTENING comes after the port is open, and not before."""
    serve = (
        "import socket, time, sys\n"
        "server = socket.socket(socket.AF_INET6)\n"
        "server.bind(('::1', int(sys.argv[1])))\n"
        "sys.stdin.readline(); time.sleep(0.1)\n"
        "print(time.monotonic_ns(), flush=True); server.listen(); time.sleep(600)"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    session = launch(sys.executable, "-c", serve, str(port), stdin=True, listen_port=port)
    assert session.wait(Event.STARTED, soon())
    assert not session.wait(Event.LISTENING, soon(0.3))
    session.send_stdin(b"go\n")
    assert session.wait(Event.LISTENING, soon())
    session.stop()
    opened = int(session.stdout)
    assert session.events["listening"] >= opened
    assert session.events["listening"] >= session.events["started"] >= session.events["init"]


def test_listening_can_no_longer_happen(launch: Launch) -> None:
    """A server that ends before its port is open is an error, not a wait."""
    session = launch("sh", "-c", "exit 3", listen_port=1)
    with pytest.raises(LaunchFailed, match=r"exit status 3.* before it was listening"):
        session.wait(Event.LISTENING, soon())


def test_idle_agent_does_not_wake(launch: Launch, agents: Any) -> None:
    """While nothing happens, the agent is never scheduled: it has no timer."""
    session = launch("sleep", "600")
    assert session.wait(Event.STARTED, soon())
    pid = agents.last.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    agent = children[0] if Path(f"/proc/{pid}/comm").read_text() == "unshare\n" else str(pid)

    def switches() -> list[str]:
        text = Path(f"/proc/{agent}/status").read_text().splitlines()
        return [line for line in text if "ctxt_switches" in line]

    time.sleep(0.1)
    before = switches()
    time.sleep(0.4)
    assert switches() == before


def test_fetch(launch: Launch, tmp_path: Path) -> None:
    """Regular files are shipped whole, during the run and after; anything else is an error."""
    data = secrets.token_bytes(3_000_000)
    (tmp_path / "file").write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    session = launch("sleep", "600")
    assert session.wait(Event.STARTED, soon())
    assert session.fetch(str(tmp_path / "file")) == data
    session.stop()
    assert session.fetch(str(tmp_path / "file")) == data
    assert session.fetch(str(tmp_path / "empty")) == b""
    for name in ("missing", "fifo", "."):
        with pytest.raises(HvctError, match=f"{name} cannot be read"):
            session.fetch(str(tmp_path / name))


def test_clock_mapping(launch: Launch) -> None:
    """Ping-pong maps the instance's clock; on this host the true offset is 0, inside its error."""
    session = launch("sleep", "600", shared_clock=False)
    assert session.wait(Event.STARTED, soon())
    mapping = session.ping(50)
    assert abs(mapping.offset_ns) <= mapping.error_ns
    assert session.host_stamp("started") == (
        session.events["started"] + mapping.offset_ns,
        mapping.error_ns,
    )
    boot = time.monotonic_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert abs(mapping.boot_zero_ns - boot) < 5_000_000
    session = launch("true")
    assert session.ping().error_ns == 0 and session.ping().offset_ns == 0


def test_agent_killed(launch: Launch, agents: Any) -> None:
    """When the instance dies, waiting ends with an error, not at the deadline."""
    session = launch("sleep", "600")
    assert session.wait(Event.STARTED, soon())
    process = agents.forget()
    process.kill()
    process.wait()
    with pytest.raises(LaunchFailed, match="ended while the workload ran, without saying why"):
        session.wait(Event.EXITED, soon())
    session.close()
