"""How long a report takes. Targets: a quick run 5 s, 100,000 trials 30 s."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic
from pytest_benchmark.fixture import BenchmarkFixture

from reports import report


@pytest.mark.parametrize(
    ("blocks", "formats", "target_s"),
    [(10, ("html", "pdf", "json"), 5.0), (6667, ("html", "json"), 30.0)],
    ids=["quick run", "100,000 trials"],
)
def test_report(
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    blocks: int,
    formats: tuple[str, ...],
    target_s: float,
) -> None:
    """From the stored trials to the written report (3 arms, 5 workloads)."""
    folder = synthetic.write_run(tmp_path / "run", blocks=blocks)
    benchmark.extra_info["target_s"] = target_s
    benchmark.pedantic(report.build, ([folder], formats), rounds=1)
