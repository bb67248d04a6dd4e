"""Did something move while the run went on? Trends and change points in run order.

Both questions are asked of the ranks, by permutation: if the order in which values came
says nothing, every order of them was as likely. The change point is Pettitt's (1979), the
split at which the ranks before and after differ most; the trend is the correlation of
rank and place. A change divides a series, and its parts are looked at again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 1999
LEAST_PART = 4
"""Values a part must have on either side of a change."""
LEAST_VALUES = 2 * LEAST_PART
PERMUTED_UP_TO = 500
"""Longer series use the limits of both distributions, which are good by then."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """A place where a series changed.

    Attributes:
        at: the first value that belongs to what came after.
        before, after: medians of the parts on both sides.
        p_value: of the best split, whichever it is.
    """

    at: int
    before: float
    after: float
    p_value: float


def trend_p(values: Sequence[float]) -> float:
    """Two-sided p-value for "values rise or fall with their place"; 1 for fewer than 8."""
    if len(values) < LEAST_VALUES:
        return 1.0
    ranks = _centred_ranks(values)
    places = np.arange(ranks.size) - (ranks.size - 1) / 2.0
    seen = abs(float(places @ ranks))
    if ranks.size > PERMUTED_UP_TO:
        spread = float(np.linalg.norm(places) * np.linalg.norm(ranks)) / math.sqrt(ranks.size - 1)
        return math.erfc(seen / spread / math.sqrt(2.0)) if spread else 1.0
    return _share_as_large(np.abs(_shuffled(ranks) @ places), seen)


def change(values: Sequence[float]) -> Change | None:
    """The most likely change, however doubtful; None for fewer than 8 values."""
    if len(values) < LEAST_VALUES:
        return None
    ranks = _centred_ranks(values)
    sums = np.abs(np.cumsum(ranks))[LEAST_PART - 1 : -LEAST_PART]
    place = int(np.argmax(sums))
    at, seen = place + LEAST_PART, float(sums[place])
    if ranks.size > PERMUTED_UP_TO:
        n = ranks.size
        k = 2.0 * seen  # Pettitt's K for ranks
        p_value = min(1.0, 2.0 * math.exp(-6.0 * k * k / (n**3 + n**2)))
    else:
        others = np.abs(np.cumsum(_shuffled(ranks), axis=1))[:, LEAST_PART - 1 : -LEAST_PART]
        p_value = _share_as_large(others.max(axis=1), seen)
    ordered = np.asarray(values, dtype=np.float64)
    return Change(at, float(np.median(ordered[:at])), float(np.median(ordered[at:])), p_value)


def changes(values: Sequence[float], alpha: float) -> list[Change]:
    """Every change found by dividing again and again, in run order."""
    found = change(values)
    if found is None or found.p_value > alpha:
        return []
    left = changes(values[: found.at], alpha)
    right = [
        Change(one.at + found.at, one.before, one.after, one.p_value)
        for one in changes(values[found.at :], alpha)
    ]
    return [*left, found, *right]


def _centred_ranks(values: Sequence[float]) -> Floats:
    """Midranks less their mean; infinite values (timeouts) rank last."""
    array = np.asarray(values, dtype=np.float64)
    _, group, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((2 * last - counts + 1) / 2.0)[group] - (array.size + 1) / 2.0


def _shuffled(ranks: Floats) -> Floats:
    """The same orders for every series of a length: a report must come out the same again."""
    rows = np.tile(ranks, (PERMUTATIONS, 1))
    return np.random.default_rng(ranks.size).permuted(rows, axis=1)


def _share_as_large(drawn: Floats, seen: float) -> float:
    return float((1 + np.count_nonzero(drawn >= seen * (1.0 - 1e-12))) / (1 + drawn.size))
