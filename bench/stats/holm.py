"""Holm's step-down correction (Holm 1979). Stdlib only."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: claim those at or below alpha.

    The k smallest in turn are multiplied by n, n - 1, …, never falling below their
    predecessor, at most 1. The chance of any false claim in the family then is at most
    alpha, however the tests depend on each other.
    """
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
