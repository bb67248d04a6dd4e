"""``hvct report``, ``archive``, ``list`` and ``show``: what only reads run directories."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import archive as bench_archive
from bench import estimate, store
from bench.errors import BadInput

if TYPE_CHECKING:
    from bench.commands.console import Console

FORMATS = ("html", "pdf", "json", "csv", "parquet", "pytest-benchmark")
DEFAULT_FORMATS = FORMATS[:4]
FAILURES_SHOWN = 20
LABEL_WIDTH = 10


def main(options: argparse.Namespace) -> int:
    """Write the report of one or several runs."""
    # Where its folder for fonts cannot be written it says so in three lines, and goes on.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    formats = tuple(dict.fromkeys(options.format.split(",")))
    for name in formats:
        if name not in FORMATS:
            raise BadInput(f"there is no format {name!r}", f"choose from {', '.join(FORMATS)}")
    if options.schema:
        from reports import schema

        print(schema.text(), end="")
        return 0
    if not options.run:
        raise BadInput("no run was named", "hvct list shows the runs")
    from bench.commands.progress import open_stages
    from reports import report

    if options.json:
        report.write_json(options.run, print)
        return 0
    with open_stages(sys.stderr) as stages:
        if sys.stderr.isatty():
            stages.stage("writing the report")
        written = report.build(options.run, formats, options.output)
    width = max(map(len, written)) + 2
    for kind, path in written.items():
        print(f"{kind:{max(width, 8)}}{path}")
    return 0


def archive(options: argparse.Namespace) -> int:
    """Put a run into one file."""
    print(bench_archive.pack(options.run, options.output))
    return 0


def write(directory: Path, *, quiet: bool = False) -> None:
    """The end of ``hvct compare``: report in the run directory, summary on the terminal."""
    from bench.commands.console import Console
    from bench.commands.progress import open_stages
    from reports import report

    console = Console(quiet=quiet)
    began = time.monotonic()
    with open_stages(sys.stderr) as stages:
        if console.is_terminal:
            stages.stage("writing the report")
        written = report.build([directory], DEFAULT_FORMATS)
    durations = estimate.load()
    durations.note(estimate.OURS, "report", time.monotonic() - began)
    estimate.save(durations)
    console.print()
    console.print(report.summary(directory, accelerator=False))  # it was said at the beginning
    names = [path.name if index else str(path) for index, path in enumerate(written.values())]
    console.print(f"Report    {' · '.join(names)}", soft_wrap=True)


def print_json(directories: Sequence[Path]) -> int:
    """The numbers of the report, as JSON on standard output."""
    from reports import report

    print(report.as_json(directories))
    return 0


def list_runs(options: argparse.Namespace) -> int:
    """One line per stored run."""
    if not options.directory.is_dir() and options.directory != Path("runs"):
        raise BadInput(f"{options.directory} is no folder", "name the one that holds your runs")
    rows = [describe(path) for path in store.find_runs(options.directory)]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    if not rows:
        print(f"no runs in {options.directory}; make one with: hvct compare")
        return 0
    table = [("RUN", "BEGUN (UTC)", "BLOCKS", "ARMS", "TRIALS"), *map(columns, rows)]
    widths = [max(len(row[number]) for row in table) for number in range(len(table[0]))]
    for row in table:
        cells = zip(row, widths, strict=True)
        print("  ".join(f"{cell:{width}}" for cell, width in cells).rstrip())
    unfinished = [row["run"] for row in rows if "error" not in row and not row["ended"]]
    if unfinished:
        print(f"\nnot complete: go on with hvct resume {shlex.quote(unfinished[-1])}")
    return 0


def describe(path: Path) -> dict[str, Any]:
    """One stored run as data; what is wrong with it, where it cannot be read."""
    try:
        stored = store.load(path)
    except BadInput as error:
        return {"run": str(path), "error": error.message}
    plan = stored.run["plan"]
    return {
        "run": str(path),
        "created": stored.run.get("created"),
        "ended": stored.run.get("ended"),
        "arms": plan["arms"],
        "workloads": [workload["name"] for workload in plan["workloads"]],
        "blocks": plan.get("blocks"),
        "blocks_done": len(stored.complete_blocks()),
        "outcomes": dict(Counter(trial["outcome"] for trial in stored.trials)),
    }


def columns(row: dict[str, Any]) -> tuple[str, ...]:
    """One run in the words of the table."""
    if "error" in row:
        return row["run"], "", "", "", f"unreadable: {row['error']}"
    outcomes = ", ".join(f"{count} {name}" for name, count in row["outcomes"].items())
    return (
        row["run"],
        str(row["created"] or "")[:16].replace("T", " "),
        f"{row['blocks_done']}/{row['blocks']}",
        ",".join(row["arms"]),
        outcomes or "none",
    )


def show(options: argparse.Namespace) -> int:
    """The summary of one run on the terminal, and every trial that did not end well."""
    if options.json:
        return print_json([options.run])
    stored = store.load(options.run)
    from bench.commands.console import Console
    from reports import report

    console = Console()
    facts = describe(options.run)
    done = f"{facts['blocks_done']} of {facts['blocks']} blocks"
    state = "complete" if facts["ended"] else f"go on with: hvct resume {options.run}"
    if facts["ended"] and facts["blocks_done"] != facts["blocks"]:
        state = "it ended, but trials are missing or damaged here; restore them from a copy"
    say(console, "Run", f"{options.run} · {done} · {state}")
    say(console, "Command", str(stored.run.get("command", "")))
    if stored.trials:
        console.print(report.summary(options.run))
    bad = [trial for trial in stored.trials if trial["outcome"] != "ok"]
    for trial in bad[:FAILURES_SHOWN]:
        where = f"block {trial['block'] + 1} · {trial['arm']} · {trial['workload']}"
        log = f" · {options.run / trial['logs']}" if trial.get("logs") else ""
        say(console, "Trial", f"{where}: {trial['outcome']}: {trial.get('error')}{log}")
    if len(bad) > FAILURES_SHOWN:
        say(console, "", f"and {len(bad) - FAILURES_SHOWN} more")
    for path in sorted(options.run.glob("report.*")):
        say(console, "Report", str(path))
    return 0


def say(console: Console, label: str, text: str) -> None:
    """One fact on one line, however long: it may be copied."""
    console.print(f"{label:{LABEL_WIDTH}}{text}", markup=False, soft_wrap=True)
