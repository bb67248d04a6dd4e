"""Rows of the comparison tables: every arm's level, every pair's effect, as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from reports.charts import plain
from reports.costs import step_anchor
from reports.model import Comparison, RunReport, Series, Summary
from reports.refusal import NOT_THE_SAME

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
    "memory": ("memory", "memory-spread"),
    "cpu": ("efficiency", "cpu-spread"),
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

ELASTIC = "elastic"
"""The workload that frees what it touched."""


def family_text(run: RunReport, family: str) -> tuple[str, ...]:
    """What a reader of this family's figures must know."""
    text = FAMILY_TEXTS.get(family, ())
    if family == "memory" and any(item.name == ELASTIC for item in run.workloads):
        return (*text, _given_back([arm.name for arm in run.arms]))
    return text


def _given_back(arms: Sequence[str]) -> str:
    """What each kind of arm does with memory that its workload has freed."""
    said = [
        f"“{ELASTIC}” touches memory, frees it and waits: “memory charged” is what is still held "
        "then, “peak memory” what was touched."
    ]
    if any(not arm.startswith(("vm", "qemu")) for arm in arms):
        said.append("What a container or a bare process frees is the host's at once.")
    if any(arm.startswith(("vm", "qemu")) for arm in arms):
        said.append(
            "A guest keeps what is freed in it, since the host cannot know that it is free, unless "
            "it says so (vm:freepage, vm:balloon-freepage: free pages are reported) or the host "
            "asks for it (vm:balloon, vm:balloon-freepage: a balloon is inflated once, when the "
            "peak has been freed, and leaves little beside what is used). Every other arm does "
            "neither."
        )
    return " ".join([*said, "How fast a guest gives back is in docs/costs.md."])


def columns(arms: int, pairs: int) -> dict[str, float]:
    """Widths of a comparison table's columns in per cent."""
    arm = min(11.0, 38.0 / max(arms, 1))
    first = 15.0
    return {"first": first, "arm": arm, "pair": (100.0 - first - arms * arm) / max(pairs, 1)}


class Tables:
    """Rows of the comparison tables of one run."""

    def __init__(self, run: RunReport, prefix: str) -> None:
        self.run = run
        self.prefix = prefix
        self.all = f"{prefix}samples"
        self.by_id = {row.id: row for row in run.comparisons}
        self.cells = {(row.metric, row.workload, row.arm, row.baseline): row
                      for row in run.comparisons}  # fmt: skip
        self.levels = {(s.metric, s.workload, s.arm): s for s in run.summaries}
        self.keys = list(dict.fromkeys((s.metric, s.workload) for s in run.summaries))
        self.metrics = {metric.name: metric for metric in run.metrics}
        self.raw = {
            key: f"{prefix}raw-{n}"
            for n, key in enumerate(dict.fromkeys((s.metric, s.workload) for s in run.series))
        }

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
        if reason.startswith(NOT_THE_SAME):  # the field is named once, under identity
            reason = NOT_THE_SAME
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
            "raw": self.anchor(row.metric, row.workload),
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
            "raw": self.anchor(summary.metric, summary.workload),
            "text": summary.text,
            "interval_text": summary.interval_text,
            "lost": ", ".join(lost),
        }

    def anchor(self, metric: str, workload: str) -> str:
        """Where the samples of a figure stand; where it has none, where all stand."""
        return self.raw.get((metric, workload), self.all)

    def samples(self) -> list[dict[str, Any]]:
        """Every series under its metric and workload, as cells and as one line in columns."""
        places = {arm.name: n for n, arm in enumerate(self.run.arms)}
        labels = {arm.name: arm.label for arm in self.run.arms}
        groups: dict[tuple[str, str], list[Series]] = {}
        for item in self.run.series:
            groups.setdefault((item.metric, item.workload), []).append(item)
        wide = [max(map(len, texts), default=0)
                for texts in zip(*(_heads(item, labels) for item in self.run.series),
                                 strict=True)]  # fmt: skip
        return [
            {
                "id": self.raw[(metric, workload)],
                "title": f"{self.metrics[metric].title if metric in self.metrics else metric}, "
                f"{self.run.workload(workload).title}",
                "rows": [
                    {
                        **asdict(item),
                        "place": places[item.arm],
                        "label": labels[item.arm],
                        "line": "  ".join(
                            text.ljust(width)
                            for text, width in zip(_heads(item, labels), wide, strict=True)
                        ),
                    }
                    for item in sorted(rows, key=lambda item: places[item.arm])
                ],
            }
            for (metric, workload), rows in groups.items()
        ]

    def defined(self) -> list[tuple[str, list[tuple[str, tuple[str, ...], str]]]]:
        """Start-up by definition, under each workload's title."""
        studies = {item.key: item.study for item in self.run.definitions}
        found: dict[str, list[tuple[str, tuple[str, ...], str]]] = {}
        for item in self.run.defined:
            title = self.run.workload(item.workload).title
            found.setdefault(title, []).append(
                (
                    studies[item.definition],
                    item.texts,
                    self.by_definition(item.definition, item.workload),
                )
            )
        return list(found.items())

    def by_definition(self, definition: str, workload: str) -> str:
        """Where the samples stand whose interval ends as this definition does."""
        ours = next(item.ours for item in self.run.definitions if item.key == definition)
        end = ours.rpartition("→ ")[2]
        return self.anchor("teardown" if end == "released" else f"startup_{end}", workload)

    def shown(self, slug: str) -> list[tuple[str, str]]:
        """Where the samples of a chart stand, workload by workload."""
        if slug in {"forest", "forest-all"}:
            return [("", self.anchor(*key)) for key in self._primary()[:1]] or [("", self.all)]
        if slug == "ledger":
            return [(arm.label, step_anchor(self.prefix, place))
                    for place, arm in enumerate(self.run.arms)
                    if any(step.arm == arm.name for step in self.run.steps)]  # fmt: skip
        family = {**{s: name for name, slugs in FAMILY_PICTURES.items() for s in slugs},
                  "run-order": "start-up"}.get(slug, slug.removeprefix("forest-"))  # fmt: skip
        found: dict[str, str] = {}
        for metric, workload in self.raw:
            known = self.metrics.get(metric)
            if known and plain(known.family) == plain(family):
                found.setdefault(workload, self.raw[(metric, workload)])
        named = [(self.run.workload(name).title, raw) for name, raw in found.items()]
        return named or [("", self.all)]

    def bases(self) -> list[dict[str, Any]]:
        """Each arm that others are compared with, and where: place of the arm → of the pair."""
        places = {arm.name: n for n, arm in enumerate(self.run.arms)}
        found: dict[str, dict[int, int]] = {}
        for number, (arm, base, _) in enumerate(self.run.pairs):
            found.setdefault(base, {})[places[arm]] = number
        order = sorted(found, key=lambda base: -len(found[base]))
        return [{"label": self.run.arm(base).label, "pairs": found[base]} for base in order]

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
        rows = [
            self.row(metric, name, self.metrics[metric].title, self.run.workload(name).title)
            for metric, name in self._primary()
        ]
        return [{"title": "", "rows": rows}] if rows else []

    def _primary(self) -> list[tuple[str, str]]:
        wanted = [(str(metric), str(name)) for metric, name in self.run.plan["primary"]]
        return [key for key in wanted if key in self.keys]

    def section(self, family: str, title: str) -> dict[str, Any]:
        """One family of metrics: its table grouped by workload."""
        slug = plain(family)
        groups: list[dict[str, Any]] = []
        for workload in self.run.workloads:
            rows: list[dict[str, Any]] = []
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
            "text": family_text(self.run, family),
            "pictures": (*FAMILY_PICTURES.get(family, ()), f"forest-{family}"),
            "rows": groups,
            "caption": "Each arm: median, below it the order-statistic interval of the median. "
            "Each pair: effect with its 95 % interval (pointwise); below, the other scale and n. "
            "A figure without a verdict is described, not judged.",
        }


def _heads(item: Series, labels: Mapping[str, str]) -> tuple[str, ...]:
    """What stands before the values of a series."""
    lines = f"{item.first_line}–{item.last_line}"
    return labels[item.arm], f"n = {item.n}", f"lines {lines}", item.unit
