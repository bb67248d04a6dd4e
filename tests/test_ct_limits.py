"""Limits hold in both arms of the launcher, and what the kernel did about them is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.backend import Instance
from bench.context import RunContext
from bench.errors import LaunchFailed
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec, Limits
from ct.backend import ContainerBackend, LauncherBackend
from ct.process import ProcessBackend

pytestmark = [pytest.mark.root, pytest.mark.alone]
ENV = (("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"),)
MIB = 1 << 20
NUMBERS = iter(range(1, 100000))


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run."""
    with open_run(tmp_path_factory.mktemp("run")) as run:
        yield run


@pytest.fixture(scope="module", params=[ContainerBackend, ProcessBackend])
def backend(request: pytest.FixtureRequest, context: RunContext) -> Iterator[LauncherBackend]:
    """Both arms of the launcher."""
    with request.param(context) as arm:
        yield arm


def soon(seconds: float = 20.0) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


def start(arm: LauncherBackend, image: Image, script: str, **changes: object) -> Instance:
    """Launch a shell script."""
    id = arm.context.instance(next(NUMBERS))
    return arm.launch(InstanceSpec(id, image, ("sh", "-c", script), env=ENV, **changes))  # type: ignore[arg-type]


def test_too_much_memory_is_an_oom_kill(backend: LauncherBackend, busybox: Image) -> None:
    """A workload beyond its memory limit is killed by the kernel, and that is told."""
    script = "tail /dev/zero; echo $?"  # a line without end, kept in memory
    with start(backend, busybox, script, limits=Limits(memory_bytes=24 * MIB)) as instance:
        assert instance.wait(Event.EXITED, soon())
        assert instance.stdout == b"137\n"
        assert instance.oom_kills() == 1
        memory = instance.memory()
        assert memory is not None and memory.peak_bytes is not None
        assert 20 * MIB < memory.peak_bytes <= 24 * MIB
    assert instance.oom_kills() == 1  # still known after the release


def test_too_little_memory_for_the_agent_is_said(busybox: Image, context: RunContext) -> None:
    """A limit below what starting takes ends as one line that says so, and leaves nothing."""
    with (
        ContainerBackend(context) as arm,
        pytest.raises(LaunchFailed) as caught,
        start(arm, busybox, "true", limits=Limits(memory_bytes=128 << 10)) as instance,
    ):
        instance.wait(Event.EXITED, soon())
    assert "\n" not in caught.value.message and caught.value.hint


def test_writable_layer_counts_against_memory(backend: LauncherBackend, busybox: Image) -> None:
    """What is written to the root is memory of the instance, by name."""
    with start(
        backend, busybox, "dd if=/dev/zero of=/x bs=1M count=16 2>/dev/null; sleep 60"
    ) as instance:
        assert instance.wait(Event.STARTED, soon())
        deadline, shmem = soon(), 0
        while time.monotonic_ns() < deadline and shmem < 16 * MIB:
            time.sleep(0.05)
            memory = instance.memory()
            assert memory is not None and memory.shmem_bytes is not None
            shmem = memory.shmem_bytes
        assert 16 * MIB <= shmem < 17 * MIB


def test_a_fork_bomb_is_bounded(backend: LauncherBackend, busybox: Image) -> None:
    """Forking without end meets the pids limit; releasing it leaves no process."""
    script = """awk 'BEGIN { while (1) system("sleep 300 &") }' 2>/dev/null"""
    with start(backend, busybox, script, limits=Limits(pids=40)) as instance:
        assert instance.wait(Event.STARTED, soon())
        deadline, pids = soon(), ()
        while len(pids) < 20 and time.monotonic_ns() < deadline:
            time.sleep(0.3)
            pids = instance.cgroup.pids()  # type: ignore[attr-defined]
        assert 20 <= len(pids) <= 40
        instance.release()
    assert not any(Path(f"/proc/{pid}/ns").exists() and _is_ours(pid, instance) for pid in pids)


def _is_ours(pid: int, instance: Instance) -> bool:
    try:
        return instance.spec.id in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def test_a_full_disk_is_the_workloads_affair(backend: LauncherBackend, busybox: Image) -> None:
    """Filling the disk fails inside at the limit; nothing outside grows."""
    script = "cat /dev/zero > /fill; stat -c %s /fill"
    limits = Limits(writable_bytes=8 * MIB)
    with start(backend, busybox, script, limits=limits) as instance:
        assert instance.wait(Event.EXITED, soon())
        assert b"No space left" in instance.stderr
        assert 7 * MIB < int(instance.stdout) <= 8 * MIB


@pytest.mark.parametrize("accounting", [True, False])
def test_cpu_set_holds(backend: LauncherBackend, busybox: Image, accounting: bool) -> None:
    """The instance sees and uses the CPUs it was given, with and without a control group."""
    script = "nproc; grep Cpus_allowed_list /proc/self/status | cut -f2"
    with start(backend, busybox, script, cpu_set=(0,), accounting=accounting) as instance:
        assert instance.wait(Event.EXITED, soon())
        assert instance.stdout.split() == [b"1", b"0"]
        assert (instance.cpu() is None) == (not accounting)


def test_cpu_quota_throttles(backend: LauncherBackend, busybox: Image) -> None:
    """A fifth of a CPU: the group is throttled, and its CPU time says so."""
    with start(backend, busybox, "while :; do :; done", cpu_quota=0.2) as instance:
        assert instance.wait(Event.STARTED, soon())
        before, began = instance.cpu(), time.monotonic()
        time.sleep(0.8)
        after, took = instance.cpu(), time.monotonic() - began
        assert before and after and after.throttled_periods > 0 and after.throttled_s > 0
        assert 0.1 * took < after.total_s - before.total_s < 0.45 * took


def test_cpu_time_is_the_workloads(backend: LauncherBackend, busybox: Image) -> None:
    """The group's counter, the workload's own rusage and the launcher's agree."""
    script = "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done"
    with start(backend, busybox, script) as instance:
        assert instance.wait(Event.EXITED, soon(60.0))  # in an emulated guest, too (test_cgroup_v2)
        assert instance.exit is not None
        own = instance.exit.user_s + instance.exit.system_s
        final = instance.release()
    outside = final["rusage_user_s"] + final["rusage_system_s"]
    assert own <= outside < 1.05 * own + 0.1
    # What the child does before it has joined is the launcher's: a millisecond.
    assert final["cgroup_cpu_s"] == pytest.approx(outside, rel=0.05, abs=0.005)
