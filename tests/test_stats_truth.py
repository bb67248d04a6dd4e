"""The simulated backend of known truth: what the method promises holds, and the page says so."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import simulation
from simulation import KINDS, MARGIN, SIZES, Row

from bench.model import Better, Scale
from bench.stats import batch, signed_rank
from bench.stats.family import compare_family
from bench.stats.pairs import PairedSeries
from bench.stats.verdict import Verdict

METHOD = Path(__file__).resolve().parent.parent / "docs" / "method.md"
OTHER_SEED = simulation.SEED + 1
SIGMAS = 3.5
"""A sound method leaves this once in 4,000 shares; about 200 are looked at, on a fixed seed."""

GATED = [name for name, kind in KINDS.items() if kind.gated]
INDEPENDENT = [name for name, kind in KINDS.items() if kind.independent]


@functools.cache
def row(name: str, n: int) -> Row:
    """A kind at a size, with another seed than the page's."""
    return simulation.simulate(name, n, OTHER_SEED)


def at_most(nominal: float) -> float:
    """The promised share and what chance may add."""
    return nominal + SIGMAS * math.sqrt(nominal * (1.0 - nominal) / simulation.SERIES)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", INDEPENDENT)
def test_intervals_hold_the_truth(name: str, n: int) -> None:
    """Where blocks are independent a 95 % interval covers the pseudomedian in at least 94 %."""
    assert row(name, n).coverage >= 0.94


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", GATED)
def test_no_claim_is_false_more_often_than_promised(name: str, n: int) -> None:
    """No effect is found in at most 5 % of nothings; on the margin each claim errs in 2.5 %."""
    found = row(name, n)
    assert found.detected <= at_most(0.05)
    assert found.different <= at_most(0.025)
    assert found.equivalent <= at_most(0.025)


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("memory")])
def test_correlated_blocks_are_shown_to_fail(name: str) -> None:
    """The table is no praise: where blocks remember, coverage is far below, at every size."""
    assert all(row(name, n).coverage < 0.90 for n in SIZES)


def test_more_blocks_find_more() -> None:
    """Power grows with n in every kind, and a dozen blocks find 15 % at a spread of 5 %."""
    for name in GATED:
        powers = [row(name, n).power for n in SIZES]
        assert powers[0] <= powers[2] <= powers[3], name
    assert row("normal", 12).power > 0.9 and row("normal", 50).power_equivalent > 0.95


def test_a_drift_of_both_arms_costs_nothing() -> None:
    """Blocks cancel what both arms share: the figures are those of a host that stands still."""
    still, drifting = row("normal", 12), row("common", 12)
    assert drifting.power == pytest.approx(still.power, abs=0.03)
    assert drifting.coverage == pytest.approx(still.coverage, abs=0.02)


def test_the_page_prints_what_is_computed() -> None:
    """Each figure of docs/method.md agrees with this computation to within chance."""
    printed = re.findall(r"^\| \*?([^|*]+)\*? \| (\d+) \| (.+) \|$", table_of_page(), re.MULTILINE)
    titles = {kind.title: name for name, kind in KINDS.items()}
    assert [(titles[title], int(n)) for title, n, _ in printed] == [
        (name, n) for name in KINDS for n in SIZES
    ]
    for title, n, cells in printed:
        found = row(titles[title], int(n))
        computed = (found.coverage, found.detected, found.different, found.equivalent,
                    found.power, found.power_equivalent)  # fmt: skip
        for text, value in zip(cells.split(" | "), computed, strict=True):
            reach = 4.0 * math.sqrt(2.0 * max(value * (1 - value), 0.001) / simulation.SERIES)
            assert abs(float(text) / 100.0 - value) <= reach + 0.0005, (title, n, cells)


def table_of_page() -> str:
    """The part of docs/method.md that is generated."""
    text = METHOD.read_text()
    return text[text.index(simulation.BEGIN) : text.index(simulation.END)]


def test_many_intervals_at_once_are_those_of_one() -> None:
    """The vectorised interval is the tested one; with ties it is no narrower."""
    rng = np.random.default_rng(5)
    for n in (3, 5, 6, 10, 13, 20, 50):
        rows = rng.normal(0.0, 1.0, (6, n))
        low, high = batch.limits(rows, rows)
        for values, ends in zip(rows, zip(low, high, strict=True), strict=True):
            assert ends == pytest.approx(signed_rank.interval(values))
        tied = np.round(rows * 2.0)
        low, high = batch.limits(tied, tied)
        for values, ends in zip(tied, zip(low, high, strict=True), strict=True):
            exact = signed_rank.interval(values)
            assert ends[0] <= exact[0] and exact[1] <= ends[1]


@pytest.mark.parametrize("name", [name for name in KINDS if name not in {"steps"}])
def test_simulated_verdicts_are_those_of_a_report(name: str) -> None:
    """The shares of the table stand for what `compare_family` says of the same values."""
    rng = np.random.default_rng(9)
    shift = math.log1p(0.07)
    drawn = KINDS[name].draw(rng, 12, 12)
    drawn = simulation.Drawn(drawn.arm + shift, drawn.baseline)
    low, high = batch.limits(*simulation.differences(drawn))
    for arm, base, ends in zip(*drawn, zip(low, high, strict=True), strict=True):
        values = [(block, *ended(a), *ended(b)) for block, (a, b) in
                  enumerate(zip(arm, base, strict=True))]  # fmt: skip
        (found,) = compare_family(
            [PairedSeries("t", "w", "vm", "container", "s", Scale.RATIO, Better.LOWER,
                          math.expm1(MARGIN), 0.0, values, primary=True)]
        )  # fmt: skip
        assert found.low is not None and found.high is not None
        different = ends[0] > MARGIN or ends[1] < -MARGIN
        if name == "timeouts":  # ties at infinity: as with all ties, the table's is the wider
            assert np.exp(ends[0]) <= found.low + 1e-9 and found.high <= np.exp(ends[1]) + 1e-9
            assert found.verdict is Verdict.DIFFERENT or not different
        else:
            assert (found.low, found.high) == pytest.approx(tuple(np.exp(ends)))
            assert (found.verdict is Verdict.DIFFERENT) == different


def ended(value: float) -> tuple[str, float | None]:
    """How a trial with this logarithm is stored."""
    return ("timeout", None) if math.isinf(value) else ("ok", math.exp(value))
