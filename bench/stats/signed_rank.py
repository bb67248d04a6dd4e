"""The exact signed-rank test with ties and zeros, its estimate and its interval.

All three come from one object, Pratt's signed midranks of the shifted differences,

    phi_i(shift) = sign(d_i - shift) * midrank of |d_i - shift| among all of them,

where a zero takes part in the ranking and then counts for neither side (Pratt 1959).
Under the null hypothesis every sign is a fair coin, whatever the ties, so the exact
distribution of the positive rank sum is found by counting subsets (dynamic programming
over doubled ranks, which are whole numbers also where midranks are halves).

**Why the interval may be found by bisection.** For d_i > shift, the rank of d_i counts
the d_j in [2*shift - d_i, d_i], a set that only shrinks as the shift grows; below the
shift it counts those in [d_i, 2*shift - d_i], which only grows, with a minus sign. So
every phi_i never increases with the shift. The one-sided p-value is the share of sign
patterns for which the sum of phi_i over the flipped pairs is not positive, hence it never
decreases with the shift: the shifts that the test accepts form an interval, with ties and
zeros too. (Dropping zeros, as Wilcoxon did, breaks this.) The p-value is constant between
neighbouring Walsh averages, so both ends are Walsh averages.

Infinite differences are allowed: a timeout ranks above everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from bench.errors import HvctError

EXACT_LIMIT = 50
"""Up to this many pairs the null distribution is exact; beyond it is normal."""

WALSH_LIMIT = 1500
"""Up to this many pairs the Walsh averages are listed; beyond, ends are found by bisection."""

_TOLERANCE = 1e-12
"""Differences that agree to this share of the largest are ties: logs and means round."""

_PROBE_TOLERANCE = 1e-9
"""Long series are bisected to this share of their range."""

_MOST_NARROWINGS = 12

_NO_NUMBER = "a signed-rank test needs numbers, and a finite shift"

Floats = NDArray[np.float64]


def signed_ranks(differences: Sequence[float] | Floats, shift: float = 0.0) -> NDArray[np.int64]:
    """Pratt's signed midranks of ``differences - shift``, doubled so that they are whole.

    Raises:
        HvctError: a difference or the shift is not a number.
    """
    values = _numbers(differences)
    if not math.isfinite(shift):
        raise HvctError(_NO_NUMBER)
    order, ranks = _by_size(values, shift, _largest(values))
    signed = np.empty(values.size, dtype=np.int64)
    signed[order] = ranks
    return signed


def _numbers(differences: Sequence[float] | Floats) -> Floats:
    values = np.asarray(differences, dtype=np.float64)
    if np.isnan(values).any():
        raise HvctError(_NO_NUMBER)
    return values


def _by_size(values: Floats, shift: float, largest: float) -> tuple[NDArray[np.intp], Floats]:
    """Places in order of ``abs(values - shift)``, and the doubled signed midranks in that order.

    The work of every probe of a long series: no pass over the values more than it needs.

    Args:
        largest: `_largest` of the values.
    """
    tolerance = _TOLERANCE * max(largest, abs(shift))
    shifted = values - shift
    order = np.argsort(np.abs(shifted), kind="stable")
    shifted = shifted[order]
    size = np.abs(shifted)
    with np.errstate(invalid="ignore"):  # inf - inf, which is tied
        apart = np.diff(size) > tolerance
    if apart.all():
        ranks = np.arange(2.0, 2.0 * values.size + 2.0, 2.0)
    else:
        group = np.concatenate(([0], np.cumsum(apart)))
        members = np.bincount(group)
        last = np.cumsum(members)
        ranks = (2.0 * last - members + 1.0)[group]
    ranks = np.copysign(ranks, shifted)
    ranks[: np.searchsorted(size, tolerance, side="right")] = 0.0
    return order, ranks


def p_greater(differences: Sequence[float] | Floats, shift: float = 0.0) -> float:
    """One-sided p-value for "the differences are centred above the shift"."""
    ranks = signed_ranks(differences, shift)
    moving = ranks[ranks != 0]
    if moving.size == 0:
        return 1.0
    if ranks.size <= EXACT_LIMIT:
        observed = int(moving[moving > 0].sum())
        tail = _tail_counts(tuple(np.sort(np.abs(moving)).tolist()))
        return float(tail[observed] / 2**moving.size)
    return min(1.0, 0.5 * math.erfc(_score(moving.astype(np.float64)) / math.sqrt(2.0)))


def p_less(differences: Sequence[float] | Floats, shift: float = 0.0) -> float:
    """One-sided p-value for "the differences are centred below the shift"."""
    return p_greater(-np.asarray(differences, dtype=np.float64), -shift)


def p_two_sided(differences: Sequence[float] | Floats, shift: float = 0.0) -> float:
    """Two-sided p-value: twice the smaller one-sided one, at most 1."""
    return min(1.0, 2.0 * min(p_greater(differences, shift), p_less(differences, shift)))


def walsh_averages(differences: Sequence[float] | Floats, undefined: float = math.nan) -> Floats:
    """The sorted means of all pairs of differences, each with itself too.

    The mean of -inf and +inf is `undefined`; with NaN (the default) it is left out.
    """
    values = np.asarray(differences, dtype=np.float64)
    first, second = np.triu_indices(values.size)
    with np.errstate(invalid="ignore"):
        # Halves first: the sum of two large values must not overflow.
        means = values[first] / 2.0 + values[second] / 2.0
    unknown = np.isnan(means)
    means = means[~unknown] if math.isnan(undefined) else np.where(unknown, undefined, means)
    return np.sort(means)


def pseudomedian(differences: Sequence[float] | Floats, undefined: float = math.nan) -> float:
    """The Hodges-Lehmann estimate: the median of the Walsh averages (infinite if most are).

    Raises:
        HvctError: there are no differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        raise HvctError("an estimate needs at least one pair")
    if values.size > WALSH_LIMIT:
        # Where the signed ranks balance. Neighbouring Walsh averages of so many pairs are
        # closer than the tolerance, so the flat stretch of an even number is not looked for.
        return _first_shift(np.sort(_numbers(values)), lambda ranks: 0.5 - float(ranks.sum()))
    means = walsh_averages(values, undefined)
    if means.size == 0:
        return math.nan
    low, high = float(means[(means.size - 1) // 2]), float(means[means.size // 2])
    if low == high:
        return low
    middle = low / 2.0 + high / 2.0
    return undefined if math.isnan(middle) else middle


def lower_limit(differences: Sequence[float] | Floats, level: float) -> float:
    """The smallest shift that the one-sided test at `level` does not reject.

    -inf when there are too few pairs to reject any shift; +inf when every finite shift is
    rejected (nearly all pairs infinite).
    """
    values = np.sort(np.asarray(differences, dtype=np.float64))

    def kept(shift: float) -> bool:
        return p_greater(values, shift) > level

    if values.size == 0:
        return -math.inf
    if values.size > EXACT_LIMIT:
        most = NormalDist().inv_cdf(1.0 - level)
        return _first_shift(_numbers(values), lambda ranks: most - _score(ranks))
    ends = _distinct(walsh_averages(values))
    if ends.size == 0:
        return -math.inf if kept(0.0) else math.inf
    # One probe inside every stretch between neighbouring Walsh averages, and one outside.
    step = 1.0 + abs(float(ends[-1] - ends[0])) + abs(float(ends[0]))
    probes = np.concatenate(([ends[0] - step], ends[:-1] / 2.0 + ends[1:] / 2.0, [ends[-1] + step]))
    first, beyond = 0, probes.size
    while first < beyond:
        middle = (first + beyond) // 2
        if kept(float(probes[middle])):
            beyond = middle
        else:
            first = middle + 1
    if first == 0:
        return -math.inf
    return math.inf if first == probes.size else float(ends[first - 1])


def upper_limit(differences: Sequence[float] | Floats, level: float) -> float:
    """The largest shift that the one-sided test at `level` does not reject."""
    return -lower_limit(-np.asarray(differences, dtype=np.float64), level)


def interval(
    differences: Sequence[float] | Floats, confidence: float = 0.95
) -> tuple[float, float]:
    """The closed interval of shifts that the two-sided test does not reject."""
    level = (1.0 - confidence) / 2.0
    return lower_limit(differences, level), upper_limit(differences, level)


@lru_cache(maxsize=1024)
def _tail_counts(ranks: tuple[int, ...]) -> NDArray[np.int64]:
    """For each sum s, how many subsets of these doubled ranks add up to s or more."""
    counts = np.zeros(sum(ranks) + 1, dtype=np.int64)  # at most 2**50 subsets: exact
    counts[0] = 1
    for rank in ranks:
        counts[rank:] = counts[rank:] + counts[:-rank]
    return np.cumsum(counts[::-1])[::-1]


def _score(ranks: Floats) -> float:
    """The sum of signed ranks in standard deviations of its null distribution; of zeros -inf."""
    spread = math.sqrt(float(np.dot(ranks, ranks)))  # of whole numbers: exact in any order
    # Doubled ranks double the step between neighbouring sums, so half a step is 2 (untied).
    return (float(ranks.sum()) - 2.0) / spread if spread else -math.inf


def _largest(values: Floats) -> float:
    """The largest size of the finite ones."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _distinct(ordered: Floats) -> Floats:
    """The finite ones of sorted values, those within rounding of their predecessor left out."""
    finite = ordered[np.isfinite(ordered)]
    if finite.size == 0:
        return finite
    fresh = np.concatenate(([True], np.diff(finite) > _TOLERANCE * _largest(finite)))
    return finite[fresh]


def _first_shift(values: Floats, rise: Callable[[Floats], float]) -> float:
    """The first shift at which a function that never falls is positive, to the tolerance.

    Args:
        values: sorted, which makes the sort inside every probe a merge of two runs.
        rise: the function, of the signed ranks at a shift (in any order).
    """
    largest = _largest(values)

    def height(shift: float) -> float:
        return rise(_by_size(values, shift, largest)[1])

    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return -math.inf if height(0.0) > 0.0 else math.inf
    low, high = float(finite[0]), float(finite[-1])
    margin = 1.0 + (high - low)
    if (lowest := height(low)) > 0.0:
        return -math.inf if height(low - margin) > 0.0 else low
    if (highest := height(high)) <= 0.0:
        return math.inf if height(high + margin) <= 0.0 else high
    tolerance = max(_PROBE_TOLERANCE * (high - low), 4.0 * _TOLERANCE * largest)
    below, above = _narrowed(finite, height, lowest, highest, tolerance)
    while high - low > tolerance:
        middle = low / 2.0 + high / 2.0
        if below < middle < above:
            below, above = (below, middle) if height(middle) > 0.0 else (middle, above)
        low, high = (low, middle) if middle >= above else (middle, high)
    return high


def _narrowed(
    finite: Floats, height: Callable[[float], float], lowest: float, highest: float, near: float
) -> tuple[float, float]:
    """Two shifts, the function positive at the second alone: fewer probes than halving takes.

    It is interpolated over the values' places, not the values: so it is close to a straight
    line, however far away some values are. An end that stays counts half as much each time
    (the Illinois method): else it would stay for ever.
    """
    places = np.arange(float(finite.size))
    first, last = 0.0, places[-1]
    below, above = float(finite[0]), float(finite[-1])
    moved = 0
    for _ in range(_MOST_NARROWINGS):
        place = first + (last - first) * (lowest / (lowest - highest))
        shift = float(np.interp(place, places, finite))
        if not below < shift < above or above - below <= near:
            break
        found = height(shift)
        if found > 0.0:
            last, above, highest = place, shift, found
            lowest /= 2.0 if moved == 1 else 1.0
            moved = 1
        else:
            first, below, lowest = place, shift, found
            highest /= 2.0 if moved == -1 else 1.0
            moved = -1
    return below, above


class SignedRank:
    """The functions above as one of the tests a series can have (`bench.stats.pairs.Test`)."""

    p_greater = staticmethod(p_greater)
    p_less = staticmethod(p_less)
    pseudomedian = staticmethod(pseudomedian)
    lower_limit = staticmethod(lower_limit)
    upper_limit = staticmethod(upper_limit)
