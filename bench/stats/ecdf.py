"""Empirical distributions with a band: every point is drawn, never a bar of means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    if simultaneous:
        reach = math.sqrt(math.log(2.0 / alpha) / (2.0 * n))
        low, high = np.maximum(share - reach, 0.0), np.minimum(share + reach, 1.0)
    else:
        low = np.asarray(special.betaincinv(below, n - below + 1, alpha / 2.0), np.float64)
        high = np.ones(x.size)
        open_ended = below < n
        high[open_ended] = special.betaincinv(
            below[open_ended] + 1, n - below[open_ended], 1.0 - alpha / 2.0
        )
    return Ecdf(
        tuple(x.tolist()), tuple(share.tolist()), tuple(low.tolist()), tuple(high.tolist()), n
    )
