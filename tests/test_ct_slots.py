"""A container born in a control group that waited for it is a container like any other."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from launching import make, soon, until

from bench import arms, registry
from bench.agent.session import AgentSession
from bench.cgroupfs import layout
from bench.cgroupfs import version as cgroup_version
from bench.context import RunContext
from bench.errors import HvctError, LaunchFailed, Refused
from bench.identity import FieldClass, differences
from bench.model import Event, Image, Limits, Security
from ct import steps
from ct.backend import ContainerBackend
from ct.slots import PARKED, SlotBackend
from ct.steps import NOTHING, Steps
from ct.wire import LaunchRequest, StepFailed

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or cgroup_version() != 1, reason="on cgroup v2 nothing is parked"
    ),
]
CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture
def backend(context: RunContext) -> Iterator[SlotBackend]:
    """The arm."""
    with registry.make(arms.ARMS["container:slot"], context) as arm:
        assert isinstance(arm, SlotBackend)
        yield arm


def groups(tag: str) -> list[str]:
    """Instances' control groups of a run, in the memory hierarchy."""
    top = layout().controllers["memory"] / "hvct" / tag
    return sorted(path.name for path in top.iterdir() if path.is_dir()) if top.is_dir() else []


def parked(backend: SlotBackend) -> list[int]:
    """Process ids of the helpers that wait, which they do once they have joined."""
    found = []
    for slots in backend._slots.values():
        for slot in slots:
            assert slot.parked is not None
            slot.parked.await_parked()
            assert slot.parked.pid is not None
            found.append(slot.parked.pid)
    return found


def has_children(pid: int, wanted: set[int]) -> bool:
    """Whether these are the children of a process, zombies included."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return {int(word) for word in text.split()} == wanted


def alive(pid: int) -> bool:
    """Whether a process is there; zombies do not count."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def gone(pid: int) -> bool:
    """Whether it is not."""
    return not alive(pid)


@pytest.mark.parametrize("security", list(Security))
def test_it_is_a_container(
    context: RunContext, backend: SlotBackend, busybox: Image, security: Security
) -> None:
    """The same output, exit status and receipt as the arm container; no step joins a group."""
    seen = []
    with ContainerBackend(context) as container:
        for arm in (container, backend):
            script = "cat /proc/self/cgroup; id; hostname | wc -c; exit 7"
            made = make(context, busybox, "sh", "-c", script, security=security)
            arm.prepare(made)
            with arm.launch(made) as instance:
                assert instance.wait(Event.EXITED, soon())
                facts = instance.describe()
                assert instance.exit is not None and instance.exit.code == 7
                seen.append((instance.stdout, dict(instance.receipt)))
                final = instance.release()
                assert final["cgroup_cpu_s"] > 0 and final["peak_bytes"] > 0
                assert "rusage_user_s" in final
    assert seen[0][0] == seen[1][0]
    pair = ("container:slot", "container")
    assert [
        difference
        for difference in differences(seen[1][1], seen[0][1], pair, security.value)
        if difference.field_class is FieldClass.MUST_MATCH
    ] == []
    assert facts["join"] == PARKED
    steps = facts["steps_us"]
    assert isinstance(steps, dict) and steps and not any(" join" in name for name in steps)


def test_it_is_the_launchers_child_in_a_group_of_its_own(
    context: RunContext, backend: SlotBackend, busybox: Image
) -> None:
    """Born in the slot's group in every hierarchy; the helper that cloned it is gone."""
    made = make(context, busybox, "sleep", "60")
    backend.prepare(made)
    (helper,) = parked(backend)
    with backend.launch(made) as instance:
        assert instance.wait(Event.STARTED, soon())
        pid = instance.launched.pid
        (slot,) = {path.name for path in instance.cgroup.directories}  # type: ignore[union-attr]
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        assert sum(line.endswith(f":/hvct/{context.tag}/{slot}") for line in lines) >= 4
        assert f"\nPPid:\t{backend.worker.pid}\n" in Path(f"/proc/{pid}/status").read_text()
        assert until(lambda: not Path(f"/proc/{helper}").exists())  # reaped, too
        assert instance.cgroup.pids()[0] == pid  # type: ignore[union-attr]
        assert groups(context.tag) == [slot]
    (following,) = groups(context.tag)  # a fresh one waits for the next instance
    assert following > slot
    assert parked(backend) != [helper]


def test_limits_hold(context: RunContext, backend: SlotBackend, busybox: Image) -> None:
    """Processes, CPUs and memory are those of the instance that is launched, not of another."""
    limits = Limits(memory_bytes=32 << 20, pids=20)
    script = "grep Cpus_allowed_list /proc/self/status; for i in $(seq 40); do sleep 5 & done"
    made = make(context, busybox, "sh", "-c", script, limits=limits, cpu_set=(1,))
    with backend.launch(made) as instance:
        assert instance.wait(Event.EXITED, soon())
        assert instance.stdout.split() == [b"Cpus_allowed_list:", b"1"]
        assert b"fork" in instance.stderr
    hungry = make(context, busybox, "sh", "-c", "tail /dev/zero", limits=limits)
    with backend.launch(hungry) as instance:
        assert instance.wait(Event.EXITED, soon())
        assert instance.exit is not None and instance.exit.code != 0
        assert instance.oom_kills() >= 1


def test_a_failing_step_takes_its_slot_along(
    context: RunContext, backend: SlotBackend, busybox: Image
) -> None:
    """The step is named, the child is reaped, its group removed; the next launch has another."""
    made = make(context, busybox, "true")
    backend.prepare(made)
    for _ in range(3):
        before = groups(context.tag)
        with pytest.raises(StepFailed, match="hostname"):
            backend.launch(dataclasses.replace(made, hostname="x" * 80))
        assert len(before) == len(groups(context.tag)) == 1
        assert before != groups(context.tag)
    assert not backend.worker._exited
    with backend.launch(made) as instance:
        assert instance.wait(Event.EXITED, soon())


def test_what_a_slot_cannot_do(context: RunContext, backend: SlotBackend, busybox: Image) -> None:
    """No group, no slot; no user namespace from a slot; a group that cannot be joined is said."""
    with pytest.raises(Refused):
        backend.launch(make(context, busybox, "true", accounting=False))
    slot = backend.worker.park("slot-userns", NOTHING)
    slot.await_parked()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        request = LaunchRequest("x", 0, (), theirs.fileno(), user_map="0 0 1")
        slot.launch(request)
        with pytest.raises(HvctError, match="user namespace"):
            slot.launched(request)
    slot.close()
    slot = backend.worker.park("slot-join", Steps([steps.join("no/such/group/tasks")]))
    with pytest.raises(StepFailed, match="join"):
        slot.await_parked()
    slot.close()
    for _ in range(2):  # only one launch, and nothing but a launch
        slot = backend.worker.park("slot-other", NOTHING)
        slot.await_parked()
        slot.send([("request", "setup"), ("id", "x")], [], ())
        assert slot.answer("x")[0]["reply"] == "bad"
        slot.close()
    assert backend.worker.setup(()) == -1


def test_many_launches_leak_nothing(
    context: RunContext, backend: SlotBackend, busybox: Image
) -> None:
    """Sixty ends that come before the helper's answer: each is reported, no descriptor stays."""
    counts = []
    for number in range(60):
        with backend.launch(make(context, busybox, "true")) as instance:
            assert instance.wait(Event.EXITED, soon())
            assert "rusage_user_s" in instance.release()
        if number in (5, 59):
            helpers = set(parked(backend))
            worker = backend.worker.pid
            assert until(functools.partial(has_children, worker, helpers))
            counts.append(
                (
                    len(os.listdir("/proc/self/fd")),
                    len(os.listdir(f"/proc/{worker}/fd")),
                    len(groups(context.tag)),
                    len(helpers),
                    len(backend.worker._exited),
                )
            )
    assert counts[0] == counts[1]


def test_an_end_bears_the_name_of_the_slot(context: RunContext, backend: SlotBackend) -> None:
    """Its end is reported under the slot's name, whatever the request was called."""
    slot = backend.worker.park("slot-fast", NOTHING)
    slot.await_parked()
    ours, theirs = socket.socketpair()
    session = AgentSession(ours)
    with theirs:
        request = LaunchRequest("fast", 0, (), theirs.fileno())
        slot.launch(request)
        launched = slot.launched(request)
    session.close()  # the agent ends with its channel
    assert launched.id == "slot-fast"
    ended = backend.worker.wait_exited("slot-fast", 5)
    os.close(launched.pidfd)
    slot.close()
    assert ended is not None and ended.monotonic_ns >= launched.born_ns


@pytest.mark.parametrize("reads", ["launch", "reserve"])
def test_a_helper_that_was_killed_is_replaced(
    context: RunContext, backend: SlotBackend, busybox: Image, reads: str
) -> None:
    """SIGKILL to one that waits: its group goes, and another takes the launch."""
    made = make(context, busybox, "echo", "on")
    backend.prepare(made)
    before = groups(context.tag)
    for pid in parked(backend):
        os.kill(pid, signal.SIGKILL)
        assert until(functools.partial(gone, pid))
    assert len(before) == 1
    if reads == "reserve":
        backend.reserve([made, made])
        assert len(parked(backend)) == 2
    with backend.launch(made) as instance:
        assert instance.wait(Event.EXITED, soon())
        assert instance.stdout == b"on\n"
    assert backend.worker.alive
    assert before[0] not in groups(context.tag)


def test_a_killed_launcher_takes_all_along(context: RunContext, busybox: Image) -> None:
    """SIGKILL to the launcher: helpers and instances die, and the next launch has new ones."""
    with SlotBackend(context) as backend:
        made = make(context, busybox, "sh", "-c", "sleep 300 & sleep 300")
        with backend.launch(made) as instance:
            assert instance.wait(Event.STARTED, soon())
            backend.reserve([made])
            (helper,) = parked(backend)
            pids = (*instance.cgroup.pids(), helper)  # type: ignore[union-attr]
            os.kill(backend.worker.pid, signal.SIGKILL)
            with pytest.raises(LaunchFailed, match="launcher"):
                instance.wait(Event.EXITED, soon())
            assert until(lambda: not any(map(alive, pids)))
        with backend.launch(make(context, busybox, "echo", "again")) as instance:
            assert instance.wait(Event.EXITED, soon())
            assert instance.stdout == b"again\n"


HARNESS = """
import sys
from pathlib import Path
from bench.image.busybox import busybox_image
from bench.journal import open_run
from bench.model import InstanceSpec
from ct.slots import SlotBackend
with open_run(Path(sys.argv[1])) as context, SlotBackend(context) as backend:
    kept = []
    for number in range(1, 10**9):
        argv = ("sh", "-c", "(setsid sleep 300 &); sleep 300")
        name = context.instance(number)
        spec = InstanceSpec(name, busybox_image(), argv, env=(("PATH", "/bin"),))
        backend.reserve([spec, spec])
        kept.append(backend.launch(spec))
        if len(kept) > 4:
            kept.pop(0).release()
        print(context.tag, flush=True)
"""


@pytest.mark.parametrize("after_s", [0.0, 0.1])
def test_a_killed_harness_leaves_nothing(after_s: float, tmp_path: Path) -> None:
    """SIGKILL to the harness in the midst of launching: everything is gone within 5 s."""
    before = faults.traces()
    with subprocess.Popen(
        [sys.executable, "-c", HARNESS, str(tmp_path)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    ) as harness:
        assert harness.stdout is not None
        tag = harness.stdout.readline().strip()
        assert tag and groups(tag)
        time.sleep(after_s)
        harness.kill()
    assert faults.await_gone(before) == []
    assert until(lambda: not groups(tag)), groups(tag)
