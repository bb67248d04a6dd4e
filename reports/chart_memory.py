"""The chart of memory by its definitions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench.numbers import format_value
from reports.drawing import (
    FAINT,
    PAPER,
    Canvas,
    Chart,
    bytes_axis,
    row_labels,
    style,
    tag,
    widest_in,
)
from reports.model import RunReport, Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reports.drawing import Grid

MOST_ROWS = 48
"""Bars that fit on one page of the PDF."""
COUNTS = {1: "the group's charge", 2: "two definitions", 3: "three definitions",
          4: "four definitions"}  # fmt: skip

_Medians = Mapping[tuple[str, str, str], float | None]
_Definitions = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Part:
    """A part of the charge: how strongly and under which hatch it is drawn."""

    metric: str
    title: str
    alpha: float
    hatch: str


CHARGED = (
    Part("memory_anon", "anonymous", 1.0, ""),
    Part("memory_shmem", "shared and tmpfs", 0.35, "//"),
    Part("memory_file", "page cache", 0.6, r"\\"),
    Part("memory_kernel", "kernel", 0.2, "xx"),
)

DEFINITIONS = (
    ("memory_pss", "PSS"),
    ("memory_rss", "RSS"),
    ("memory_host_delta", "missing on host"),
)

DRAWN = frozenset(
    ("memory_current", *(part.metric for part in CHARGED), *(name for name, _ in DEFINITIONS))
)


def memory(run: RunReport) -> Chart | None:
    """Memory of each arm by four definitions, the cgroup's charge cut into its parts."""
    values = {
        (s.workload, s.arm, s.metric): s.median
        for s in run.summaries
        if s.median is not None and s.metric in DRAWN
    }
    known = {"memory_current", *(metric for metric, _ in DEFINITIONS)}
    idle = [w for w in run.workloads if w.until == "ready"] or list(run.workloads)
    shown = [w for w in idle if any(key[0] == w.name and key[2] in known for key in values)]
    shown = shown[: 1 if run.crowded else 4]
    if not shown:
        return None
    lines = min(1 + len(DEFINITIONS), max(1, MOST_ROWS // len(run.arms)))
    columns = min(2, len(shown))
    rows = math.ceil(len(shown) / columns)
    return Chart(
        f"Memory, by {COUNTS[lines]}",
        "The same instances, counted in each way (medians). The bar of the cgroup's charge is cut "
        "into anonymous memory (plain), shared memory and tmpfs (strokes), page cache (back "
        "strokes) and kernel memory (crosses), in that order; the other definitions cannot be cut "
        "this way. They differ because they count shared pages differently: say which one you "
        "mean.",
        Canvas(
            [(0.15 * len(run.arms) + 0.19) * lines] * rows,
            columns,
            left_in=lambda: widest_in([arm.label for arm in run.arms], 6.5),
        ),
        partial(_draw, run, shown, values, DEFINITIONS[: lines - 1]),
    )


def _draw(
    run: RunReport,
    shown: Sequence[Workload],
    values: _Medians,
    beside: _Definitions,
    figure: Figure,
    grid: Grid,
) -> None:
    for place, axes in enumerate(axes for row in grid for axes in row):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        named = not place % len(grid[0])
        _memory_panel(run, axes, shown[place].name, values, beside, named=named)
        axes.set_title(shown[place].title)


def _memory_panel(
    run: RunReport, axes: Axes, workload: str,
    values: _Medians, beside: _Definitions, *, named: bool,
) -> None:  # fmt: skip
    labels = ["charged (cgroup)", *(label for _, label in beside)]
    ticks: list[tuple[float, str]] = []
    y = 0.0
    for line, label in enumerate(labels):
        axes.text(0.0, y - 0.05, label, transform=axes.get_yaxis_transform(), va="center",
                  fontsize=6.8, fontweight="bold", color=FAINT)  # fmt: skip
        for arm in run.arms:
            y += 1.0
            colour = style(run, arm.name).colour
            metric = "memory_current" if line == 0 else beside[line - 1][0]
            total = values.get((workload, arm.name, metric))
            parts = [(values.get((workload, arm.name, part.metric)) or 0.0, part)
                     for part in CHARGED]  # fmt: skip
            if line or not any(size for size, _ in parts):
                parts = [(total or 0.0, Part(metric, "", 1.0, ""))]
            left = 0.0
            for size, part in parts:
                if size:
                    (bar,) = axes.barh(y, size, left=left, height=0.8, color=colour,
                                       alpha=part.alpha, edgecolor=PAPER, lw=0.4,
                                       hatch=part.hatch)  # fmt: skip
                    what = f"{label}, {part.title}" if part.title else label
                    tag(bar, None, "", f"{arm.label}, {what}: {format_value(size, 'bytes')}")
                    left += size
            ticks.append((y, arm.label))
            text = "not known" if total is None else format_value(total, "bytes")
            axes.annotate(text, (max(total or 0.0, left, 0.0), y), xytext=(3, 0),
                          textcoords="offset points", va="center", fontsize=6.5)  # fmt: skip
        y += 1.3
    if named:
        row_labels(axes, ticks, 6.5)
    else:
        axes.set_yticks([])
    axes.set_ylim(y - 0.5, -0.8)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.2)
    bytes_axis(axes, axes.get_xlim()[1])
    axes.grid(axis="x")
    axes.set_axisbelow(True)
