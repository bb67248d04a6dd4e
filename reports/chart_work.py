"""The chart of work per CPU second."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from reports.drawing import INK, Canvas, Chart, row_labels, style, tag, widest_in
from reports.model import Distribution, RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reports.drawing import Grid


def efficiency(run: RunReport) -> Chart | None:
    """Work per host CPU second of each arm, every trial shown, one panel per workload."""
    groups: dict[str, list[Distribution]] = {}
    for item in run.distributions:
        if item.metric == "work_per_cpu_second" and item.values:
            groups.setdefault(item.workload, []).append(item)
    if not groups:
        return None
    names = list(groups)[: 2 if run.crowded else 6]
    return Chart(
        "Work per host CPU second",
        "Every trial is a marker, the upright bar the median; further right is more work for the "
        "same host CPU time, whoever spent it: guest, VMM or kernel.",
        Canvas(
            [0.19 * len(run.arms)] * len(names),
            left_in=lambda: widest_in([arm.label for arm in run.arms], 7.5),
            right_in=0.9,
            below_in=0.36,
        ),
        partial(_draw_efficiency, run, {name: groups[name] for name in names}),
    )


def _draw_efficiency(
    run: RunReport, groups: Mapping[str, list[Distribution]], figure: Figure, grid: Grid
) -> None:
    for (axes,), name in zip(grid, groups, strict=True):
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
        row_labels(axes, enumerate(run.arm(item.arm).label for item in groups[name]), 7.5)
        axes.set_ylim(len(groups[name]) - 0.4, -0.6)
        axes.set_xlim(0, axes.get_xlim()[1])
        axes.set_xlabel(unit, fontsize=7)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_title(run.workload(name).title)
