"""Quantiles with order-statistic intervals, and means for totals.

An order-statistic interval assumes only that the values are independent draws of one
distribution. Its two ends are chosen from n and the quantile alone, never from the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special


@dataclass(frozen=True)
class Level:
    """One number about one arm, with its pointwise interval.

    Attributes:
        value, low, high: in the metric's unit; +inf stands for a timeout; `low` and
            `high` are None where n does not support an interval.
        n: how many values it rests on.
    """

    value: float
    low: float | None
    high: float | None
    n: int


def enough(n: int, quantile: float) -> bool:
    """Whether n values support an interval for a quantile: 6 for p50, 60 for p95, 300 for p99.

    The rule of three: with fewer, the sample's extreme itself falls short of the quantile
    in more than 5 % of samples.
    """
    return n >= math.ceil(round(3.0 / min(quantile, 1.0 - quantile), 6))


def quantile_interval(
    values: Sequence[float], quantile: float, confidence: float = 0.95
) -> Level | None:
    """A quantile with the shortest order-statistic interval that covers, None if n is too small.

    The quantile itself is the smallest value that at least this share does not exceed;
    for the median of an even number it is the mean of the middle two.
    """
    if not values or not enough(len(values), quantile):
        return None
    ordered = _ordered(values)
    ranks = _ranks(len(ordered), quantile, confidence)
    if ranks is None:
        return None
    return Level(
        _point(ordered, quantile), ordered[ranks[0] - 1], ordered[ranks[1] - 1], len(ordered)
    )


def median(values: Sequence[float], confidence: float = 0.95) -> Level | None:
    """The median, with an interval from six values on; None without any value."""
    if not values:
        return None
    level = quantile_interval(values, 0.5, confidence)
    return level or Level(_point(_ordered(values), 0.5), None, None, len(values))


def mean(values: Sequence[float], confidence: float = 0.95) -> Level | None:
    """The mean with Student's interval: for totals and cost models, never for comparisons."""
    if not values:
        return None
    n = len(values)
    centre = math.fsum(values) / n
    if n == 1 or not math.isfinite(centre):
        return Level(centre, None, None, n)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    reach = float(special.stdtrit(n - 1, 0.5 + confidence / 2.0)) * error
    return Level(centre, centre - reach, centre + reach, n)


def _ordered(values: Sequence[float]) -> list[float]:
    """Sorted; by numpy, which takes a fifth of the time that `sorted` does."""
    ordered: list[float] = np.sort(np.array(values, dtype=np.float64), kind="stable").tolist()
    return ordered


def _point(ordered: list[float], quantile: float) -> float:
    n = len(ordered)
    if quantile == 0.5 and n % 2 == 0:
        low, high = ordered[n // 2 - 1], ordered[n // 2]
        return low if low == high else (low + high) / 2.0
    return ordered[max(1, math.ceil(round(quantile * n, 9))) - 1]


@lru_cache(maxsize=256)
def _ranks(n: int, quantile: float, confidence: float) -> tuple[int, int] | None:
    """1-based ranks (l, u): P(x_l <= quantile <= x_u) = P(l <= Binomial(n, q) <= u - 1)."""
    below = special.bdtr(np.arange(0, n + 1), n, quantile)  # P(count <= k)
    best: tuple[int, float, int, int] | None = None
    for low in range(1, n + 1):
        miss_low = float(below[low - 1])
        high = int(np.searchsorted(below, confidence + miss_low - 1e-12)) + 1
        if high > n:
            break
        lopsided = abs(miss_low - (1.0 - float(below[high - 1])))
        candidate = (high - low, lopsided, low, high)
        best = candidate if best is None else min(best, candidate)
    return None if best is None else (best[2], best[3])
