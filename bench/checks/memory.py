"""What changes the meaning of memory figures."""

from __future__ import annotations

from bench.checks.trap import GIB, Trap, gib, plural
from bench.checks.tree import Tree

LEAST_AVAILABLE = 2 * GIB
THP = "/sys/kernel/mm/transparent_hugepage/enabled"


def swap(tree: Tree) -> str | None:
    """Swap space that is on."""
    size = tree.memory_bytes("SwapTotal")
    return f"this host has {gib(size)} of swap" if size else None


def zswap(tree: Tree) -> str | None:
    """Compression in front of swap."""
    on = tree.text("/sys/module/zswap/parameters/enabled") == "Y"
    return "zswap compresses pages" if on and tree.memory_bytes("SwapTotal") else None


def ksm(tree: Tree) -> str | None:
    """Merging of equal pages."""
    on = tree.number("/sys/kernel/mm/ksm/run") == 1
    return "same-page merging (KSM) is on" if on else None


def thp(tree: Tree) -> str | None:
    """Huge pages for everybody."""
    return "transparent huge pages are always on" if tree.chosen(THP) == "always" else None


def huge_pages(tree: Tree) -> str | None:
    """Pages set aside at boot."""
    count = tree.memory_bytes("HugePages_Total")
    size = count * tree.memory_bytes("Hugepagesize")
    return f"{plural(count, 'huge page')} ({gib(size)}) are set aside" if count else None


def available(tree: Tree) -> str | None:
    """Little memory left."""
    left = tree.memory_bytes("MemAvailable")
    return f"{gib(left)} of memory are available" if 0 < left < LEAST_AVAILABLE else None


def overcommit(tree: Tree) -> str | None:
    """Strict accounting of what was promised."""
    strict = tree.number("/proc/sys/vm/overcommit_memory") == 2
    return (
        "the kernel promises no more memory than it has (overcommit_memory 2)" if strict else None
    )


def numa_balancing(tree: Tree) -> str | None:
    """Pages that move between nodes by themselves."""
    nodes = len(tree.glob("/sys/devices/system/node/node[0-9]*"))
    on = (tree.number("/proc/sys/kernel/numa_balancing") or 0) > 0
    return f"pages move by themselves between {nodes} NUMA nodes" if on and nodes > 1 else None


TRAPS = (
    Trap(
        "memory.swap", "warning", swap,
        "instances cannot swap (their groups forbid it), but the host can: pages that leave "
        "memory make idle instances look small",
        "swapoff -a for the time of the run",
    ),
    Trap(
        "memory.zswap", "info", zswap,
        "compressing takes CPU time that no instance is charged for",
        "swapoff -a, or echo N > /sys/module/zswap/parameters/enabled",
    ),
    Trap(
        "memory.ksm", "warning", ksm,
        "pages that several virtual machines share are counted once; the host's memory "
        "figures depend on what else runs",
        "echo 2 > /sys/kernel/mm/ksm/run",
    ),
    Trap(
        "memory.thp", "info", thp,
        "a small process may be charged 2 MiB at a touch, in every arm; with `madvise` "
        "memory figures are finer and QEMU still gets them",
        f"echo madvise > {THP}",
    ),
    Trap(
        "memory.huge-pages", "info", huge_pages,
        "nobody else can use that memory, and instances are not given any of it",
        "sysctl vm.nr_hugepages=0, where nothing needs them",
    ),
    Trap(
        "memory.low", "warning", available,
        "the page cache is squeezed while instances run: starts wait for the disk, and a "
        "virtual machine may not get its memory",
        "end other programs, or use a host with more memory",
    ),
    Trap(
        "memory.overcommit", "warning", overcommit,
        "a virtual machine's memory counts as used before it is touched, so fewer fit than "
        "containers, and starts may be refused",
        "sysctl vm.overcommit_memory=0",
    ),
    Trap(
        "memory.numa-balancing", "warning", numa_balancing,
        "moving pages costs time in whatever runs just then, most in virtual machines, whose "
        "pages are mapped twice",
        "sysctl kernel.numa_balancing=0 for the time of the run",
    ),
)  # fmt: skip
