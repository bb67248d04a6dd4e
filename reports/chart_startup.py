"""Charts of start-up: distributions, phases, and the order of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench.numbers import format_value
from reports.drawing import (
    FAINT,
    INK,
    PAPER,
    PHASE_INKS,
    PHASE_SHADES,
    Canvas,
    Chart,
    arm_keys,
    distributions,
    legend,
    log_axis,
    quantity,
    round_ticks,
    row_labels,
    style,
    tag,
    widest_in,
)
from reports.model import Arm, Distribution, Phase, RunReport, Workload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reports.drawing import Grid

_Panels = Sequence[tuple[Workload, Sequence[Distribution]]]


def startup_ecdf(run: RunReport) -> Chart | None:
    """The distribution of start-up per arm, one panel per workload."""
    panels = []
    for workload in run.workloads:
        curves = distributions(run, workload.name)
        if curves:
            panels.append((workload, curves))
    panels = panels[:9]
    if not panels:
        return None
    columns = _columns(len(panels))
    return Chart(
        "Start-up to ready: every trial",
        "Each step is one trial; a curve further left is faster, a steeper one steadier. The "
        "tinted band holds 95 % at each time (Clopper and Pearson). The time "
        "axis is logarithmic and the same in every panel. A curve that ends below 1 had trials "
        "that were never ready.",
        Canvas([1.0] * math.ceil(len(panels) / columns), columns, left_in=0.42, above_in=0.22),
        partial(_draw_ecdf, run, panels),
    )


def _columns(panels: int) -> int:
    return min(3, panels) if panels != 4 else 2


def _draw_ecdf(run: RunReport, panels: _Panels, figure: Figure, grid: Grid) -> None:
    columns = _columns(len(panels))
    every = [v for _, curves in panels for c in curves for v in c.values if v > 0]
    low, high = (min(every), max(every)) if every else (1e-3, 1.0)
    spread = max(math.log10(high / low), 0.3)
    low, high = low / 10 ** (0.05 * spread), high * 10 ** (0.1 * spread)
    for place, axes in enumerate(axes for row in grid for axes in row):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        workload, curves = panels[place]
        for curve in curves:
            drawn = style(run, curve.arm)
            xs = [curve.values[0], *curve.values]
            ys = [0.0, *curve.shares]
            limits = [[curve.low[0], *curve.low], [curve.high[0], *curve.high]]
            if curve.censored:  # it goes on beyond the axis, at the share that was ever ready
                xs, ys = [*xs, high], [*ys, ys[-1]]
                limits = [[*limit, limit[-1]] for limit in limits]
            band = axes.fill_between(
                xs, limits[0], limits[1], step="post", color=drawn.colour, alpha=0.13, lw=0
            )
            tag(band, run, curve.arm)
            (line,) = axes.step(xs, ys, where="post", color=drawn.colour, ls=drawn.line, lw=1.3)
            tag(line, run, curve.arm)
            if len(curve.values) <= 64:
                (points,) = axes.plot(curve.values, curve.shares, marker=drawn.marker, ls="",
                                      color=drawn.colour, mfc=PAPER, mew=0.8, ms=3.2)  # fmt: skip
                label = run.arm(curve.arm).label
                tips = [
                    f"{label}: {format_value(value, 's')}, {share:.0%} of trials by then"
                    for value, share in zip(curve.values, curve.shares, strict=True)
                ]
                tag(points, run, curve.arm, *tips)
        axes.set_ylim(0, 1.06)
        axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
        log_axis(axes, "s", low, high, narrow=columns > 2)
        axes.grid(axis="both")
        axes.set_title(workload.title)
        if place % columns == 0:
            axes.set_ylabel("share of trials")
        else:
            axes.tick_params(labelleft=False)
    legend(figure, arm_keys(run))


def timeline(run: RunReport) -> Chart | None:
    """The phases of start-up as bars, one panel per arm with its own time axis."""
    arms = [arm for arm in run.arms if any(p.arm == arm.name for p in run.phases)]
    if not arms:
        return None
    names = [w for w in run.workloads if any(p.workload == w.name for p in run.phases)][:10]
    return Chart(
        "Where start-up time goes",
        "Each bar runs from the request to ready, cut at the median time of each event; a part is "
        "named by the event that ends it. Every arm has its own time axis: compare the shape of "
        "the bars between panels, and the figures at their ends.",
        Canvas(
            [0.18 * len(names)] * len(arms),
            left_in=lambda: widest_in([workload.title for workload in names], 7.5),
            above_in=0.2,
        ),
        partial(_draw_timeline, run, arms, names),
    )


def _draw_timeline(
    run: RunReport, arms: Sequence[Arm], names: Sequence[Workload], figure: Figure, grid: Grid
) -> None:
    from matplotlib.patches import Patch

    events = events_of(run)
    for (axes,), arm in zip(grid, arms, strict=True):
        longest = max(p.at_s for p in run.phases if p.arm == arm.name)
        for y, workload in enumerate(names):
            parts: list[tuple[float, Phase, int]] = []
            left, last = 0.0, None
            for phase in run.phases:  # in the order of the events
                if (phase.arm, phase.workload) != (arm.name, workload.name):
                    continue
                index = events.index(phase.event) % len(PHASE_SHADES)
                (bar,) = axes.barh(y, max(phase.at_s - left, 0.0), left=left, height=0.7,
                                   color=PHASE_SHADES[index], edgecolor=FAINT, lw=0.5)  # fmt: skip
                tag(bar, None, "", f"{arm.label}, {workload.title}: {phase.length_text} to "
                    f"{phase.event}, at {phase.at_text}")  # fmt: skip
                parts.append((left, phase, index))
                left, last = max(left, phase.at_s), phase
            for start, phase, index in parts:
                wide = (phase.at_s - start) / longest if longest else 0.0
                if wide > 0.012 * (len(phase.event) + 1.5):
                    axes.text((start + phase.at_s) / 2, y, phase.event, ha="center", va="center",
                              fontsize=6, color=PAPER if PHASE_INKS[index] else INK)  # fmt: skip
            if last is not None:
                axes.annotate(last.at_text, (left, y), xytext=(4, 0), textcoords="offset points",
                              va="center", fontsize=7)  # fmt: skip
        row_labels(axes, enumerate(workload.title for workload in names), 7.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, (longest or 1.0) * 1.1)
        round_ticks(axes.xaxis, 6)
        axes.xaxis.set_major_formatter(lambda x, _: quantity(x, "s"))
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_title(arm.label)
    keys = [
        Patch(facecolor=PHASE_SHADES[n % len(PHASE_SHADES)], edgecolor=FAINT, lw=0.5,
              label=f"→ {event}")
        for n, event in enumerate(events)
    ]  # fmt: skip
    legend(figure, keys)


def events_of(run: RunReport) -> list[str]:
    """The events that end a phase of this run, in their order."""
    order: list[str] = []
    for phase in run.phases:
        if phase.event not in order:
            order.append(phase.event)
    known = ("accepted", "spawned", "kernel", "init", "started", "listening", "ready")
    return sorted(order, key=lambda event: known.index(event) if event in known else 99)


def run_order(run: RunReport) -> Chart | None:
    """Each value over the blocks, relative to its arm's median: drift and jumps show."""
    panels = [(w, distributions(run, w.name)) for w in run.workloads]
    panels = [(w, curves) for w, curves in panels if curves][:9]
    if not panels:
        return None
    columns = _columns(len(panels))
    return Chart(
        "Start-up over the run",
        "Each value divided by the median of its arm, in the order of the blocks. A slope is "
        "drift, a step a change of the host; a flat, irregular band is what one hopes for.",
        Canvas(
            [0.72] * math.ceil(len(panels) / columns),
            columns, left_in=0.48, above_in=0.22, gap_in=0.55, below_in=0.3,
        ),
        partial(_draw_run_order, run, panels),
    )  # fmt: skip


def _draw_run_order(run: RunReport, panels: _Panels, figure: Figure, grid: Grid) -> None:
    for place, axes in enumerate(axes for row in grid for axes in row):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        workload, curves = panels[place]
        reach = 1.05
        for curve in curves:
            drawn = style(run, curve.arm)
            ordered = sorted(value for _, value in curve.order)
            middle = ordered[len(ordered) // 2]
            if middle <= 0:
                continue
            ys = [value / middle for _, value in curve.order]
            reach = max(reach, max(ys), 1 / max(min(ys), 1e-3))
            few = len(ys) <= 64
            (line,) = axes.plot([block for block, _ in curve.order], ys, color=drawn.colour,
                                ls=drawn.line, marker=drawn.marker if few else "", mfc=PAPER,
                                mew=0.7, ms=3, lw=0.8)  # fmt: skip
            label = run.arm(curve.arm).label
            tips = [f"{label}, block {block}: {format_value(value, 's')}"
                    for block, value in curve.order]  # fmt: skip
            tag(line, run, curve.arm, *(tips if few else ()))
        axes.set_yscale("log")
        axes.set_ylim(1 / (reach * 1.05), reach * 1.05)
        ticks = [1 / reach, 1.0, reach]
        axes.set_yticks(ticks, [f"{tick:.2f}×" for tick in ticks])
        axes.yaxis.minorticks_off()
        axes.axhline(1.0, color=INK, lw=0.6)
        round_ticks(axes.xaxis)
        axes.set_title(workload.title)
        if place >= len(panels) - len(grid[0]):
            axes.set_xlabel("block")
    legend(figure, arm_keys(run))
