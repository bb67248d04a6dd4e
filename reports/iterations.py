"""Iterations inside an instance: how much of the spread is theirs, and how many one should have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bench.model import Outcome
from bench.numbers import format_percent
from bench.stats.levels import iterations_per_instance, nested
from reports.data import Run
from reports.wording import count


def advice(
    runs: Sequence[Run], metric: str, workload: str, arm: str, *, logs: bool, instance_s: float
) -> str:
    """A clause about one arm's iterations, "" where its instances have one each.

    Args:
        logs: the metric is compared as a ratio.
        instance_s: what one trial takes, its work included.
    """
    by_run = [_iterations(run, metric, workload, arm) for run in runs]
    values = [value for run in by_run for block in run for value in block]
    if not values or (logs and min(values) <= 0.0):
        return ""
    found = nested(
        [[[math.log(v) if logs else v for v in block] for block in run] for run in by_run]
    )
    if found is None:
        return ""
    share = format_percent(found.share_of_iterations)
    said = f"{share} of the variance in {arm} is between iterations of one instance"
    if found.between_blocks <= 0.0:
        return f"{said}; instances differ no more than their iterations explain"
    work_s = _work_s(runs, workload, arm)
    each_s = work_s * found.blocks / found.iterations
    best = iterations_per_instance(found, max(0.0, instance_s - work_s), each_s)
    if best is None:
        return said
    return f"{said}: {count(best, 'iteration')} in each suit what an instance costs"


def _iterations(run: Run, metric: str, workload: str, arm: str) -> list[list[float]]:
    """Each trial's own values, in order."""
    trials = run.trials
    chosen = trials.index[
        (trials["workload"] == workload)
        & (trials["arm"] == arm)
        & (trials["outcome"] == Outcome.OK.value)
    ]
    samples = run.samples[(run.samples["metric"] == metric) & run.samples["trial"].isin(chosen)]
    return [part["value"].tolist() for _, part in samples.groupby("trial", sort=True)]


def _work_s(runs: Sequence[Run], workload: str, arm: str) -> float:
    times = [
        value
        for run in runs
        for block in _iterations(run, "run_wall", workload, arm)
        for value in block
    ]
    return float(np.median(times)) if times else 0.0
