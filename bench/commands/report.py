"""``hvct report``, ``list`` and ``show``: everything that only reads run directories."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from bench import store
from bench.errors import BadInput

FORMATS = ("html", "pdf", "json", "csv", "parquet")


def main(options: argparse.Namespace) -> int:
    """Write the report of one or several runs."""
    from reports import report

    formats = tuple(options.format.split(","))
    for name in formats:
        if name not in FORMATS:
            raise BadInput(f"there is no format {name!r}", f"choose from {', '.join(FORMATS)}")
    if options.json:
        return print_json(options.run[0])
    for kind, path in report.build(options.run, formats).items():
        print(f"{kind:8}{path}")
    return 0


def write_and_show(directory: Path) -> None:
    """The end of ``hvct compare``: summary on the terminal, report beside it."""
    from rich.console import Console

    from reports import report

    written = report.build([directory], ("html", "pdf", "json"))
    console = Console(highlight=False)
    console.print()
    console.print(report.summary(directory))
    names = [path.name if index else str(path) for index, path in enumerate(written.values())]
    console.print(f"Report  {' · '.join(names)}", soft_wrap=True)


def print_json(directory: Path) -> int:
    """The numbers of the report, as JSON on standard output."""
    from reports import report

    print(report.as_json([directory]))
    return 0


def list_runs(options: argparse.Namespace) -> int:
    """One line per stored run."""
    rows: list[dict[str, Any]] = []
    for path in store.find_runs(options.directory):
        try:
            stored = store.load(path)
        except BadInput as error:
            rows.append({"run": str(path), "error": error.message})
            continue
        plan = stored.run["plan"]
        rows.append(
            {
                "run": str(path),
                "created": stored.run.get("created"),
                "ended": stored.run.get("ended"),
                "arms": plan["arms"],
                "workloads": [workload["name"] for workload in plan["workloads"]],
                "blocks": plan.get("blocks"),
                "blocks_done": len(stored.complete_blocks()),
                "outcomes": dict(Counter(trial["outcome"] for trial in stored.trials)),
            }
        )
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    if not rows:
        print(f"no runs in {options.directory}; make one with: hvct compare")
    for row in rows:
        if "error" in row:
            print(f"{row['run']}  {row['error']}")
            continue
        state = "done" if row["ended"] else f"resume: hvct resume {row['run']}"
        outcomes = ", ".join(f"{count} {name}" for name, count in row["outcomes"].items())
        print(
            f"{row['run']}  {row['blocks_done']}/{row['blocks']} blocks"
            f"  {','.join(row['arms'])}  {outcomes or 'no trials'}  {state}"
        )
    return 0


def show(options: argparse.Namespace) -> int:
    """The summary of one run on the terminal."""
    if options.json:
        return print_json(options.run)
    from rich.console import Console

    from reports import report

    Console(highlight=False).print(report.summary(options.run))
    return 0
