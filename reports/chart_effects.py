"""Charts of effects: ratios with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench.numbers import RATIO_UNIT
from reports.drawing import (
    BAND,
    INK,
    PAPER,
    Canvas,
    Chart,
    arm_keys,
    legend,
    log_axis,
    row_labels,
    style,
    tag,
    widest_in,
)
from reports.model import Comparison, Effect, RunReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reports.drawing import Grid

MOST_ROWS = 54
"""What fits on one page of the PDF, with headings and caption."""

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


def forest(run: RunReport) -> Chart | None:
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
    return forest_text(
        "The primary metrics as ratios",
        "Each pair of arms has its own axis. ",
        panels,
        partial(draw_forest, run, panels),
    )


Panels = Sequence[tuple[str, list[Comparison]]]


def forest_text(
    title: str, rows_are: str, panels: Panels, draw: Callable[[Figure, Grid], None]
) -> Chart:
    """A chart of `draw_forest`.

    Args:
        rows_are: what a row, or a panel, stands for.
    """
    every = [row for _, rows in panels for row in rows]
    return Chart(
        title,
        f"{_READING}{rows_are}The shaded band is the margin of the plan: "
        "inside it a difference does not matter; metrics that are judged as differences have none "
        "here. Filled markers are judged, hollow ones are described only (emulated, undecided, or "
        "outside the primary family). ★ marks the primary family.",
        Canvas(
            [0.15 * len(rows) + 0.05 for _, rows in panels],
            left_in=lambda: widest_in([_label(row) for row in every], 7.5),
            right_in=lambda: widest_in([_ratio_text(row) for row in every], 7.0) + 0.05,
        ),
        draw,
    )


def draw_forest(run: RunReport, panels: Panels, figure: Figure, grid: Grid) -> None:
    """One panel under the other, each with its own axis; a row's name is its title."""
    for (axes,), (label, rows) in zip(grid, panels, strict=True):
        left, right = _bounds(rows)
        _ratio_rows(run, axes, list(enumerate(rows)), left, right)
        for y, row in enumerate(rows):
            axes.text(1.015, y, _ratio_text(row), transform=axes.get_yaxis_transform(),
                      va="center", fontsize=7)  # fmt: skip
        row_labels(axes, enumerate(_label(row) for row in rows), 7.5)
        _finish(axes, left, right, (len(rows) - 0.4, -0.6))
        axes.set_title(label)


def family_forest(run: RunReport, family: str) -> Chart | None:
    """Every metric of one family in every pair of arms, all on one axis."""
    keys = _keys(run, [row for row in run.comparisons if row.family == family])
    return _ratios(run, keys, "Every metric as a ratio", {})


def all_forest(run: RunReport) -> Chart | None:
    """Every metric of every family on one axis; None where one family is all there is."""
    if len(run.families) < 2:
        return None
    titles = dict(run.families)
    order = list(titles)
    family = {metric.name: metric.family for metric in run.metrics}
    keys = sorted(_keys(run, run.comparisons), key=lambda key: order.index(family[key[1]]))
    heads = {key: titles[family[key[1]]] for key in keys}
    return _ratios(run, keys, "All metrics on one axis", heads)


_Key = tuple[str, str]


def _keys(run: RunReport, rows: Sequence[Comparison]) -> list[_Key]:
    """(workload, metric) of what can be drawn, by workload; metrics keep their order."""
    order = [workload.name for workload in run.workloads]
    found = dict.fromkeys((row.workload, row.metric) for row in rows
                          if ratio_of(row) is not None or _multiple(run, row))  # fmt: skip
    return sorted(found, key=lambda key: order.index(key[0]))


def _fitting(run: RunReport, keys: Sequence[_Key]) -> list[_Key]:
    """What fits one page: what the plan judges first, then from the top."""
    judged = [key for key in keys if [key[1], key[0]] in run.plan["primary"]]
    rest = [key for key in keys if key not in judged]
    kept = {*judged[:MOST_ROWS], *rest[: max(MOST_ROWS - len(judged), 0)]}
    return [key for key in keys if key in kept]


def _multiple(run: RunReport, row: Comparison) -> tuple[float, float, float] | None:
    """A difference and its interval in units of its margin; None for what is no difference."""
    effect = row.effect
    margin = next((m.margin for m in run.metrics if m.name == row.metric), None)
    if effect is None or effect.scale == "ratio" or effect.estimate is None or not margin:
        return None
    low = -math.inf if effect.low is None else effect.low
    high = math.inf if effect.high is None else effect.high
    return effect.estimate / margin, low / margin, high / margin


def _ratios(
    run: RunReport, keys: Sequence[_Key], title: str, heads_of: Mapping[_Key, str]
) -> Chart | None:
    """Ratios on one logarithmic axis and, row by row beside them, differences by their margins."""
    shown = _fitting(run, keys)
    if len(shown) < 2:
        return None
    found: dict[_Key, list[Comparison]] = {key: [] for key in shown}
    for row in run.comparisons:
        if (row.workload, row.metric) in found:
            found[(row.workload, row.metric)].append(row)
    every = [row for key in shown for row in found[key]]
    titles = {metric.name: metric.title for metric in run.metrics}
    labels: list[tuple[float, str]] = []
    heads: list[tuple[float, str]] = []
    places: list[tuple[float, Comparison]] = []
    y, before = -1.0, ""
    for key in shown:
        head = heads_of.get(key) or run.workload(key[0]).title
        if head != before:
            y += 1.35 if before else 0.0
            heads.append((y, head))
            before = head
        y += 1.0
        star = "★ " if any(row.primary for row in found[key]) else ""
        of = f", {key[0]}" if key in heads_of else ""
        labels.append((y, star + titles[key[1]] + of))
        rows = found[key]
        places += [(y + 0.28 * (n - (len(rows) - 1) / 2), row) for n, row in enumerate(rows)]
    beside = any(_multiple(run, row) for row in every)
    left_out = len(keys) - len(shown)
    pairs = "; ".join(dict.fromkeys(row.pair for row in every))
    return Chart(
        title,
        f"One row is one metric of a workload, one marker a pair of arms ({pairs}), all on one "
        f"axis. {_READING}"
        + (
            "Metrics that are judged as differences stand a second time at the right, divided by "
            "their own margin: a linear axis up to one margin, a logarithmic one beyond. "
            if beside
            else ""
        )
        + "Shaded: the margin. Filled markers are judged, and ★ marks the primary family."
        + (f" {left_out} more rows do not fit; they are in the tables." if left_out else ""),
        Canvas(
            [ROW_IN * (y + 2)],
            2 if beside else 1,
            left_in=lambda: max(
                widest_in([text for _, text in labels], 7.6),
                widest_in([text for _, text in heads], 8.6),
            ),  # bold
            below_in=0.34 if beside else 0.24,
            above_in=0.05,
        ),
        partial(_draw_ratios, run, _Rows(places, labels, heads, y + 0.8)),
    )


@dataclass(frozen=True)
class _Rows:
    """Where each effect, each name and each heading of a chart of ratios stands, from the top."""

    places: Sequence[tuple[float, Comparison]]
    labels: Sequence[tuple[float, str]]
    heads: Sequence[tuple[float, str]]
    bottom: float


def _draw_ratios(run: RunReport, rows: _Rows, figure: Figure, grid: Grid) -> None:
    axes = grid[0][0]
    every = [row for _, row in rows.places]
    left, right = _bounds(every)
    with_places = [(place, row) for place, row in rows.places if ratio_of(row) is not None]
    _ratio_rows(run, axes, with_places, left, right, height=0.14)
    row_labels(axes, sorted([*rows.labels, *rows.heads]), 7.0, {at for at, _ in rows.heads})
    _finish(axes, left, right, (rows.bottom, -1.6))
    if len(grid[0]) > 1:
        axes.set_xlabel("ratio")
        _differences(run, grid[0][1], rows.places, rows.bottom)
    used = {row.arm for row in every}
    legend(figure, [key for key, arm in zip(arm_keys(run), run.arms, strict=True)
                    if arm.name in used])  # fmt: skip


def _differences(
    run: RunReport, axes: Axes, places: Sequence[tuple[float, Comparison]], bottom: float
) -> None:
    """The panel of differences: row by row beside the ratios."""
    from matplotlib.ticker import FixedLocator

    drawn = [(y, row, known) for y, row in places if (known := _multiple(run, row))]
    reach = max([2.0, *(abs(end) for _, _, known in drawn for end in known
                        if math.isfinite(end))]) * 1.25  # fmt: skip
    axes.axvspan(-1, 1, color=BAND, lw=0, zorder=0)
    axes.axvline(0.0, color=INK, lw=0.7, zorder=1)
    marks = []
    for y, row, (estimate, *ends) in drawn:
        low, high = (min(max(end, -reach), reach) for end in ends)
        size = row.effect.text if row.effect else ""
        said = f"{row.title}, {row.pair}: {size}, margin {row.margin_text}, {row.verdict_text}"
        marks.append(_Mark(y, row.arm, row.judged, estimate, low, high, said))
    _draw(run, axes, marks)
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlim(-reach if any(known[1] < -1 for _, _, known in drawn) else -2.0, reach)
    far = [10.0**n for n in range(int(math.log10(reach)) + 1)]
    axes.xaxis.set_major_locator(FixedLocator([*(-tick for tick in far), 0.0, *far]))
    axes.xaxis.minorticks_off()
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:+g}".replace("-", "−") if x else "0")
    axes.set_xlabel("difference, in margins")
    axes.set_ylim(bottom, -1.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


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


@dataclass(frozen=True)
class _Mark:
    """One effect of a chart: where its row is, its marker, its interval, and what is said of it."""

    y: float
    arm: str
    judged: bool
    estimate: float
    low: float
    high: float
    tip: str


def _draw(run: RunReport, axes: Axes, marks: Sequence[_Mark]) -> None:
    """All effects of one panel.

    One artist for all intervals of an arm and one for all its markers of a kind: an artist for
    each would make drawing them the longest part of a report.
    """
    for arm in run.arms:
        mine = [mark for mark in marks if mark.arm == arm.name]
        if not mine:
            continue
        ink = style(run, arm.name)
        (line,) = axes.plot(
            [x for mark in mine for x in (mark.low, mark.high, math.nan)],  # nan: lift the pen
            [y for mark in mine for y in (mark.y, mark.y, math.nan)],
            color=ink.colour, lw=1.3, solid_capstyle="butt", ls="-", marker="|", ms=3.4, mew=1.0,
        )  # fmt: skip
        tag(line, run, arm.name)
        for judged in (False, True):
            shown = [mark for mark in mine if mark.judged == judged]
            if shown:
                (points,) = axes.plot(
                    [mark.estimate for mark in shown], [mark.y for mark in shown],
                    marker=ink.marker, color=ink.colour, mfc=ink.colour if judged else PAPER,
                    ms=4.0, ls="", zorder=3,
                )  # fmt: skip
                tag(points, run, arm.name, *(mark.tip for mark in shown))


def _ratio_rows(
    run: RunReport, axes: Axes, places: Sequence[tuple[float, Comparison]], left: float,
    right: float, height: float = 0.42,
) -> None:  # fmt: skip
    """Each row's ratio, and a band of its margin where it is judged as a ratio."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    margins = {metric.name: metric.margin for metric in run.metrics}
    marks = []
    bands = []
    for y, row in places:
        effect = ratio_of(row)
        assert effect is not None
        margin = margins.get(row.metric)
        if margin and row.effect is effect:
            inner, outer = 1 / (1 + margin), 1 + margin
            bands.append([(inner, y - height), (outer, y - height), (outer, y + height),
                          (inner, y + height), (inner, y - height)])  # fmt: skip
        ends = (effect.low or left, effect.high or right)
        low, high = (min(max(end, left), right) for end in ends)
        said = f"{row.title}, {row.pair}: {effect.text}, {row.verdict_text}"
        marks.append(_Mark(y, row.arm, row.judged, effect.estimate or 1.0, low, high, said))
    if bands:
        outline = Path.make_compound_path(*(Path(corners, closed=True) for corners in bands))
        axes.add_patch(PathPatch(outline, facecolor=BAND, lw=0, zorder=0))
    _draw(run, axes, marks)


def _finish(axes: Axes, left: float, right: float, rows: tuple[float, float]) -> None:
    axes.axvline(1.0, color=INK, lw=0.7, zorder=1)
    axes.set_ylim(*rows)
    axes.spines["left"].set_visible(False)
    log_axis(axes, RATIO_UNIT, left, right)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
