"""``hvct diff``: what changed between two runs, for a person and for a pipeline."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from bench.commands.console import Console
from bench.errors import BadInput
from bench.stats.verdict import Verdict

if TYPE_CHECKING:
    from reports.difference import Change, Difference

STYLES = {Verdict.DIFFERENT: "bold", Verdict.UNDECIDED: "dim", Verdict.EMULATED: "yellow"}
DIFFERENT = 1
"""Exit status: something differs by more than its margin."""


def main(options: argparse.Namespace) -> int:
    """Compare, say, and tell a pipeline by the exit status."""
    from reports.data import read
    from reports.difference import compare_runs

    before, after = (read(directory) for directory in (options.before, options.after))
    found = compare_runs(
        before, after, anyway=options.anyway, judge_emulated=options.judge_emulated
    )
    if not found.judged:
        raise BadInput(
            "nothing of these runs can be judged: no primary metric that was not emulated",
            "--judge-emulated judges figures of an emulator; --json has all of them",
        )
    if options.json:
        print(json.dumps(found.as_json(), indent=1, allow_nan=False))
    else:
        tell(Console(), found, everything=options.all)
    return DIFFERENT if failing(found, options) else 0


def failing(found: Difference, options: argparse.Namespace) -> bool:
    """Whether this must stop a pipeline, by what was asked for."""
    if options.require_equivalent and any(
        one.comparison.verdict not in (Verdict.EQUIVALENT, Verdict.DETECTABLE_INSIDE_MARGIN)
        for one in found.judged
    ):
        return True
    return any(one.worse or not options.only_worse for one in found.different)


def tell(console: Console, found: Difference, *, everything: bool = False) -> None:
    """The judged changes as a table, the conclusion, and what to know."""
    from reports.difference import summary

    console.print(f"{found.before} → {found.after}", style="bold")
    grid = Table(box=None, pad_edge=False)
    for title in ("", "before", "after", "change", "verdict"):
        grid.add_column(title)
    for one in found.changes if everything else found.judged:
        grid.add_row(*_cells(one))
    console.print(grid)
    for one in found.different:
        c = one.comparison
        if one.relative_effect:
            console.print(
                f"{c.arm}, {c.title} of {c.workload}: against {one.baseline} of the same run it "
                f"changed by {one.relative_effect}: without what the host did to both",
                soft_wrap=True,
            )
    counts = summary(found)
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    console.print(
        f"Of {len(found.judged)} judged: {said}. One chance of error, 5 %, for all (Holm)."
    )
    for note in (*(f"Unlike: {reason}" for reason in found.unlike), *found.notes):
        console.print(f"· {note}", soft_wrap=True)


def _cells(one: Change) -> list[Text]:
    from reports.difference import margin_of

    c = one.comparison
    verdict = f"{c.verdict.value} ({margin_of(c)})"
    if one.worse is not None:
        verdict = f"{'worse' if one.worse else 'better'}, {verdict}"
    if c.needed_n:
        verdict += f", n = {c.needed_n} would do"
    texts = (f"{c.arm} · {c.workload} · {c.title or c.metric}", one.before, one.after, one.effect)
    return [*map(Text, texts), Text(verdict, STYLES.get(c.verdict, ""))]
