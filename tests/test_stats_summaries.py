"""Holm, McNemar, quantiles, means, distributions, order, planning: against known cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.errors import BadInput
from bench.stats import quantiles
from bench.stats.ecdf import ecdf
from bench.stats.holm import holm
from bench.stats.mcnemar import failure_p
from bench.stats.order import lag1, lag1_finding
from bench.stats.planning import check_reachable, needed_n, smallest_n, smallest_p

probabilities = st.lists(st.floats(0.0, 1.0), max_size=12)


def test_holms_correction_on_the_textbook_example() -> None:
    """0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02: the first and last stand at 5 %."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(probabilities)
def test_holm_keeps_the_order_and_lies_between_nothing_and_bonferroni(p: list[float]) -> None:
    """Adjusted values rise with the raw ones, are at least those, at most n times those."""
    adjusted = holm(p)
    assert all(raw <= new <= min(1.0, len(p) * raw) for raw, new in zip(p, adjusted, strict=True))
    assert [new for _, new in sorted(zip(p, adjusted, strict=True))] == sorted(adjusted)


@pytest.mark.parametrize(
    ("arm", "baseline", "expected"),
    [(0, 0, 1.0), (5, 0, 0.0625), (1, 9, 22 / 1024), (4, 4, 1.0), (6, 16, 0.052478790283203125)],
)
def test_mcnemar_is_a_fair_coin_on_the_discordant_blocks(
    arm: int, baseline: int, expected: float
) -> None:
    """Exact binomial p; blocks in which both arms agree do not enter."""
    assert failure_p(arm, baseline) == pytest.approx(expected)


def test_quantiles_are_only_given_where_n_supports_them() -> None:
    """p50 from 6 values on, p95 from 60, p99 from 300."""
    for quantile, least in ((0.5, 6), (0.95, 60), (0.99, 300), (0.01, 300)):
        assert quantiles.quantile_interval(list(range(least - 1)), quantile) is None
        assert quantiles.quantile_interval(list(range(least)), quantile) is not None


def test_the_medians_interval_has_the_ranks_of_the_published_table() -> None:
    """n = 10: 2nd and 9th (97.9 %); n = 12: 3rd and 10th (96.1 %); n = 25: 8th and 18th."""
    for n, low, high in ((6, 1, 6), (10, 2, 9), (12, 3, 10), (25, 8, 18)):
        level = quantiles.median(list(range(1, n + 1)))
        assert level is not None and (level.low, level.high) == (low, high)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("n", [60, 101, 400])
def test_order_statistic_intervals_cover_at_least_what_they_say(n: int, quantile: float) -> None:
    """The binomial coverage of the chosen ranks is at least 95 %, and no shorter pair's is."""
    level = quantiles.quantile_interval(list(range(1, n + 1)), quantile)
    assert level is not None and level.low is not None and level.high is not None
    low, high = int(level.low), int(level.high)

    def coverage(l: int, u: int) -> float:  # noqa: E741
        return float(stats.binom.cdf(u - 1, n, quantile) - stats.binom.cdf(l - 1, n, quantile))

    assert coverage(low, high) >= 0.95
    width = high - low - 1
    assert all(coverage(l, l + width) < 0.95 for l in range(1, n - width + 1))  # noqa: E741


def test_a_median_stands_without_an_interval_below_six_values() -> None:
    """Five values: the middle one, no interval; timeouts are the largest values."""
    assert quantiles.median([3, 1, 2, 9, 4]) == quantiles.Level(3, None, None, 5)
    assert quantiles.median([]) is None
    level = quantiles.median([1.0, 2.0, 3.0, 4.0, math.inf, math.inf])
    assert level is not None and (level.value, level.high) == (3.5, math.inf)


def test_a_mean_has_students_interval() -> None:
    """As scipy computes it from mean and standard error."""
    values = [4.1, 5.0, 3.7, 4.4, 4.9]
    level = quantiles.mean(values)
    assert level is not None
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (level.low, level.high) == pytest.approx(expected)
    assert quantiles.mean([2.0]) == quantiles.Level(2.0, None, None, 1)


def test_a_distribution_has_clopper_and_pearsons_band() -> None:
    """At every step the band is the binomial interval of that share; the last is 1."""
    curve = ecdf([1.0, 2.0, 2.0, 5.0])
    assert curve.x == (1.0, 2.0, 5.0)
    assert curve.share == (0.25, 0.75, 1.0)
    for count, low, high in zip((1, 3, 4), curve.low, curve.high, strict=True):
        exact = stats.binomtest(count, 4).proportion_ci(0.95, method="exact")
        assert (low, high) == pytest.approx((exact.low, exact.high))


def test_a_distribution_with_timeouts_ends_below_one() -> None:
    """A timeout counts in n and has no step; nothing at all gives an empty curve."""
    curve = ecdf([1.0, math.inf], simultaneous=True)
    assert (curve.x, curve.share, curve.n) == ((1.0,), (0.5,), 2)
    assert ecdf([]).n == 0


def test_the_simultaneous_band_is_that_of_dvoretzky_kiefer_wolfowitz() -> None:
    """Half-width sqrt(ln(2 / 0.05) / 2n), cut at 0 and 1."""
    curve = ecdf(list(range(100)), simultaneous=True)
    assert curve.high[49] - curve.share[49] == pytest.approx(math.sqrt(math.log(40) / 200))
    assert min(curve.low) == 0.0 and max(curve.high) == 1.0


def test_lag1_correlation() -> None:
    """A ramp is correlated, an alternation is not, a constant has none."""
    assert lag1([1, 2, 3, 4, 5]) == pytest.approx(0.4)
    assert lag1([1, -1] * 10) == pytest.approx(-0.95)
    assert lag1([7.0] * 9) == 0.0


def test_a_series_that_remembers_is_a_finding() -> None:
    """A drift is a warning with its size; what chance explains is information; noise nothing."""
    drift = lag1_finding("start-up", list(range(40)))
    assert drift is not None and drift.level == "warning" and "0.9" in drift.message
    short = lag1_finding("start-up", [1, 2, 3, 4, 5, math.inf])
    assert short is not None and short.level == "info"
    assert lag1_finding("start-up", np.random.default_rng(7).normal(size=50).tolist()) is None


def test_the_planner_knows_the_smallest_reachable_p() -> None:
    """Ten blocks reach 0.00195; eight primary metrics at 5 % need 0.00625, so nine blocks."""
    assert smallest_p(10) == pytest.approx(0.001953125)
    assert smallest_n(0.05, 1) == 6
    assert smallest_n(0.05, 8) == 9
    assert check_reachable(10, 8) is None
    assert check_reachable(0, 0) is None


def test_a_plan_that_could_never_decide_is_refused_with_the_remedy() -> None:
    """Eight blocks cannot carry eight primary metrics; nine are named."""
    finding = check_reachable(8, 8, 0.05)
    assert finding is not None and finding.level == "problem"
    assert "at least 9 blocks" in finding.remedy
    with pytest.raises(BadInput):
        smallest_n(0.0)


@given(st.integers(1, 40), st.integers(1, 8))
def test_smallest_n_is_the_smallest(n: int, family: int) -> None:
    """A plan is refused exactly below it."""
    assert (check_reachable(n, family) is None) == (n >= smallest_n(0.05, family))


def test_the_needed_n_grows_with_the_square_of_the_spread() -> None:
    """Twice the half-width over the same gap needs four times the blocks; Holm widens it."""
    assert needed_n(12, 0.10, 0.05) == 48
    assert needed_n(12, 0.20, 0.05) == 192
    assert (needed_n(12, 0.10, 0.05, family_size=8) or 0) > 48
    assert needed_n(12, 0.10, 0.0) is None
    assert needed_n(12, 0.10, 1e-6) is None
    assert needed_n(4, math.inf, 1.0) == 6
