"""Failure rates of two arms, compared on the same blocks (McNemar 1947, exact)."""

from __future__ import annotations


def failure_p(only_arm_failed: int, only_baseline_failed: int) -> float:
    """Exact two-sided p-value for equal failure rates; blocks where both agree say nothing."""
    discordant = only_arm_failed + only_baseline_failed
    if discordant == 0:
        return 1.0
    from scipy.stats import binomtest  # 0.5 s to import, and failures are rare

    return float(binomtest(only_arm_failed, discordant, 0.5).pvalue)


def group_failure_p(failed: int, trials: int, other_failed: int, other_trials: int) -> float:
    """Fisher's exact two-sided p-value for equal failure rates of two unpaired groups (1922)."""
    import numpy as np
    from scipy.stats import fisher_exact

    table = np.array([[failed, trials - failed], [other_failed, other_trials - other_failed]])
    return float(fisher_exact(table).pvalue)
