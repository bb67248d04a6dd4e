"""Who else uses this host."""

from __future__ import annotations

from bench.checks.trap import Trap, plural
from bench.checks.tree import Tree

VMMS = ("qemu-system-", "qemu-kvm", "firecracker", "cloud-hyperviso", "VBoxHeadless")
SHIMS = ("containerd-shim", "conmon", "crio-conmon", "systemd-nspawn")


def load(tree: Tree) -> str | None:
    """More that wants to run than there are CPUs, for minutes."""
    words = tree.words("/proc/loadavg")
    if len(words) > 1 and float(words[1]) > max(1, tree.cpu_count):
        return f"the load over the last five minutes was {float(words[1]):g}"
    return None


def others(tree: Tree) -> str | None:
    """Virtual machines and containers of others."""
    names = [tree.text(tree.name(path)) or "" for path in tree.glob("/proc/[0-9]*/comm")]
    machines = sum(name.startswith(VMMS) for name in names)
    containers = sum(name.startswith(SHIMS) for name in names)
    if not machines + containers:
        return None
    return f"{plural(machines, 'virtual machine')} and {plural(containers, 'container')} run here"


TRAPS = (
    Trap(
        "load.average", "warning", load,
        "instances wait for a CPU: times are longer and spread more, in every arm",
        "wait, or end other work",
    ),
    Trap(
        "load.tenants", "info", others,
        "what they do at the same moment falls on some trials and not on others; blocks "
        "balance it, and disturbances are recorded",
        "stop them for the time of the run, or use a host of which you have all",
    ),
)  # fmt: skip
