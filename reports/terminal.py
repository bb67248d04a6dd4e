"""The summary on the terminal: one row per primary metric, as in the report's first table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from reports.model import Comparison, RunReport

STYLES = {"different": "bold", "emulated": "yellow", "refused": "red", "undecided": "dim"}
LABEL_WIDTH = 10


def summary(run: RunReport, *, accelerator: bool = True) -> RenderableType:
    """Each arm's figure and each pair's effect for the primary metrics, then what to beware of.

    Args:
        accelerator: begin with how virtual machines were executed, where that matters.
    """
    parts: list[RenderableType] = []
    if run.banner and accelerator:
        parts.append(labelled([("VM", "", Text(f"{run.banner_head} {run.banner}"))]))
    parts.append(_Figures(run))
    if any(row.primary for row in run.comparisons):
        parts.append(Text("★ judged together: one chance of error for all of them", style="dim"))
    rows = [("Identity", "", Text(_identity(run)))]
    if run.counts["ok"] != run.counts["trials"]:
        rows.append(("Trials", "", Text(_trials(run))))
    rows += [
        (item["level"].capitalize(), "yellow", Text(_sentence(item)))
        for item in run.findings
        # Of how a VM was executed, the first lines speak already.
        if item["level"] != "info" and not (run.banner and item["code"].startswith("kvm."))
    ]
    parts.append(labelled(rows))
    return Group(*parts)


def labelled(rows: Sequence[tuple[str, str, RenderableType]]) -> Table:
    """Paragraphs that hang behind their labels: (label, its style, text)."""
    table = Table.grid()
    table.add_column(width=LABEL_WIDTH, no_wrap=True)
    table.add_column()
    for label, style, text in rows:
        table.add_row(Text(label, style=style), text)
    return table


@dataclass(frozen=True)
class _Figures:
    """All in one table where it fits; in a narrow terminal the figures, then pair by pair."""

    run: RunReport

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        levels = [arm.label for arm in self.run.arms]
        effects = [label for _, _, label in self.run.pairs]
        wide = self._table(levels, effects)
        unbound = options.update(max_width=1000)
        if console.measure(wide, options=unbound).maximum <= options.max_width:
            yield wide
            return
        yield self._table(levels, [])
        for effect in effects:
            yield Text()
            yield self._table([], [effect])

    def _table(self, levels: Sequence[str], effects: Sequence[str]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("")
        for label in levels:
            table.add_column(label, justify="right", no_wrap=True)
        for label in effects:
            table.add_column(label, justify="left")
        run = self.run
        found = {(s.metric, s.workload, s.arm): s for s in run.summaries}
        cells = {(c.metric, c.workload, c.arm, c.baseline): c for c in run.comparisons}
        titles = {metric.name: metric.title for metric in run.metrics}
        for metric, workload in run.plan["primary"]:
            if metric not in titles:
                continue
            row = [Text(f"{titles[metric]}, {workload}")]
            for arm in run.arms:
                if arm.label in levels:
                    level = found.get((metric, workload, arm.name))
                    row.append(Text((level.text if level else "") or "–"))
            for arm_name, baseline, label in run.pairs:
                if label in effects:
                    row.append(_cell(cells.get((metric, workload, arm_name, baseline))))
            table.add_row(*row)
        return table


def _cell(row: Comparison | None) -> Text:
    if row is None:
        return Text("–")
    figure = row.effect.text if row.effect else "no figure"
    star = " ★" if row.primary else ""
    return Text.assemble(figure, " ", (row.verdict_text + star, STYLES.get(row.verdict, "dim")))


def _sentence(item: dict[str, str]) -> str:
    return item["message"] + (f" — {item['remedy']}" if item["remedy"] else "")


def _identity(run: RunReport) -> str:
    same = sum(pair["identical"] for pair in run.identity["pairs"])
    compared = sum(pair["compared"] for pair in run.identity["pairs"])
    return f"{same} of {compared} pairs identical but for the declared differences"


def _trials(run: RunReport) -> str:
    return (
        f"{run.counts['ok']} of {run.counts['trials']} ended well, "
        f"{run.counts['failed']} failed, {run.counts['timeout']} timed out, "
        f"{run.counts['refused']} refused"
    )
