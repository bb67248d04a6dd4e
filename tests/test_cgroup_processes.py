"""Limits and accounting of control groups, by processes that really use things up."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import enter

from bench import cgroupfs, pagecache
from bench.cgroup import Cgroup, CgroupLimits, remove_all
from bench.errors import HvctError

pytestmark = [pytest.mark.root, pytest.mark.alone]
TAG = f"t{os.getpid() % 10000:04d}"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    remove_all(TAG)
    assert not any((mount / "hvct" / TAG).exists() for mount in cgroupfs.layout().mounts)


def make(**limits: object) -> Cgroup:
    """A group of this test's run."""
    return Cgroup.create(TAG, "one", CgroupLimits(**limits))  # type: ignore[arg-type]


def start(group: Cgroup, code: str) -> subprocess.Popen[bytes]:
    """Run Python code in a process that is in the group from before its exec."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=functools.partial(enter, group),
    )


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Close its standard input and wait; exit status and output."""
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


def test_one_cpu_second_reads_so() -> None:
    """A process that burns 1.0 CPU seconds is charged 1.0 s within 2 %, as wait4 says."""
    group = make()
    process = start(group, "import time\nwhile time.process_time() < 1.0: pass")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    finish(process)
    used = group.cpu()
    assert used.total_s == pytest.approx(1.0, rel=0.02)
    assert used.total_s == pytest.approx(usage.ru_utime + usage.ru_stime, rel=0.02)
    assert used.user_s + used.system_s == pytest.approx(used.total_s, rel=0.01)
    group.remove()


def test_64_mib_touched_read_so() -> None:
    """Touching 64 MiB adds 64 MiB of anonymous memory, by group and by smaps."""
    group = make()
    process = start(
        group,
        "import mmap, sys\n"
        "print('up', flush=True); sys.stdin.readline()\n"
        "m = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "for i in range(0, 64 << 20, 4096): m[i] = 1\n"
        "print('touched', flush=True); sys.stdin.readline()",
    )
    assert process.stdin and process.stdout
    process.stdout.readline()
    before, before_pss = group.memory(), group.process_memory()
    process.stdin.write(b"\n")
    process.stdin.flush()
    process.stdout.readline()
    after, after_pss = group.memory(), group.process_memory()
    assert before.anon_bytes is not None and after.anon_bytes is not None
    assert after.anon_bytes - before.anon_bytes == pytest.approx(64 * MIB, abs=2 * MIB)
    assert after_pss.pss_anon_bytes - before_pss.pss_anon_bytes == pytest.approx(64 * MIB, abs=MIB)
    assert after.current_bytes is not None and after.current_bytes >= 64 * MIB
    if after.peak_bytes is not None:  # cgroup v2 has it from Linux 5.19
        assert after.peak_bytes >= 64 * MIB
    assert group.pids() == (process.pid,)
    finish(process)
    group.remove()


def test_tmpfs_files_are_shmem_and_not_page_cache(tmp_path: Path) -> None:
    """What an instance writes to a tmpfs is one definition, what it reads from disk another."""
    image = tmp_path / "image"
    image.write_bytes(os.urandom(8 * MIB))
    if cgroupfs.statfs_type(tmp_path) == 0x01021994:
        pytest.skip("the temporary folder is a tmpfs: nothing is read from a disk there")
    pagecache.drop(image)
    name = f"/dev/shm/hvct-{TAG}"
    group = make()
    code = f"open({name!r}, 'wb').write(bytes(16 << 20)); open({str(image)!r}, 'rb').read()"
    try:
        finish(start(group, code))
        seen = group.memory()
    finally:
        Path(name).unlink()
    assert seen.shmem_bytes == pytest.approx(16 * MIB, abs=2 * MIB)
    assert seen.file_bytes is not None and seen.file_bytes >= 7 * MIB
    assert seen.anon_bytes is not None and seen.anon_bytes < 4 * MIB
    group.remove()


def test_too_much_memory_is_killed_and_counted() -> None:
    """A process over the limit gets SIGKILL, and the group says that memory was the reason."""
    group = make(memory_bytes=32 * MIB)
    code, _ = finish(
        start(group, "b = bytearray(64 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1")
    )
    assert code == -signal.SIGKILL
    assert group.oom_kills() == 1
    group.remove()


def test_no_oom_kill_is_no_oom_kill() -> None:
    """A group whose processes ended by themselves counts none."""
    group = make(memory_bytes=64 * MIB)
    assert finish(start(group, "pass"))[0] == 0
    assert group.oom_kills() == 0
    group.remove()


def test_swap_is_off_by_default() -> None:
    """No instance may swap unless it was asked for: memory figures would shrink by themselves."""
    group = make(memory_bytes=64 * MIB)
    memory = group.directory("memory")
    if group.where.version == 2:
        assert cgroupfs.read_text(memory / "memory.swap.max").strip() == "0"
    else:
        assert cgroupfs.read_number(memory / "memory.swappiness") == 0
        both = cgroupfs.read_number(memory / "memory.memsw.limit_in_bytes")
        assert both in (None, 64 * MIB)
    group.remove()


def test_processes_are_limited() -> None:
    """Forking stops at the limit, with an error inside and none outside."""
    group = make(pids=8)
    code = (
        "import os, time\nn = 0\n"
        "try:\n while n < 50:\n  if not os.fork(): time.sleep(60)\n  n += 1\n"
        "except BlockingIOError: print(n, flush=True)"
    )
    process = start(group, code)
    assert process.stdout
    assert process.stdout.readline() == b"7\n"
    assert len(group.pids()) <= 8
    group.remove()
    finish(process)


def test_a_quota_slows_down_and_is_counted() -> None:
    """0.1 CPU seconds at a tenth of a CPU take far longer, and throttling is recorded."""
    group = make(cpu_quota=0.1)
    began = time.monotonic()
    finish(start(group, "import time\nwhile time.process_time() < 0.1: pass"))
    assert time.monotonic() - began > 0.5
    used = group.cpu()
    # Not more: on a busy host it waits for the CPU instead.
    assert used.throttled_periods >= 1
    assert used.throttled_s > 0
    group.remove()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPUs")
def test_a_cpu_set_pins() -> None:
    """Everything in the group runs on the CPUs given, and on nothing else."""
    group = make(cpu_set=(1,))
    _, out = finish(start(group, "import os; print(sorted(os.sched_getaffinity(0)))"))
    assert out == b"[1]\n"
    group.remove()


def test_without_a_cpu_set_all_cpus_are_allowed() -> None:
    """An empty set limits nothing."""
    group = make()
    _, out = finish(start(group, "import os; print(len(os.sched_getaffinity(0)))"))
    assert int(out) == os.cpu_count()
    group.remove()


def test_counters_survive_the_processes() -> None:
    """Final values may be read after everything has exited, until the group is removed."""
    group = make()
    finish(start(group, "b = bytearray(32 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1"))
    assert group.pids() == ()
    assert group.cpu().total_s > 0
    peak = group.memory().peak_bytes
    assert peak is None or peak >= 32 * MIB
    group.remove()


def test_a_fork_bomb_is_gone() -> None:
    """Removing a group whose processes fork without end leaves neither processes nor group."""
    group = make(pids=64)
    process = start(
        group,
        "import os, time\nwhile True:\n try: os.fork()\n except OSError: time.sleep(0.01)",
    )
    deadline = time.monotonic() + 5
    while len(group.pids()) < 32 and time.monotonic() < deadline:
        time.sleep(0.01)
    pids = group.pids()
    assert len(pids) >= 32
    group.remove()
    finish(process)
    assert not any(directory.exists() for directory in group.directories)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_remove_takes_child_groups_and_may_be_repeated() -> None:
    """Groups that an instance made below its own go too; a second remove does nothing."""
    group = make()
    for directory in group.directories:
        (directory / "inner" / "inmost").mkdir(parents=True)
    group.remove()
    group.remove()
    assert not any(directory.exists() for directory in group.directories)


def test_descriptors_are_closed_on_exec_and_by_remove() -> None:
    """What counters are read through never leaks into a program, and ends with the group."""
    group = make()
    before = len(os.listdir("/proc/self/fd"))
    group.cpu()
    group.memory()
    descriptors = list(group._fds.values())
    assert descriptors and len(os.listdir("/proc/self/fd")) == before + len(descriptors)
    assert not any(os.get_inheritable(descriptor) for descriptor in descriptors)
    group.remove()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_limit_that_the_kernel_refuses_leaves_nothing() -> None:
    """A CPU that does not exist is an error naming the value, and no directory stays."""
    with pytest.raises(HvctError, match="4095"):
        make(cpu_set=(4095,))
    assert not any((m / "hvct" / TAG / "one").exists() for m in cgroupfs.layout().mounts)


def test_a_name_is_given_once() -> None:
    """A group that is there already is never taken over: its counters are not fresh."""
    group = make()
    with pytest.raises(HvctError, match="File exists"):
        make()
    assert group.directories[0].exists()
    group.remove()


def test_groups_are_made_again_after_somebody_removed_their_parent() -> None:
    """A cleaner that took the empty parent away does not stop the next instance."""
    make().remove()
    for mount in cgroupfs.layout().mounts:
        (mount / "hvct" / TAG).rmdir()
    make().remove()


def test_remove_all_ends_everything_of_one_run_only() -> None:
    """Cleaning one run kills its processes and leaves another run's alone."""
    other = Cgroup.create(f"{TAG}x", "one")
    try:
        survivor = start(other, "import sys; sys.stdin.read()")
        victim = start(make(), "import sys; sys.stdin.read()")
        assert len(remove_all(TAG)) == len(cgroupfs.layout().mounts)
        assert finish(victim)[0] == -signal.SIGKILL
        assert survivor.poll() is None
        assert finish(survivor)[0] == 0
    finally:
        remove_all(f"{TAG}x")


def test_pressure_is_reported_where_the_kernel_has_it() -> None:
    """Stalls of a throttled group are seen through PSI."""
    group = make(cpu_quota=0.2)
    finish(start(group, "import time\nwhile time.process_time() < 0.1: pass"))
    pressure = group.pressure()
    if "cpu" not in pressure:
        pytest.skip("this kernel reports no pressure per group")
    assert pressure["cpu"] > 0
    group.remove()
