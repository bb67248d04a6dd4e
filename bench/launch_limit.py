"""Who was the limit where several instances were launched at once: from a run's own data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.model import Finding

BUSY_LAUNCHER = 0.9  # of a CPU: who launches has no more to give
QUEUED = 0.5  # of the time to their start, that launches waited to be taken by our helper


def parallel_launch(
    run: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Who was the limit where several were launched at once: we, their CPUs, or the kernel."""
    for workload in run["plan"]["workloads"]:
        many = workload.get("together", 1)
        if many == 1:
            continue
        cpus = max(1, math.ceil(workload["limits"]["cpus"]))
        for arm in run["plan"]["arms"]:
            busy = {
                name: statistics.median(values)
                for name in ("worker_busy", "harness_busy", "instances_busy")
                if (values := list(_values(trials, arm, workload["name"], name)))
            }
            queued = list(_values(trials, arm, workload["name"], "launches_queued"))
            if len(busy) == 3:
                waited = statistics.median(queued) if queued else 0.0
                yield _limit(f"{arm}: {many} of {workload['name']} at once", busy, waited, cpus)


def _values(
    trials: Sequence[Mapping[str, Any]], arm: str, workload: str, metric: str
) -> Iterator[float]:
    for trial in trials:
        if (trial["arm"], trial["workload"]) == (arm, workload):
            yield from (s["value"] for s in trial.get("samples") or () if s["metric"] == metric)


def _limit(what: str, busy: Mapping[str, float], waited: float, cpus: int) -> Finding:
    worker, harness, inside = (
        busy[name] for name in ("worker_busy", "harness_busy", "instances_busy")
    )
    said = (
        f"helper {worker:.2f}, harness {harness:.2f}, instances {inside:.2f} of their "
        f"{cpus} CPU{'' if cpus == 1 else 's'}; {waited:.0%} of the time waiting for the helper"
    )
    full = inside > BUSY_LAUNCHER * cpus
    if max(worker, harness) > BUSY_LAUNCHER or (waited > QUEUED and not full):
        who = "our helper process" if worker >= harness or waited > QUEUED else "the harness"
        return Finding(
            "launch.worker-limit",
            "warning",
            f"{what}: {who} was the limit (CPUs busy: {said})",
            "launches per second are what hvct itself can do, and the arm may be able to do more",
            "launch fewer at once; figures of one launch at a time are not concerned",
        )
    limit = "what the kernel makes a launch wait for, or others on the host"
    if full:
        limit = "the CPUs that all of them are pinned to"
    return Finding(
        "launch.limit",
        "info",
        f"{what}: hvct was not the limit (CPUs busy: {said})",
        f"the limit was {limit}",
        "with more limits.cpus all of them have more CPUs, as each of them would have",
    )
