"""The chart of several runs: the same ratio, run by run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench.numbers import RATIO_UNIT
from reports.drawing import (
    INK,
    PAPER,
    STYLES,
    Canvas,
    Chart,
    legend,
    log_axis,
    row_labels,
    tag,
    widest_in,
)
from reports.model import JointRow, ReportData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reports.drawing import Grid

MOST_ROWS = 36
MOST_NAMED = 4
"""Runs whose names fit a legend."""


def joint_forest(data: ReportData) -> Chart | None:
    """Every joint ratio with one marker a run, all on one axis."""
    rows = [row for row in data.joint if row.scale == "ratio"]
    rows = [row for row in rows if any(cell.estimate for cell in row.cells)][:MOST_ROWS]
    if not rows:
        return None
    labels = [_label(row) for row in rows]
    return Chart(
        "The same ratios, run by run",
        "One row a question, one marker a run, from top to bottom in the order of the table's "
        "columns, each with its own 95 % interval. Where intervals of one row lie apart, host or "
        "day matter more than the blocks of one run can show.",
        Canvas(
            [0.07 * (len(data.runs) + 1) * len(rows) + 0.1],
            left_in=lambda: widest_in(labels, 7.0),
            above_in=0.22,
        ),
        partial(_draw, data, rows, labels),
    )


def _draw(
    data: ReportData, rows: Sequence[JointRow], labels: Sequence[str], figure: Figure, grid: Grid
) -> None:
    from matplotlib.lines import Line2D

    ends = [v for row in rows for c in row.cells for v in (c.estimate, c.low, c.high) if v]
    low, high = min([*ends, 1.0]), max([*ends, 1.0])
    spread = max(math.log10(high / low), 0.08)
    left, right = low / 10 ** (spread * 0.06), high * 10 ** (spread * 0.06)
    runs = len(data.runs)
    ((axes,),) = grid
    for y, row in enumerate(rows):
        for place, cell in enumerate(row.cells):
            if not cell.estimate:
                continue
            drawn = STYLES[place % len(STYLES)]
            at = y + (place - (runs - 1) / 2) * 0.8 / max(runs, 2)
            shown = [min(max(end, left), right) for end in (cell.low or left, cell.high or right)]
            axes.plot(shown, [at, at], color=drawn.colour, lw=1.2, ls="-", marker="|", ms=3)
            (point,) = axes.plot([cell.estimate], [at], marker=drawn.marker, color=drawn.colour,
                                 mfc=PAPER, ms=4, ls="", zorder=3)  # fmt: skip
            tag(point, None, "", f"{cell.run}: {labels[y]}: {cell.text}, {cell.verdict}")
    axes.axvline(1.0, color=INK, lw=0.7, zorder=1)
    row_labels(axes, enumerate(labels), 7.0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    log_axis(axes, RATIO_UNIT, left, right)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    styles = [STYLES[n % len(STYLES)] for n in range(runs)]
    keys = [
        Line2D([], [], color=drawn.colour, marker=drawn.marker, mfc=PAPER, ms=4, label=run.id)
        for run, drawn in zip(data.runs, styles, strict=True)
    ]
    legend(figure, keys[:MOST_NAMED])


def _label(row: JointRow) -> str:
    return f"{row.title} ({row.arm} ÷ {row.baseline})"
