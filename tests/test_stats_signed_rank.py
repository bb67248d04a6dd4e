"""The signed-rank test, estimate and interval: against scipy, brute force and published cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.errors import HvctError
from bench.stats import signed_rank
from bench.stats.planning import smallest_p

DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
"""Darwin's maize pairs, eighths of an inch: the example of Wilcoxon (1945)."""

DEPRESSION = np.subtract(
    [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30],
    [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29],
)
"""Hamilton depression scale before and after, Hollander & Wolfe (1973), table 3.1."""

tied = st.lists(st.integers(-4, 4), min_size=1, max_size=8)
"""Few whole numbers: ties and zeros nearly always."""


def brute_force(differences: list[float], shift: float) -> float:
    """One-sided p by trying every sign pattern of every non-zero difference."""
    shifted = np.asarray(differences, dtype=float) - shift
    ranks = stats.rankdata(np.abs(shifted))[shifted != 0]
    observed = ranks[shifted[shifted != 0] > 0].sum()
    sums = [np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=ranks.size)]
    return float(np.mean(np.asarray(sums) >= observed - 1e-9))


def test_darwins_maize_gives_wilcoxons_rank_sum_and_the_exact_p() -> None:
    """The negative rank sum is 24 and p is 0.0413, as published."""
    ranks = signed_rank.signed_ranks(DARWIN)
    assert -ranks[ranks < 0].sum() == 2 * 24
    assert signed_rank.p_two_sided(DARWIN) == pytest.approx(0.041259765625, abs=1e-15)


def test_hollander_and_wolfe_depression_data() -> None:
    """Estimate 0.46, interval [0.010, 0.786] and p 0.039, as in the book and in R."""
    assert signed_rank.pseudomedian(DEPRESSION) == pytest.approx(0.46, abs=1e-9)
    assert signed_rank.interval(DEPRESSION) == pytest.approx((0.010, 0.786), abs=1e-9)
    assert signed_rank.p_two_sided(DEPRESSION) == pytest.approx(0.0390625, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 12, 25, 50])
def test_without_ties_p_equals_scipys_exact_one(n: int) -> None:
    """Distinct differences: one- and two-sided p agree with scipy's exact method."""
    values = np.random.default_rng(n).normal(0.3, 1.0, n)
    for side, ours in (
        ("greater", signed_rank.p_greater),
        ("less", signed_rank.p_less),
        ("two-sided", signed_rank.p_two_sided),
    ):
        theirs = stats.wilcoxon(values, alternative=side, method="exact").pvalue
        assert ours(values) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_with_ties_and_zeros_p_equals_scipys_permutation_of_pratt(seed: int) -> None:
    """Rounded differences: p agrees with scipy's full enumeration under Pratt's rule."""
    values = np.random.default_rng(seed).integers(-2, 5, 10).astype(float)
    theirs = stats.wilcoxon(
        values,
        zero_method="pratt",
        alternative="greater",
        method=stats.PermutationMethod(n_resamples=np.inf),
    ).pvalue
    assert signed_rank.p_greater(values) == pytest.approx(theirs, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(tied, st.integers(-6, 6))
def test_p_equals_brute_force_whatever_the_ties(values: list[int], doubled: int) -> None:
    """Enumeration of all sign patterns gives the same p, at Walsh averages and between them."""
    shift = doubled / 2
    assert signed_rank.p_greater(values, shift) == pytest.approx(brute_force(values, shift))
    assert signed_rank.p_less(values, shift) == pytest.approx(
        brute_force([-value for value in values], -shift)
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-4, 4) | st.sampled_from([math.inf, -math.inf]), max_size=12))
def test_one_sided_p_never_decreases_with_the_shift(values: list[float]) -> None:
    """The property on which the interval rests, with ties, zeros and infinities."""
    shifts = np.arange(-5.0, 5.01, 0.25)
    p_values = [signed_rank.p_greater(values, shift) for shift in shifts]
    assert all(b >= a - 1e-15 for a, b in itertools.pairwise(p_values))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=6, max_size=10))
def test_the_interval_holds_exactly_the_shifts_that_the_test_accepts(values: list[int]) -> None:
    """Just inside an end the two-sided test accepts, just outside it rejects."""
    low, high = signed_rank.interval(values)
    assert low <= signed_rank.pseudomedian(values) <= high
    for end, inwards in ((low, 1e-3), (high, -1e-3)):
        outside = signed_rank.p_two_sided(values, end - inwards)
        assert outside <= 0.05
        if low < high:
            assert signed_rank.p_two_sided(values, end + inwards) > 0.05


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=20), st.floats(-10, 10))
def test_estimate_and_interval_move_with_the_data(values: list[float], shift: float) -> None:
    """Adding a constant moves them by it; swapping the arms mirrors them."""
    moved = [value + shift for value in values]
    low, high = signed_rank.interval(values)
    near = {"abs": 1e-6}
    assert signed_rank.pseudomedian(moved) == pytest.approx(
        signed_rank.pseudomedian(values) + shift, **near
    )
    assert signed_rank.interval(moved) == pytest.approx((low + shift, high + shift), **near)
    mirrored = [-value for value in values]
    assert signed_rank.interval(mirrored) == pytest.approx((-high, -low), **near)


def test_the_interval_without_ties_is_the_textbook_one() -> None:
    """n = 12: the 14th smallest and largest of the 78 Walsh averages (exact 95.8 %)."""
    values = np.random.default_rng(3).normal(0, 1, 12)
    means = signed_rank.walsh_averages(values)
    assert means.size == 78
    assert signed_rank.interval(values) == (means[13], means[-14])


def test_too_few_pairs_give_an_unbounded_interval() -> None:
    """Five pairs reach p = 0.0625 at best, so nothing can be excluded; six can."""
    assert signed_rank.interval([1, 2, 3, 4, 5]) == (-math.inf, math.inf)
    assert signed_rank.interval([1, 2, 3, 4, 5, 6]) == (1, 6)
    assert signed_rank.interval([]) == (-math.inf, math.inf)


def test_all_zeros_say_nothing_against_zero() -> None:
    """No sign to flip: p is 1 on both sides, the estimate 0."""
    assert signed_rank.p_two_sided([0.0] * 10) == 1.0
    assert signed_rank.pseudomedian([0.0] * 10) == 0.0
    assert signed_rank.interval([0.0] * 10) == (0.0, 0.0)


def test_the_smallest_p_is_reached_when_all_signs_agree() -> None:
    """2 / 2**n, ties or not."""
    for n in (1, 6, 12, 50):
        assert signed_rank.p_two_sided(list(range(1, n + 1))) == pytest.approx(smallest_p(n))
        assert signed_rank.p_two_sided([1] * n) == pytest.approx(smallest_p(n))


def test_ties_are_seen_through_rounding() -> None:
    """0.1 + 0.2 and 0.3 tie; 0.1 + 0.2 - 0.3 is a zero."""
    assert signed_rank.signed_ranks([0.1 + 0.2, -0.3, 1.0]).tolist() == [3, -3, 6]
    assert signed_rank.signed_ranks([0.1 + 0.2, 1.0], 0.3).tolist() == [0, 4]


def test_a_timeout_ranks_above_every_value() -> None:
    """One infinite difference is the largest rank; estimate and lower limit stay finite."""
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, math.inf]
    assert signed_rank.signed_ranks(values)[-1] == 16
    finite = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1e9]
    assert signed_rank.p_greater(values, 2.4) == signed_rank.p_greater(finite, 2.4)
    assert signed_rank.lower_limit(values, 0.025) == signed_rank.lower_limit(finite, 0.025)
    assert signed_rank.upper_limit(values, 0.025) == math.inf
    assert math.isfinite(signed_rank.pseudomedian(values))
    assert signed_rank.pseudomedian([math.inf] * 6) == math.inf
    assert signed_rank.lower_limit([math.inf] * 6, 0.025) == math.inf


def test_beyond_the_exact_limit_the_normal_distribution_takes_over_smoothly() -> None:
    """p and interval of 51 and 200 pairs agree with scipy's corrected normal, and with n = 50."""
    rng = np.random.default_rng(5)
    for n in (51, 200):
        values = rng.normal(0.2, 1.0, n)
        theirs = stats.wilcoxon(values, alternative="greater", method="asymptotic", correction=True)
        assert signed_rank.p_greater(values) == pytest.approx(theirs.pvalue, rel=1e-6)
    values = rng.normal(0.2, 1.0, 51)
    more, less = signed_rank.interval(values), signed_rank.interval(values[:50])
    assert more == pytest.approx(less, abs=0.1)
    low = signed_rank.lower_limit(values, 0.025)
    ends = signed_rank.walsh_averages(values)
    assert np.abs(ends - low).min() < 1e-8


@pytest.mark.parametrize("n", [1501, 1504])
def test_a_long_series_needs_no_list_of_walsh_averages(n: int) -> None:
    """Bisection over the balance of ranks finds the same estimate, timeouts included."""
    values = np.random.default_rng(n).normal(3, 1, n)
    values[:40] = math.inf
    listed = float(np.median(signed_rank.walsh_averages(values)))
    assert signed_rank.pseudomedian(values) == pytest.approx(listed, abs=1e-5)
    assert signed_rank.pseudomedian(np.full(n, 2.5)) == 2.5
    assert signed_rank.interval(np.full(n, 2.5)) == (2.5, 2.5)
    assert signed_rank.pseudomedian(np.full(n, math.inf)) == math.inf


def test_what_is_not_a_number_is_refused() -> None:
    """NaN has no rank, and an estimate from nothing does not exist."""
    with pytest.raises(HvctError, match="needs numbers"):
        signed_rank.p_greater([1.0, math.nan])
    with pytest.raises(HvctError, match="at least one pair"):
        signed_rank.pseudomedian([])
