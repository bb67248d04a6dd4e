"""How many blocks a plan needs: what it can prove at best, before anything runs. Stdlib only."""

from __future__ import annotations

import math
from statistics import NormalDist

from bench.errors import BadInput
from bench.model import Finding

ALPHA = 0.05
"""Chance of any false claim of one kind in a report's primary family."""

DEFAULT_BLOCKS = 12
QUICK_BLOCKS = 10
MOST_PRIMARY = 8
"""Most metrics in the primary family."""

MOST_NEEDED = 9999
"""A needed n above this is not a plan any more and is not printed."""


def smallest_p(blocks: int) -> float:
    """The smallest two-sided p-value that this many untied blocks can reach: 2 / 2**blocks."""
    return min(1.0, 2.0 ** (1 - blocks))


def smallest_n(alpha: float = ALPHA, family_size: int = 1) -> int:
    """The fewest blocks whose smallest p passes Holm's first threshold, alpha / family_size.

    Raises:
        BadInput: alpha is not a probability.
    """
    if not 0.0 < alpha < 1.0:
        raise BadInput(f"alpha is {alpha}", "give a probability, such as 0.05")
    blocks = max(1, math.floor(1.0 - math.log2(alpha / max(1, family_size))))
    while smallest_p(blocks) > alpha / max(1, family_size):
        blocks += 1
    return blocks


def check_reachable(n: int, family_size: int, alpha: float = ALPHA) -> Finding | None:
    """A problem when a plan of n blocks could not reach any verdict, else None."""
    if family_size == 0 or n >= smallest_n(alpha, family_size):
        return None
    need = smallest_n(alpha, family_size)
    return Finding(
        code="unreachable-verdict",
        level="problem",
        message=f"{n} blocks are too few to judge {family_size} metrics together: p cannot "
        f"fall below {smallest_p(n):.2g}, and {alpha / family_size:.2g} is needed",
        meaning="no result, however large, could earn a verdict",
        remedy=f"use at least {need} blocks (--blocks {need}), or judge fewer metrics",
    )


def needed_n(
    n: int,
    half_width: float,
    gap: float,
    family_size: int = 1,
    alpha: float = ALPHA,
    fewest: int = 0,
) -> int | None:
    """Blocks after which an interval shrunk like 1 / sqrt(n) would fit into `gap`.

    Args:
        n: blocks that gave the interval.
        half_width: of the pointwise interval, on the scale of the test.
        gap: distance from the estimate to the nearest boundary of a verdict.
        family_size: Holm's first step widens the interval accordingly.
        alpha: of the family.
        fewest: blocks without which no test passes; 0: those of signed ranks.

    Returns None when the estimate lies on a boundary or the number is out of reach.
    """
    fewest = fewest or smallest_n(alpha, family_size)
    if not math.isfinite(half_width):
        return fewest if n < fewest else None
    least = max(fewest, n + 1)
    if gap <= 0.0:
        return None
    normal = NormalDist()
    pointwise = normal.inv_cdf(1.0 - alpha / 2.0)
    corrected = normal.inv_cdf(1.0 - alpha / 2.0 / max(1, family_size))
    need = n * (half_width * corrected / pointwise / gap) ** 2
    return max(least, math.ceil(need)) if need <= MOST_NEEDED else None
