"""Settings of a host are changed as the table says, and restored whatever happens in between.

The host is a folder of files, or files mounted over the kernel's own in a mount namespace: the
settings of the machine that runs the tests are only ever read.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import settings, tuning
from bench.checks import interference
from bench.checks.tree import Tree
from bench.errors import BadInput, HostCannot, HvctError
from bench.hostchange import Change, Kind
from bench.settings import CPUS, SETTINGS, Cpus, Setting

CHECKOUT = Path(__file__).resolve().parent.parent
KEPT = Cpus(measured=(3,), others=(0, 1))  # CPU 2 shares the measured one's core
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
GROUPS = "/sys/fs/cgroup"
NOISY = {
    f"{CPUS}/cpu0/cpufreq/scaling_governor": "powersave",
    f"{CPUS}/cpu0/cpufreq/scaling_available_governors": "performance powersave",
    f"{CPUS}/cpu1/cpufreq/scaling_governor": "schedutil",
    f"{CPUS}/intel_pstate/no_turbo": "0",
    f"{CPUS}/cpufreq/boost": "1",
    f"{CPUS}/smt/control": "on",
    f"{CPUS}/online": "0-3",
    f"{CPUS}/cpu0/topology/thread_siblings_list": "0,2",
    f"{CPUS}/cpu2/topology/thread_siblings_list": "0,2",
    f"{CPUS}/cpu1/topology/thread_siblings_list": "1,3",
    f"{CPUS}/cpu3/topology/thread_siblings_list": "1,3",
    "/sys/kernel/mm/ksm/run": "1",
    "/proc/sys/kernel/numa_balancing": "1",
    "/proc/sys/kernel/osrelease": "6.12.9-amd64",
    "/proc/irq/7/smp_affinity_list": "0-3",
    "/proc/irq/8/smp_affinity_list": "0,3",
    "/proc/irq/9/smp_affinity_list": "0-1",
    "/proc/irq/default_smp_affinity": "ffffffff",
    "/sys/devices/virtual/workqueue/cpumask": "f",
    f"{GROUPS}/cgroup.controllers": "cpuset cpu memory",
    f"{GROUPS}/cgroup.subtree_control": "cpuset cpu memory",
    f"{GROUPS}/system.slice/cgroup.procs": "",
    f"{GROUPS}/system.slice/cpuset.cpus": "",
    f"{GROUPS}/user.slice/cgroup.procs": "",
    f"{GROUPS}/user.slice/cpuset.cpus": "1-3",
    f"{GROUPS}/hvct/cgroup.procs": "",
    f"{GROUPS}/hvct/cpuset.cpus": "",
}
CALM = {  # setting → what the files that it changes are to hold
    "governor": {f"{CPUS}/cpu{n}/cpufreq/scaling_governor": "performance" for n in (0, 1)},
    "turbo": {f"{CPUS}/intel_pstate/no_turbo": "1", f"{CPUS}/cpufreq/boost": "0"},
    "ksm": {"/sys/kernel/mm/ksm/run": "2"},
    "numa-balancing": {"/proc/sys/kernel/numa_balancing": "0"},
    "irq": {
        "/proc/irq/7/smp_affinity_list": "0,1",
        "/proc/irq/8/smp_affinity_list": "0,1",
        "/proc/irq/default_smp_affinity": "3",
    },
    "workqueue": {"/sys/devices/virtual/workqueue/cpumask": "3"},
    "cpuset": {
        f"{GROUPS}/system.slice/cpuset.cpus": "0,1",
        f"{GROUPS}/user.slice/cpuset.cpus": "1",
    },
    "smt": {f"{CPUS}/smt/control": "off"},
}


def host(folder: Path, **files: str) -> Tree:
    """A host on which every setting makes figures noisier."""
    for name, text in {**NOISY, **files}.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return Tree(folder)


def contents(tree: Tree) -> dict[str, str]:
    """Every file of it but the lock of the record."""
    found = {path: path.read_text() for path in tree.root.rglob("*") if path.is_file()}
    return {tree.name(path): text for path, text in found.items() if path.suffix != ".lock"}


def named(name: str) -> Setting:
    """A row of the table."""
    return settings.select(name)[0]


def every_change(tree: Tree) -> list[Change]:
    """What the whole table would change, each file once."""
    found = [change for row in settings.survey(tree, KEPT) for change in row.changes]
    return [change for change in found if change.old != change.new]


def test_the_table_is_tested_whole() -> None:
    """A new row needs a case here; transparent huge pages and swap need a kernel (a guest's)."""
    assert set(CALM) | {"thp", "swap"} == set(settings.NAMES)
    text = (CHECKOUT / "docs/tune.md").read_text()
    for setting in SETTINGS:
        assert setting.about.meaning
        assert f"| `{setting.name}` | {setting.title}" in text and f"| `{setting.trap}` |" in text


@pytest.mark.parametrize("name", CALM)
def test_a_setting_is_changed_and_restored(name: str, tmp_path: Path) -> None:
    """The files hold what is wanted, no other file is touched, and afterwards all is as before."""
    tree = host(tmp_path)
    before = contents(tree)
    changes = named(name).changes(tree, KEPT)
    with tuning.applied(changes, KEPT.measured, tree):
        now = contents(tree)
        del now[str(tuning.record_path(Tree()))]
        assert {path: text.strip() for path, text in now.items() if text != before[path]} == (
            CALM[name]
        )
        if name != "smt":  # which also keeps what the kernel forgets
            assert named(name).changes(tree, KEPT) == []
    assert contents(tree) == before


def test_a_host_that_is_as_wanted_is_left_alone(tmp_path: Path) -> None:
    """Nothing to change is found where everything is quiet already."""
    tree = host(tmp_path, **{path: text for files in CALM.values() for path, text in files.items()})
    assert [row.state for row in settings.survey(tree, KEPT) if row.state == "differs"] == []
    bare = settings.survey(Tree(tmp_path / "nothing"), KEPT)
    assert {row.state for row in bare} == {"absent"}


@dataclass(frozen=True)
class Deadly(Change):
    """A change in the middle of which its process is killed."""

    def make(self, tree: Tree) -> bool:
        """Change it, then die."""
        super().make(tree)
        os.kill(os.getpid(), signal.SIGKILL)
        return True


def in_a_child(action: object) -> int:
    """Run something in a fork; the signal that ended it, or its exit status."""
    child = os.fork()
    if child == 0:
        try:
            action()  # type: ignore[operator]
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def test_a_process_killed_at_any_change_is_undone_by_the_next(tmp_path: Path) -> None:
    """Whatever it had changed by then was written down before, for both commands."""
    tree = host(tmp_path)
    before, changes = contents(tree), every_change(tree)
    assert len(changes) > 10
    for place, change in enumerate(changes):
        deadly = [*changes[:place], Deadly(**vars(change)), *changes[place + 1 :]]
        keep = bool(place % 2)
        assert in_a_child(lambda d=deadly, k=keep: tuning.apply(d, (3,), tree, keep=k)) == 9
        assert contents(tree) != before
        named_before = tuning.reset_dead(tree, dry_run=True)
        done = tuning.reset_dead(tree)
        assert len(done) == place + 1 and set(done) <= set(named_before)
        assert contents(tree) == before
        assert tuning.reset_dead(tree) == []


def test_what_is_kept_stands_until_reset(tmp_path: Path) -> None:
    """No other command undoes it, a second one is refused, and reset restores all of it."""
    tree = host(tmp_path)
    before = contents(tree)
    assert in_a_child(lambda: tuning.apply(every_change(tree), (3,), tree, keep=True)) == 0
    assert tuning.reset_dead(tree) == []
    record = tuning.read(tree)
    assert record is not None and record.kept and record.measured == (3,)
    with pytest.raises(HostCannot, match="changed already") as refused:
        tuning.apply(record.changes, (3,), tree, keep=False)
    assert "hvct tune reset" in refused.value.hint
    assert len(tuning.reset(tree)) == len(record.changes)
    assert contents(tree) == before


def test_settings_of_a_living_process_are_its_own(tmp_path: Path) -> None:
    """Nobody else resets what a running comparison has changed."""
    tree = host(tmp_path)
    with tuning.applied(named("ksm").changes(tree, KEPT), (3,), tree):

        def reset() -> None:
            try:
                tuning.reset(tree)
            except HostCannot:
                os._exit(7)

        assert in_a_child(reset) == 7
        assert tree.text("/sys/kernel/mm/ksm/run") == "2"


def test_all_or_nothing(tmp_path: Path) -> None:
    """A change without effect undoes those before it; one that cannot begin lets none begin."""
    tree = host(tmp_path)
    (tmp_path / "sink").symlink_to("/dev/null")  # takes what is written, and forgets it
    before = contents(tree)
    good = named("ksm").changes(tree, KEPT)
    for path, why in (("/sink", "is ''"), ("/proc/irq", "irq")):
        with pytest.raises(HostCannot, match=why):
            tuning.apply([*good, Change("x", Kind.TEXT, path, "", "1")], (3,), tree, keep=False)
        assert contents(tree) == before
    refused = Change("x", Kind.TEXT, "/sink", "", "1", optional=True)
    assert tuning.apply([*good, refused], (3,), tree, keep=True) == good
    record = tuning.read(tree)
    assert record is not None and record.changes == tuple(good)


def test_what_cannot_be_restored_is_told_and_kept(tmp_path: Path) -> None:
    """The rest is restored, the record stays for another try, and a hint says what to write."""
    tree = host(tmp_path)
    tuning.apply(every_change(tree), (3,), tree, keep=True)
    stuck = tree.path("/sys/kernel/mm/ksm/run")
    stuck.unlink()
    stuck.symlink_to("/dev/null")
    with pytest.raises(HvctError, match="1 of") as told:
        tuning.reset(tree)
    assert "'1' to /sys/kernel/mm/ksm/run" in told.value.hint
    record = tuning.read(tree)
    assert record is not None and [change.setting for change in record.changes] == ["ksm"]
    assert tree.text(f"{CPUS}/smt/control") == "on"
    stuck.unlink()
    stuck.write_text("2\n")
    assert len(tuning.reset(tree)) == 1


def test_after_a_reboot_nothing_is_restored(tmp_path: Path) -> None:
    """Settings of another boot are gone by themselves; today's may be somebody's choice."""
    tree = host(tmp_path, **{tuning.BOOT_ID: "one"})
    tuning.apply(named("ksm").changes(tree, KEPT), (3,), tree, keep=True)
    tree.path(tuning.BOOT_ID).write_text("two")
    assert tuning.reset(tree) == []
    assert tree.text("/sys/kernel/mm/ksm/run") == "2" and tuning.read(tree) is None


OBSTACLES = {
    "governor": {f"{CPUS}/cpu0/cpufreq/scaling_available_governors": "powersave ondemand"},
    "swap": {
        "/proc/swaps": "Filename Type Size Used Priority\n/swap.img file 1000 900 -2",
        "/swap.img": "",
        "/proc/meminfo": "SwapTotal: 1000 kB\nSwapFree: 100 kB\nMemAvailable: 1000 kB",
    },
    "cpuset": {
        "/proc/sys/kernel/osrelease": "6.1.0-9-amd64",
        f"{GROUPS}/system.slice/ntp.service/cgroup.procs": "77",
        "/proc/77/status": "Cpus_allowed_list:\t1",
    },
    "smt": {"/proc/88/task/88/status": "VmSize:\t1 kB\nCpus_allowed_list:\t2-3"},
}
LOST = {
    "a swap file that is gone": {"/proc/swaps": "Filename\n/lost file 1000 0 -2"},
    "discard": {
        "/proc/swaps": "Filename\n/swap.img file 1000 0 5",
        "/swap.img": "",
        "/etc/fstab": "/swap.img none swap sw,discard 0 0",
    },
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_could_not_be_undone_is_refused(name: str, tmp_path: Path) -> None:
    """It is left alone with the reason; without the obstacle it would be changed."""
    row = settings.survey(host(tmp_path / "bad", **OBSTACLES[name]), KEPT, [named(name)])[0]
    assert row.state == "cannot" and row.obstacle
    if name != "swap":
        assert settings.survey(host(tmp_path), KEPT, [named(name)])[0].state == "differs"


@pytest.mark.parametrize("case", LOST)
def test_swap_that_would_not_come_back_is_refused(case: str, tmp_path: Path) -> None:
    """An area that cannot be found again, or whose options the kernel does not tell."""
    (row,) = settings.survey(host(tmp_path, **LOST[case]), KEPT, [named("swap")])
    assert row.state == "cannot"


def test_cgroup_1_loses_cpus_that_go_offline(tmp_path: Path) -> None:
    """A cpuset of version 1 does not get a CPU back, so SMT stays on where one holds any."""
    tree = host(tmp_path, **{f"{GROUPS}/cpuset/tasks": "", f"{GROUPS}/cpuset/a/cpuset.cpus": "3"})
    tree.path(f"{GROUPS}/cgroup.controllers").unlink()
    assert "for good" in (named("smt").obstacle(tree, KEPT) or "")
    tree.path(f"{GROUPS}/cpuset/a/cpuset.cpus").write_text("0-1\n")
    assert named("smt").obstacle(tree, KEPT) is None


def test_without_a_cpu_to_spare_nothing_is_moved(tmp_path: Path) -> None:
    """Interrupts, kernel work and programs need a CPU to go to."""
    rows = settings.survey(host(tmp_path), Cpus((0, 1, 2, 3), ()))
    cannot = {row.setting.name for row in rows if row.state == "cannot"}
    assert cannot == {"irq", "workqueue", "cpuset"}


def test_masks_are_written_as_the_kernel_reads_them() -> None:
    """Groups of 32 bits, on hosts of more CPUs too."""
    for cpus in ((0,), (0, 1, 31), (0, 32, 63), (64, 95)):
        mask = Cpus((), cpus).words["mask"]
        assert all(len(group) == 8 for group in mask.split(",")[1:])
        assert interference.cpus_of_mask(mask) == set(cpus)
    with pytest.raises(BadInput, match="no setting 'turbos'"):
        settings.select("thp,turbos")
