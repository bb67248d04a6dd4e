"""Does a series remember its past? Blocks are taken as independent; this checks it. Stdlib only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from bench.model import Finding

LAG1_LIMIT = 0.3
"""Above this lag-1 correlation intervals are too narrow by about a third or more."""


def lag1(values: Sequence[float]) -> float:
    """The lag-1 autocorrelation of values in the order they were taken (0 when constant)."""
    n = len(values)
    if n < 3:
        return 0.0
    centre = math.fsum(values) / n
    departures = [value - centre for value in values]
    power = math.fsum(departure * departure for departure in departures)
    if power == 0.0:
        return 0.0
    joint = math.fsum(a * b for a, b in pairwise(departures))
    return joint / power


def lag1_finding(label: str, values: Sequence[float]) -> Finding | None:
    """A Finding when a series in block order is correlated with itself, else None.

    It is a warning when chance alone (2 / sqrt(n)) does not explain it, else information.
    Infinite values (timeouts) are left out.
    """
    finite = [value for value in values if math.isfinite(value)]
    correlation = lag1(finite)
    if correlation <= LAG1_LIMIT:
        return None
    chance = 2.0 / math.sqrt(len(finite))
    return Finding(
        code="lag1-correlation",
        level="warning" if correlation > chance else "info",
        message=f"{label}: lag-1 correlation {correlation:.2f} over {len(finite)} blocks "
        f"(chance alone stays below {chance:.2f})",
        meaning="neighbouring blocks resemble each other, so intervals may be too narrow",
        remedy="repeat the run on a quieter host, or compare several runs across reboots",
    )
