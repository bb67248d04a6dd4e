"""Several runs as one statement: runs of one host, and hosts, with the highest level as the unit.

"On this host" needs at least three runs, each after another boot, and its interval is one over
runs: more blocks do not make it narrower than runs differ. Runs that are not of the same
thing (`reports.difference.unlikeness`) are never put together, hosts are never pooled: a
host is one value where at least three stand together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from bench.model import Outcome, Scale
from bench.numbers import format_percent, format_value
from bench.stats.family import compare_family
from bench.stats.levels import Components, blocks_per_run, components
from bench.stats.pairs import Design, Pair, PairedSeries, effects
from bench.stats.sentences import effect_text
from bench.stats.student import LEAST_RUNS
from bench.stats.verdict import Comparison
from reports import iterations
from reports.analysis import arms_of, primary_pair
from reports.data import Run
from reports.difference import host_unlikeness, unlikeness
from reports.model import Merged, MergedRow
from reports.series import Values, paired
from reports.wording import count

Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class _Question:
    """What one run says about one judged comparison: its centre, and its blocks."""

    series: PairedSeries
    estimate: float
    blocks: tuple[float, ...]


_Answers = dict[Key, _Question]


def merge(runs: Sequence[Run]) -> tuple[Merged, ...]:
    """A statement for each host with several like runs, and one over hosts where three are."""
    if len(runs) < 2:
        return ()
    made = []
    work = _alike(runs, lambda a, b: not unlikeness(a, b, host=False))
    for same_work in work:
        answers = {id(run): _answers(run) for run in same_work}
        hosts = _alike(same_work, lambda a, b: not host_unlikeness(a, b))
        made += [
            _of_host(group, [answers[id(run)] for run in group])
            for group in hosts
            if len(group) > 1
        ]
        if len(hosts) >= LEAST_RUNS:
            made.append(_of_hosts(hosts, [[answers[id(r)] for r in group] for group in hosts]))
    return tuple(made)


def _alike(runs: Sequence[Run], same: Any) -> list[list[Run]]:
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if same(group[0], run):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def _answers(run: Run) -> _Answers:
    arms = arms_of(run)
    judge_emulated = bool(run.record["plan"].get("judge_emulated"))
    primary = primary_pair(run, arms, judge_emulated=judge_emulated)
    wanted = {tuple(entry) for entry in run.record["plan"]["primary"]}
    found = {}
    for _, series, _ in paired(Values(run, arms), primary, judge_emulated=judge_emulated):
        if (series.metric, series.workload) not in wanted:
            continue
        pairs = effects(series)
        known = pairs.low[(pairs.low == pairs.high) & np.isfinite(pairs.low)]
        (own,) = compare_family([dataclasses.replace(series, primary=False)])
        if own.estimate is None or own.bound is not None or not len(known):
            continue
        ratio = series.scale is Scale.RATIO
        estimate = math.log(own.estimate) if ratio else own.estimate
        found[series.key] = _Question(series, estimate, tuple(known.tolist()))
    return found


def _of_host(runs: Sequence[Run], answers: Sequence[_Answers]) -> Merged:
    boots = {str(run.record["host"].get("boot_id") or "") for run in runs} - {""}
    enough = len(runs) >= LEAST_RUNS and len(boots) >= LEAST_RUNS
    lacks = []
    if len(runs) < LEAST_RUNS:
        lacks.append(f"{LEAST_RUNS - len(runs)} more")
    if len(boots) < LEAST_RUNS:
        lacks.append(f"only {count(len(boots), 'boot')} of the host among them")
    note = (
        f"{count(len(runs), 'run')} after {count(len(boots), 'boot')}: enough to speak of this host"
        if enough
        else "described, not judged: speaking of this host takes three runs, each after "
        f"another boot ({'; '.join(lacks)})"
    )
    costs = _costs(runs)
    kept = [
        (row, _advice(spread, costs) + _of_iterations(runs, row, costs[1]) if spread else "")
        for row, spread in _rows(answers, "runs", enough)
    ]
    return Merged(
        scope="on this host",
        units="runs",
        members=tuple(run.record["id"] for run in runs),
        note=note,
        rows=tuple(dataclasses.replace(row, advice=advice) for row, advice in kept),
    )


def _of_hosts(hosts: Sequence[Sequence[Run]], answers: Sequence[Sequence[_Answers]]) -> Merged:
    """Each host one value, the mean of its runs."""
    per_host = []
    for own in answers:
        merged: _Answers = {}
        for key in own[0]:
            mine = [one[key] for one in own if key in one]
            estimates = tuple(question.estimate for question in mine)
            merged[key] = _Question(mine[0].series, float(np.mean(estimates)), estimates)
        per_host.append(merged)
    return Merged(
        scope=f"on {len(hosts)} hosts",
        units="hosts",
        members=tuple(", ".join(run.record["id"] for run in group) for group in hosts),
        note="each host is one value, however many runs it has; hosts differ in more than size",
        rows=tuple(row for row, _ in _rows(per_host, "hosts", enough=True)),
    )


def _rows(
    answers: Sequence[_Answers], units: str, enough: bool
) -> Iterator[tuple[MergedRow, Components | None]]:
    keys = [key for key in answers[0] if sum(key in one for one in answers) >= 2]
    asked = []
    for key in keys:
        mine = [one[key] for one in answers if key in one]
        asked.append((key, mine, _as_series(mine, enough)))
    compared = compare_family([series for _, _, series in asked])
    for (_, mine, series), result in zip(asked, compared, strict=True):
        spread = components([question.blocks for question in mine])
        yield _row(mine, series, result, spread, units), spread


def _as_series(mine: Sequence[_Question], enough: bool) -> PairedSeries:
    first = mine[0].series
    ratio = first.scale is Scale.RATIO
    ok = Outcome.OK.value
    return dataclasses.replace(
        first,
        values=[
            Pair(
                n, ok, math.exp(one.estimate) if ratio else one.estimate, ok, 1.0 if ratio else 0.0
            )
            for n, one in enumerate(mine)
        ],
        design=Design.RUNS,
        primary=enough and all(one.series.primary for one in mine),
        refused_reason=next((o.series.refused_reason for o in mine if o.series.refused_reason), ""),
        floor=max(one.series.floor for one in mine),
        resolution=0.0,  # of a trial's value; a run's centre is finer
        errors=(0.0, 0.0),
        elapsed=False,
    )


def _row(
    mine: Sequence[_Question],
    series: PairedSeries,
    result: Comparison,
    spread: Components | None,
    units: str,
) -> MergedRow:
    ratio = series.scale is Scale.RATIO

    def size(value: float) -> str:
        return format_percent(math.expm1(value)) if ratio else format_value(value, series.unit)

    return MergedRow(
        metric=series.metric,
        workload=series.workload,
        arm=series.arm,
        baseline=series.baseline,
        title=f"{series.title or series.metric} of {series.workload}",
        n=len(mine),
        blocks=sum(len(one.blocks) for one in mine),
        estimate=result.estimate,
        low=_finite(result.low),
        high=_finite(result.high),
        text=effect_text(result),
        verdict=result.verdict.value,
        judged=result.verdict.judged,
        reason=result.reason,
        needed=result.needed_n,
        between=spread.between_runs if spread else None,
        within=spread.between_blocks if spread else None,
        spread_text=f"{size(spread.between_runs)} between {units}, "
        f"{size(spread.between_blocks)} between "
        f"{'blocks' if units == 'runs' else 'runs of one host'}"
        if spread
        else "",
        advice="",
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _costs(runs: Sequence[Run]) -> tuple[float, float]:
    """Median seconds that a run costs before its first block, and that a block costs."""
    before, block = [], []
    for run in runs:
        times = [_moment(str(time)) for time in run.trials["wall_time"]]
        stamps = [time for time in times if time is not None]
        created, blocks = _moment(run.record["created"]), int(run.trials["block"].nunique())
        if stamps and blocks > 1:
            block.append((max(stamps) - min(stamps)) / (blocks - 1))
            if created is not None:
                before.append(max(0.0, min(stamps) - created))
    if not before or not block:
        return 0.0, 0.0
    return float(np.median(before)), float(np.median(block))


def _moment(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _of_iterations(runs: Sequence[Run], row: MergedRow, block_s: float) -> str:
    """What iterations inside an instance add to the advice, "" where there are none."""
    plan = runs[0].record["plan"]
    names = {arm.label: arm.name for arm in arms_of(runs[0])}
    said = iterations.advice(
        runs,
        row.metric,
        row.workload,
        names[row.arm],
        logs=runs[0].record["metrics"][row.metric]["scale"] == Scale.RATIO,
        instance_s=block_s / (len(plan["arms"]) * len(plan["workloads"])),
    )
    return f"; {said}" if said else ""


def _advice(spread: Components, costs: tuple[float, float]) -> str:
    """How many blocks a run should have here, by what runs and blocks cost and spread."""
    run_s, block_s = costs
    if spread.between_runs <= 0.0:
        return "runs differ no more than their blocks explain: longer runs serve as well as more"
    best = blocks_per_run(spread, run_s, block_s) if run_s > 0.0 else None
    if best is None:
        return f"{format_percent(spread.share_of_runs)} of the variance is between runs"
    return (
        f"{format_percent(spread.share_of_runs)} of the variance is between runs: more runs of "
        f"{count(best, 'block')} (a run costs {run_s:.0f} s before its first, a block "
        f"{block_s:.0f} s, a reboot not counted)"
    )
