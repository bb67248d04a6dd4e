"""Why a comparison is refused, or cannot be decided, whatever its numbers say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.findings import flushes_apart
from bench.numbers import format_percent

if TYPE_CHECKING:
    from reports.series import Group, Values

NOT_THE_SAME = "not the same work"

WORK_FAMILIES = frozenset({"cpu", "workload"})
"""Families that compare work done, so that CPU flags and mitigations must match."""

DISK_FAMILIES = WORK_FAMILIES | {"disk"}
DISK_METRICS = frozenset({"run_wall"})
"""What compares only where the arms made their writes durable equally often."""

EFFICIENCY = frozenset({"cpu_window", "work_per_cpu_second"})
LEAST_ATTRIBUTED = 0.9
"""With less of the host's CPU time attributed to the instance, efficiency is undecided."""


def reason(values: Values, group: Group, arm: str, baseline: str) -> str:
    """Why two arms are not compared in this metric of this workload, "" where they are."""
    family = values.definition(group.metric).get("family")
    for item in values.run.identity:
        if (item.arm, item.baseline) == (arm, baseline):
            apart = item.refused.get(group.workload, "")
            if family in WORK_FAMILIES:
                apart = apart or item.work_refused.get(group.workload, "")
            if apart:
                return f"{NOT_THE_SAME}: {apart}"
    twice = values.doubly_cached & {arm, baseline}
    if family == "memory" and twice:
        return f"the image of {' and '.join(sorted(twice))} is cached twice"
    if family in DISK_FAMILIES or group.metric in DISK_METRICS:
        return _flushes(values, group.workload, (arm, baseline))
    return ""


def _flushes(values: Values, workload: str, arms: tuple[str, str]) -> str:
    own, other = (values.flushes.get((workload, arm)) for arm in arms)
    if own is None or other is None or not flushes_apart(own, other):
        return ""
    return (
        f"not equally durable: {own:g} flushes reached the scratch disk of {arms[0]}, "
        f"{other:g} that of {arms[1]}"
    )


def unattributed(values: Values, group: Group, arms: tuple[str, str]) -> str:
    """Why CPU efficiency is undecided: too much of the host's work was nobody's."""
    if group.metric not in EFFICIENCY:
        return ""
    for arm in arms:
        part = values.run.attributed.get((group.workload, arm), 1.0)
        if part < LEAST_ATTRIBUTED:
            return (
                f"only {format_percent(part)} of the CPU time the host spent meanwhile is {arm}'s "
                "own; the rest may be the kernel's work for it"
            )
    return ""
