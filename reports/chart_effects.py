"""Charts of effects: ratios with their intervals, and work per CPU second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.numbers import RATIO_UNIT
from reports.drawing import (
    BAND,
    INK,
    PAPER,
    arm_keys,
    canvas,
    legend,
    log_axis,
    style,
    tag,
    widest_in,
)
from reports.model import Comparison, Effect, RunReport

MOST_ROWS = 60
"""What fits on one page of the PDF."""

ROW_IN = 0.142
_READING = (
    "The marker is the estimated ratio, the line its 95 % interval (pointwise), on a logarithmic "
    "axis with the same length for ×2 and ÷2. "
)


def ratio_of(row: Comparison) -> Effect | None:
    """The effect as a ratio, on whichever scale it is judged."""
    for effect in (row.effect, row.other):
        if effect is not None and effect.scale == "ratio" and effect.estimate:
            return effect
    return None


def forest(run: RunReport) -> tuple[Figure, str, str] | None:
    """The plan's primary metrics, one panel per pair of arms."""
    panels: list[tuple[str, list[Comparison]]] = []
    for arm, baseline, label in run.pairs:
        rows = [
            row
            for row in run.comparisons
            if (row.arm, row.baseline) == (arm, baseline)
            and ratio_of(row) is not None
            and [row.metric, row.workload] in run.plan["primary"]
        ]
        if rows:
            panels.append((label, rows))
    if not panels:
        return None
    every = [row for _, rows in panels for row in rows]
    figure, grid = canvas(
        [0.15 * len(rows) + 0.05 for _, rows in panels],
        left_in=widest_in([_label(row) for row in every], 7.5),
        right_in=widest_in([_ratio_text(row) for row in every], 7.0) + 0.05,
    )
    for (axes,), (label, rows) in zip(grid, panels, strict=True):
        left, right = _bounds(rows)
        for y, row in enumerate(rows):
            _row(run, axes, row, y, left, right)
            axes.text(1.015, y, _ratio_text(row), transform=axes.get_yaxis_transform(),
                      va="center", fontsize=7)  # fmt: skip
        _finish(axes, [_label(row) for row in rows], left, right)
        axes.set_title(label)
    return (
        figure,
        "The primary metrics as ratios",
        f"{_READING}Each pair of arms has its own axis. The shaded band is the margin of the plan: "
        "inside it a difference does not matter; metrics that are judged as differences have none "
        "here. Filled markers are judged, hollow ones are described only (emulated, undecided, or "
        "outside the primary family). ★ marks the primary family.",
    )


def family_forest(run: RunReport, family: str) -> tuple[Figure, str, str] | None:
    """Every metric of one family in every pair of arms, all on one axis."""
    found: dict[tuple[str, str], list[Comparison]] = {}
    for row in run.comparisons:
        if row.family == family and ratio_of(row) is not None:
            found.setdefault((row.workload, row.metric), []).append(row)
    order = [workload.name for workload in run.workloads]
    keys = sorted(found, key=lambda key: order.index(key[0]))  # metrics keep their order
    shown = keys[:MOST_ROWS]
    if len(shown) < 2:
        return None
    every = [row for key in shown for row in found[key]]
    titles = {metric.name: metric.title for metric in run.metrics}
    labels: list[tuple[float, str]] = []
    heads: list[tuple[float, str]] = []
    places: list[tuple[float, Comparison]] = []
    y, before = -1.0, ""
    for workload, metric in shown:
        if workload != before:
            y += 1.35 if before else 0.0
            heads.append((y, run.workload(workload).title))
            before = workload
        y += 1.0
        labels.append((y, titles[metric]))
        rows = found[(workload, metric)]
        places += [(y + 0.28 * (n - (len(rows) - 1) / 2), row) for n, row in enumerate(rows)]
    figure, ((axes,),) = canvas(
        [ROW_IN * (y + 2)],
        left_in=widest_in([text for _, text in (*labels, *heads)], 7.6),
        above_in=0.05,
    )
    left, right = _bounds(every)
    for place, row in places:
        _row(run, axes, row, place, left, right, height=0.14)
    marks = sorted([*labels, *heads])
    _finish(axes, [text for _, text in marks], left, right, [at for at, _ in marks], y + 0.8)
    for mark, text in zip(marks, axes.get_yticklabels(), strict=True):
        if mark in heads:
            text.set_fontweight("bold")
    used = {row.arm for row in every}
    legend(figure, [key for key, arm in zip(arm_keys(run), run.arms, strict=True)
                    if arm.name in used])  # fmt: skip
    left_out = len(keys) - len(shown)
    pairs = "; ".join(dict.fromkeys(row.pair for row in every))
    return (
        figure,
        "Every metric as a ratio",
        f"One row is one metric of a workload, one marker a pair of arms ({pairs}), all on one "
        f"axis. {_READING}Shaded: the margin, where the plan's is relative. Filled markers are "
        "judged." + (f" {left_out} more rows are in the table only." if left_out else ""),
    )


def _label(row: Comparison) -> str:
    return f"{'★ ' if row.primary else ''}{row.title}"


def _ratio_text(row: Comparison) -> str:
    effect = ratio_of(row)
    return effect.text if effect else ""


def _bounds(rows: Sequence[Comparison]) -> tuple[float, float]:
    """Ends of the axis: every estimate and finite end, and a little more."""
    bounds = [1.0]
    for row in rows:
        effect = ratio_of(row)
        if effect is not None:
            bounds += [v for v in (effect.estimate, effect.low, effect.high) if v]
    low, high = min(bounds), max(bounds)
    spread = max(math.log10(high / low), 0.08)
    return low / 10 ** (spread * 0.06), high * 10 ** (spread * 0.06)


def _row(
    run: RunReport, axes: Axes, row: Comparison, y: float, left: float, right: float,
    height: float = 0.42,
) -> None:  # fmt: skip
    effect = ratio_of(row)
    assert effect is not None
    drawn = style(run, row.arm)
    margin = next((m.margin for m in run.metrics if m.name == row.metric), None)
    if margin and row.effect is effect:
        axes.fill_betweenx(
            [y - height, y + height], 1 / (1 + margin), 1 + margin, color=BAND, lw=0, zorder=0
        )
    ends = (effect.low or left, effect.high or right)
    shown = [min(max(end, left), right) for end in ends]
    (line,) = axes.plot(shown, [y, y], color=drawn.colour, lw=1.3, solid_capstyle="butt", ls="-",
                        marker="|", ms=3.4, mew=1.0)  # fmt: skip
    tag(line, run, row.arm)
    (point,) = axes.plot([effect.estimate or 1.0], [y], marker=drawn.marker, color=drawn.colour,
                         mfc=drawn.colour if row.judged else PAPER, ms=4.0, ls="",
                         zorder=3)  # fmt: skip
    tag(point, run, row.arm, f"{row.title}, {row.pair}: {effect.text}, {row.verdict_text}")


def _finish(
    axes: Axes, labels: Sequence[str], left: float, right: float,
    at: Sequence[float] | None = None, last: float | None = None,
) -> None:  # fmt: skip
    axes.axvline(1.0, color=INK, lw=0.7, zorder=1)
    axes.set_yticks(range(len(labels)) if at is None else at, labels)
    bottom = len(labels) - 0.4 if last is None else last
    axes.set_ylim(bottom, -0.6 if last is None else -1.6)
    axes.tick_params(axis="y", length=0, labelsize=7.5 if at is None else 7.0)
    axes.spines["left"].set_visible(False)
    log_axis(axes, RATIO_UNIT, left, right)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def efficiency(run: RunReport) -> tuple[Figure, str, str] | None:
    """Work per host CPU second of each arm, every trial shown, one panel per workload."""
    groups: dict[str, list[Any]] = {}
    for item in run.distributions:
        if item.metric == "work_per_cpu_second" and item.values:
            groups.setdefault(item.workload, []).append(item)
    if not groups:
        return None
    names = list(groups)[:6]
    figure, grid = canvas(
        [0.19 * len(run.arms)] * len(names),
        left_in=widest_in([arm.label for arm in run.arms], 7.5),
        right_in=0.9,
        below_in=0.36,
    )
    for (axes,), name in zip(grid, names, strict=True):
        unit = ""
        for y, item in enumerate(groups[name]):
            drawn = style(run, item.arm)
            middle = next(
                s for s in run.summaries
                if (s.metric, s.workload, s.arm) == (item.metric, name, item.arm)
            )  # fmt: skip
            (points,) = axes.plot(item.values, [y] * len(item.values), marker=drawn.marker, ls="",
                                  color=drawn.colour, mfc="none", mew=0.7, ms=4,
                                  alpha=0.9)  # fmt: skip
            label, unit = run.arm(item.arm).label, middle.text.partition(" ")[2]
            tag(points, None, "", *(f"{label}: {value:.4g} {unit}" for value in item.values))
            if middle.median is not None:
                axes.plot([middle.median] * 2, [y - 0.38, y + 0.38], color=INK, lw=1.4, ls="-")
                axes.text(1.015, y, middle.text, transform=axes.get_yaxis_transform(),
                          va="center", fontsize=7)  # fmt: skip
        axes.set_yticks(range(len(groups[name])), [run.arm(i.arm).label for i in groups[name]])
        axes.set_ylim(len(groups[name]) - 0.4, -0.6)
        axes.set_xlim(0, axes.get_xlim()[1])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(unit, fontsize=7)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_title(run.workload(name).title)
    return (
        figure,
        "Work per host CPU second",
        "Every trial is a marker, the upright bar the median; further right is more work for the "
        "same host CPU time, whoever spent it: guest, VMM or kernel.",
    )
