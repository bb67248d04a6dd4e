"""How long a report takes, how large it is, and what a very long run needs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import synthetic
from perf.table import Bound, Kind, Line, Table, Unit, pairs

from bench.stats import signed_rank
from reports import report
from reports.analysis import analyse
from reports.data import read

ROOT = Path(report.__file__).resolve().parent.parent
FORMATS = ("html", "pdf", "json", "csv")
A_TRIAL_EACH = len(synthetic.ARMS) * len(synthetic.WORKLOADS)

CODE = f"""
import sys, time
began = time.monotonic()
from pathlib import Path
from reports import report
report.build([Path(sys.argv[1])], {FORMATS!r})
print(time.monotonic() - began)
"""


def test_quick_report(targets: Table, tmp_path: Path) -> None:
    """All files of a quick run (3 arms, 5 workloads, 10 blocks), imports included."""
    folder = synthetic.write_run(tmp_path / "run")
    seconds = [in_its_own_process(folder)[0] for _ in range(pairs(10))]
    name = "report of a quick run, all formats"
    targets.add(Line(name, Bound(5.0), seconds, kind=Kind.VALUE, unit=Unit.S))
    size = float((folder / report.FORMATS["html"]).stat().st_size)
    targets.add(Line("HTML of a quick run", Bound(5 << 20), [size], kind=Kind.VALUE, unit=Unit.MIB))


def in_its_own_process(folder: Path) -> tuple[float, float]:
    """Seconds of a report in all formats, imports included, and bytes of memory at once.

    Those are resident sets, of its process and of the one that lays out the PDF.
    """
    argv = [sys.executable, "-c", CODE, str(folder)]
    most_bytes = 0
    with psutil.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT, text=True) as made:
        while made.poll() is None:
            with suppress(psutil.NoSuchProcess):
                # Before a child is another program it has the memory of its parent.
                others = [one for one in made.children() if one.cmdline() != made.cmdline()]
                most_bytes = max(most_bytes, sum(one.memory_info().rss for one in (made, *others)))
            time.sleep(0.02)
        assert made.returncode == 0
        return float(made.stdout.read()), float(most_bytes)


def test_report_of_a_hundred_thousand_trials(targets: Table, tmp_path: Path) -> None:
    """A report of 100,000 trials; all formats."""
    blocks = -(-100_000 // A_TRIAL_EACH)
    folder = synthetic.write_run(tmp_path / "run", blocks=blocks)
    with (folder / "trials.jsonl").open("rb") as lines:
        assert sum(1 for _ in lines) >= 100_000
    seconds, most_bytes = in_its_own_process(folder)
    name = "report of 100,000 trials, all formats"
    note = f"largest resident set {most_bytes / 2**20:.0f} MiB"
    targets.add(Line(name, Bound(30.0), [seconds], kind=Kind.VALUE, unit=Unit.S, note=note))


def test_report_of_a_million_samples(targets: Table, tmp_path: Path) -> None:
    """A report of 1,000,000 samples; all formats, in a process of its own."""
    folder = synthetic.write_run(tmp_path / "run", blocks=3400)
    seconds, most_bytes = in_its_own_process(folder)
    with (folder / "samples.csv").open("rb") as lines:
        assert sum(1 for _ in lines) > 1_000_000
    name = "report of 1,000,000 samples, all formats"
    targets.add(Line(name, Bound(60.0), [seconds], kind=Kind.VALUE, unit=Unit.S))
    name += ": largest resident set"
    targets.add(Line(name, Bound(2 << 30), [most_bytes], kind=Kind.VALUE, unit=Unit.MIB))


def test_analysis(timed: Callable[..., Any], tmp_path: Path) -> None:
    """All figures and verdicts of 50 blocks; from trials read, no null distribution known."""
    run = read(synthetic.write_run(tmp_path / "run", blocks=50, workloads=["minimal"]))
    compared = len(analyse(run).comparisons)
    assert compared >= 20
    timed(
        f"analysis of 50 blocks, {compared} comparisons",
        2.0,
        analyse,
        run,
        setup=signed_rank._tail_counts.cache_clear,
        rounds=5,
    )
