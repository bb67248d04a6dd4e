"""The pictures, as SVG text: drawn once, the same in HTML and PDF, readable without colour.

Colours are fixed inks; `reports.html` swaps them for style sheet variables on screen, so
that dark mode works. An arm keeps its colour, line and marker in every picture; bars bear their
arm's name, so that nothing depends on colour.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    MultipleLocator,
    NullFormatter,
    NullLocator,
)

from bench.numbers import RATIO_UNIT, format_value
from reports.model import Comparison, Phase, RunReport

INK = "#1b1f24"
FAINT = "#5b6470"
GRID = "#dfe3e8"
PAPER = "#fefefe"
BAND = "#e9edf2"
WIDTH_IN = 7.0


@dataclass(frozen=True)
class Style:
    """How one arm is drawn: told apart by any one of its parts alone."""

    colour: str
    line: Any
    marker: str


STYLES = (
    Style("#c2470b", "--", "s"),
    Style("#0b57a8", "-", "o"),
    Style("#8b939e", ":", "^"),
    Style("#7a3e9d", "-.", "D"),
    Style("#1d7a4f", (0, (5, 1, 1, 1, 1, 1)), "v"),
    Style("#a3195b", (0, (1, 2)), "P"),
)
PHASE_SHADES = ("#f1f3f6", "#8596a8", "#dce2e9", "#a9b6c5", "#61758b", "#eef0f2", "#c3ccd7")
PHASE_INKS = (0, 1, 0, 0, 1, 0, 0)  # 1: light text on it
_SETTINGS = {
    "svg.hashsalt": "hvct",  # ids from content, not from chance
    "svg.fonttype": "none",  # words stay words: they can be searched and read aloud
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.6,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Picture:
    """One chart: `svg` is complete and self-contained; `caption` says how to read it."""

    slug: str
    title: str
    caption: str
    svg: str


def pictures(run: RunReport, prefix: str = "") -> dict[str, Picture]:
    """All charts this run has data for, by slug; ids inside begin with `prefix`."""
    makers: dict[str, Callable[[RunReport], tuple[Figure, str, str] | None]] = {
        "forest": forest,
        "startup-ecdf": startup_ecdf,
        "timeline": timeline,
        "memory": memory,
        "efficiency": efficiency,
        "run-order": run_order,
    }
    made = {}
    with matplotlib.rc_context(_SETTINGS):
        for slug, make in makers.items():
            drawn = make(run)
            if drawn is not None:
                figure, title, caption = drawn
                made[slug] = Picture(slug, title, caption, _svg(figure, f"{prefix}{slug}", title))
    return made


def _svg(figure: Figure, slug: str, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    text = re.sub(r'\bid="', f'id="{slug}-', text)
    text = re.sub(r"url\(#", f"url(#{slug}-", text)
    text = re.sub(r'xlink:href="#', f'xlink:href="#{slug}-', text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{_attribute(title)}" ', 1).strip()


def quantity(value: float, unit: str) -> str:
    """A short label for an axis: ``1 ms``, ``0.5×``, ``64 MiB``, without needless zeros."""
    if value == 0:
        return "0"
    text = format_value(value, unit)
    return re.sub(r"(\.\d*?)0+(?=\D|$)", r"\1", text).replace(". ", " ").replace(".×", "×")


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def style(run: RunReport, arm: str) -> Style:
    """How this arm is drawn."""
    return STYLES[run.arm(arm).style % len(STYLES)]


def _figure(height_in: float, rows: int, columns: int, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def _log_axis(axes: Axes, unit: str, low: float, high: float, *, narrow: bool = False) -> None:
    """A log axis whose labels are quantities with units, about five; `narrow`: about three."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    decades = math.log10(high / low)
    if decades > 0.7:
        few = 1.6 if narrow else 3
        subs = (1.0,) if decades > few else (1.0, 3.0) if decades > few / 2 else (1.0, 2.0, 5.0)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    else:
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
        axes.xaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: quantity(x, unit)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _bytes_axis(axes: Axes, high: float) -> None:
    """A linear axis of bytes with round numbers of KiB, MiB or GiB."""
    wanted = max(high, 1.0) / 4
    power = 1024.0 ** math.floor(math.log(wanted, 1024))
    steps = (1, 2, 5, 10, 20, 50, 100, 200, 256, 512, 1024)
    step = next(n for n in steps if n * power >= wanted) * power
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: quantity(x, "bytes")))


# ---------------------------------------------------------------- effects


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
    heights = [len(rows) + 1.6 for _, rows in panels]
    figure, grid = _figure(
        0.135 * sum(heights) + 0.42 * len(panels), len(panels), 1, height_ratios=heights
    )
    for axes, (label, rows) in zip(grid[:, 0], panels, strict=True):
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


FOREST_METRICS = ("startup_ready", "run_wall", "work_per_cpu_second")
"""Drawn beside the plan's primary metrics."""

MOST_ROWS = 20


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
    axes.set_yticks(
        range(len(rows)), [f"{'★ ' if row.primary else ''}{row.title}" for row in rows]
    )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _log_axis(axes, RATIO_UNIT, left, right)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_title(label)


# ---------------------------------------------------------------- start-up


def startup_ecdf(run: RunReport) -> tuple[Figure, str, str] | None:
    """The distribution of start-up per arm, one panel per workload."""
    panels = []
    for workload in run.workloads:
        curves = _distributions(run, workload.name)
        if curves:
            panels.append((workload, curves))
    panels = panels[:9]
    if not panels:
        return None
    columns = min(3, len(panels)) if len(panels) != 4 else 2
    rows = math.ceil(len(panels) / columns)
    figure, grid = _figure(1.5 * rows + 0.25, rows, columns, sharey=True)
    every = [v for _, curves in panels for c in curves for v in c.values if v > 0]
    low, high = (min(every), max(every)) if every else (1e-3, 1.0)
    spread = max(math.log10(high / low), 0.3)
    low, high = low / 10 ** (0.05 * spread), high * 10 ** (0.1 * spread)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        workload, curves = panels[place]
        for curve in curves:
            drawn = style(run, curve.arm)
            total = curve.n + curve.censored
            heights = [(i + 1) / len(curve.values) * curve.n / total
                       for i in range(len(curve.values))]  # fmt: skip
            xs = [curve.values[0], *curve.values]
            ys = [0.0, *heights]
            if curve.censored:  # it goes on beyond the axis, at the share that was ever ready
                xs, ys = [*xs, high], [*ys, heights[-1]]
            axes.step(xs, ys, where="post", color=drawn.colour, ls=drawn.line, lw=1.3)
            if len(curve.values) <= 64:
                axes.plot(curve.values, heights, marker=drawn.marker, ls="", color=drawn.colour,
                          mfc=PAPER, mew=0.8, ms=3.2)  # fmt: skip
        axes.set_ylim(0, 1.06)
        axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
        _log_axis(axes, "s", low, high, narrow=columns > 2)
        axes.grid(axis="both")
        axes.set_title(workload.title)
        if place % columns == 0:
            axes.set_ylabel("share of trials")
    figure.legend(handles=_arm_keys(run), loc="outside upper right",
                  ncols=len(run.arms), frameon=False, fontsize=7.5)  # fmt: skip
    return (
        figure,
        "Start-up to ready: every trial",
        "Each step is one trial; a curve further left is faster, a steeper one steadier. The time "
        "axis is logarithmic and the same in every panel. A curve that ends below 1 had trials "
        "that were never ready.",
    )


def _distributions(run: RunReport, workload: str) -> list[Any]:
    for metric in ("startup_ready", "startup_started"):
        curves = [
            d
            for d in run.distributions
            if d.workload == workload and d.metric == metric and d.values
        ]
        if curves:
            return curves
    return []


def _arm_keys(run: RunReport) -> list[Any]:
    keys: list[Any] = []
    for arm in run.arms:
        drawn = style(run, arm.name)
        keys.append(Line2D([], [], color=drawn.colour, ls=drawn.line, marker=drawn.marker,
                           mfc=PAPER, mew=0.8, ms=3.6, label=arm.label))  # fmt: skip
    return keys


def timeline(run: RunReport) -> tuple[Figure, str, str] | None:
    """The phases of start-up as bars, one panel per arm with its own time axis."""
    arms = [arm for arm in run.arms if any(p.arm == arm.name for p in run.phases)]
    if not arms:
        return None
    events = _events(run)
    names = [w for w in run.workloads if any(p.workload == w.name for p in run.phases)][:10]
    height = 0.17 * len(names) + 0.5
    figure, grid = _figure(height * len(arms) + 0.35, len(arms), 1)
    for axes, arm in zip(grid[:, 0], arms, strict=True):
        longest = max(p.at_s for p in run.phases if p.arm == arm.name)
        for y, workload in enumerate(names):
            parts: list[tuple[float, Phase, int]] = []
            left, last = 0.0, None
            for phase in run.phases:  # in the order of the events
                if (phase.arm, phase.workload) != (arm.name, workload.name):
                    continue
                index = events.index(phase.event) % len(PHASE_SHADES)
                axes.barh(y, max(phase.at_s - left, 0.0), left=left, height=0.7,
                          color=PHASE_SHADES[index], edgecolor=FAINT, lw=0.5)  # fmt: skip
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
        axes.set_yticks(range(len(names)), [workload.title for workload in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, (longest or 1.0) * 1.1)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: quantity(x, "s")))
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_title(arm.label)
    keys = [
        Patch(facecolor=PHASE_SHADES[n % len(PHASE_SHADES)], edgecolor=FAINT, lw=0.5,
              label=f"→ {event}")
        for n, event in enumerate(events)
    ]  # fmt: skip
    figure.legend(handles=keys, loc="outside upper right", ncols=len(keys), frameon=False,
                  fontsize=7, handlelength=1.6, columnspacing=1.0)  # fmt: skip
    return (
        figure,
        "Where start-up time goes",
        "Each bar runs from the request to ready, cut at the median time of each event; a part is "
        "named by the event that ends it. Every arm has its own time axis: compare the shape of "
        "the bars between panels, and the figures at their ends.",
    )


def _events(run: RunReport) -> list[str]:
    order: list[str] = []
    for phase in run.phases:
        if phase.event not in order:
            order.append(phase.event)
    known = ("accepted", "spawned", "kernel", "init", "started", "listening", "ready")
    return sorted(order, key=lambda event: known.index(event) if event in known else 99)


# ---------------------------------------------------------------- memory and CPU

CHARGED = (
    ("memory_anon", 1.0),
    ("memory_shmem", 0.35),
    ("memory_file", 0.6),
    ("memory_kernel", 0.2),
)
"""Parts of the charge, with how strongly each is drawn."""

DEFINITIONS = (
    ("memory_pss", "PSS"),
    ("memory_rss", "RSS"),
    ("memory_host_delta", "missing on host"),
)


def memory(run: RunReport) -> tuple[Figure, str, str] | None:
    """Memory of each arm by four definitions, the cgroup's charge cut into its parts."""
    values = {
        (s.workload, s.arm, s.metric): s.median
        for s in run.summaries
        if s.median is not None and s.metric.startswith("memory_")
    }
    idle = [w for w in run.workloads if w.until == "ready"] or list(run.workloads)
    shown = [w for w in idle if any(key[0] == w.name for key in values)][:4]
    if not shown:
        return None
    lines = 1 + len(DEFINITIONS)
    columns = min(2, len(shown))
    rows = math.ceil(len(shown) / columns)
    height = (0.15 * len(run.arms) + 0.2) * lines + 0.5
    figure, grid = _figure(height * rows, rows, columns)
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        _memory_panel(run, axes, shown[place].name, values)
        axes.set_title(shown[place].title)
        if place % columns:
            axes.tick_params(labelleft=False)
    return (
        figure,
        "Memory, by four definitions",
        "The same instances, counted four ways (medians). The bar of the cgroup's charge is cut "
        "into anonymous memory, shared memory and tmpfs, page cache and kernel memory, in that "
        "order; the other definitions cannot be cut this way. They differ because they count "
        "shared pages differently: say which one you mean.",
    )


def _memory_panel(
    run: RunReport, axes: Axes, workload: str, values: dict[tuple[str, str, str], float | None]
) -> None:
    labels = ["charged (cgroup)", *(label for _, label in DEFINITIONS)]
    ticks: list[tuple[float, str]] = []
    y = 0.0
    for line, label in enumerate(labels):
        axes.text(0.0, y - 0.05, label, transform=axes.get_yaxis_transform(), va="center",
                  fontsize=6.8, fontweight="bold", color=FAINT)  # fmt: skip
        for arm in run.arms:
            y += 1.0
            colour = style(run, arm.name).colour
            metric = "memory_current" if line == 0 else DEFINITIONS[line - 1][0]
            total = values.get((workload, arm.name, metric))
            parts = [(values.get((workload, arm.name, m)), alpha) for m, alpha in CHARGED]
            if line or not any(part for part, _ in parts):
                parts = [(total, 1.0)]
            left = 0.0
            for part, alpha in parts:
                if part:
                    axes.barh(y, part, left=left, height=0.8, color=colour, alpha=alpha,
                              edgecolor=PAPER, lw=0.4)  # fmt: skip
                    left += part
            ticks.append((y, arm.label))
            text = "not known" if total is None else format_value(total, "bytes")
            axes.annotate(text, (max(total or 0.0, left, 0.0), y), xytext=(3, 0),
                          textcoords="offset points", va="center", fontsize=6.5)  # fmt: skip
        y += 1.3
    axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    axes.set_ylim(y - 0.5, -0.8)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.2)
    axes.tick_params(axis="y", length=0, labelsize=6.5)
    _bytes_axis(axes, axes.get_xlim()[1])
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
    figure, grid = _figure((0.2 * len(run.arms) + 0.7) * len(names), len(names), 1)
    for axes, name in zip(grid[:, 0], names, strict=True):
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


# ---------------------------------------------------------------- run order


def run_order(run: RunReport) -> tuple[Figure, str, str] | None:
    """Each value over the blocks, relative to its arm's median: drift and jumps show."""
    panels = [(w, _distributions(run, w.name)) for w in run.workloads]
    panels = [(w, curves) for w, curves in panels if curves][:9]
    if not panels:
        return None
    columns = min(3, len(panels)) if len(panels) != 4 else 2
    rows = math.ceil(len(panels) / columns)
    figure, grid = _figure(1.15 * rows + 0.25, rows, columns, sharex=True)
    for place, axes in enumerate(grid.flat):
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
            axes.plot([block for block, _ in curve.order], ys, color=drawn.colour, ls=drawn.line,
                      marker=drawn.marker if len(ys) <= 64 else "", mfc=PAPER, mew=0.7, ms=3,
                      lw=0.8)  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(1 / (reach * 1.05), reach * 1.05)
        ticks = [1 / reach, 1.0, reach]
        axes.set_yticks(ticks, [f"{tick:.2f}×" for tick in ticks])
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(LogLocator(subs=()))
        axes.axhline(1.0, color=INK, lw=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(workload.title)
        if place >= len(panels) - columns:
            axes.set_xlabel("block")
            axes.tick_params(labelbottom=True)
    figure.legend(handles=_arm_keys(run), loc="outside upper right",
                  ncols=len(run.arms), frameon=False, fontsize=7.5)  # fmt: skip
    return (
        figure,
        "Start-up over the run",
        "Each value divided by the median of its arm, in the order of the blocks. A slope is "
        "drift, a step a change of the host; a flat, irregular band is what one hopes for.",
    )
