"""Student's t over a few whole runs: the one place where a distribution is assumed.

Runs are few because each costs a set-up or a reboot, and signed ranks of fewer than six
numbers reject nothing. A run's estimate is itself the centre of many blocks, which is what
makes the assumption of a normal spread between runs bearable; the degrees of freedom are
the runs, never the blocks (Student 1908).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_RUNS = 3
"""Fewer say nothing about the spread between runs."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Student:
    """The t test of estimates, one a run."""

    def p_greater(self, differences: Floats, shift: float = 0.0) -> float:
        """One-sided p-value for "centred above the shift"; 1 for fewer than three."""
        centre, error, freedom = _of(differences)
        if not math.isfinite(error):
            return 1.0
        if error == 0.0:
            return 0.0 if centre > shift else 1.0
        from scipy import special  # 19 MiB, which a run that measures need not hold

        return float(special.stdtr(freedom, -(centre - shift) / error))

    def p_less(self, differences: Floats, shift: float = 0.0) -> float:
        """One-sided p-value for "centred below the shift"."""
        return self.p_greater(-differences, -shift)

    def pseudomedian(self, differences: Floats, undefined: float = math.nan) -> float:
        """The mean: of a symmetric distribution, all centres are one."""
        centre = float(np.mean(differences))
        return undefined if math.isnan(centre) else centre

    def lower_limit(self, differences: Floats, level: float) -> float:
        """The lower end of the interval; -inf for fewer than three."""
        centre, error, freedom = _of(differences)
        if not math.isfinite(error):
            return -math.inf
        from scipy import special

        return centre + float(special.stdtrit(freedom, level)) * error

    def upper_limit(self, differences: Floats, level: float) -> float:
        """The upper end of the interval."""
        return -self.lower_limit(-differences, level)


def _of(differences: Floats) -> tuple[float, float, int]:
    """Centre, its standard error (infinite for fewer than three), degrees of freedom."""
    if differences.size < LEAST_RUNS or not np.isfinite(differences).all():
        return 0.0, math.inf, 0
    n = differences.size
    return float(np.mean(differences)), float(np.std(differences, ddof=1)) / math.sqrt(n), n - 1
