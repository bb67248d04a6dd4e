"""All pictures of a report, drawn once, the same in HTML and PDF."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import matplotlib
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
    """One chart: `svg` is complete and self-contained; `caption` says how to read it."""

    slug: str
    title: str
    caption: str
    svg: str


def plain(text: str) -> str:
    """The text as part of an id: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "other"


def pictures(run: RunReport, prefix: str = "") -> dict[str, Picture]:
    """All charts this run has data for, by slug; ids inside begin with `prefix`."""
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
                made[slug] = Picture(
                    slug, title, caption, as_svg(figure, f"{prefix}{plain(slug)}", title)
                )
    return made


def joint(data: ReportData) -> Picture | None:
    """The picture of several runs together; None for one, or where they share no ratio."""
    with matplotlib.rc_context(SETTINGS):
        drawn = joint_forest(data)
        if drawn is None:
            return None
        figure, title, caption = drawn
        return Picture("joint", title, caption, as_svg(figure, "joint", title))
