"""How long a report takes. Targets: a quick run 5 s; a million samples 60 s, within 2 GiB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import synthetic
from pytest_benchmark.fixture import BenchmarkFixture

from reports import report

ROOT = Path(report.__file__).resolve().parent.parent

FORMATS = ("html", "pdf", "json", "csv")


def test_quick_report(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """From the stored trials to all files of a quick run (3 arms, 5 workloads, 10 blocks)."""
    folder = synthetic.write_run(tmp_path / "run")
    benchmark.extra_info["target_s"] = 5.0
    written = benchmark.pedantic(report.build, ([folder], FORMATS), rounds=1)
    assert written["html"].stat().st_size < 5 << 20


def test_report_of_a_million_samples(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """All files, in a process of its own whose largest resident set is measured."""
    folder = synthetic.write_run(tmp_path / "run", blocks=3400)
    code = (
        "import resource, sys; from pathlib import Path; from reports import report\n"
        f"report.build([Path(sys.argv[1])], {FORMATS!r})\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def build() -> int:
        argv = [sys.executable, "-c", code, str(folder)]
        return int(subprocess.run(argv, capture_output=True, check=True, cwd=ROOT).stdout)

    most_kib = benchmark.pedantic(build, rounds=1)
    with (folder / "samples.csv").open("rb") as lines:
        assert sum(1 for _ in lines) > 1_000_000
    benchmark.extra_info["target_s"] = 60.0
    benchmark.extra_info["rss_mib"] = most_kib / 1024
    assert most_kib < 2 << 20
