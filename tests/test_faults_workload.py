"""Workloads that misbehave: every ending is data with its reason, in every arm, and nothing stays.

One comparison holds all of them. It is interrupted after its first block, so it is the
interrupt of a run in the midst of things as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
import pytest

pytestmark = pytest.mark.root

ARMS = ("vm", "container", "process")
NATIVE = ARMS[1:]
LOUD_BYTES = 64 << 20

HEAD = """
blocks = 9
gap = "none"
"""

IN_EVERY_ARM = """
[[workload]]
name = "one"
image = "busybox"
argv = ["sh", "-c", "echo some trouble >&2; exit 1"]

[[workload]]
name = "oom"
image = "busybox"
argv = ["sh", "-c", "exec tail /dev/zero"]
limits = {memory = "96 MiB", memory_basis = "nominal"}

[[workload]]
name = "hangs"
image = "busybox"
argv = ["sleep", "1000"]
timeout_s = 8

[[workload]]
name = "forks"
image = "busybox"
# The wait is the shell's own: with every process taken, a sleep may find none to start in.
argv = ["sh", "-c", "mkfifo /tmp/f; b() { b | b & }; b; read -t 1 x <>/tmp/f; exit 5"]
limits = {pids = 40}

[[workload]]
name = "signal"
image = "busybox"
argv = ["sh", "-c", "kill -SEGV $$"]

[[workload]]
name = "disk"
image = "busybox"
argv = ["sh", "-c", "cat /dev/zero >/tmp/big"]
limits = {writable = "8 MiB"}

[[workload]]
name = "binary"
image = "busybox"
argv = ["sh", "-c", "head -c 100000 /dev/urandom; head -c 100000 /dev/urandom >&2"]

[[workload]]
name = "closed-port"
image = "busybox"
argv = ["sleep", "1000"]
network = "bridge"
until = "ready"
ready = {kind = "tcp", port = 7654}
timeout_s = 6
"""

NATIVE_ONLY = """
[[workload]]
name = "missing"
image = "busybox"
argv = ["/bin/no-such-program"]

[[workload]]
name = "not-executable"
image = "busybox"
argv = ["/etc/passwd"]

[[workload]]
name = "loud"
image = "busybox"
argv = ["head", "-c", "67108864", "/dev/zero"]

[[workload]]
name = "no-number"
image = "busybox"
argv = ["echo", "rate: many"]
[[workload.metric]]
name = "rate"
unit = "1/s"
regex = 'rate: (\\\\d+)'

[[workload]]
name = "dies-before-ready"
image = "busybox"
argv = ["sh", "-c", "echo cannot bind >&2; exit 4"]
network = "bridge"
until = "ready"
ready = {kind = "tcp", port = 7654}
"""


@dataclass(frozen=True)
class Block:
    """The one block of a run that was interrupted after it."""

    directory: Path
    done: faults.Done
    trials: dict[tuple[str, str], dict[str, Any]]

    def ended(self, workload: str, arm: str) -> dict[str, Any]:
        """The trial of a workload on an arm."""
        return self.trials[arm, workload]


def one_block(folder: Path, workloads: str, arms: tuple[str, ...]) -> Block:
    """Run until a block is complete, then press Ctrl-C."""
    plan = folder / "plan.toml"
    plan.write_text(f"arms = {json.dumps(arms)}{HEAD}{workloads}")
    directory = folder / "run"
    count = workloads.count("[[workload]]") * len(arms)
    with faults.nothing_left():
        run = faults.Harness(
            "compare", "--wait", "--no-report", "--plan", plan, "--output", directory
        )
        try:
            run.until(lambda: len(faults.trials(directory)) >= count, 400)
            run.interrupt()
        finally:
            done = run.end(10)
    found = {(item["arm"], item["workload"]): item for item in faults.trials(directory)[:count]}
    return Block(directory, done, found)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Block:
    """Every kind of misbehaviour, as container and as process."""
    return one_block(tmp_path_factory.mktemp("native"), NATIVE_ONLY, NATIVE)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Block:
    """Those that a guest's kernel or channel decides about, as VM too."""
    return one_block(tmp_path_factory.mktemp("every"), IN_EVERY_ARM, ARMS)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a test does, nothing of it stays on the host."""
    with faults.nothing_left():
        yield


ENDINGS = {
    "missing": ("failed", "/bin/no-such-program: not found"),
    "not-executable": ("failed", "/etc/passwd: permission denied"),
    "signal": ("failed", "signal 11"),
    "disk": ("failed", "No space left on device"),
    "no-number": ("failed", "rate"),
    "closed-port": ("timeout", "port 7654 gave no useful reply within 6 s"),
    "dies-before-ready": ("failed", "before it was ready: exit status 4: cannot bind"),
    "one": ("failed", "exit status 1: some trouble"),
    "oom": ("failed", "out of memory (1 killed"),
    "hangs": ("timeout", "had not ended after 8 s"),
    "forks": ("failed", "exit status 5: "),
}


def assert_ended(block: Block, workload: str, arm: str) -> None:
    """The outcome, its reason, no figures, and everything released."""
    outcome, words = ENDINGS[workload]
    trial = block.ended(workload, arm)
    assert trial["outcome"] == outcome and words in trial["error"], trial
    assert trial["samples"] == []
    assert "released" in trial["timeline"]
    if trial["logs"]:
        assert (block.directory / trial["logs"]).stat().st_size
    if workload == "forks":  # many said so at once, so the last line may be any piece
        assert b"can't fork" in (block.directory / trial["logs"]).read_bytes()


@pytest.mark.parametrize("arm", NATIVE)
@pytest.mark.parametrize("workload", [name for name in ENDINGS if f'"{name}"' in NATIVE_ONLY])
@pytest.mark.alone
def test_misbehaviour_is_data(native: Block, workload: str, arm: str) -> None:
    """The trial says how it ended and why, holds no figures, and was released."""
    assert_ended(native, workload, arm)


@pytest.mark.vm
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("workload", [name for name in ENDINGS if f'"{name}"' in IN_EVERY_ARM])
@pytest.mark.alone
def test_misbehaviour_is_the_same_data_of_a_vm(every: Block, workload: str, arm: str) -> None:
    """In the same words for every arm."""
    assert_ended(every, workload, arm)


@pytest.mark.parametrize("arm", NATIVE)
@pytest.mark.alone
def test_output_of_any_size_is_no_fault(native: Block, arm: str) -> None:
    """64 MiB of it leave a trial what it is; of a VM see below."""
    trial = native.ended("loud", arm)
    assert trial["outcome"] == "ok" and trial["samples"], trial


@pytest.mark.vm
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.alone
def test_output_of_any_kind_is_no_fault(every: Block, arm: str) -> None:
    """Bytes that are no text neither."""
    trial = every.ended("binary", arm)
    assert trial["outcome"] == "ok" and trial["samples"], trial


@pytest.mark.alone
def test_ctrl_c_says_how_to_go_on(native: Block) -> None:
    """130, the command that resumes it, no traceback."""
    assert native.done.code == 130
    assert f"hvct resume {native.directory}" in native.done.err
    assert "Traceback" not in native.done.err


@pytest.mark.vm
@pytest.mark.alone
def test_the_report_of_a_failed_run_is_valid(every: Block) -> None:
    """Where hardly anything went well there is a report all the same, and it says so."""
    done = faults.hvct("report", every.directory, "--format", "html,json")
    assert done.code == 0, done
    page = (every.directory / "report.html").read_text()
    assert "No space left on device" in page and "signal 11" in page
    assert "trials were not separated by a settled host" in page
    assert not [t for t in every.trials.values() if "settle_s" in t["disturbances"]]
    shown = faults.hvct("show", every.directory)
    assert shown.code == 0 and "timed out" in shown.out


@pytest.mark.parametrize("arm", ["container", "process", pytest.param("vm", marks=pytest.mark.vm)])
def test_64_mib_come_through_whole(arm: str) -> None:
    """Both streams, 64 MiB together, with equal digests at the other end."""
    script = f"yes hvct | head -c {LOUD_BYTES}; yes err | head -c 1000000 >&2"
    done = faults.hvct("run", "--arm", arm, "busybox", "--", "sh", "-c", script)
    assert done.code == 0
    wanted = (b"hvct\n" * (LOUD_BYTES // 5 + 1))[:LOUD_BYTES]
    assert hashlib.sha256(done.out.encode()).digest() == hashlib.sha256(wanted).digest()
    assert len(done.err) == 1_000_000


SERVER = """
blocks = 6
gap = "none"
arms = ["container", "process"]
[[workload]]
name = "server"
image = "busybox"
argv = ["nc", "-ll", "-p", "{port}", "-e", "cat"]
network = "bridge"
until = "ready"
ready = {{kind = "tcp", port = {port}}}
timeout_s = 5
[[primary]]
metric = "startup_ready"
workload = "server"
"""


@pytest.mark.alone
def test_a_port_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """The process arm shares the host's ports: it declines, and is never measured by mistake."""
    plan = tmp_path / "plan.toml"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        plan.write_text(SERVER.format(port=port))
        done = faults.hvct(
            "compare",
            "--wait",
            "--no-report",
            "--quiet",
            "--plan",
            plan,
            "--output",
            tmp_path / "r",
        )
    done.says(3, "6 of 12 trials", f"port {port} is already in use", "hvct show")
    for trial in faults.trials(tmp_path / "r"):
        assert trial["outcome"] == ("refused" if trial["arm"] == "process" else "ok"), trial
        assert bool(trial["samples"]) == (trial["outcome"] == "ok")


@pytest.mark.alone
def test_a_failing_workload_ends_the_command_with_1(tmp_path: Path) -> None:
    """An image and a command, without a plan; every trial fails, is listed, and is in the report.

    The run is complete, and the exit code says that not all went well.
    """
    directory = tmp_path / "run"
    done = faults.hvct(
        *("compare", "--wait", "--quiet", "--arms", "container,process", "--blocks", "7"),
        *("--image", "busybox", "--output", directory, "--", "sh", "-c", "exit 3"),
    )
    done.says(1, "all 14 trials did not end well", "exit status 3", "hvct show", "logs")
    assert (directory / "report.html").stat().st_size
    assert faults.hvct("show", directory).out.count("exit status 3") >= 14
    stored = json.loads((directory / "run.json").read_text())
    assert stored["ended"]


@pytest.mark.vm
@pytest.mark.alone
def test_qemu_killed_in_mid_trial(tmp_path: Path) -> None:
    """SIGKILL to QEMU ends that trial as failed, with the reason; the run goes on."""
    run = faults.Harness(*faults.comparison(tmp_path, ("vm", "process"), sleep_s=1.0))

    def qemu() -> list[int]:
        return [pid for pid, line in run.processes().items() if "/qemu-system" in line]

    try:
        run.until(lambda: bool(faults.trials(tmp_path / "run")))
        before = len(faults.trials(tmp_path / "run"))
        run.until(lambda: bool(qemu()))
        time.sleep(0.7)  # it boots
        os.kill(qemu()[0], signal.SIGKILL)
        run.until(lambda: len(faults.trials(tmp_path / "run")) > before + 2)
        run.interrupt()
    finally:
        run.end()
    found = [trial for trial in faults.trials(tmp_path / "run") if trial["outcome"] != "ok"]
    assert [trial["arm"] for trial in found] == ["vm"]
    assert "QEMU ended with signal 9" in found[0]["error"]
