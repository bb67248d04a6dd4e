"""Several levels: blocks inside runs, runs on a host; where the spread comes from, what to repeat.

A one-way layout with random effects, by its moments (analysis of variance): the mean square
between runs holds the spread of blocks once and that of runs as often as a run has blocks.
What is left for the runs may come out negative, which stands for nothing, and is said as 0.
Repetition counts follow Kalibera & Jones (2013): what costs little and spreads much is
repeated most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_BLOCKS = 200
"""A suggestion above this means that runs hardly differ."""


@dataclass(frozen=True)
class Components:
    """Standard deviations on the scale of the test (logs for a ratio), and what they rest on.

    Attributes:
        between_runs: how far runs' own truths lie apart; 0.0 where not shown.
        between_blocks: how far blocks of one run lie apart.
        runs, blocks: counted.
    """

    between_runs: float
    between_blocks: float
    runs: int
    blocks: int

    @property
    def share_of_runs(self) -> float:
        """Part of one block's variance that is the run's (0 to 1)."""
        total = self.between_runs**2 + self.between_blocks**2
        return self.between_runs**2 / total if total else 0.0


def components(by_run: Sequence[Sequence[float]]) -> Components | None:
    """Both spreads, from the effects of each run's blocks; None for fewer than two runs of two."""
    groups = [np.asarray(values, dtype=np.float64) for values in by_run if len(values) >= 2]
    if len(groups) < 2:
        return None
    sizes = np.array([group.size for group in groups], dtype=np.float64)
    total = float(sizes.sum())
    centre = sum(float(group.sum()) for group in groups) / total
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    between = sum(group.size * (float(group.mean()) - centre) ** 2 for group in groups)
    mean_within = within / (total - len(groups))
    mean_between = between / (len(groups) - 1)
    size = (total - float((sizes**2).sum()) / total) / (len(groups) - 1)
    of_runs = max(0.0, (mean_between - mean_within) / size)
    return Components(math.sqrt(of_runs), math.sqrt(mean_within), len(groups), int(total))


def blocks_per_run(found: Components, run_cost_s: float, block_cost_s: float) -> int | None:
    """Blocks a run should have so that the interval over runs shrinks most for the time spent.

    sqrt(cost of a run / cost of a block) times the ratio of their spreads, rounded up
    (Kalibera & Jones 2013). None where runs do not differ, so that more blocks in one run
    serve as well.
    """
    if found.between_runs <= 0.0 or block_cost_s <= 0.0:
        return None
    ratio = (found.between_blocks / found.between_runs) ** 2
    best = math.ceil(math.sqrt(run_cost_s / block_cost_s * ratio))
    return best if best <= MOST_BLOCKS else None
