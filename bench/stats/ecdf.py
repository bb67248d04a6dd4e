"""Empirical distributions with a band: every point is drawn, never a bar of means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special


@dataclass(frozen=True)
class Ecdf:
    """The share of trials at or below each distinct value, with a band.

    Attributes:
        x: distinct finite values, ascending.
        share, low, high: at each x, the share and its limits (0 to 1).
        n: all trials, timeouts included: a curve with timeouts ends below 1.
    """

    x: tuple[float, ...]
    share: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int


def ecdf(values: Sequence[float], confidence: float = 0.95, simultaneous: bool = False) -> Ecdf:
    """The distribution of the values; +inf stands for a timeout.

    The band is pointwise (Clopper-Pearson at each x), or simultaneous for the whole curve
    (Dvoretzky-Kiefer-Wolfowitz with Massart's constant). Both are conservative.
    """
    n = len(values)
    if n == 0:
        return Ecdf((), (), (), (), 0)
    x, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    below = np.cumsum(counts)[np.isfinite(x)]
    x = x[np.isfinite(x)]
    share = below / n
    alpha = 1.0 - confidence
    if simultaneous:
        reach = math.sqrt(math.log(2.0 / alpha) / (2.0 * n))
        low, high = np.maximum(share - reach, 0.0), np.minimum(share + reach, 1.0)
    else:
        low, high = (limits[below - 1] for limits in _limits(n, alpha))
    return Ecdf(
        tuple(x.tolist()), tuple(share.tolist()), tuple(low.tolist()), tuple(high.tolist()), n
    )


@lru_cache(maxsize=16)  # most curves of a report are of as many trials
def _limits(n: int, alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The limits (Clopper-Pearson) of a share of 1, 2, ... n of n trials."""
    below = np.arange(1, n + 1)
    low = np.asarray(special.betaincinv(below, n - below + 1, alpha / 2.0), np.float64)
    high = np.ones(n)
    high[:-1] = special.betaincinv(below[:-1] + 1, n - below[:-1], 1.0 - alpha / 2.0)
    return low, high
