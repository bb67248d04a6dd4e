"""All pictures of a report: made once, then drawn as SVG for the screen and as PDF for print."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import matplotlib
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from reports.chart_costs import ledger
from reports.chart_effects import all_forest, efficiency, family_forest, forest
from reports.chart_joint import joint_forest
from reports.chart_memory import memory
from reports.chart_spread import spread
from reports.chart_startup import run_order, startup_ecdf, timeline
from reports.drawing import SETTINGS, as_svg
from reports.model import ReportData, RunReport


@dataclass(frozen=True)
class Picture:
    """One chart.

    Attributes:
        id: what the ids inside the chart begin with, unlike that of any other in the report.
        caption: how to read it.
    """

    id: str
    title: str
    caption: str
    figure: Figure

    @property
    def height(self) -> float:
        """Of its width."""
        width_in, height_in = self.figure.get_size_inches()
        return float(height_in / width_in)

    @property
    def svg(self) -> str:
        """Complete and self-contained, the same text each time."""
        with matplotlib.rc_context(SETTINGS):
            return as_svg(self.figure, self.id, self.title)


def as_pdf(pictures: Iterable[Picture]) -> bytes:
    """One page for each picture, the same bytes each time; words stay words."""
    made = io.BytesIO()
    with (
        matplotlib.rc_context(SETTINGS),
        PdfPages(made, metadata={"CreationDate": None}) as pages,
    ):
        for picture in pictures:
            pages.savefig(picture.figure)
    return made.getvalue()


def plain(text: str) -> str:
    """The text as part of an id: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "other"


def pictures(run: RunReport, prefix: str = "") -> dict[str, Picture]:
    """All charts this run has data for, by slug; their ids begin with `prefix`."""
    makers: dict[str, Callable[[RunReport], tuple[Figure, str, str] | None]] = {
        "forest": forest,
        "forest-all": all_forest,
        "startup-ecdf": startup_ecdf,
        "timeline": timeline,
        "memory": memory,
        "efficiency": efficiency,
        "run-order": run_order,
        "memory-spread": partial(spread, family="memory"),
        "cpu-spread": partial(spread, family="cpu"),
        "ledger": ledger,
        **{f"forest-{family}": partial(family_forest, family=family) for family, _ in run.families},
    }
    made = {}
    with matplotlib.rc_context(SETTINGS):
        for slug, make in makers.items():
            drawn = make(run)
            if drawn is not None:
                figure, title, caption = drawn
                made[slug] = Picture(f"{prefix}{plain(slug)}", title, caption, figure)
    return made


def joint(data: ReportData) -> Picture | None:
    """The picture of several runs together; None for one, or where they share no ratio."""
    with matplotlib.rc_context(SETTINGS):
        drawn = joint_forest(data)
        if drawn is None:
            return None
        figure, title, caption = drawn
        return Picture("joint", title, caption, figure)
