"""All pictures of a report: made once, then drawn as SVG for the screen and as PDF for print."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from reports.chart_costs import ledger
from reports.chart_effects import all_forest, family_forest, forest
from reports.chart_joint import joint_forest
from reports.chart_many import against_one, shares, starts
from reports.chart_memory import memory
from reports.chart_spread import spread
from reports.chart_startup import run_order, startup_ecdf, timeline
from reports.chart_work import efficiency
from reports.drawing import SETTINGS, WIDTH_IN, Chart, as_svg
from reports.model import ReportData, RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """One chart of a report; it is drawn when it is first needed.

    Attributes:
        id: what the ids inside the chart begin with, unlike that of any other in the report.
    """

    id: str
    chart: Chart

    @property
    def height(self) -> float:
        """Of its width."""
        return self.chart.canvas.height_in / WIDTH_IN

    @cached_property
    def figure(self) -> Figure:
        """The chart, drawn."""
        import matplotlib

        with matplotlib.rc_context(SETTINGS):
            figure, grid = self.chart.canvas.axes()
            self.chart.draw(figure, grid)
        return figure

    @property
    def svg(self) -> str:
        """Complete and self-contained, the same text each time."""
        import matplotlib

        figure = self.figure
        with matplotlib.rc_context(SETTINGS):
            return as_svg(figure, self.id, self.chart.title)


def as_pdf(pictures: Iterable[Picture]) -> bytes:
    """One page for each picture, the same bytes each time; words stay words."""
    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages

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
    makers: dict[str, Callable[[RunReport], Chart | None]] = {
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
    if run.crowded:
        # Lines of so many arms cannot be told apart; the tables have what is left out.
        left_out = ("forest-all", "run-order", "memory-spread", "cpu-spread")
        makers = {slug: make for slug, make in makers.items()
                  if slug not in left_out and not slug.startswith("forest-")}  # fmt: skip
        makers |= {"forest": against_one, "startup-ecdf": starts, "timeline": shares}
    charts = {slug: make(run) for slug, make in makers.items()}
    return {
        slug: Picture(f"{prefix}{plain(slug)}", chart)
        for slug, chart in charts.items()
        if chart is not None
    }


def joint(data: ReportData) -> Picture | None:
    """The picture of several runs together; None for one, or where they share no ratio."""
    chart = joint_forest(data)
    return None if chart is None else Picture("joint", chart)
