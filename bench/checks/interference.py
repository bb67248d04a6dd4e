"""What else the kernel may do on the CPUs that instances are pinned to."""

from __future__ import annotations

from bench.checks.trap import Trap, plural
from bench.checks.tree import Tree

WORKQUEUES = "/sys/devices/virtual/workqueue/cpumask"
GROUPS = "/sys/fs/cgroup"
OTHERS = "hvct-others"
"""The cpuset of version 1 into which `hvct tune` puts everybody else."""


def cpus_of_list(text: str) -> frozenset[int]:
    """``0-2,7`` as numbers."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.strip().isdigit():
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def cpus_of_mask(text: str) -> frozenset[int]:
    """``00000000,0000000f`` as numbers."""
    bits = int(text.strip().replace(",", "") or "0", 16)
    return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)


def pinned_cpu(tree: Tree) -> int | None:
    """The CPU an instance of one CPU is pinned to; None where the host has no other."""
    allowed = tree.fields("/proc/self/status").get("Cpus_allowed_list", "")
    cpus = cpus_of_list(allowed)
    return max(cpus) if len(cpus) > 1 else None


def interrupts(tree: Tree) -> str | None:
    """Devices whose interrupts may arrive there."""
    cpu = pinned_cpu(tree)
    if cpu is None:
        return None
    files = tree.glob("/proc/irq/[0-9]*/smp_affinity_list")
    count = sum(cpu in cpus_of_list(tree.text(tree.name(path)) or "") for path in files)
    return f"{plural(count, 'interrupt')} may arrive on the instances' CPUs" if count else None


def workqueues(tree: Tree) -> str | None:
    """Kernel work that is bound to no CPU, and may run there."""
    cpu = pinned_cpu(tree)
    on = cpu is not None and cpu in cpus_of_mask(tree.text(WORKQUEUES) or "")
    return "the kernel's unbound work may run on the instances' CPUs" if on else None


def other_programs(tree: Tree) -> str | None:
    """Everybody else's programs, by their cpusets."""
    cpu = pinned_cpu(tree)
    if cpu is None:
        return None
    if tree.there(f"{GROUPS}/cgroup.controllers"):
        sets = [
            tree.text(tree.name(path)) or ""
            for path in tree.glob(f"{GROUPS}/*/cpuset.cpus")
            if path.parent.name != "hvct"  # instances live below it
        ]
        open_to_all = any(not text or cpu in cpus_of_list(text) for text in sets)
    else:
        cpusets = f"{GROUPS}/cpuset"
        open_to_all = tree.there(f"{cpusets}/tasks") and not tree.there(f"{cpusets}/{OTHERS}")
    return "other programs may run on the instances' CPUs" if open_to_all else None


TRAPS = (
    Trap(
        "cpu.interrupts", "info", interrupts,
        "an instance stands still while its CPU serves a device: single trials are slower, in "
        "every arm",
        "hvct tune apply --only irq, or hvct compare --tune-only irq",
    ),
    Trap(
        "cpu.workqueues", "info", workqueues,
        "work of the kernel for others (writing to disks, network) takes time from whatever "
        "instance is there",
        "hvct tune apply --only workqueue, or hvct compare --tune-only workqueue",
    ),
    Trap(
        "cpu.other-programs", "info", other_programs,
        "the scheduler may put them beside an instance, whose trial is then slower; disturbances "
        "show it",
        "hvct tune apply --only cpuset, or hvct compare --tune-only cpuset",
    ),
)  # fmt: skip
