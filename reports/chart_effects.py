"""Charts of effects: ratios with their intervals, and work per CPU second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.numbers import RATIO_UNIT
from reports.drawing import BAND, INK, PAPER, canvas, log_axis, style, widest_in
from reports.model import Comparison, RunReport

FOREST_METRICS = ("startup_ready", "run_wall", "work_per_cpu_second")
"""Drawn beside the plan's primary metrics."""

MOST_ROWS = 20


def forest(run: RunReport) -> tuple[Figure, str, str] | None:
    """Every headline ratio with its interval, one panel per pair of arms."""
    panels: list[tuple[str, list[Comparison]]] = []
    for arm, baseline, label in run.pairs:
        rows = [
            row
            for row in run.comparisons
            if (row.arm, row.baseline) == (arm, baseline)
            and row.effect is not None
            and row.effect.scale == "ratio"
            and row.effect.estimate
            and ([row.metric, row.workload] in run.plan["primary"]
                 or row.metric in FOREST_METRICS or row.family == "workload")
        ][:MOST_ROWS]  # fmt: skip
        if rows:
            panels.append((label, rows))
    if not panels:
        return None
    every = [row for _, rows in panels for row in rows]
    figure, grid = canvas(
        [0.15 * len(rows) + 0.05 for _, rows in panels],
        left_in=widest_in([_label(row) for row in every], 7.5),
        right_in=widest_in([row.effect.text for row in every if row.effect], 7.0) + 0.05,
    )
    for (axes,), (label, rows) in zip(grid, panels, strict=True):
        _forest_panel(run, axes, label, rows)
    return (
        figure,
        "Ratios with their intervals",
        "Each row is one metric of one workload: the marker is the estimated ratio, the line its "
        "95 % interval (pointwise), on a logarithmic axis with the same length for ×2 and ÷2. "
        "The shaded band is the margin of the plan: inside it a difference does not matter. "
        "Filled markers are judged, hollow ones are described only (emulated, or outside the "
        "primary family). ★ marks the primary family.",
    )


def _label(row: Comparison) -> str:
    return f"{'★ ' if row.primary else ''}{row.title}"


def _forest_panel(run: RunReport, axes: Axes, label: str, rows: Sequence[Comparison]) -> None:
    bounds = [1.0]
    for row in rows:
        assert row.effect is not None
        bounds += [v for v in (row.effect.estimate, row.effect.low, row.effect.high) if v]
    low, high = min(bounds), max(bounds)
    spread = max(math.log10(high / low), 0.08)
    left, right = low / 10 ** (spread * 0.08), high * 10 ** (spread * 0.08)
    margins = {m.name: m.margin for m in run.metrics}
    for y, row in enumerate(rows):
        effect = row.effect
        assert effect is not None
        drawn = style(run, row.arm)
        margin = margins.get(row.metric)
        if margin:
            axes.fill_betweenx(
                [y - 0.42, y + 0.42], 1 / (1 + margin), 1 + margin, color=BAND, lw=0, zorder=0
            )
        ends = (effect.low or left, effect.high or right)
        shown = [min(max(end, left), right) for end in ends]
        axes.plot(shown, [y, y], color=drawn.colour, lw=1.3, solid_capstyle="butt", ls="-")
        for end in shown:
            axes.plot([end, end], [y - 0.16, y + 0.16], color=drawn.colour, lw=1.0, ls="-")
        axes.plot(
            [effect.estimate or 1.0],
            [y],
            marker=drawn.marker,
            color=drawn.colour,
            mfc=drawn.colour if row.judged else PAPER,
            ms=4.4,
            ls="",
            zorder=3,
        )
        axes.text(
            1.015,
            y,
            effect.text,
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=7,
        )
    axes.axvline(1.0, color=INK, lw=0.7, zorder=1)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    log_axis(axes, RATIO_UNIT, left, right)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_title(label)


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
            axes.plot(item.values, [y] * len(item.values), marker=drawn.marker, ls="",
                      color=drawn.colour, mfc="none", mew=0.7, ms=4, alpha=0.9)  # fmt: skip
            if middle.median is not None:
                axes.plot([middle.median] * 2, [y - 0.38, y + 0.38], color=INK, lw=1.4, ls="-")
                unit = middle.text.partition(" ")[2]
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
