"""The exact rank-sum test of two groups, its estimate and its interval: nothing is paired.

U is the number of pairs (one value of each group) whose difference exceeds the shift. With
all differences sorted, the test (Mann & Whitney 1947), the estimate (their median, Hodges &
Lehmann 1963) and the interval (Moses 1965) come from one object, as in
`bench.stats.signed_rank`. Ties count for neither side, against the claim: were they
broken at random, U would have the untied distribution and be no smaller, so p is never too
small, and it never decreases with the shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

EXACT_LIMIT = 50
"""Up to so many values in each group the null distribution is exact; beyond it is normal."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RankSum:
    """The test for groups of these sizes; differences are all n·m of them, in any order."""

    n: int
    m: int

    def p_greater(self, differences: Floats, shift: float = 0.0) -> float:
        """One-sided p-value for "the first group lies above the second by more than the shift"."""
        slack = 1e-12 * max(abs(shift), _largest(differences))
        above = int(np.count_nonzero(differences > shift + slack))
        if self.exact:
            return float(_tail(self.n, self.m)[above])
        centre = self.n * self.m / 2.0
        spread = math.sqrt(self.n * self.m * (self.n + self.m + 1) / 12.0)
        return 0.5 * math.erfc((above - 0.5 - centre) / spread / math.sqrt(2.0))

    def p_less(self, differences: Floats, shift: float = 0.0) -> float:
        """The same for "below"."""
        return self.p_greater(-differences, -shift)

    def pseudomedian(self, differences: Floats, undefined: float = math.nan) -> float:
        """The median difference; infinite where most are, `undefined` between both infinities."""
        ordered = np.sort(differences)
        low, high = float(ordered[(ordered.size - 1) // 2]), float(ordered[ordered.size // 2])
        if low == high:
            return low
        middle = low / 2.0 + high / 2.0
        return undefined if math.isnan(middle) else middle

    def lower_limit(self, differences: Floats, level: float) -> float:
        """The smallest shift that the one-sided test at `level` does not reject."""
        needed = self._rejecting(level)
        if needed > differences.size:
            return -math.inf
        # Rejected while at least `needed` differences exceed it.
        return float(np.sort(differences)[differences.size - needed])

    def upper_limit(self, differences: Floats, level: float) -> float:
        """The largest shift that the one-sided test at `level` does not reject."""
        return -self.lower_limit(-differences, level)

    @property
    def exact(self) -> bool:
        """Whether both groups are small enough to count."""
        return max(self.n, self.m) <= EXACT_LIMIT

    def _rejecting(self, level: float) -> int:
        """The fewest differences above a shift that reject it; n·m + 1 when none can."""
        if self.exact:
            rejected = np.flatnonzero(_tail(self.n, self.m) <= level)
            return int(rejected[0]) if rejected.size else self.n * self.m + 1
        from scipy.special import ndtri

        spread = math.sqrt(self.n * self.m * (self.n + self.m + 1) / 12.0)
        return math.ceil(self.n * self.m / 2.0 + 0.5 - float(ndtri(level)) * spread)


def smallest_n(threshold: float) -> int:
    """The fewest values in each group whose smallest two-sided p, 2 / C(2n, n), passes."""
    n = 1
    while 2.0 / math.comb(2 * n, n) > threshold:
        n += 1
    return n


def _largest(differences: Floats) -> float:
    finite = differences[np.isfinite(differences)]
    return float(np.abs(finite).max(initial=0.0))


@lru_cache(maxsize=64)
def _tail(n: int, m: int) -> Floats:
    """P(U >= u) for u = 0 … n·m, from the Gaussian binomial's coefficients, as exact integers."""
    counts = [1] + [0] * (n * m)
    for i in range(1, n + 1):
        for u in range(n * m, m + i - 1, -1):  # times 1 - x^(m+i)
            counts[u] -= counts[u - m - i]
        for u in range(i, n * m + 1):  # divided by 1 - x^i
            counts[u] += counts[u - i]
    total, below = math.comb(n + m, n), 0
    tail = []
    for count in counts:
        tail.append((total - below) / total)
        below += count
    return np.array(tail)
