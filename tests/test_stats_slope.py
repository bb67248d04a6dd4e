"""Slopes over the number of instances: known lines, known noise, and sums that add up."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.stats.slope import Estimate, bend, least_squares, mean

STEPS = (0, 10, 25, 50)


def test_a_line_is_found_again() -> None:
    """Slope and intercept of a straight line come out, as scipy has them for a crooked one."""
    line = least_squares(STEPS, [7 + 3 * n for n in STEPS])
    assert (line.slope, line.intercept) == pytest.approx((3, 7))
    values = [5.0, 41.0, 80.0, 159.5]
    theirs = stats.linregress(STEPS, values)
    ours = least_squares(STEPS, values)
    assert (ours.slope, ours.intercept) == pytest.approx((theirs.slope, theirs.intercept))


def test_one_step_has_no_slope() -> None:
    """Steps that are all the same are refused rather than divided by nothing."""
    with pytest.raises(ValueError, match="two different"):
        least_squares([4, 4], [1, 2])


def test_the_slopes_of_parts_add_up_to_the_slope_of_their_sum() -> None:
    """That is what lets a ledger close, and what no median of slopes would do."""
    draw = np.random.default_rng(5)
    parts = [draw.normal(size=4) for _ in range(5)]
    whole = least_squares(STEPS, sum(parts)).slope
    assert sum(least_squares(STEPS, part).slope for part in parts) == pytest.approx(whole)


@pytest.mark.parametrize("rounds", [3, 5, 10])
def test_the_interval_holds_the_truth_as_often_as_it_says(rounds: int) -> None:
    """Of 2000 ledgers with noise and an intercept of each pass's own, 95 % hold the slope."""
    draw = np.random.default_rng(rounds)
    held = 0
    for _ in range(2000):
        slopes = []
        for _ in range(rounds):
            noise = draw.normal(scale=20.0, size=len(STEPS))
            values = 8.0 * np.asarray(STEPS) + draw.normal(scale=500.0) + noise
            slopes.append(least_squares(STEPS, values).slope)
        found = mean(slopes)
        assert found.low is not None and found.high is not None
        held += found.low <= 8.0 <= found.high
    assert stats.binomtest(held, 2000, 0.95).pvalue > 0.001, held / 2000


def test_the_interval_is_student_s() -> None:
    """Mean and ends are scipy's."""
    values = [1.0, 2.0, 4.0, 8.0]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean(values)
    assert (found.mean, found.low, found.high) == pytest.approx((3.75, low, high))


def test_too_few_passes_give_no_interval() -> None:
    """Two passes say nothing about the spread between passes; none is an error."""
    assert mean([1.0, 2.0]) == Estimate(1.5, None, None, 2)
    assert not mean([1.0, 2.0]).excludes_zero
    with pytest.raises(ValueError, match="no pass"):
        mean([])


def test_an_interval_is_never_narrower_than_the_resolution() -> None:
    """Passes that agree to the byte are still only known to a page."""
    assert mean([8.0, 8.0, 8.0], 0.5) == Estimate(8.0, 7.5, 8.5, 3)


def test_a_bend_is_seen() -> None:
    """Zero on a line, the difference of slopes where later ones cost more, none for two steps."""
    assert bend(STEPS, [3.0 * n for n in STEPS]) == pytest.approx(0)
    crooked = [float(n + 2 * max(0, n - 25)) for n in STEPS]
    assert bend(STEPS, crooked) == pytest.approx(2)
    assert bend((0, 5), (0, 1)) is None
