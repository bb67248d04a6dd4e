"""All pictures of a report, drawn once, the same in HTML and PDF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

from reports.chart_effects import efficiency, forest
from reports.chart_memory import memory
from reports.chart_startup import run_order, startup_ecdf, timeline
from reports.drawing import SETTINGS, as_svg
from reports.model import RunReport


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
    with matplotlib.rc_context(SETTINGS):
        for slug, make in makers.items():
            drawn = make(run)
            if drawn is not None:
                figure, title, caption = drawn
                made[slug] = Picture(slug, title, caption, as_svg(figure, f"{prefix}{slug}", title))
    return made
