"""Two groups that nothing pairs, and whole runs: exact tests held against scipy and brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from bench.model import Better, Scale
from bench.stats.family import compare_family
from bench.stats.pairs import ABSENT, Design, PairedSeries
from bench.stats.student import Student
from bench.stats.two_sample import RankSum, smallest_n
from bench.stats.verdict import Comparison, Verdict


def between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """All differences."""
    return (first[:, None] - second[None, :]).ravel()


@pytest.mark.parametrize(("n", "m"), [(3, 4), (8, 8), (10, 12), (50, 49)])
def test_the_p_value_is_scipys(n: int, m: int) -> None:
    """Without ties: Mann and Whitney's exact p."""
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(n)
    for shift in (0.0, 0.5, -1.0):
        x, y = rng.normal(0.4, 1, n), rng.normal(0, 1, m)
        test, d = RankSum(n, m), between(x, y)
        for side, ours in (("greater", test.p_greater), ("less", test.p_less)):
            expected = mannwhitneyu(x - shift, y, alternative=side, method="exact").pvalue
            assert ours(d, shift) == pytest.approx(float(expected), rel=1e-9)


def test_many_values_use_the_normal_limit() -> None:
    """80 in each group: scipy's asymptotic p, and an interval at the same ranks."""
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(2)
    x, y = rng.normal(0.3, 1, 80), rng.normal(0, 1, 80)
    test, d = RankSum(80, 80), between(x, y)
    expected = mannwhitneyu(x, y, alternative="greater", method="asymptotic").pvalue
    assert test.p_greater(d) == pytest.approx(float(expected), rel=1e-9)
    low = test.lower_limit(d, 0.025)
    assert test.p_greater(d, low - 1e-6) <= 0.025 < test.p_greater(d, low + 1e-6)


def test_the_interval_is_the_inverted_test() -> None:
    """Just outside the interval every shift is rejected, just inside none."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(1, 1, 9), rng.normal(0, 1, 11)
    test, d = RankSum(9, 11), between(x, y)
    low, high = test.lower_limit(d, 0.025), test.upper_limit(d, 0.025)
    for shift, side in ((low, -1), (high, 1)):
        p = test.p_greater if side < 0 else test.p_less
        assert p(d, shift + side * 1e-9) <= 0.025 < p(d, shift - side * 1e-9)
    assert low < test.pseudomedian(d) < high
    assert test.pseudomedian(d) == pytest.approx(float(np.median(d)))


def test_ties_make_it_no_bolder_than_counting_all_assignments() -> None:
    """Coarse values: never below the permutation p with ties counted against the claim."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        pool = rng.integers(0, 4, 8).astype(float)
        x, y = pool[:4] + 1.0, pool[4:]
        test, d = RankSum(4, 4), between(x, y)
        everything = np.concatenate([x, y])

        def strict(chosen: tuple[int, ...], values: np.ndarray = everything) -> float:
            first = values[list(chosen)]
            rest = np.delete(values, list(chosen))
            above = between(first, rest)
            return float((above > 0).sum() + 0.5 * (above == 0).sum())

        seen = strict((0, 1, 2, 3))
        every = [strict(chosen) for chosen in itertools.combinations(range(8), 4)]
        exact = sum(value >= seen for value in every) / len(every)
        assert test.p_greater(d) >= exact - 1e-12


def test_coverage_of_two_groups() -> None:
    """Ten against ten, heavy tails: at least 95 % of intervals hold the truth."""
    rng, test, runs = np.random.default_rng(5), RankSum(10, 10), 1500
    covered = 0
    for _ in range(runs):
        d = between(rng.standard_t(2, 10) + 0.7, rng.standard_t(2, 10))
        covered += test.lower_limit(d, 0.025) <= 0.7 <= test.upper_limit(d, 0.025)
    assert covered / runs >= 0.95 - 3.5 * math.sqrt(0.05 * 0.95 / runs)


def test_three_in_each_group_reject_nothing() -> None:
    """2 / C(6, 3) = 0.1: the interval is everything; four give 0.029."""
    d = between(np.array([9.0, 9.1, 9.2]), np.array([1.0, 1.1, 1.2]))
    assert RankSum(3, 3).lower_limit(d, 0.025) == -math.inf
    assert RankSum(3, 3).p_greater(d) == pytest.approx(0.05)
    assert smallest_n(0.05) == 4 and smallest_n(0.05 / 8) == 6


def test_runs_are_students() -> None:
    """The interval and p of scipy's t test; with two runs there is neither."""
    from scipy.stats import ttest_1samp

    values = np.array([0.11, 0.14, 0.09, 0.15])
    test = Student()
    found = ttest_1samp(values, 0.05, alternative="greater")
    assert test.p_greater(values, 0.05) == pytest.approx(float(found.pvalue))
    both = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert test.lower_limit(values, 0.025) == pytest.approx(float(both.low))
    assert test.upper_limit(values, 0.025) == pytest.approx(float(both.high))
    assert test.p_greater(values[:2]) == 1.0 and test.lower_limit(values[:2], 0.025) == -math.inf


# -- the same rules as for pairs ----------------------------------------------------------


def compared(after: list[Any], before: list[Any], **settings: Any) -> Comparison:
    """One comparison of two groups; None is a timeout, "failed" a failure."""

    def trial(values: list[Any], n: int) -> tuple[str, float | None]:
        if n >= len(values):
            return (ABSENT, None)
        value = values[n]
        if value is None or isinstance(value, str):
            return (value or "timeout", None)
        return ("ok", value)

    rows = [(n, *trial(after, n), *trial(before, n)) for n in range(max(len(after), len(before)))]
    common: dict[str, Any] = {
        "metric": "startup_ready", "workload": "w", "arm": "vm", "baseline": "before",
        "unit": "s", "scale": Scale.RATIO, "better": Better.LOWER, "margin": 0.05,
        "resolution": 0.0, "primary": True, "design": Design.UNPAIRED,
    }  # fmt: skip
    (found,) = compare_family([PairedSeries(**{**common, "values": rows, **settings})])
    return found


def group(centre: float, n: int, spread: float = 0.02, seed: int = 1) -> list[Any]:
    """Values of one arm in one run."""
    rng = np.random.default_rng([seed, n])
    return [float(value) for value in centre * np.exp(rng.normal(0, spread, n))]


def test_groups_of_unequal_size_are_compared() -> None:
    """Twelve against ten: 20 % more is found, and n is the smaller."""
    c = compared(group(1.2, 12), group(1.0, 10, seed=2))
    assert c.verdict is Verdict.DIFFERENT and (c.n_pairs, c.n_blocks) == (10, 12)
    assert c.estimate == pytest.approx(1.2, rel=0.03)
    assert c.low is not None and c.high is not None and c.low < 1.2 < c.high
    assert (c.arm_level.n, c.baseline_level.n) == (12, 10)
    assert c.failure_p is None, "what is absent has not failed"


def test_equal_groups_are_equivalent_or_undecided() -> None:
    """Enough trials prove it; too few name how many would."""
    assert compared(group(1.0, 30), group(1.0, 30, seed=2)).verdict is Verdict.EQUIVALENT
    few = compared(group(1.0, 3), group(1.0, 3, seed=2))
    assert few.verdict is Verdict.UNDECIDED and few.needed_n == 4


def test_pairing_does_not_matter() -> None:
    """Shuffling one group changes nothing: that is what unpaired means."""
    before, after = group(1.0, 12, seed=3), group(1.07, 12, seed=4)
    one, other = compared(after, before), compared(after[::-1], before)
    assert (one.estimate, one.low, one.p_value) == (other.estimate, other.low, other.p_value)


def test_failures_and_timeouts_of_groups() -> None:
    """Above 10 % of either group there is no verdict; rates by Fisher; timeouts rank last."""
    many = compared([*group(1.2, 8), "failed", "failed"], group(1.0, 10, seed=2))
    assert many.verdict is Verdict.NO_VERDICT and "2 of 10 trials of vm" in many.reason
    assert many.failure_p == pytest.approx(0.474, abs=0.001)
    late = compared([*group(1.2, 18), None, None], group(1.0, 20, seed=2), timeout=60.0)
    assert late.verdict is Verdict.DIFFERENT and late.n_timeouts == 2 and late.arm_level.n == 20
    mostly = compared([2.0, None, None, None, None, None], group(1.0, 6), timeout=60.0)
    assert mostly.estimate == math.inf and mostly.bound is not None
