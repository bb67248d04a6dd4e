"""Intervals of many series at once: what simulations and resampling need thousands of.

The same exact signed-rank interval as `bench.stats.signed_rank`, for series without ties:
there both ends are Walsh averages whose ranks depend on n alone. With ties this interval
is the wider one, never the narrower.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bench.errors import HvctError
from bench.stats.signed_rank import EXACT_LIMIT, _tail_counts

Floats = NDArray[np.float64]

_CHUNK = 1 << 22
"""Walsh averages held at a time: 32 MB."""


@lru_cache(maxsize=256)
def excluded(n: int, level: float) -> int:
    """How many Walsh averages lie beyond each end of the interval; -1 where it is unbounded.

    The smallest rank sum whose upper tail is at most `level` is `t`: a shift is rejected
    while at least `t` Walsh averages exceed it, so the end is the t-th largest.

    Raises:
        HvctError: n is beyond the exact distribution.
    """
    if n > EXACT_LIMIT:
        raise HvctError(f"{n} pairs are more than the exact {EXACT_LIMIT}")
    tail = _tail_counts(tuple(range(2, 2 * n + 1, 2)))[::2] / 2.0**n
    rejected = np.flatnonzero(tail <= level)
    return -1 if rejected.size == 0 else n * (n + 1) // 2 - int(rejected[0])


def limits(low: Floats, high: Floats, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Both ends of the interval of every row.

    Args:
        low, high: lower and upper ends of each pair's difference, one series a row; the
            same array where every difference is a number.
        confidence: of the two-sided interval.
    """
    level = (1.0 - confidence) / 2.0
    lower = _lower(low, level)
    return lower, -_lower(-high, level)


def _lower(rows: Floats, level: float) -> Floats:
    count, n = rows.shape
    place = excluded(n, level)
    if place < 0:
        return np.full(count, -np.inf)
    first, second = np.triu_indices(n)
    step = max(1, _CHUNK // first.size)
    ends: Sequence[Floats] = [
        _ranked(rows[start : start + step], first, second, place) for start in range(0, count, step)
    ]
    return np.concatenate(ends) if ends else np.zeros(0)


def _ranked(rows: Floats, first: NDArray[np.intp], second: NDArray[np.intp], place: int) -> Floats:
    with np.errstate(invalid="ignore"):
        means = rows[:, first] / 2.0 + rows[:, second] / 2.0
    # -inf with +inf: nothing is known, so it must not raise a lower end.
    means[np.isnan(means)] = -np.inf
    return np.asarray(np.partition(means, place, axis=1)[:, place])
