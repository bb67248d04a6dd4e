"""The report as one self-contained HTML page, for the screen or for the PDF.

One template and one ReportData serve both. The differences are the style sheet, colours
that follow dark mode on screen, and contents with page numbers in print.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2

from bench.numbers import format_value
from reports import charts, wording
from reports.model import Arm, Comparison, ReportData, RunReport, Summary

VERDICT_CLASSES = {
    "different": "different",
    "equivalent": "equivalent",
    "detectable inside margin": "inside",
    "undecided": "undecided",
    "emulated": "emulated",
    "refused": "refused",
}
VERDICT_SIGNS = {
    "different": "≠ ",
    "equivalent": "= ",
    "detectable inside margin": "≈ ",
    "undecided": "? ",
    "refused": "✕ ",
}
FAMILY_PICTURES = {
    "start-up": ("startup-ecdf", "timeline"),
    "memory": ("memory",),
    "cpu": ("efficiency",),
}
FAMILY_TEXTS = {
    "memory": (
        "A single instance's memory cannot be closed into a ledger: each definition below counts "
        "something else, and none of them is “the” memory. For servers it is read while idle, at "
        "the end of the hold after ready.",
    ),
    "cpu": (
        "CPU time is what the host spent on the instance's whole cgroup, so for a virtual machine "
        "the guest, the VMM and its threads together.",
    ),
}
MOST_HEADLINES = 10
LONG_TEXT = 160


Pictures = list[dict[str, charts.Picture]]


def draw(data: ReportData) -> Pictures:
    """The charts of every run, drawn once for the screen and the PDF."""
    single = len(data.runs) == 1
    return [charts.pictures(run, _prefix(n, single)) for n, run in enumerate(data.runs)]


def document(data: ReportData, pictures: Pictures, *, for_print: bool = False) -> str:
    """The whole page.

    Args:
        pictures: from `draw`.
        for_print: with page numbers and everything unfolded, for the PDF.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    return template.render(page=_page(data, pictures, for_print=for_print)) + "\n"


def _template(name: str) -> str:
    return (files("reports") / "templates" / name).read_text(encoding="utf-8")


def _prefix(number: int, single: bool) -> str:
    return "" if single else f"run{number + 1}-"


def _page(data: ReportData, pictures: Pictures, *, for_print: bool) -> dict[str, Any]:
    single = len(data.runs) == 1
    runs = [
        _run(run, pictures[n], _prefix(n, single), for_print=for_print)
        for n, run in enumerate(data.runs)
    ]
    metrics = {metric.name: metric for run in data.runs for metric in run.metrics}
    sheets = ["report.css", "print.css" if for_print else "screen.css"]
    first = data.runs[0]
    return {
        "title": data.title,
        "version": first.version,
        "date": first.ended or first.created,
        "print": for_print,
        "style": "\n".join(_template(name) for name in sheets),
        "script": _template("interactive.js.j2"),
        "runs": runs,
        "contents": _contents(runs),
        "method": data.method,
        "glossary": data.glossary,
        "metrics": list(metrics.values()),
        "source": wording.listing([f"run {run.id}" for run in data.runs]),
    }


def _contents(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    entries = []
    for run in runs:
        prefix = run["prefix"]
        if len(runs) > 1:
            entries.append({"id": f"{prefix}top", "title": f"Run {run['id']}"})
        entries.append({"id": f"{prefix}results", "title": "Results at a glance"})
        entries += [
            {"id": f"{prefix}{family['slug']}", "title": family["title"]}
            for family in run["family_sections"]
        ]
        entries += [
            {"id": prefix + slug, "title": title}
            for slug, title in (
                ("identity", "Was it the same work?"),
                ("trials", "Trials, and those that failed"),
                ("disturbances", "What disturbed it"),
                ("findings", "What to beware of"),
                ("setup", "Host, arms and rules"),
                ("reproduce", "Reproduce this"),
            )
        ]
    return [
        *entries,
        {"id": "method", "title": "Method"},
        {"id": "appendix", "title": "Appendix: what was really set up"},
    ]


def _run(
    run: RunReport, pictures: Mapping[str, charts.Picture], prefix: str, *, for_print: bool
) -> dict[str, Any]:
    tables = _Tables(run, prefix)
    shown = run.headlines[:MOST_HEADLINES]
    failures = run.failures[:100]
    return {
        **{name: getattr(run, name) for name in (
            "id", "host_line", "banner", "banner_head", "judged_emulation", "answers", "pairs",
            "workloads", "outcomes", "findings", "fairness", "command",
        )},
        "prefix": prefix,
        "emulated": any(arm.emulated for arm in run.arms),
        "columns": _columns(len(run.arms), len(run.pairs)),
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
            slug: {
                "title": picture.title,
                "caption": picture.caption,
                "svg": _embedded(picture) if for_print else _themed(picture.svg),
            }
            for slug, picture in pictures.items()
        },
        "family_sections": [tables.section(name, title) for name, title in run.families],
        "identity": run.identity,
        "image_rows": _image_rows(run),
        "trials_line": _trials_line(run),
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
        "disturbances": _disturbances(run),
        "host_rows": list(_flat(run.host)),
        "provenance": _provenance(run),
        "descriptions": _descriptions(run),
    }  # fmt: skip


def _columns(arms: int, pairs: int) -> dict[str, float]:
    """Widths of a comparison table's columns in per cent."""
    arm = min(11.0, 38.0 / max(arms, 1))
    first = 15.0
    return {"first": first, "arm": arm, "pair": (100.0 - first - arms * arm) / max(pairs, 1)}


def _kinds(run: RunReport) -> str:
    names = {"vm": "virtual machine", "container": "container", "process": "bare process"}
    order = sorted(run.arms, key=lambda arm: -list(run.arms).index(arm))
    named = [names.get(arm.name, arm.name) for arm in order]
    text = wording.listing(named)
    return text[:1].upper() + text[1:]


def _short_titles(run: RunReport) -> list[str]:
    titles = [workload.name for workload in run.workloads]
    return titles if len(titles) <= 6 else [*titles[:5], f"{len(titles) - 5} more workloads"]


def _arm(arm: Arm) -> dict[str, str]:
    how = "none" if arm.kind == "none" else f"{arm.kind.upper()}: {arm.reason or 'no reason stored'}"
    return {"name": arm.name, "label": arm.label, "title": arm.title,
            "version": arm.version, "how": how}  # fmt: skip


def _trials_line(run: RunReport) -> str:
    counts = run.counts
    text = (
        f"{counts['blocks']} of {counts['blocks_planned']} blocks are complete: "
        f"{counts['trials']:,} of {counts['planned']:,} planned trials."
    )
    if counts["excluded"]:
        text += f" {wording.count(counts['excluded'], 'trial')} of blocks cut short are left out."
    return text if run.failures else text + " Every trial ended well."


def _image_rows(run: RunReport) -> list[tuple[str, str]]:
    rows = []
    for name, image in run.images.items():
        if isinstance(image, dict):
            parts = [str(image.get("digest", "")), str(image.get("source", ""))]
            if isinstance(image.get("size_bytes"), int):
                parts.append(format_value(float(image["size_bytes"]), "bytes"))
            parts.append(str(image.get("architecture", "")))
            rows.append((name, " · ".join(part for part in parts if part)))
    return rows


def _disturbances(run: RunReport) -> list[dict[str, Any]]:
    names = dict.fromkeys((item.name, item.title) for item in run.disturbances)
    found = {(item.name, item.arm): item.text for item in run.disturbances}
    return [
        {"title": title, "cells": [found.get((name, arm.name), "–") for arm in run.arms]}
        for name, title in names
    ]


def _provenance(run: RunReport) -> list[tuple[str, str]]:
    return [
        ("run", run.id),
        ("begun", run.created),
        ("ended", run.ended or "not ended"),
        ("seed", run.seed),
        ("hvct", run.version),
        *((f"{name}, digest", digest or "no such file") for name, digest in run.digests.items()),
    ]


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested facts as rows; what is not known is left out."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _flat(inner, f"{name} {key}")]
    if value is None or value == "" or value == []:
        return []
    label = wording.words(name).strip()
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        text = ", ".join(str(item) for item in value)
    elif isinstance(value, list):
        text = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, int) and label.endswith("bytes"):
        label, text = label.removesuffix(" bytes"), format_value(float(value), "bytes")
    else:
        text = str(value)
    return [(label, text)]


def _descriptions(run: RunReport) -> list[dict[str, Any]]:
    labels = {arm.name: arm.label for arm in run.arms}
    found = []
    for name, about in run.descriptions.items():
        flat = _flat(about if isinstance(about, dict) else {"what": about})
        found.append(
            {
                "label": labels.get(name, name),
                "rows": [(k, v) for k, v in flat if "\n" not in v and len(v) <= LONG_TEXT],
                "blocks": [(k, v) for k, v in flat if "\n" in v or len(v) > LONG_TEXT],
            }
        )
    return found


def _embedded(picture: charts.Picture) -> str:
    """A chart as an image: thousands of its elements then stay out of the page's style."""
    data = base64.b64encode(picture.svg.encode()).decode()
    return f'<img alt="{picture.title}" src="data:image/svg+xml;base64,{data}">'


def _themed(svg: str) -> str:
    """Swap the inks of a chart for the style sheet's variables."""
    inks = {charts.INK: "--ink", charts.FAINT: "--faint", charts.GRID: "--grid",
            charts.PAPER: "--paper", charts.BAND: "--band"}  # fmt: skip
    inks |= {style.colour: f"--arm{n}" for n, style in enumerate(charts.STYLES)}
    inks |= {shade: f"--phase{n}" for n, shade in enumerate(charts.PHASE_SHADES)}
    # Text is drawn without a colour of its own, in black; so are the hatches.
    pattern = re.compile("|".join(re.escape(colour) for colour in inks))
    svg = pattern.sub(lambda found: f"var({inks[found[0]]})", svg)
    return svg.replace("<svg ", '<svg style="color: var(--ink); fill: var(--ink)" ', 1)


class _Tables:
    """Rows of the comparison tables of one run."""

    def __init__(self, run: RunReport, prefix: str) -> None:
        self.run = run
        self.prefix = prefix
        self.by_id = {row.id: row for row in run.comparisons}
        self.cells = {(row.metric, row.workload, row.arm, row.baseline): row
                      for row in run.comparisons}  # fmt: skip
        self.levels = {(s.metric, s.workload, s.arm): s for s in run.summaries}
        self.keys = list(dict.fromkeys((s.metric, s.workload) for s in run.summaries))
        self.metrics = {metric.name: metric for metric in run.metrics}

    def chip(self, row: Comparison) -> dict[str, Any]:
        """What the verdict macro needs."""
        kind = VERDICT_CLASSES.get(row.verdict, "described")
        return {
            "verdict_class": kind,
            "show_verdict": row.verdict_text != "described",
            "verdict_text": VERDICT_SIGNS.get(row.verdict, "") + row.verdict_text,
            "primary": row.primary,
        }

    def effect(self, row: Comparison | None) -> dict[str, Any] | None:
        """One cell of a pair's column."""
        if row is None:
            return None
        reason = row.reason
        if row.needed is not None:
            reason += f"; about {row.needed:,} blocks would be needed"
        for number, what in ((row.failed, "failed"), (row.timeouts, "timed out")):
            if number and "gave no value" not in reason:
                reason += f"{'; ' if reason else ''}{number} {what}"
        if row.failure_p is not None and row.failure_p <= 0.05:
            reason += f"; failure rates differ, p = {row.failure_p:.2g} (McNemar)"
        return {
            **self.chip(row),
            "effect": row.effect,
            "value": "" if row.effect is None else row.effect.estimate,
            "other": row.other,
            "n": row.n,
            "planned": row.planned,
            "p_text": row.p_text,
            "reason": reason,
        }

    def level(self, summary: Summary | None) -> dict[str, Any] | None:
        """One cell of an arm's column."""
        if summary is None:
            return None
        lost = [
            f"{number} {what}"
            for number, what in (
                (summary.failed, "failed"),
                (summary.timeout, "timed out"),
                (summary.refused, "refused"),
            )
            if number
        ]
        return {
            "value": summary.median,
            "text": summary.text,
            "interval_text": summary.interval_text,
            "lost": ", ".join(lost),
        }

    def row(self, metric: str, workload: str, title: str, note: str) -> dict[str, Any]:
        """One line of a table: every arm's level, every pair's effect."""
        return {
            "title": title,
            "note": note,
            "levels": [
                self.level(self.levels.get((metric, workload, arm.name))) for arm in self.run.arms
            ],
            "effects": [
                self.effect(self.cells.get((metric, workload, arm, base)))
                for arm, base, _ in self.run.pairs
            ],
            "anchor": "",
        }

    def key_rows(self) -> list[dict[str, Any]]:
        """The plan's primary metrics that were measured."""
        wanted = [tuple(entry) for entry in self.run.plan["primary"]]
        chosen = [key for key in wanted if key in self.keys]
        rows = [
            self.row(metric, name, self.metrics[metric].title, self.run.workload(name).title)
            for metric, name in chosen
        ]
        return [{"title": "", "rows": rows}] if rows else []

    def section(self, family: str, title: str) -> dict[str, Any]:
        """One family of metrics: its table grouped by workload."""
        slug = re.sub(r"[^a-z0-9]+", "-", family.lower()).strip("-") or "other"
        groups = []
        for workload in self.run.workloads:
            rows = []
            for metric, name in self.keys:
                if name == workload.name and self.metrics[metric].family == family:
                    line = self.row(metric, name, self.metrics[metric].title, "")
                    line["anchor"] = f"{self.prefix}{slug}-{len(groups)}-{len(rows)}"
                    rows.append(line)
            if rows:
                groups.append({"title": workload.title, "rows": rows})
        return {
            "slug": slug,
            "title": title,
            "text": FAMILY_TEXTS.get(family, ()),
            "pictures": FAMILY_PICTURES.get(family, ()),
            "rows": groups,
            "caption": "Each arm: median, below it the order-statistic interval of the median. "
            "Each pair: effect with its 95 % interval (pointwise); below, the other scale and n. "
            "A figure without a verdict is described, not judged.",
        }
