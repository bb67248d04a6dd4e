"""Data of known truth, seeded: coverage, false claims over a family, and power."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.model import Better, Scale
from bench.stats import signed_rank
from bench.stats.family import compare_family
from bench.stats.pairs import PairedSeries
from bench.stats.verdict import Verdict

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

MARGIN = 0.05
N = 12
EXACT_COVERAGE = 1 - 2 * 87 / 4096
"""n = 12: 87 of the 4096 sign patterns have a rank sum of at most 13."""

symmetric: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(0, 1, n),
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "heavy tails": lambda rng, n: rng.standard_t(2, n),
    "two kinds of block": lambda rng, n: rng.normal(0, rng.choice([0.1, 3.0], n), n),
}


def bounds(share: float, trials: int) -> tuple[float, float]:
    """Where a simulated share lies in all but one of about 2,000 seeds (3.5 sigma)."""
    reach = 3.5 * math.sqrt(share * (1 - share) / trials)
    return share - reach, share + reach


@pytest.mark.parametrize("kind", symmetric)
def test_intervals_cover_as_often_as_the_exact_distribution_says(kind: str) -> None:
    """Symmetric differences without ties: 95.8 %, whatever their distribution."""
    rng, trials = np.random.default_rng(20), 800
    covered = 0
    for _ in range(trials):
        low, high = signed_rank.interval(symmetric[kind](rng, N) + 0.7)
        covered += low <= 0.7 <= high
    least, most = bounds(EXACT_COVERAGE, trials)
    assert least <= covered / trials <= most


def test_intervals_of_tied_data_cover_at_least_as_often() -> None:
    """Differences in coarse steps, with ties and zeros: never below 95 %."""
    rng, trials = np.random.default_rng(21), 800
    covered = 0
    for _ in range(trials):
        low, high = signed_rank.interval(rng.integers(-3, 4, N).astype(float))
        covered += low <= 0 <= high
    assert covered / trials >= bounds(0.95, trials)[0]


def simulated(
    rng: np.random.Generator, effects: list[float], spread: float = 0.03
) -> list[PairedSeries]:
    """A family of ratios with these true effects (logs), noise symmetric in the log."""
    family = []
    for index, effect in enumerate(effects):
        base = np.exp(rng.normal(0, 0.2, N))
        arm = base * np.exp(effect + rng.normal(0, spread, N))
        rows = [(block, "ok", float(arm[block]), "ok", float(base[block])) for block in range(N)]
        family.append(
            PairedSeries(
                metric=f"m{index}",
                workload="w",
                arm="vm",
                baseline="container",
                unit="s",
                scale=Scale.RATIO,
                better=Better.LOWER,
                margin=MARGIN,
                resolution=0.0,
                values=rows,
                primary=True,
            )
        )
    return family


def verdicts(effect: float, trials: int, spread: float = 0.03) -> list[set[Verdict]]:
    """The verdicts of each of many families of eight with the same true effect."""
    rng = np.random.default_rng(22)
    return [
        {c.verdict for c in compare_family(simulated(rng, [effect] * 8, spread))}
        for _ in range(trials)
    ]


def test_a_family_on_the_margin_rarely_holds_a_false_claim() -> None:
    """The worst case, every true effect exactly d: each kind of claim in at most 5 % of reports."""
    trials = 200
    families = verdicts(math.log1p(MARGIN), trials)
    most = bounds(0.05, trials)[1]
    assert sum(Verdict.DIFFERENT in family for family in families) / trials <= most
    inside = {Verdict.EQUIVALENT, Verdict.DETECTABLE_INSIDE_MARGIN}
    assert sum(bool(family & inside) for family in families) / trials <= most


def test_a_family_without_effects_rarely_detects_one() -> None:
    """True effect 0: "detectable" or "different" in at most 5 % of reports."""
    trials = 200
    families = verdicts(0.0, trials)
    found = {Verdict.DIFFERENT, Verdict.DETECTABLE_INSIDE_MARGIN}
    assert sum(bool(family & found) for family in families) / trials <= bounds(0.05, trials)[1]


def test_the_default_number_of_blocks_decides_what_it_should() -> None:
    """Spread 3 %: eight equal metrics and eight 12 % ones are nearly always all decided."""
    decided = {Verdict.EQUIVALENT, Verdict.DETECTABLE_INSIDE_MARGIN}
    assert sum(family <= decided for family in verdicts(0.0, 40)) >= 36
    assert sum(family == {Verdict.DIFFERENT} for family in verdicts(math.log(1.12), 40)) >= 36
