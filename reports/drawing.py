"""Inks, styles and axes that all charts share, and figures as SVG text.

Colours are fixed inks; `reports.html` swaps them for style sheet variables on screen, so
that dark mode works. An arm keeps its colour, line and marker in every picture; bars bear their
arm's name, so that nothing depends on colour.

A chart is planned first and drawn later. The page needs only its words and its height, and the
layout of the page takes longer than all drawing, so it begins before: nothing here or in the
modules of charts imports matplotlib until something is drawn.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.numbers import format_value
from reports.model import Distribution, RunReport

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    Grid = list[list[Axes]]

INK = "#1b1f24"
FAINT = "#5b6470"
GRID = "#dfe3e8"
PAPER = "#fefefe"
BAND = "#e9edf2"
WIDTH_IN = 7.0
TITLE_IN = 0.22


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
SETTINGS: Any = {
    "svg.hashsalt": "hvct",  # ids from content, not from chance
    "svg.fonttype": "none",  # words stay words: they can be searched and read aloud
    "pdf.fonttype": 42,  # the same in print
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 4.0,
    "axes.labelpad": 2.0,
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
    "hatch.linewidth": 0.4,
}


_TAG = "hvct:"
_BETWEEN = "\u241f"
"""The symbol for a unit separator; nothing that is drawn contains it."""


def tag(artist: Artist, run: RunReport | None = None, arm: str = "", *tips: str) -> None:
    """Say which arm an artist belongs to, so that a reader can hide it, and what its points are.

    Args:
        tips: what is said on pointing at it: one for all of it, or one for each marker in order.
    """
    place = "" if run is None else str([item.name for item in run.arms].index(arm))
    artist.set_gid(f"{_TAG}{place}:{_BETWEEN.join(tip.replace(_BETWEEN, ' ') for tip in tips)}")


def _tagged(svg: str) -> str:
    """Tags become the attributes that the page's script and style know."""
    parts = re.split(rf'<g id="{_TAG}(\d*):([^"]*)">', svg)
    made = [parts[0]]
    for place, texts, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        about = f' data-arms="{place}"' if place else ""
        tips = texts.split(_BETWEEN) if texts else []
        if len(tips) == 1:
            about += f' data-tip="{tips[0]}"'
        elif rest.count("<use ") >= len(tips) > 1:  # one <use> a marker, in the order drawn
            markers = rest.split("<use ", len(tips))
            rest = markers[0] + "".join(
                f'<use data-tip="{tip}" {marker}'
                for tip, marker in zip(tips, markers[1:], strict=True)
            )
        made += [f"<g{about}>", rest]
    return "".join(made)


def as_svg(figure: Figure, slug: str, title: str) -> str:
    """The figure as SVG, the same bytes each time; its ids begin with `slug`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = _tagged(text)
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


@dataclass(frozen=True)
class Canvas:
    """A figure as wide as the page and its grid of axes, everything placed in inches.

    An automatic layout would draw every figure twice.

    Attributes:
        heights_in: of each row's axes; a title is added above, `below_in` for labels below.
        left_in, right_in: for the labels left and right of the grid; or what measures these.
        above_in: for a legend at the top.
        gap_in: between columns.
    """

    heights_in: Sequence[float]
    columns: int = 1
    left_in: float | Callable[[], float] = 0.1
    right_in: float | Callable[[], float] = 0.1
    below_in: float = 0.24
    above_in: float = 0.0
    gap_in: float = 0.25

    @property
    def height_in(self) -> float:
        """Of the whole figure."""
        return self.above_in + sum(
            TITLE_IN + height_in + self.below_in for height_in in self.heights_in
        )

    def axes(self) -> tuple[Figure, Grid]:
        """The figure, and its axes row by row."""
        from matplotlib.figure import Figure

        left_in, right_in = (
            side_in() if callable(side_in) else side_in for side_in in (self.left_in, self.right_in)
        )
        gaps_in = self.gap_in * (self.columns - 1)
        width_in = (WIDTH_IN - left_in - right_in - gaps_in) / self.columns
        figure = Figure(figsize=(WIDTH_IN, self.height_in))
        grid = []
        top_in = self.height_in - self.above_in
        for row_in in self.heights_in:
            bottom_in = top_in - TITLE_IN - row_in
            lefts_in = [left_in + n * (width_in + self.gap_in) for n in range(self.columns)]
            grid.append(
                [
                    figure.add_axes(
                        (
                            x_in / WIDTH_IN,
                            bottom_in / self.height_in,
                            width_in / WIDTH_IN,
                            row_in / self.height_in,
                        )
                    )
                    for x_in in lefts_in
                ]
            )
            top_in = bottom_in - self.below_in
        return figure, grid


@dataclass(frozen=True)
class Chart:
    """A chart that can be drawn.

    Attributes:
        caption: how to read it.
        draw: draws on the figure and the axes of the canvas.
    """

    title: str
    caption: str
    canvas: Canvas
    draw: Callable[[Figure, Grid], None]


def legend(figure: Figure, keys: Sequence[Any], columns: int | None = None) -> None:
    """The legend at the top right, in one line unless it has so many columns only."""
    figure.legend(
        handles=keys, loc="upper right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1,
        ncols=columns or len(keys), frameon=False, fontsize=7.2, handlelength=2.4,
        columnspacing=1.2,
    )  # fmt: skip


def widest_in(texts: Iterable[str], size_pt: float) -> float:
    """Inches that the longest of these texts takes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size_pt)
    widths = [text_to_path.get_text_width_height_descent(text, font, False)[0] for text in texts]
    return float(max(widths, default=0.0)) / 72 + 0.1


def log_axis(axes: Axes, unit: str, low: float, high: float, *, narrow: bool = False) -> None:
    """A log axis whose labels are quantities with units, about five; `narrow`: about three."""
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

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
    axes.xaxis.minorticks_off()  # dozens of little ticks say nothing
    axes.xaxis.set_major_formatter(lambda x, _: quantity(x, unit))


def bytes_axis(axes: Axes, high: float) -> None:
    """A linear axis of bytes with round numbers of KiB, MiB or GiB."""
    from matplotlib.ticker import MultipleLocator

    wanted = max(high, 1.0) / 4
    power = 1024.0 ** math.floor(math.log(wanted, 1024))
    steps = (1, 2, 5, 10, 20, 50, 100, 200, 256, 512, 1024)
    step = next(n for n in steps if n * power >= wanted) * power
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(lambda x, _: quantity(x, "bytes"))


def round_ticks(axis: Axis, most: int | None = None) -> None:
    """Ticks at round numbers, so many parts at most; with no such bound, at whole ones."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most) if most else MaxNLocator(integer=True))


def distributions(run: RunReport, workload: str) -> list[Distribution]:
    """The start-up of each arm in one workload: to ready, else to started."""
    for metric in ("startup_ready", "startup_started"):
        curves = [
            d
            for d in run.distributions
            if d.workload == workload and d.metric == metric and d.values
        ]
        if curves:
            return curves
    return []


def row_labels(
    axes: Axes, labels: Iterable[tuple[float, str]], size_pt: float, bold: Collection[float] = ()
) -> None:
    """Name rows at the left of a panel, where the labels of ticks would stand.

    As plain texts: a tick takes ten times as long to make, and some charts have a hundred rows.

    Args:
        labels: where each row is on the y axis, and its name.
        bold: the places of headings.
    """
    axes.set_yticks([])
    for y, text in labels:
        axes.annotate(
            text, (0.0, y), xytext=(-3.5, 0.0), xycoords=axes.get_yaxis_transform(),
            textcoords="offset points", ha="right", va="center_baseline", fontsize=size_pt,
            fontweight="bold" if y in bold else "normal", annotation_clip=False,
        )  # fmt: skip


def arm_keys(run: RunReport) -> list[Line2D]:
    """A legend entry for every arm."""
    from matplotlib.lines import Line2D

    keys = []
    for arm in run.arms:
        drawn = style(run, arm.name)
        keys.append(Line2D([], [], color=drawn.colour, ls=drawn.line, marker=drawn.marker,
                           mfc=PAPER, mew=0.8, ms=3.6, label=arm.label))  # fmt: skip
    return keys
