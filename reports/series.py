"""From tidy frames to paired series and back: what is compared with what, and its levels."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bench.findings import doubly_cached
from bench.model import Better, Event, Outcome, Scale
from bench.numbers import RATIO_UNIT, format_estimate, format_value
from bench.stats import quantiles, signed_rank
from bench.stats.pairs import PairedSeries, logs
from bench.stats.verdict import CONFIDENCE
from reports import refusal
from reports.data import Run
from reports.model import Arm, Effect, Summary

PHRASES = {
    "startup_ready": "to become ready",
    "startup_started": "to start the workload",
    "startup_init": "to reach its init",
    "startup_spawned": "to have a process",
    "run_wall": "to run",
    "memory_current": "memory (charged)",
    "memory_pss": "memory (PSS)",
    "cpu_window": "host CPU for the work",
    "cpu_life": "host CPU over its whole life",
    "work_per_cpu_second": "work per host CPU second",
}
"""What completes a sentence about a metric; others use their title."""

AT_LEAST = ("startup_", "run_wall")
"""Metrics for which a trial that timed out took at least the limit."""

DEFAULT_MARGIN = 0.05


@dataclass(frozen=True)
class Group:
    """The values of one metric of one workload, by arm and, in order, block (timeouts absent)."""

    metric: str
    workload: str
    values: dict[str, dict[int, float]]


@dataclass(frozen=True)
class Values:
    """Everything a run measured, grouped, with what the plan says about each metric."""

    run: Run
    arms: tuple[Arm, ...]

    @cached_property
    def outcomes(self) -> dict[tuple[str, str], dict[int, str]]:
        """(workload, arm) → block → outcome."""
        table: dict[tuple[str, str], dict[int, str]] = {}
        trials = self.run.trials
        for workload, arm, block, outcome in zip(
            trials["workload"], trials["arm"], trials["block"], trials["outcome"], strict=True
        ):
            table.setdefault((workload, arm), {})[int(block)] = outcome
        return table

    @cached_property
    def ended(self) -> dict[tuple[str, str], Counter[str]]:
        """(workload, arm) → how many trials ended how."""
        return {key: Counter(ended.values()) for key, ended in self.outcomes.items()}

    @cached_property
    def late(self) -> dict[tuple[str, str], list[int]]:
        """(workload, arm) → blocks in which the trial timed out."""
        return {
            key: [block for block, outcome in ended.items() if outcome == Outcome.TIMEOUT.value]
            for key, ended in self.outcomes.items()
        }

    @cached_property
    def groups(self) -> list[Group]:
        """All groups in the order of the plan's workloads and the table of metrics."""
        found: dict[tuple[str, str], Group] = {}
        for key, part in self._tidy().groupby(["metric", "workload", "arm"], observed=True):
            metric, workload, arm = map(str, key)
            group = found.setdefault((metric, workload), Group(metric, workload, {}))
            by_block = part.set_index("block")["value"].sort_index()
            if not by_block.index.is_unique:
                by_block = by_block.groupby(level=0).median()
            group.values[arm] = dict(zip(by_block.index.tolist(), by_block.tolist(), strict=True))
        metrics = [*self.run.record["metrics"]]
        workloads = [item["name"] for item in self.run.record["plan"]["workloads"]]
        order = {name: n for n, name in enumerate(metrics)}
        return sorted(
            (group for group in found.values() if group.metric in order),
            key=lambda group: (order[group.metric], workloads.index(group.workload)),
        )

    def _tidy(self) -> pd.DataFrame:
        """Samples with their trial's key; a trial that timed out still gives its marks."""
        trials = self.run.trials[["block", "arm", "workload", "outcome"]]
        samples = self.run.samples.join(trials, on="trial")
        late = trials.index[trials["outcome"] == Outcome.TIMEOUT.value]
        if len(late):
            marks = self.run.marks[self.run.marks["trial"].isin(late)]
            marks = marks[marks["event"] != Event.REQUESTED.value]
            reached = marks.assign(metric="startup_" + marks["event"].astype("str"))
            reached = reached.rename(columns={"at_s": "value"}).join(trials, on="trial")
            ended = samples[~samples["trial"].isin(late)].astype({"metric": "str"})
            samples = pd.concat([ended, reached.drop(columns="event")])
        good = samples["outcome"].isin([Outcome.OK.value, Outcome.TIMEOUT.value])
        kept: pd.DataFrame = samples[good]
        return kept

    def definition(self, metric: str) -> dict[str, Any]:
        """What run.json says about a metric."""
        found: dict[str, Any] = self.run.record["metrics"][metric]
        return found

    def unit(self, group: Group) -> str:
        """The unit of a group's values; work is counted in what its workload counts."""
        unit = str(self.definition(group.metric)["unit"])
        if unit != "work/s":
            return unit
        for item in self.run.record["plan"]["workloads"]:
            if item["name"] == group.workload and item.get("work_unit_name"):
                return f"{item['work_unit_name']}/s"
        return unit

    def margin(self, metric: str) -> float:
        """The plan's margin for a metric."""
        override = self.run.record["plan"]["margins"].get(metric)
        margin = self.definition(metric).get("margin") if override is None else override
        return DEFAULT_MARGIN if margin is None else float(margin)

    def timeout_s(self, workload: str) -> float | None:
        """The limit of a trial of this workload."""
        for item in self.run.record["plan"]["workloads"]:
            value = item.get("timeout_s")
            if item["name"] == workload and isinstance(value, int | float):
                return float(value)
        return None

    @cached_property
    def floors(self) -> dict[tuple[str, str, str], float]:
        """(metric, workload, arm) → the noise floor that calibration found, as margins are."""
        kept = self.run.record["calibration"].get("floors") or []
        return {
            (row["metric"], row["workload"], row["arm"]): max(0.0, float(row["floor"]))
            for row in kept
        }

    def floor(self, group: Group, arms: tuple[str, str]) -> float:
        """The larger floor of both arms; 0 where none is known."""
        return max(self.floors.get((group.metric, group.workload, arm), 0.0) for arm in arms)

    @cached_property
    def doubly_cached(self) -> set[str]:
        """Arms whose image is held twice by the page cache."""
        return set(doubly_cached(self.run.record))

    @cached_property
    def flushes(self) -> dict[tuple[str, str], float]:
        """(workload, arm) → flushes that reached its scratch disk, typically."""
        return {
            (group.workload, arm): statistics.median(by_block.values())
            for group in self.groups
            if group.metric == "disk_flushes"
            for arm, by_block in group.values.items()
            if by_block
        }

    def error(self, group: Group, arm: str) -> float:
        """How far an arm's values can be off because of how an event was stamped, in seconds."""
        event = group.metric.removeprefix("startup_")
        if event == group.metric:
            return 0.0  # in a difference of two of its stamps the error of a clock cancels
        return self.run.error_s.get((group.workload, arm, event), 0.0)

    def waits(self, metric: str) -> bool:
        """Whether a timeout means that this metric took at least the limit."""
        return metric.startswith(AT_LEAST)

    def applies(self, group: Group, arm: str) -> bool:
        """Whether the metric exists for an arm: it gave values, or never ended well."""
        if group.values.get(arm):
            return True
        ended = self.outcomes.get((group.workload, arm), {})
        return bool(ended) and Outcome.OK.value not in ended.values()

    def own(self, group: Group, arm: str, *, valid: bool = False) -> list[float]:
        """An arm's own values in block order, a timeout of a duration as +inf.

        Args:
            valid: without the blocks that the plan's rules leave out.
        """
        by_block = self.by_block(group, arm)
        out = self.run.invalid if valid else {}
        if not out:
            return list(by_block.values())
        return [v for block, v in by_block.items() if (group.workload, block) not in out]

    def by_block(self, group: Group, arm: str) -> dict[int, float]:
        """The same by block, in order."""
        values = group.values.get(arm, {})
        late = self.late.get((group.workload, arm)) if self.waits(group.metric) else None
        if not late:
            return values
        return dict(sorted({**dict.fromkeys(late, math.inf), **values}.items()))


def paired(
    values: Values,
    primary: tuple[str, str] | None,
    *,
    judge_emulated: bool,
    all_blocks: bool = False,
) -> Iterator[tuple[Group, PairedSeries, tuple[str, str]]]:
    """Every comparison of the run: its group, its series, its (arm, baseline) names.

    Args:
        primary: the pair of arms whose primary metrics are judged.
        judge_emulated: treat emulated arms like any other (development only).
        all_blocks: those too that the plan's rules leave out.
    """
    labels = {arm.name: arm.label for arm in values.arms}
    emulated = {arm.name for arm in values.arms if arm.emulated and not judge_emulated}
    wanted = {tuple(entry) for entry in values.run.record["plan"]["primary"]}
    for group in values.groups:
        about = values.definition(group.metric)
        for arm, baseline in values.run.pairs:
            if not (values.applies(group, arm) and values.applies(group, baseline)):
                continue
            scale = Scale(about["scale"])
            series = PairedSeries(
                metric=group.metric,
                workload=group.workload,
                arm=labels[arm],
                baseline=labels[baseline],
                unit=values.unit(group),
                scale=scale,
                better=Better.HIGHER if about["better"] == "higher" else Better.LOWER,
                margin=values.margin(group.metric),
                resolution=float(about.get("resolution") or 0.0),
                values=_rows(values, group, arm, baseline, all_blocks=all_blocks),
                primary=(arm, baseline) == primary and (group.metric, group.workload) in wanted,
                emulated=bool({arm, baseline} & emulated),
                refused_reason=refusal.reason(values, group, arm, baseline),
                floor=values.floor(group, (arm, baseline)),
                errors=(values.error(group, arm), values.error(group, baseline)),
                undecided_reason=refusal.unattributed(values, group, (arm, baseline)),
                elapsed=True
                if values.waits(group.metric)
                else None
                if about.get("family") == "workload"
                else False,
                timeout=values.timeout_s(group.workload),
                title=str(about.get("title") or group.metric),
                phrase=PHRASES.get(group.metric, ""),
            )
            yield group, series, (arm, baseline)


def _rows(
    values: Values, group: Group, arm: str, baseline: str, *, all_blocks: bool = False
) -> list[Any]:
    out = {} if all_blocks else values.run.invalid
    ended, ended_base = (
        values.outcomes.get((group.workload, name), {}) for name in (arm, baseline)
    )
    got, got_base = (group.values.get(name, {}) for name in (arm, baseline))
    return [
        (block, outcome, got.get(block), ended_base[block], got_base.get(block))
        for block, outcome in ended.items()
        if block in ended_base and (group.workload, block) not in out
    ]


def other_scale(series: PairedSeries) -> Effect | None:
    """The same effect on the scale that is not judged: a difference for a ratio, and back."""
    ok = Outcome.OK.value
    complete = [
        (row[2], row[4])
        for row in series.values
        if row[1] == row[3] == ok and row[2] is not None and row[4] is not None
    ]
    if not complete:
        return None
    arm, base = (np.array(column) for column in zip(*complete, strict=True))
    ratio = series.scale is Scale.DIFFERENCE
    if ratio:
        if min(arm.min(), base.min()) <= max(series.resolution, 0.0):
            return None
        arm, base = logs(arm), logs(base)
    differences = arm - base
    numbers = (
        signed_rank.pseudomedian(differences),
        *signed_rank.interval(differences, CONFIDENCE),
    )
    try:
        estimate, low, high = (math.exp(n) for n in numbers) if ratio else numbers
    except OverflowError:
        return None
    unit = RATIO_UNIT if ratio else series.unit
    return effect(
        Scale.RATIO if ratio else Scale.DIFFERENCE,
        estimate, low, high,
        format_estimate(estimate, low, high, unit, signed=not ratio),
    )  # fmt: skip


def effect(
    scale: Scale, estimate: float | None, low: float | None, high: float | None, text: str
) -> Effect:
    """An effect as the report holds it: numbers that are not finite become None."""
    return Effect(scale.value, finite(estimate), finite(low), finite(high), text)


def finite(value: float | None) -> float | None:
    """The value, None when JSON could not hold it."""
    return value if value is not None and math.isfinite(value) else None


def summary(values: Values, group: Group, arm: str) -> Summary:
    """One arm's own level of one metric and workload, with how its trials ended."""
    about = values.definition(group.metric)
    own = values.own(group, arm, valid=True)
    level = quantiles.median(own, CONFIDENCE)
    unit, limit = values.unit(group), values.timeout_s(group.workload)
    resolution = float(about.get("resolution") or 0.0)

    def shown(value: float | None) -> str:
        return format_value(value, unit, resolution=resolution, timeout=limit)

    ended = values.ended.get((group.workload, arm), Counter())
    known = [value for value in own if math.isfinite(value)]
    counts = {name: ended[name] for name in ("failed", "timeout", "refused")}
    interval = ""
    if level is not None and level.low is not None and level.value > resolution:
        whole = format_estimate(level.value, level.low, level.high, unit)
        interval = "".join(re.findall(r"[\[(].*", whole)[:1])
        # Its unit is said only where it is another one than the median's.
        interval = interval.removesuffix(" " + shown(level.value).partition(" ")[2])
    return Summary(
        metric=group.metric,
        workload=group.workload,
        arm=arm,
        n=len(own),
        **counts,
        median=None if level is None else finite(level.value),
        low=None if level is None else finite(level.low),
        high=None if level is None else finite(level.high),
        minimum=min(known, default=None),
        maximum=max(known, default=None),
        text="" if level is None else shown(level.value),
        interval_text=interval,
        range_text=f"{shown(min(known))} to {shown(max(known))}" if known else "",
    )


def thinned(ordered: Sequence[float], most: int) -> tuple[float, ...]:
    """At most `most` of some sorted values, evenly spaced in rank, both ends kept."""
    if len(ordered) <= most:
        return tuple(ordered)
    last = len(ordered) - 1
    return tuple(ordered[round(n * last / (most - 1))] for n in range(most))
