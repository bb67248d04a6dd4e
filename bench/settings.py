"""The host's settings that `hvct tune` knows: which files, which value, why, and when not.

What a setting does to the numbers is said once, by its trap (`bench.checks`). Here is how it is
changed, as data; `bench.tuning` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.checks import cpu, interference, memory
from bench.checks.interference import GROUPS, OTHERS, WORKQUEUES, cpus_of_list
from bench.checks.memory import THP
from bench.checks.trap import Trap
from bench.checks.tree import Tree
from bench.errors import BadInput
from bench.hostchange import Change, Kind, allowed_cpus, current, same, swap_areas

CPUS = cpu.CPUS
IRQS = "/proc/irq/[0-9]*/smp_affinity_list"
KEPT = "{old}"  # changed by something else, and to be restored with it
AFFINITY_IS_KEPT = (6, 2)  # from this kernel on a task's own affinity outlives its cpuset's
TRAPS = {trap.code: trap for trap in (*cpu.TRAPS, *memory.TRAPS, *interference.TRAPS)}


@dataclass(frozen=True)
class Cpus:
    """Which CPUs are for what while the settings are in force.

    Attributes:
        measured: what instances are pinned to.
        others: the rest, for everything else; empty where the host has none.
    """

    measured: tuple[int, ...]
    others: tuple[int, ...]

    @property
    def words(self) -> dict[str, str]:
        """`others` in the kernel's ways of writing them."""
        bits = sum(1 << number for number in self.others)
        return {"list": ",".join(map(str, self.others)), "mask": _mask(bits)}


def _mask(bits: int) -> str:
    """Groups of 32 bits, as bitmap_parse wants them."""
    groups = [f"{bits & 0xFFFFFFFF:x}"]
    while bits := bits >> 32:
        groups = [f"{bits & 0xFFFFFFFF:x}", groups[0].zfill(8), *groups[1:]]
    return ",".join(groups)


@dataclass(frozen=True)
class Target:
    """Files of one kind and the value they are to have.

    Attributes:
        pattern: of their paths.
        kind: how they are read and written.
        wanted: the value; ``{list}`` and ``{mask}`` are the CPUs of the others, ``{old}`` the
            value they have (kept to be restored).
        when: only where they have one of these values; empty: whatever they have.
        optional: the kernel refuses it for some.
    """

    pattern: str
    kind: Kind
    wanted: str
    when: tuple[str, ...] = ()
    optional: bool = False


def nothing(_tree: Tree, _cpus: Cpus) -> str | None:
    """No obstacle."""
    return None


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Attributes:
        name: what ``--only`` calls it.
        title: one line saying what is done.
        trap: code of what it does to the numbers.
        targets: the files.
        obstacle: why it could not be undone, or not be done, on this host; None where it can.
        find: changes that a pattern cannot describe.
        exists: whether the host has such a thing, where the targets do not tell.
    """

    name: str
    title: str
    trap: str
    targets: tuple[Target, ...] = ()
    obstacle: Callable[[Tree, Cpus], str | None] = nothing
    find: Callable[[Tree, Cpus], list[Change]] | None = None
    exists: Callable[[Tree], bool] | None = None

    @property
    def about(self) -> Trap:
        """What it does to the numbers."""
        return TRAPS[self.trap]

    def there(self, tree: Tree) -> bool:
        """Whether this host has such a setting."""
        if self.exists is not None:
            return self.exists(tree)
        return any(tree.glob(target.pattern) for target in self.targets if target.wanted != KEPT)

    def now(self, tree: Tree) -> str:
        """Its values, each once; "" where no file tells."""
        values = {
            current(tree, target.kind, tree.name(path)): None
            for target in self.targets
            if target.wanted != KEPT
            for path in tree.glob(target.pattern)
        }
        return ", ".join(value for value in values if value)

    def changes(self, tree: Tree, cpus: Cpus) -> list[Change]:
        """What would have to be changed on this host; empty where it is as wanted."""
        if self.find is not None:
            return self.find(tree, cpus)
        found = []
        for target in self.targets:
            for path in tree.glob(target.pattern):
                name = tree.name(path)
                old = current(tree, target.kind, name)
                if old is None or (target.when and old not in target.when):
                    continue
                new = target.wanted.format(old=old, **cpus.words)
                if target.wanted == KEPT or not same(target.kind, old, new):
                    found.append(
                        Change(self.name, target.kind, name, old, new, optional=target.optional)
                    )
        return found if any(change.old != change.new for change in found) else []


def _no_performance(tree: Tree, _cpus: Cpus) -> str | None:
    for path in tree.glob(f"{CPUS}/cpu[0-9]*/cpufreq/scaling_available_governors"):
        offered = tree.words(tree.name(path))
        if "performance" not in offered:
            return f"the kernel offers only {', '.join(offered)}"
    return None


def _no_spare(_tree: Tree, cpus: Cpus) -> str | None:
    return None if cpus.others else "the instances take all CPUs: none is left for the rest"


def _swap_obstacle(tree: Tree, _cpus: Cpus) -> str | None:
    used = tree.memory_bytes("SwapTotal") - tree.memory_bytes("SwapFree")
    if used > tree.memory_bytes("MemAvailable") // 2:
        return f"{used >> 20} MiB are swapped out, too much to be read back into memory"
    tuned = {
        line.split()[0]
        for line in (tree.text("/etc/fstab") or "").splitlines()
        if len(line.split()) > 3 and "swap" in line.split()[2] and "discard" in line.split()[3]
    }
    for path, _priority in swap_areas(tree):
        if not tree.there(path):
            return f"{path} is not to be found here, and could not be switched on again"
        if path in tuned or any("=" in name for name in tuned):
            return f"{path} may be in use with discard, which would be lost"
    return None


def _swaps(tree: Tree, _cpus: Cpus) -> list[Change]:
    # The last to be used is switched off first, so that undoing gives the old order.
    return [
        Change("swap", Kind.SWAP, path, priority, "off")
        for path, priority in reversed(swap_areas(tree))
    ]


def _version(tree: Tree) -> int:
    """Of the control groups; 0 where there are no cpusets."""
    if "cpuset" in tree.words(f"{GROUPS}/cgroup.controllers"):
        return 2
    return 1 if tree.there(f"{GROUPS}/cpuset/tasks") else 0


def _cpusets(tree: Tree, cpus: Cpus) -> list[Change]:
    """Everybody else's groups lose the measured CPUs (ours, below ``hvct``, keep them)."""
    if _version(tree) == 1:
        group = f"{GROUPS}/cpuset/{OTHERS}"
        old = current(tree, Kind.OTHERS, group) or "none"
        new = cpus.words["list"]
        done = same(Kind.OTHERS, old, new)
        return [] if done else [Change("cpuset", Kind.OTHERS, group, old, new)]
    if _version(tree) == 0:
        return []
    found = []
    for folder in tree.glob(f"{GROUPS}/*/cgroup.procs"):
        name = tree.name(folder.parent)
        old = tree.text(f"{name}/cpuset.cpus") or ""
        left = cpus_of_list(old) & set(cpus.others) if old else frozenset(cpus.others)
        if folder.parent.name == "hvct":
            continue
        if cpus.others and (cpus_of_list(old) == left or not left):
            continue
        value = ",".join(map(str, sorted(left)))
        found.append(Change("cpuset", Kind.LIST, f"{name}/cpuset.cpus", old, value))
    control = f"{GROUPS}/cgroup.subtree_control"
    if found and current(tree, Kind.CONTROLLER, control) == "-cpuset":
        found.insert(0, Change("cpuset", Kind.CONTROLLER, control, "-cpuset", "+cpuset"))
    return found


def _cpuset_obstacle(tree: Tree, cpus: Cpus) -> str | None:
    if reason := _no_spare(tree, cpus):
        return reason
    if _version(tree) == 2 and tree.kernel_version < AFFINITY_IS_KEPT:
        # Its own affinity is overwritten when the cpuset of its group changes.
        whole = cpus_of_list(tree.text(f"{CPUS}/online") or "")
        for path in tree.glob(f"{GROUPS}/*"):
            if path.name == "hvct":
                continue
            for procs in [path / "cgroup.procs", *path.rglob("*/cgroup.procs")]:
                for pid in tree.words(tree.name(procs)):
                    allowed = allowed_cpus(tree.path(f"/proc/{pid}/status"))
                    if allowed and allowed != whole:
                        return (
                            f"process {pid} has an affinity of its own, which Linux before 6.2 "
                            "would forget"
                        )
    return None


def siblings_off(tree: Tree) -> frozenset[int]:
    """The CPUs that go offline without SMT: all but the first thread of each core."""
    gone: set[int] = set()
    for path in tree.glob(f"{CPUS}/cpu[0-9]*/topology/thread_siblings_list"):
        number = int(path.parent.parent.name.removeprefix("cpu"))
        threads = cpus_of_list(tree.text(tree.name(path)) or "")
        if threads and number != min(threads):
            gone.add(number)
    return frozenset(gone)


def _smt_obstacle(tree: Tree, _cpus: Cpus) -> str | None:
    gone = siblings_off(tree)
    if not gone:
        return "which CPUs share a core is not known"
    if _version(tree) == 1:
        for path in tree.glob(f"{GROUPS}/cpuset/*/cpuset.cpus"):
            held = cpus_of_list(tree.text(tree.name(path)) or "")
            if held & gone and path.parent.name != OTHERS:
                return f"cpuset {path.parent.name} would lose its CPUs for good (cgroup version 1)"
    for path in tree.glob("/proc/[0-9]*/task/[0-9]*/status"):
        text = tree.text(tree.name(path)) or ""
        allowed = allowed_cpus(path)
        if "VmSize:" in text and allowed and allowed <= gone:  # the kernel's own are parked
            return f"process {path.parts[-4]} is tied to CPUs that would go offline"
    return None


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "governor", "CPU frequency governor to performance", "cpu.governor",
        (Target(f"{CPUS}/cpu[0-9]*/cpufreq/scaling_governor", Kind.TEXT, "performance"),),
        _no_performance,
    ),
    Setting(
        "turbo", "no frequencies above the nominal one", "cpu.turbo",
        (
            Target(f"{CPUS}/intel_pstate/no_turbo", Kind.TEXT, "1", ("0",)),
            Target(f"{CPUS}/cpufreq/boost", Kind.TEXT, "0", ("1",)),
        ),
    ),
    Setting(
        "thp", "transparent huge pages only where asked for", "memory.thp",
        (Target(THP, Kind.CHOICE, "madvise", ("always",)),),
    ),
    Setting(
        "ksm", "no same-page merging; merged pages are copied apart", "memory.ksm",
        (Target("/sys/kernel/mm/ksm/run", Kind.TEXT, "2", ("1",)),),
    ),
    Setting(
        "numa-balancing", "pages stay on their NUMA node", "memory.numa-balancing",
        (Target("/proc/sys/kernel/numa_balancing", Kind.TEXT, "0"),),
    ),
    Setting(
        "swap", "every swap area off", "memory.swap", (), _swap_obstacle, _swaps,
        lambda tree: tree.there("/proc/swaps"),
    ),
    Setting(
        "irq", "device interrupts to the other CPUs", "cpu.interrupts",
        (
            Target(IRQS, Kind.LIST, "{list}", optional=True),  # managed ones stay
            Target("/proc/irq/default_smp_affinity", Kind.MASK, "{mask}"),
        ),
        _no_spare,
    ),
    Setting(
        "workqueue", "the kernel's unbound work to the other CPUs", "cpu.workqueues",
        (Target(WORKQUEUES, Kind.MASK, "{mask}"),),
        _no_spare,
    ),
    Setting(
        "cpuset", "everybody else's programs to the other CPUs", "cpu.other-programs",
        (), _cpuset_obstacle, _cpusets, lambda tree: _version(tree) > 0,
    ),
    # The last, so that undoing begins with it: without its CPUs nothing else can be restored.
    Setting(
        "smt", "one hardware thread per core", "cpu.smt",
        (
            Target(f"{CPUS}/smt/control", Kind.TEXT, "off", ("on",)),
            Target(IRQS, Kind.LIST, KEPT, optional=True),  # the kernel moves and forgets them
        ),
        _smt_obstacle,
    ),
)  # fmt: skip
NAMES = tuple(setting.name for setting in SETTINGS)


@dataclass(frozen=True)
class Row:
    """One setting on one host: what would be changed, or why it is left alone.

    Attributes:
        present: the host has it.
        now: its values, where they are as wanted.
    """

    setting: Setting
    changes: tuple[Change, ...]
    obstacle: str | None = None
    present: bool = True
    now: str = ""

    @property
    def state(self) -> str:
        """``absent``, ``as wanted``, ``differs`` or ``cannot``."""
        if not self.present:
            return "absent"
        if not self.changes:
            return "as wanted"
        return "cannot" if self.obstacle else "differs"

    @property
    def told(self) -> str:
        """``powersave → performance (8 files)``."""
        real = [change for change in self.changes if change.old != change.new]
        kinds = list(dict.fromkeys((change.old or "all", change.new) for change in real))
        shown = ", ".join(f"{old} → {new}" for old, new in kinds[:3])
        more = f" and {len(kinds) - 3} more" if len(kinds) > 3 else ""
        files = f" ({len(real)} files)" if len(real) > 1 else ""
        return f"{shown}{more}{files}"


def select(only: str | Sequence[str] | None) -> tuple[Setting, ...]:
    """The settings that a list of names means; None: all.

    Raises:
        BadInput: there is none of that name.
    """
    if only is None:
        return SETTINGS
    names = [name.strip() for name in only.split(",")] if isinstance(only, str) else list(only)
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise BadInput(f"there is no setting {unknown[0]!r}", f"choose from {', '.join(NAMES)}")
    return tuple(setting for setting in SETTINGS if setting.name in names)


def survey(tree: Tree, cpus: Cpus, chosen: Sequence[Setting] = SETTINGS) -> list[Row]:
    """How a host stands to each setting. Reads only."""
    rows = []
    for setting in chosen:
        changes = tuple(setting.changes(tree, cpus))
        reason = setting.obstacle(tree, cpus) if changes else None
        rows.append(Row(setting, changes, reason, setting.there(tree), setting.now(tree)))
    return rows
