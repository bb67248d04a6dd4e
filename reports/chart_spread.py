"""Charts of how steady a family's figures were: every trial, as a distribution and in order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench.numbers import format_value
from reports.drawing import (
    BAND,
    INK,
    PAPER,
    Canvas,
    Chart,
    arm_keys,
    legend,
    quantity,
    round_ticks,
    style,
    tag,
)
from reports.model import Distribution, Metric, RunReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reports.drawing import Grid

SHOWN = {"memory": "memory_current", "cpu": "work_per_cpu_second"}
"""The metric of a family that is shown where the plan judges no other."""

MOST_PANELS = 5
FEW = 64
"""Values of one arm up to which each is marked."""

_Panel = tuple[str, Metric, list[Distribution]]


def spread(run: RunReport, family: str) -> Chart | None:
    """Beside each other, workload by workload: the distribution, and the order of the run."""
    panels = _panels(run, family)
    if not panels:
        return None
    return Chart(
        "How steady it was: every trial",
        "Each value against the median of its arm: as a difference where the metric is judged so, "
        "else divided by it. Left the share of trials at or below, with a tinted band that holds "
        "95 % (Clopper and Pearson); right the same values in the order of the blocks, where a "
        "slope is drift and a step a change of the host. Grey: the plan's margin.",
        Canvas([0.78] * len(panels), 2, left_in=0.4, above_in=0.22, below_in=0.33, gap_in=0.75),
        partial(_draw, run, panels),
    )


def _draw(run: RunReport, panels: Sequence[_Panel], figure: Figure, grid: Grid) -> None:
    for (left, right), (title, metric, curves) in zip(grid, panels, strict=True):
        _panel(run, left, right, metric, curves)
        left.set_title(f"{title}: {metric.title}")
    grid[-1][1].set_xlabel("block")
    legend(figure, arm_keys(run))


def _panels(run: RunReport, family: str) -> list[_Panel]:
    metrics = {metric.name: metric for metric in run.metrics}
    found: list[_Panel] = []
    for workload in run.workloads:
        judged = [name for name, of in run.plan["primary"]
                  if of == workload.name and name in metrics]  # fmt: skip
        mine = [name for name in judged if metrics[name].family == family]
        for name in [*mine, SHOWN.get(family, "")]:
            curves = [d for d in run.distributions
                      if (d.metric, d.workload) == (name, workload.name) and d.values]  # fmt: skip
            if curves:
                found.append((workload.title, metrics[name], curves))
                break
    return found[:MOST_PANELS]


def _panel(
    run: RunReport, left: Axes, right: Axes, metric: Metric, curves: list[Distribution]
) -> None:
    ratio = metric.scale == "ratio"
    neutral, margin = (1.0, metric.margin or 0.0) if ratio else (0.0, metric.margin or 0.0)
    reach = [1 + 1.3 * margin] if ratio else [1.3 * margin]
    for curve in curves:
        middle = next(
            (s.median for s in run.summaries
             if (s.metric, s.workload, s.arm) == (curve.metric, curve.workload, curve.arm)), None
        )  # fmt: skip
        if middle is None or (ratio and middle <= 0):
            continue
        drawn, label = style(run, curve.arm), run.arm(curve.arm).label
        few = len(curve.values) <= FEW

        def centred(value: float, middle: float = middle) -> float:
            return value / middle if ratio else value - middle

        xs = [centred(value) for value in curve.values]
        ys = [centred(value) for _, value in curve.order]
        reach += [max(x, 1 / max(x, 1e-6)) if ratio else abs(x) for x in (*xs, *ys)]
        band = left.fill_between(
            [xs[0], *xs], [curve.low[0], *curve.low], [curve.high[0], *curve.high],
            step="post", color=drawn.colour, alpha=0.13, lw=0,
        )  # fmt: skip
        (line,) = left.step([xs[0], *xs], [0.0, *curve.shares], where="post", color=drawn.colour,
                            ls=drawn.line, lw=1.2)  # fmt: skip
        (order,) = right.plot([block for block, _ in curve.order], ys, color=drawn.colour,
                              ls=drawn.line, lw=0.8, marker=drawn.marker if few else "",
                              mfc=PAPER, mew=0.7, ms=3)  # fmt: skip
        tag(band, run, curve.arm)
        tag(line, run, curve.arm)
        if few:
            (points,) = left.plot(xs, curve.shares, marker=drawn.marker, ls="", mfc=PAPER,
                                  color=drawn.colour, mew=0.7, ms=3)  # fmt: skip
            tag(points, run, curve.arm, *(
                f"{label}: {_exact(metric, value)}, {share:.0%} of trials at or below"
                for value, share in zip(curve.values, curve.shares, strict=True)
            ))  # fmt: skip
        tips = [f"{label}, block {block}: {_exact(metric, value)}" for block, value in curve.order]
        tag(order, run, curve.arm, *(tips if few else ()))
    _axes(left, right, metric, max(reach), neutral, margin)


def _axes(
    left: Axes, right: Axes, metric: Metric, reach: float, neutral: float, margin: float
) -> None:
    """Both panels on one scale: across on the left, upwards on the right."""
    ratio = metric.scale == "ratio"
    low, high = (1 / (reach * 1.03), reach * 1.03) if ratio else (-reach * 1.05, reach * 1.05)
    if margin:
        ends = (1 / (1 + margin), 1 + margin) if ratio else (-margin, margin)
        left.axvspan(*ends, color=BAND, lw=0, zorder=0)
        right.axhspan(*ends, color=BAND, lw=0, zorder=0)
    ticks = [1 / reach, 1.0, reach] if ratio else [-reach, 0.0, reach]

    def named(value: float, _: object = None) -> str:
        if ratio:
            return f"{value:.2f}×"
        sign = "+" if value > 0 else "−" if value < 0 else ""
        return sign + quantity(float(f"{abs(value):.2g}"), metric.unit)

    for axes, axis in ((left, left.xaxis), (right, right.yaxis)):
        if ratio:
            (axes.set_xscale if axes is left else axes.set_yscale)("log")
        axis.minorticks_off()
        axis.set_ticks(ticks)
        axis.set_major_formatter(named)
    left.set_xlim(low, high)
    right.set_ylim(low, high)
    left.axvline(neutral, color=INK, lw=0.6, zorder=1)
    right.axhline(neutral, color=INK, lw=0.6, zorder=1)
    left.set_ylim(0, 1.06)
    left.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    left.grid(axis="both")
    round_ticks(right.xaxis)


def _exact(metric: Metric, value: float) -> str:
    if metric.unit == "work/s":
        return f"{value:.4g} units of work a second"
    return format_value(value, metric.unit)
