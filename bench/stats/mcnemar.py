"""Failure rates of two arms, compared on the same blocks (McNemar 1947, exact)."""

from __future__ import annotations


def failure_p(only_arm_failed: int, only_baseline_failed: int) -> float:
    """Exact two-sided p-value for equal failure rates; blocks where both agree say nothing."""
    discordant = only_arm_failed + only_baseline_failed
    if discordant == 0:
        return 1.0
    from scipy.stats import binomtest  # 0.5 s to import, and failures are rare

    return float(binomtest(only_arm_failed, discordant, 0.5).pvalue)
