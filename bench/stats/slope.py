"""What one more instance adds: slopes over the number of instances, one a pass.

A pass goes through all the steps of one arm once. Least squares gives each pass its own
slope and intercept, so that what the host did between passes takes no part; the passes'
slopes are then averaged, and Student's t over the passes gives the interval (summary
measures of serial data: Matthews, Altman, Campbell & Royston, BMJ 1990; 300: 230).

Least squares and means, not Theil-Sen and medians: both are linear in the values, so the
slopes of the parts add up to the slope of their sum exactly, and a ledger can close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.stats.student import LEAST_RUNS, Student

LEVEL = 0.025  # at each end: a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over so many passes; no interval for fewer than three."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Line:
    """A straight line through one pass."""

    slope: float
    intercept: float


def least_squares(counts: Sequence[float], values: Sequence[float]) -> Line:
    """The line through values over counts.

    Raises:
        ValueError: there are not two different counts.
    """
    x, y = np.asarray(counts, float), np.asarray(values, float)
    spread = x - x.mean()
    if not np.any(spread):
        raise ValueError("a slope needs two different counts")
    slope = float(spread @ (y - y.mean()) / (spread @ spread))
    return Line(slope, float(y.mean() - slope * x.mean()))


def bend(counts: Sequence[float], values: Sequence[float]) -> float | None:
    """How much steeper the upper half of the steps is than the lower; None for under three."""
    different = sorted(set(counts))
    if len(different) < 3:
        return None
    middle = different[len(different) // 2]
    if middle == different[-1]:
        middle = different[-2]
    pairs = list(zip(counts, values, strict=True))
    lower = [pair for pair in pairs if pair[0] <= middle]
    upper = [pair for pair in pairs if pair[0] >= middle]
    steep, flat = (least_squares(*zip(*part, strict=True)) for part in (upper, lower))
    return steep.slope - flat.slope


def mean(values: Sequence[float], resolution: float = 0.0) -> Estimate:
    """Mean and t interval of one value a pass, no narrower than ± `resolution`.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("no pass gave a value")
    numbers = np.asarray(values, float)
    centre = float(numbers.mean())
    if numbers.size < LEAST_RUNS:
        return Estimate(centre, None, None, int(numbers.size))
    t = Student()
    low = min(t.lower_limit(numbers, LEVEL), centre - resolution)
    high = max(t.upper_limit(numbers, LEVEL), centre + resolution)
    return Estimate(centre, low, high, int(numbers.size))
