"""The report as one self-contained HTML page, for the screen or for the PDF.

One template and one ReportData serve both. The differences are the style sheet, colours
that follow dark mode on screen, and contents with page numbers in print.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2

from reports import charts, costs, drawing, facts, threats, wording
from reports.model import Arm, JointRow, ReportData, RunReport
from reports.tables import Tables, columns

MOST_HEADLINES = 11
MOST_NAMED = 6
"""Arms whose names fit a title."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The charts of a report, for the screen and the PDF: of every run, and of all together."""

    runs: list[dict[str, charts.Picture]]
    joint: charts.Picture | None

    @property
    def every(self) -> list[charts.Picture]:
        """All of them."""
        return [
            *([self.joint] if self.joint else []),
            *(picture for run in self.runs for picture in run.values()),
        ]


def draw(data: ReportData) -> Pictures:
    """The charts of every run."""
    single = len(data.runs) == 1
    return Pictures(
        [charts.pictures(run, _prefix(n, single)) for n, run in enumerate(data.runs)],
        charts.joint(data),
    )


def place(picture: charts.Picture) -> str:
    """The id of the box that the page made for print leaves empty for a chart."""
    return f"chart-{picture.id}"  # as reports.layout looks for them


def document(data: ReportData, pictures: Pictures, *, for_print: bool = False) -> str:
    """The whole page.

    Args:
        pictures: from `draw`; in print there are empty boxes in their places.
        for_print: with page numbers and everything unfolded, for the PDF.
    """
    template = _environment().get_template("report.html.j2")
    page: str = template.render(page=_page(data, pictures, for_print=for_print)) + "\n"
    return _ON_SCREEN.sub("", page) if for_print else page


_ON_SCREEN = re.compile(r' (?:data-arms|data-value|scope|tabindex|role|aria-[a-z]+)="[^"]*"')
"""What only the script or a reader's aid looks at: without it the layout is a twentieth faster."""


@functools.cache
def _environment() -> jinja2.Environment:
    """One for the screen and print: it keeps the templates that it has compiled."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sentence"] = wording.capitalised
    return environment


def _template(name: str) -> str:
    return (files("reports") / "templates" / name).read_text(encoding="utf-8")


def _prefix(number: int, single: bool) -> str:
    return "" if single else f"run{number + 1}-"


def _page(data: ReportData, pictures: Pictures, *, for_print: bool) -> dict[str, Any]:
    single = len(data.runs) == 1
    runs = [
        _run(run, pictures.runs[n], _prefix(n, single), for_print=for_print)
        for n, run in enumerate(data.runs)
    ]
    metrics = {metric.name: metric for run in data.runs for metric in run.metrics}
    sheets = ["report.css", "print.css" if for_print else "screen.css"]
    first = data.runs[0]
    contents = _contents(runs, [item.scope for item in data.merged])
    half = (len(contents) + 1) // 2
    return {
        "title": data.title,
        "together": first.id
        if single
        else f"{len(data.runs)} runs: " + wording.listing([run.id for run in data.runs]),
        "version": first.version,
        "date": first.ended or first.created,
        "print": for_print,
        "style": "\n".join(_template(name) for name in sheets),
        "script": _template("interactive.js.j2"),
        "runs": runs,
        "contents": contents,
        "halves": (contents[:half], contents[half:]),
        "method": data.method,
        "glossary": data.glossary,
        "metrics": list(metrics.values()),
        "joint": _joint(data),
        "joint_picture": _picture(
            pictures.joint,
            [(run["id"], f"{run['prefix']}samples") for run in runs],
            for_print=for_print,
        )
        if pictures.joint
        else None,
        "raws": {run.id: Tables(run, _prefix(n, single)).anchor for n, run in enumerate(data.runs)},
        "agreement": data.agreement,
        "likeness": data.likeness,
        "merged": data.merged,
        "source": wording.listing([f"run {run.id}" for run in data.runs]),
    }


def _contents(runs: Sequence[Mapping[str, Any]], merged: Sequence[str]) -> list[dict[str, str]]:
    """Every section; with several runs, those of one stand under its name."""
    entries: list[dict[str, str]] = []
    if len(runs) > 1:
        entries += [{"id": "joint", "title": "The runs"},
                    {"id": "joint-results", "title": "The same questions, run by run"}]  # fmt: skip
        entries += [{"id": f"merged-{n}", "title": f"The runs as one: {scope}"}
                    for n, scope in enumerate(merged, 1)]  # fmt: skip
    for run in runs:
        prefix = run["prefix"]
        if len(runs) > 1:
            entries.append({"id": f"{prefix}top", "title": f"Run {run['id']}"})
        own = [("results", "Results at a glance")]
        own += [(family["slug"], family["title"]) for family in run["family_sections"]]
        own += [
            *([("costs", "What one more instance costs")] if run["costs"] else []),
            ("identity", "Was it the same work?"),
            ("trials", "Trials, and those that failed"),
            ("disturbances", "What disturbed it"),
            ("threats", "What could make it wrong"),
            ("gaps", "What this run does not show"),
            *([("published", "Published figures beside ours")] if run["shows_published"] else []),
            ("setup", "Host, arms and rules"),
            ("reproduce", "Reproduce this"),
        ]
        level = "under" if prefix else ""
        entries += [{"id": prefix + slug, "title": title, "level": level} for slug, title in own]
    return [
        *entries,
        {"id": "method", "title": "Method"},
        {"id": "appendix", "title": "Appendix: what was really set up"},
        *(
            {"id": run["prefix"] + slug, "title": f"Appendix: {title}{run['which']}"}
            for run in runs
            for slug, title in (
                ("definitions", "start-up time as others define it"),
                ("samples", "samples"),
                *([("steps", "steps")] if run["steps"] else []),
            )
        ),
    ]


def _run(
    run: RunReport, pictures: Mapping[str, charts.Picture], prefix: str, *, for_print: bool
) -> dict[str, Any]:
    tables = Tables(run, prefix)
    names = [arm.name for arm in run.arms]
    ends = {item.key: item.theirs for item in run.definitions}
    shown = run.headlines[:MOST_HEADLINES]
    least = next((item.workload for item in run.defined), "")
    failures = run.failures[:100]
    return {
        **{name: getattr(run, name) for name in (
            "id", "host_line", "banner", "banner_head", "judged_emulation", "answers",
            "workloads", "outcomes", "findings", "fairness", "command", "definitions", "gaps",
        )},
        "prefix": prefix,
        "crowded": run.crowded,
        "bases": tables.bases(),
        "level": 2 if prefix else 1,
        "which": f", run {run.id}" if prefix else "",
        "blocks": f"{run.counts['blocks']} of {run.counts['blocks_planned']}",
        # A pair's column belongs to both of its arms.
        "pairs": [(*pair, " ".join(str(names.index(name)) for name in pair[:2]))
                  for pair in run.pairs],
        "shows_published": bool(run.published),
        "costs": costs.section(run, prefix, tables.anchor),
        "steps": costs.steps(run, prefix),
        "samples": tables.samples(),
        "defined": tables.defined(),
        "threats": [(kind, question, [item for item in run.threats if item.kind == kind])
                    for kind, question in threats.KINDS.items()
                    if any(item.kind == kind for item in run.threats)],
        "published": [dataclasses.asdict(item) | {
                          "definition": ends[item.definition],
                          "raw": tables.by_definition(item.definition, least),
                      } for item in run.published if item.ours],
        "unpublished": sum(not item.ours for item in run.published),
        "least": run.workload(least).title if least else "",
        "emulated": any(arm.emulated for arm in run.arms),
        "columns": columns(len(run.arms), len(run.pairs)),
        "title": f"{_kinds(run)}: what {wording.listing(_short_titles(run))} cost",
        "when": run.created[:16].replace("T", " ") + (" UTC" if "+00:00" in run.created else ""),
        "arms": [_arm(arm) for arm in run.arms],
        "headlines": [tables.chip(tables.by_id[h.comparison]) | {"text": h.text} for h in shown],
        "more_headlines": "" if len(run.headlines) == len(shown) else
        f"{len(run.headlines) - len(shown)} more sentences are in the JSON.",
        "key_rows": tables.key_rows(),
        "key_caption": "The plan's primary metrics, in every pair of arms. Each arm's figure is "
        "its median; each effect stands with its 95 % interval, below it the same on the other "
        "scale, n, and the verdict. ★ marks what was judged.",
        "pictures": {
            slug: _picture(picture, tables.shown(slug), for_print=for_print)
            for slug, picture in pictures.items()
        },
        "family_sections": [tables.section(name, title) for name, title in run.families],
        "identity": run.identity,
        "image_rows": facts.image_rows(run),
        "trials_line": facts.trials_line(run),
        "failures": [
            {
                "block": item.block,
                "arm": item.arm,
                "workload": run.workload(item.workload).title,
                "outcome": item.outcome,
                "error": item.error,
            }
            for item in failures
        ],
        "failures_caption": "Every trial that did not end well; it gives no figure, and never a "
        "zero." if len(failures) == len(run.failures) else
        f"The first {len(failures)} of {len(run.failures)} trials that did not end well; all of "
        "them are in report.json.",
        "disturbances": facts.disturbances(run),
        "robustness": {
            name: [row | {"raw": tables.anchor(row["metric"], row["workload"])} for row in rows]
            for name, rows in run.robustness.items()
        },
        "host_rows": facts.host(run),
        "provenance": facts.provenance(run),
        "descriptions": facts.descriptions(run),
    }  # fmt: skip


def _picture(
    picture: charts.Picture, raw: Sequence[tuple[str, str]], *, for_print: bool
) -> dict[str, Any]:
    return {
        "title": picture.chart.title,
        "caption": picture.chart.caption,
        "raw": raw,
        "drawn": _box(picture) if for_print else f'<div class="chart">{_themed(picture.svg)}</div>',
    }


def _joint(data: ReportData) -> list[tuple[str, list[JointRow]]]:
    """Rows by pair of arms."""
    pairs = dict.fromkeys((row.arm, row.baseline) for row in data.joint)
    return [
        (f"{arm} ÷ {base}", [row for row in data.joint if (row.arm, row.baseline) == (arm, base)])
        for arm, base in pairs
    ]


def _kinds(run: RunReport) -> str:
    if run.crowded:
        return f"{len(run.arms)} arms"
    names = {"vm": "virtual machine", "container": "container", "process": "bare process"}
    # Those first that have a name of their own; where all fit, the baseline stands last.
    order = sorted(run.arms[::-1], key=lambda arm: arm.name not in names)
    if len(order) <= MOST_NAMED:
        order = list(run.arms[::-1])
    named = [names.get(arm.name, arm.name) for arm in order[:MOST_NAMED]]
    left = len(order) - len(named)
    text = wording.listing([*named, *([f"{left} more arms"] if left else [])])
    return text[:1].upper() + text[1:]


def _short_titles(run: RunReport) -> list[str]:
    titles = [workload.name for workload in run.workloads]
    return titles if len(titles) <= 6 else [*titles[:5], f"{len(titles) - 5} more workloads"]


def _arm(arm: Arm) -> dict[str, str]:
    how = (
        "none" if arm.kind == "none" else f"{arm.kind.upper()}: {arm.reason or 'no reason stored'}"
    )
    return {"name": arm.name, "label": arm.label, "title": arm.title,
            "version": arm.version, "how": how}  # fmt: skip


def _box(picture: charts.Picture) -> str:
    return f'<div id="{place(picture)}" style="padding-top: {picture.height:.2%}"></div>'


def _themed(svg: str) -> str:
    """Swap the inks of a chart for the style sheet's variables."""
    inks = {drawing.INK: "--ink", drawing.FAINT: "--faint", drawing.GRID: "--grid",
            drawing.PAPER: "--paper", drawing.BAND: "--band"}  # fmt: skip
    inks |= {style.colour: f"--arm{n}" for n, style in enumerate(drawing.STYLES)}
    inks |= {shade: f"--phase{n}" for n, shade in enumerate(drawing.PHASE_SHADES)}
    # Text is drawn without a colour of its own, in black; so are the hatches.
    pattern = re.compile("|".join(re.escape(colour) for colour in inks))
    svg = pattern.sub(lambda found: f"var({inks[found[0]]})", svg)
    return svg.replace("<svg ", '<svg style="color: var(--ink); fill: var(--ink)" ', 1)
