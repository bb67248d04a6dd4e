"""Tuning a kernel for real; collected in the guest of test_cgroup_v2 alone, whose kernel it is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import settings, tuning
from bench.checks.tree import Tree
from bench.hostchange import swap_areas
from bench.settings import Cpus

pytestmark = pytest.mark.root
HERE = Tree()
KEPT = Cpus(measured=(1,), others=(0,))
UNIFIED = Path("/sys/fs/cgroup")
NOISE = {  # what makes this guest noisy; swap is on already
    "/sys/kernel/mm/transparent_hugepage/enabled": "always",
    "/sys/kernel/mm/ksm/run": "1",
    "/sys/devices/virtual/workqueue/cpumask": "3",
}
EXPECTED = {"thp", "ksm", "swap", "irq", "workqueue", "cpuset"}


@pytest.fixture
def members() -> Iterator[dict[str, int]]:
    """A process in a group of somebody else's, and one where instances are."""
    subprocess.run(["mount", "-o", "remount,rw", "/sys"], check=True)  # the agent's is read-only
    (UNIFIED / "cgroup.subtree_control").write_text("+cpuset")
    tasks = {}
    try:
        for name in ("other.slice", "hvct/tune"):
            (UNIFIED / name).mkdir(parents=True)
            tasks[name] = subprocess.Popen(["sleep", "300"])
            (UNIFIED / name / "cgroup.procs").write_text(str(tasks[name].pid))
        yield {name: task.pid for name, task in tasks.items()}
    finally:
        for task in tasks.values():
            task.kill()
            task.wait()
        for name in (*tasks, "hvct"):
            with contextlib.suppress(OSError):  # hvct: where other tests left it
                (UNIFIED / name).rmdir()


def state(members: dict[str, int]) -> dict[str, object]:
    """All that the settings are about, as the kernel tells it."""
    files = [HERE.name(path) for path in HERE.glob("/proc/irq/[0-9]*/smp_affinity_list")]
    return {
        **{name: HERE.text(name) for name in (*NOISE, *files, "/proc/irq/default_smp_affinity")},
        "swap": swap_areas(HERE),
        # Not cpuset.cpus: one that was empty may name all CPUs afterwards.
        "cpuset": HERE.text("/sys/fs/cgroup/other.slice/cpuset.cpus.effective"),
        **{f"CPUs of {name}": os.sched_getaffinity(pid) for name, pid in members.items()},
    }


def test_every_setting_of_this_kernel_is_undone_after_a_kill(members: dict[str, int]) -> None:
    """All are in force when the process that changed them is killed; then all are as before."""
    for name, value in NOISE.items():
        Path(name).write_text(value)
    before = state(members)
    rows = settings.survey(HERE, KEPT)
    print({row.setting.name: (row.state, row.told, row.obstacle) for row in rows})
    assert {row.setting.name for row in rows if row.state == "differs"} >= EXPECTED
    changes = [change for row in rows if row.state == "differs" for change in row.changes]
    child = os.fork()
    if child == 0:
        try:
            tuning.apply(changes, KEPT.measured, keep=False)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    record = tuning.read()
    assert record is not None and record.dead and set(record.settings) >= EXPECTED
    during = state(members)
    assert HERE.chosen("/sys/kernel/mm/transparent_hugepage/enabled") == "madvise"
    assert HERE.text("/sys/kernel/mm/ksm/run") == "2"
    assert settings.cpus_of_list(str(during["cpuset"])) == {0}
    assert during["swap"] == [] and before["swap"] != []
    assert during["CPUs of other.slice"] == {0} and during["CPUs of hvct/tune"] == {0, 1}
    assert int(HERE.text("/sys/devices/virtual/workqueue/cpumask") or "", 16) == 1
    assert any(
        during[name] == "0" != value for name, value in before.items() if "smp_affinity" in name
    )
    assert tuning.measured_cpus() == (1,)
    done = tuning.reset_dead()
    assert len(done) >= len(EXPECTED)
    assert state(members) == before
    assert tuning.read() is None
