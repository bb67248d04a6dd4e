"""Charts of a run with more arms than lines of one panel could be told apart: one row an arm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.numbers import format_value
from reports.chart_effects import draw_forest, forest_text, ratio_of
from reports.chart_startup import events_of
from reports.drawing import (
    FAINT,
    INK,
    PAPER,
    PHASE_INKS,
    PHASE_SHADES,
    Canvas,
    Chart,
    distributions,
    legend,
    log_axis,
    row_labels,
    style,
    tag,
    widest_in,
)
from reports.model import Arm, Comparison, Distribution, Phase, RunReport, Workload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reports.drawing import Grid

MOST_ROWS = 52
"""What fits on one page of the PDF, with caption; a panel's title and axis take `PANEL_ROWS`."""
PANEL_ROWS = 3

_Panels = Sequence[tuple[Workload, Sequence[Distribution]]]


def starts(run: RunReport) -> Chart | None:
    """Every start of every arm, the fastest arm first, one panel per workload."""
    panels: list[tuple[Workload, list[Distribution]]] = []
    for workload in run.workloads:
        found = [item for item in distributions(run, workload.name) if item.values]
        found.sort(key=lambda item: statistics.median(item.values))
        if found and _fits(panels, found):
            panels.append((workload, found))
    if not panels:
        return None
    every = [item for _, items in panels for item in items]
    return Chart(
        "Start-up to ready: every trial",
        "Each marker is one trial, the upright bar the median, whose value stands at the right; "
        "the fastest arm comes first. The time axis is logarithmic.",
        Canvas(
            [0.165 * len(items) for _, items in panels],
            left_in=lambda: widest_in([run.arm(item.arm).label for item in every], 7.5),
            right_in=lambda: widest_in([_median_text(item) for item in every], 7.0) + 0.05,
        ),
        partial(_draw_starts, run, panels),
    )


def _fits(panels: Sequence[tuple[Any, Sequence[Any]]], more: Sequence[Any]) -> bool:
    """Whether a page has room for one more panel, or this is the first."""
    rows = sum(len(items) + PANEL_ROWS for items in (*(items for _, items in panels), more))
    return not panels or rows <= MOST_ROWS


def _median_text(item: Distribution) -> str:
    return format_value(statistics.median(item.values), "s")


def _draw_starts(run: RunReport, panels: _Panels, figure: Figure, grid: Grid) -> None:
    for (axes,), (workload, items) in zip(grid, panels, strict=True):
        every = [value for item in items for value in item.values if value > 0]
        for y, item in enumerate(items):
            drawn = style(run, item.arm)
            label = run.arm(item.arm).label
            (points,) = axes.plot(item.values, [y] * len(item.values), marker=drawn.marker, ls="",
                                  color=drawn.colour, mfc="none", mew=0.7, ms=4)  # fmt: skip
            tag(points, run, item.arm,
                *(f"{label}: {format_value(value, 's')}" for value in item.values))  # fmt: skip
            axes.plot([statistics.median(item.values)] * 2, [y - 0.4, y + 0.4], color=INK, lw=1.4,
                      ls="-")  # fmt: skip
            axes.text(1.015, y, _median_text(item), transform=axes.get_yaxis_transform(),
                      va="center", fontsize=7)  # fmt: skip
        row_labels(axes, enumerate(run.arm(item.arm).label for item in items), 7.5)
        axes.set_ylim(len(items) - 0.4, -0.6)
        spread = max(math.log10(max(every) / min(every)), 0.3)
        log_axis(axes, "s", min(every) / 10 ** (0.03 * spread), max(every) * 10 ** (0.03 * spread))
        axes.grid(axis="both")
        axes.set_axisbelow(True)
        axes.set_title(workload.title)


def shares(run: RunReport) -> Chart | None:
    """Where start-up time goes: each arm's own start as one bar of the same length."""
    rows: list[tuple[Workload, Arm, list[Phase]]] = []
    for workload in run.workloads:
        found = []
        for arm in run.arms:
            parts = [p for p in run.phases if (p.arm, p.workload) == (arm.name, workload.name)]
            if parts and parts[-1].at_s > 0:
                found.append((workload, arm, parts))
        found.sort(key=lambda row: row[2][-1].at_s)
        if not rows or len(rows) + len(found) <= MOST_ROWS - PANEL_ROWS:
            rows += found
    if not rows:
        return None
    return Chart(
        "Where start-up time goes",
        "Each bar is the whole of an arm's start, from the request to ready, cut at the median "
        "time of each event; a part is named by the event that ends it. What the whole takes "
        "stands at the right: bars of one length are not equally long times.",
        Canvas(
            [0.165 * len(rows)],
            left_in=lambda: widest_in([_row_text(run, *row[:2]) for row in rows], 7.5),
            right_in=lambda: widest_in([row[2][-1].at_text for row in rows], 7.0) + 0.05,
            above_in=0.05,
        ),
        partial(_draw_shares, run, rows),
    )


def _row_text(run: RunReport, workload: Workload, arm: Arm) -> str:
    return arm.label if len(run.workloads) == 1 else f"{workload.name}, {arm.label}"


def _draw_shares(
    run: RunReport,
    rows: Sequence[tuple[Workload, Arm, list[Phase]]],
    figure: Figure,
    grid: Grid,
) -> None:
    from matplotlib.patches import Patch

    axes = grid[0][0]
    events = events_of(run)
    for y, (workload, arm, parts) in enumerate(rows):
        whole, left = parts[-1].at_s, 0.0
        for part in parts:
            index = events.index(part.event) % len(PHASE_SHADES)
            width = max(part.at_s / whole - left, 0.0)
            (bar,) = axes.barh(y, width, left=left, height=0.72, color=PHASE_SHADES[index],
                               edgecolor=FAINT, lw=0.5)  # fmt: skip
            tag(bar, run, arm.name, f"{arm.label}, {workload.title}: {part.length_text} to "
                f"{part.event}, at {part.at_text}")  # fmt: skip
            if width > 0.014 * (len(part.event) + 1.5):
                axes.text(left + width / 2, y, part.event, ha="center", va="center", fontsize=6,
                          color=PAPER if PHASE_INKS[index] else INK)  # fmt: skip
            left += width
        axes.text(1.015, y, parts[-1].at_text, transform=axes.get_yaxis_transform(), va="center",
                  fontsize=7)  # fmt: skip
    row_labels(axes, enumerate(_row_text(run, *row[:2]) for row in rows), 7.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "all of it"])
    legend(figure, [Patch(facecolor=PHASE_SHADES[n % len(PHASE_SHADES)], edgecolor=FAINT, lw=0.5,
                          label=f"→ {event}") for n, event in enumerate(events)])  # fmt: skip


def against_one(run: RunReport) -> Chart | None:
    """The plan's primary metrics, every arm against the same one, a panel per metric."""
    baselines = [baseline for _, baseline, _ in run.pairs]
    if not baselines:
        return None
    one = max(dict.fromkeys(baselines), key=baselines.count)
    panels: list[tuple[str, list[Comparison]]] = []
    for metric, workload in run.plan["primary"]:
        rows = [row for row in run.comparisons
                if (row.metric, row.workload, row.baseline) == (metric, workload, one)
                and ratio_of(row) is not None]  # fmt: skip
        if rows and _fits(panels, rows):
            rows.sort(key=lambda row: ratio_of(row).estimate or 0.0)  # type: ignore[union-attr]
            panels.append((rows[0].title, [replace(row, title=run.arm(row.arm).label)
                                           for row in rows]))  # fmt: skip
    if not panels:
        return None
    return forest_text(
        f"Every arm ÷ {run.arm(one).label}",
        "One row is one arm. Other pairs of arms are in the tables. ",
        panels,
        partial(draw_forest, run, panels),
    )
