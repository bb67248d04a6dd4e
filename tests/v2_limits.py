"""What only cgroup v2 can show; collected in the guest of test_cgroup_v2 alone.

The limits are read back by the names of the kernel's own documentation and then felt: a
wrong name in the code fails here, even where the kernel takes the value.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from bench import cgroupfs
from bench.cgroup import Cgroup, CgroupLimits
from bench.context import RunContext
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec, Limits
from ct.backend import ContainerBackend, LauncherBackend
from ct.instance import LauncherInstance
from ct.process import ProcessBackend
from ct.slots import MADE, SlotBackend

pytestmark = pytest.mark.root
MIB = 1 << 20
NUMBERS = count(1)
UNIFIED = Path("/sys/fs/cgroup")
TAKE_32_MIB = "dd if=/dev/zero of=/dev/null bs=32M count=1 2>/dev/null; echo $?"


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run."""
    with open_run(tmp_path_factory.mktemp("run")) as run:
        yield run


@pytest.fixture(scope="module", params=[ContainerBackend, ProcessBackend])
def arm(request: pytest.FixtureRequest, context: RunContext) -> Iterator[LauncherBackend]:
    """Both arms of the launcher."""
    with request.param(context) as backend:
        yield backend


def start(arm: LauncherBackend, image: Image, script: str, **changes: object) -> LauncherInstance:
    """Launch a shell script."""
    name = arm.context.instance(next(NUMBERS))
    spec = InstanceSpec(name, image, ("sh", "-c", script), env=(("PATH", "/bin"),), **changes)  # type: ignore[arg-type]
    return arm.launch(spec)


def soon(seconds: float = 30.0) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


def end(instance: LauncherInstance) -> str:
    """What it printed."""
    assert instance.wait(Event.EXITED, soon())
    return instance.stdout.decode().strip()


def file(instance: LauncherInstance, name: str) -> str:
    """A file of its group, found through the process itself and not through our code."""
    (line,) = Path(f"/proc/{instance.launched.pid}/cgroup").read_text().split()
    return (UNIFIED / line.removeprefix("0::/") / name).read_text().strip()


def test_the_hierarchy_is_unified() -> None:
    """Version 2 is recognised, and the controllers are handed down to our groups."""
    assert cgroupfs.statfs_type(UNIFIED) == cgroupfs.CGROUP2_MAGIC
    assert cgroupfs.version() == 2
    group = Cgroup.create("rv200", "one")
    handed = (group.directories[0] / "cgroup.controllers").read_text().split()
    group.remove()
    assert {"cpu", "cpuset", "memory", "pids"} <= set(handed)


def test_born_in_its_group(arm: LauncherBackend, busybox: Image) -> None:
    """clone3 puts it there: the launcher was given no other way, and says so."""
    with start(arm, busybox, "cat /proc/self/cgroup; sleep 60") as instance:
        assert instance.wait(Event.STARTED, soon())
        groups = Path(f"/proc/{instance.launched.pid}/cgroup").read_text()
        assert groups == f"0::/hvct/{arm.context.tag}/{instance.spec.id}\n"
        facts = instance.describe()
        assert facts["join"] == "clone3 into the cgroup"
        steps = facts["steps_us"]
        assert isinstance(steps, dict) and not any("join" in step for step in steps)


def test_memory_max(arm: LauncherBackend, busybox: Image) -> None:
    """The limit is in force: over it the kernel kills, memory.events counts, peak is the limit."""
    limits = Limits(memory_bytes=24 * MIB)
    with start(arm, busybox, TAKE_32_MIB, limits=limits) as instance:
        assert instance.wait(Event.STARTED, soon())
        assert end(instance) == "137"
        assert file(instance, "memory.max") == str(24 * MIB)
        assert "oom_kill 1" in file(instance, "memory.events").splitlines()
        assert instance.oom_kills() == 1
        memory = instance.memory()
        assert memory is not None and memory.peak_bytes is not None
        assert 20 * MIB < memory.peak_bytes <= 24 * MIB
        assert file(instance, "memory.peak") == str(memory.peak_bytes)


def test_memory_swap_max(arm: LauncherBackend, busybox: Image) -> None:
    """Swap is what was given: with 32 MiB of it the same fits, without any it does not."""
    script = f"{TAKE_32_MIB}; cat /dev/stdin"
    for swap_bytes, status in ((32 * MIB, "0"), (0, "137")):
        limits = Limits(memory_bytes=24 * MIB, swap_bytes=swap_bytes)
        with start(arm, busybox, script, limits=limits) as instance:
            assert end(instance) == status
            assert file(instance, "memory.swap.max") == str(swap_bytes)
            assert (instance.oom_kills() == 0) == bool(swap_bytes)


def test_cpu_max(arm: LauncherBackend, busybox: Image) -> None:
    """A fifth of a CPU: throttled, and cpu.stat says how often and how much was used."""
    with start(arm, busybox, "while :; do :; done", cpu_quota=0.2) as instance:
        assert instance.wait(Event.STARTED, soon())
        before, began = instance.cpu(), time.monotonic()
        time.sleep(1.0)
        after, took = instance.cpu(), time.monotonic() - began
        assert file(instance, "cpu.max") == "20000 100000"
        assert before and after and after.throttled_periods > before.throttled_periods
        assert after.throttled_s > before.throttled_s
        assert after.total_s - before.total_s < 0.45 * took
        stat = dict(line.split() for line in file(instance, "cpu.stat").splitlines())
        assert int(stat["usage_usec"]) / 1e6 >= after.total_s
        assert after.user_s + after.system_s == pytest.approx(after.total_s, rel=0.01)


def test_pids_max(arm: LauncherBackend, busybox: Image) -> None:
    """Forking without end stops at the limit, and pids.events has counted it."""
    script = """awk 'BEGIN { while (1) system("sleep 300 &") }' 2>/dev/null"""
    with start(arm, busybox, script, limits=Limits(pids=20)) as instance:
        assert instance.wait(Event.STARTED, soon())
        deadline = soon(4.0)
        while file(instance, "pids.events") == "max 0" and time.monotonic_ns() < deadline:
            time.sleep(0.05)
        assert file(instance, "pids.max") == "20"
        assert file(instance, "pids.events") != "max 0"
        assert instance.cgroup is not None and len(instance.cgroup.pids()) <= 20


def test_cpuset_cpus(arm: LauncherBackend, busybox: Image) -> None:
    """It runs on the CPU it was given; the group has no other."""
    script = "nproc; grep Cpus_allowed_list /proc/self/status | cut -f2; sleep 60"
    with start(arm, busybox, script, cpu_set=(1,)) as instance:
        assert instance.wait(Event.STARTED, soon())
        assert file(instance, "cpuset.cpus.effective") == "1"
    with start(arm, busybox, script.replace("; sleep 60", ""), cpu_set=(1,)) as instance:
        assert end(instance).split() == ["1", "1"]


def test_a_group_is_killed_at_once() -> None:
    """By cgroup.kill: all processes are gone, and no limit had to be changed for that."""
    group = Cgroup.create("rv200", "kill", CgroupLimits(pids=8))
    child = subprocess.Popen(["sleep", "300"])
    group.join(child.pid)
    group.kill()
    assert child.wait(10) == -9
    assert (group.directories[0] / "pids.max").read_text() == "8\n"
    group.remove()
    assert not group.directories[0].exists()


def test_a_slot_is_a_group_that_was_made_before(context: RunContext, busybox: Image) -> None:
    """container:slot parks no helper here: the instance is born in a group that waits for it."""
    limits = Limits(memory_bytes=64 * MIB, pids=33)
    with SlotBackend(context) as arm:
        for _ in range(2):
            instance = start(arm, busybox, "sleep 60", limits=limits)
            with instance:
                assert instance.wait(Event.STARTED, soon())
                assert instance.cgroup is not None and instance.cgroup.name.startswith("slot-")
                assert file(instance, "memory.max") == str(64 * MIB)
                assert file(instance, "pids.max") == "33"
                assert instance.describe()["join"] == MADE
                used = UNIFIED / "hvct" / context.tag / instance.cgroup.name
                assert used.is_dir()
            (waiting,) = (slot.cgroup.name for slots in arm._slots.values() for slot in slots)
            assert not used.exists() and used.with_name(waiting).is_dir()
    assert not used.with_name(waiting).exists()
