"""The summary on the terminal: one row per primary metric, as in the report's first table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reports.model import Comparison, RunReport

STYLES = {"different": "bold", "emulated": "yellow", "refused": "red", "undecided": "dim"}


def summary(run: RunReport) -> RenderableType:
    """Each arm's figure and each pair's effect for the primary metrics, then what to beware of."""
    parts: list[RenderableType] = []
    if run.banner:
        parts.append(Text.assemble((f"VM      {run.banner_head} ", "bold"), run.banner))
    parts.append(_table(run))
    parts.append(Text(_identity(run)))
    for item in run.findings:
        if item["level"] != "info":
            parts.append(Text.assemble((f"{item['level'].capitalize():<8}", "yellow"),
                                       _sentence(item)))  # fmt: skip
    return Group(*parts)


def _sentence(item: dict[str, str]) -> str:
    return item["message"] + (f" — {item['remedy']}" if item["remedy"] else "")


def _table(run: RunReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for arm in run.arms:
        table.add_column(arm.label, justify="right", no_wrap=True)
    for _, _, label in run.pairs:
        table.add_column(label, justify="left")
    levels = {(s.metric, s.workload, s.arm): s for s in run.summaries}
    cells = {(c.metric, c.workload, c.arm, c.baseline): c for c in run.comparisons}
    titles = {metric.name: metric.title for metric in run.metrics}
    wanted = [(metric, workload) for metric, workload in run.plan["primary"]]
    for metric, workload in wanted:
        if metric not in titles:
            continue
        row: list[RenderableType] = [Text(f"{titles[metric]}, {workload}")]
        for arm in run.arms:
            level = levels.get((metric, workload, arm.name))
            row.append(Text((level.text if level else "") or "–"))
        for arm_name, baseline, _ in run.pairs:
            row.append(_cell(cells.get((metric, workload, arm_name, baseline))))
        table.add_row(*row)
    return table


def _cell(row: Comparison | None) -> Text:
    if row is None:
        return Text("–")
    figure = row.effect.text if row.effect else "no figure"
    star = " ★" if row.primary else ""
    return Text.assemble(figure, " ", (row.verdict_text + star, STYLES.get(row.verdict, "dim")))


def _identity(run: RunReport) -> str:
    same = sum(pair["identical"] for pair in run.identity["pairs"])
    compared = sum(pair["compared"] for pair in run.identity["pairs"])
    text = f"Identity {same} of {compared} pairs identical but for the declared differences"
    for pair in run.identity["pairs"]:
        if pair["refused"]:
            names = ", ".join(dict.fromkeys(name for name, _ in pair["refused"]))
            text += f"\n         refused for {pair['label']}: {names} ({pair['refused'][0][1]})"
    if run.counts["ok"] != run.counts["trials"]:
        text += (
            f"\nTrials   {run.counts['ok']} of {run.counts['trials']} ended well, "
            f"{run.counts['failed']} failed, {run.counts['timeout']} timed out, "
            f"{run.counts['refused']} refused"
        )
    return text
