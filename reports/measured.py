"""What a run measured besides comparisons: distributions, phases, outcomes, disturbances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.model import Event, Outcome
from bench.numbers import format_value
from bench.stats.ecdf import ecdf
from reports import model, wording
from reports.data import Run
from reports.series import Values, thinned

DRAWN = ("startup_ready", "startup_started", "memory_current", "work_per_cpu_second")
"""Metrics whose distributions a chart shows, besides those that the plan judges."""

DRAWN_POINTS = 400
"""Most points of one curve; a picture cannot show more. Numbers always use every value."""

CLOCK_ERROR_S = 0.01
"""An event further than this before the request is impossible, whatever the mapping's error."""

PHASES = (
    Event.ACCEPTED, Event.SPAWNED, Event.KERNEL, Event.INIT, Event.STARTED, Event.LISTENING,
    Event.READY,
)  # fmt: skip


def distributions(values: Values) -> list[model.Distribution]:
    """Values for drawing, thinned to what a picture can show."""
    found = []
    judged = {tuple(entry) for entry in values.run.record["plan"]["primary"]}
    for group in values.groups:
        if group.metric not in DRAWN and (group.metric, group.workload) not in judged:
            continue
        for arm in values.arms:
            own, ranked = group.values.get(arm.name, {}), values.own(group, arm.name)
            if not ranked:
                continue
            blocks = sorted(own)
            picked = thinned(blocks, DRAWN_POINTS)
            curve = ecdf(ranked)
            found.append(
                model.Distribution(
                    metric=group.metric,
                    workload=group.workload,
                    arm=arm.name,
                    n=len(own),
                    censored=len(ranked) - len(own),
                    values=thinned(curve.x, DRAWN_POINTS),
                    shares=thinned(curve.share, DRAWN_POINTS),
                    low=thinned(curve.low, DRAWN_POINTS),
                    high=thinned(curve.high, DRAWN_POINTS),
                    order=tuple((int(block), own[int(block)]) for block in picked),
                )
            )
    return found


def phases(run: Run, arms: Sequence[model.Arm]) -> list[model.Phase]:
    """Median time of each event up to ready over the trials that ended well."""
    good = run.trials.index[run.trials["outcome"] == Outcome.OK.value]
    events = [event.value for event in PHASES]
    marks = run.marks[run.marks["event"].isin(events) & run.marks["trial"].isin(good)]
    marks = marks.join(run.trials[["arm", "workload"]], on="trial")
    table: pd.DataFrame = marks.groupby(["workload", "arm", "event"], observed=True)["at_s"].agg(
        ["median", "count"]
    )
    found = {key: row for key, *row in table.itertuples(name=None)}
    phases = []
    for item in run.record["plan"]["workloads"]:
        for arm in arms:
            before = 0.0
            for event in events:
                if (item["name"], arm.name, event) not in found:
                    continue
                at_s, n = found[(item["name"], arm.name, event)]
                # Medians of different events may cross by a hair; a phase is never negative.
                length = max(0.0, float(at_s) - before)
                before = max(before, float(at_s))
                phases.append(
                    model.Phase(
                        item["name"], arm.name, event, int(n), float(at_s), length,
                        format_value(float(at_s), "s"), format_value(length, "s"),
                    )
                )  # fmt: skip
    return phases


def counts(run: Run) -> dict[str, int]:
    """How many trials there are, and how they ended."""
    plan = run.record["plan"]
    outcomes = run.trials["outcome"].value_counts()
    return {
        "planned": plan["blocks"] * len(plan["arms"]) * len(plan["workloads"]),
        "blocks_planned": plan["blocks"],
        "blocks": int(run.trials["block"].nunique()),
        "blocks_invalid": len({block for _, block in run.invalid}),
        "trials": len(run.trials),
        **{outcome.value: int(outcomes.get(outcome.value, 0)) for outcome in Outcome},
        "excluded": run.excluded,
        "damaged_lines": run.damaged_lines,
        "out_of_order": int(run.marks.loc[run.marks["at_s"] < -CLOCK_ERROR_S, "trial"].nunique()),
    }


def outcomes(run: Run, arms: Sequence[model.Arm]) -> tuple[dict[str, Any], ...]:
    """How the trials of each arm ended."""
    table = run.trials.groupby(["arm", "outcome"]).size()
    return tuple(
        {
            "arm": arm.name,
            "label": arm.label,
            **{o.value: int(table.get((arm.name, o.value), 0)) for o in Outcome},
        }
        for arm in arms
    )


def failures(run: Run, labels: Mapping[str, str]) -> tuple[model.Failure, ...]:
    """Every trial that did not end well."""
    bad = run.trials[run.trials["outcome"] != Outcome.OK.value]
    columns = ["block", "position", "arm", "workload", "outcome", "error"]
    return tuple(
        model.Failure(
            block, position, labels[arm], workload, outcome, error or "no reason was stored"
        )
        for block, position, arm, workload, outcome, error in bad[columns].to_numpy().tolist()
    )


def readings(run: Run, arms: Sequence[model.Arm]) -> list[model.Reading]:
    """Disturbances: median and maximum per reading and arm."""
    joined = run.disturbances.join(run.trials["arm"], on="trial")
    table = joined.groupby(["name", "arm"], observed=True)["value"].agg(["median", "max", "count"])
    found_for = {key: tuple(map(float, row)) for key, *row in table.itertuples(name=None)}
    names = dict.fromkeys(name for name, _ in found_for)
    found = []
    for name in sorted(names, key=wording.reading_order):
        unit, title = wording.reading(name)
        for arm in arms:
            if (name, arm.name) not in found_for:
                continue
            middle, top, n = found_for[(name, arm.name)]
            found.append(
                model.Reading(
                    name, title, arm.name, int(n), middle, top,
                    f"{format_value(middle, unit)} (most {format_value(top, unit)})",
                )
            )  # fmt: skip
    return found
