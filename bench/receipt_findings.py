"""What the receipts of a run's arms differ in that its reader must know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.arms import pairs
from bench.identity import shown
from bench.model import Finding, NetworkMode


def kernels(run: Mapping[str, Any]) -> Iterator[Finding]:
    """A VM's kernel is another one than its baseline's."""
    names = [
        item["name"]
        for item in run["plan"]["workloads"]
        if item.get("network", NetworkMode.NONE) != NetworkMode.NONE
    ]
    network = f", on start-up of {', '.join(names)} (network)" if names else ""
    for arms, own, baseline, other in _apart(run, "release"):
        yield Finding(
            "guest-kernel-differs",
            "warning",
            f"{', '.join(arms)} {'runs' if len(arms) == 1 else 'run'} Linux {shown(own)}, "
            f"{baseline} Linux {shown(other)}",
            f"on every memory row, on run times and CPU (system calls, disk){network}, the figures "
            "mix kernel version and virtualisation",
            f"give {'both' if len(arms) == 1 else 'all'} the same kernel: --kernel FILE",
        )


def _apart(run: Mapping[str, Any], field: str) -> Iterator[tuple[list[str], Any, str, Any]]:
    """Arms that are alike in a field of their receipts, its value, their baseline, and its value.

    Only where the two values are known and not the same.
    """
    values = {item["arm"]: item["receipt"].get(field) for item in run["receipts"]}
    alike: dict[tuple[str, str], list[str]] = {}
    for arm, baseline in pairs(run["plan"]["arms"]):
        own, other = values.get(arm), values.get(baseline)
        if own and other and own != other:
            alike.setdefault((str(own), baseline), []).append(arm)
    for (_, baseline), arms in alike.items():
        yield arms, values[arms[0]], baseline, values[baseline]


def sizes_seen(run: Mapping[str, Any]) -> Iterator[Finding]:
    """A container sees the host's CPUs, a guest its own: programs that look may do other work."""
    for arms, own, baseline, other in _apart(run, "cpus_online"):
        yield Finding(
            "cpus-seen-differ",
            "info",
            f"{', '.join(arms)} {'shows its' if len(arms) == 1 else 'show their'} workload CPUs "
            f"{shown(own)}, {baseline} CPUs {shown(other)}",
            "all may use equally many, but a program that starts a thread for each CPU it "
            "sees starts more in one of them (the same goes for memory)",
            "tell the workload its number of threads",
        )
