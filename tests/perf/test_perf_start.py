"""How soon hvct itself answers. Targets: --help 150 ms, the launcher 300 ms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

CHECKOUT = Path(__file__).resolve().parents[2]


def test_help(benchmark: BenchmarkFixture) -> None:
    """`hvct --help`; target: below 150 ms."""
    program = str(Path(sys.executable).parent / "hvct")
    benchmark.extra_info["target_s"] = 0.150
    benchmark.pedantic(
        subprocess.run, ([program, "--help"],), {"stdout": subprocess.DEVNULL}, rounds=20
    )


def test_launcher(benchmark: BenchmarkFixture) -> None:
    """`./hvct --help`, once it is set up; target: below 300 ms."""
    if not (CHECKOUT / ".hvct/stamp-run").exists():
        pytest.skip("the checkout is not set up by ./hvct")
    benchmark.extra_info["target_s"] = 0.300
    program = str(CHECKOUT / "hvct")
    benchmark.pedantic(
        subprocess.run, ([program, "--help"],), {"stdout": subprocess.DEVNULL}, rounds=20
    )
