"""Several levels: iterations in blocks in runs; where the spread comes from, what to repeat.

A layout with random effects, one-way or nested once more, by its moments (analysis of
variance): the mean square between runs holds the spread of blocks once and that of runs as
often as a run has blocks. What is left for the runs may come out negative, which stands for
nothing, and is said as 0.
Repetition counts follow Kalibera & Jones (2013): what costs little and spreads much is
repeated most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_REPEATED = 200
"""A suggestion above this means that the level above hardly differs."""


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


@dataclass(frozen=True)
class Nested:
    """Standard deviations of a series with iterations inside each block, on the test's scale.

    Attributes:
        between_runs: 0.0 for a single run, and where not shown.
        between_blocks: of what is a block's (an instance's) own; 0.0 where not shown.
        between_iterations: of iterations of one instance.
        runs, blocks, iterations: counted.
    """

    between_runs: float
    between_blocks: float
    between_iterations: float
    runs: int
    blocks: int
    iterations: int

    @property
    def share_of_iterations(self) -> float:
        """Part of one iteration's variance that is not its instance's or run's (0 to 1)."""
        own = self.between_iterations**2
        total = self.between_runs**2 + self.between_blocks**2 + own
        return own / total if total else 0.0


def nested(by_run: Sequence[Sequence[Sequence[float]]]) -> Nested | None:
    """The three spreads, from each run's blocks' iterations; sizes may differ.

    Expected sums of squares of the unbalanced nested layout (Searle, Casella & McCulloch 1992).
    None where no block has two iterations, or fewer than two blocks of a run have any.
    """
    runs = [[np.asarray(block, dtype=np.float64) for block in run if len(block)] for run in by_run]
    runs = [run for run in runs if run]
    blocks = [block for run in runs for block in run]
    n_all = float(sum(block.size for block in blocks))
    if n_all - len(blocks) < 1 or len(blocks) - len(runs) < 1:
        return None
    sizes = [np.array([block.size for block in run], dtype=np.float64) for run in runs]
    means = [np.array([block.mean() for block in run]) for run in runs]
    run_sizes = np.array([size.sum() for size in sizes])
    run_means = np.array([(m * s).sum() / s.sum() for m, s in zip(means, sizes, strict=True)])
    squares_of_iterations = sum(float(((b - b.mean()) ** 2).sum()) for b in blocks)
    squares_of_blocks = sum(
        float((s * (m - centre) ** 2).sum())
        for m, s, centre in zip(means, sizes, run_means, strict=True)
    )
    per_run = sum(float((s**2).sum() / s.sum()) for s in sizes)
    of_iterations = squares_of_iterations / (n_all - len(blocks))
    of_blocks = max(
        0.0,
        (squares_of_blocks - (len(blocks) - len(runs)) * of_iterations) / (n_all - per_run),
    )
    of_runs = 0.0
    if len(runs) > 1:
        grand = float((run_sizes * run_means).sum() / n_all)
        squares_of_runs = float((run_sizes * (run_means - grand) ** 2).sum())
        whole = sum(float((s**2).sum()) for s in sizes) / n_all
        left = squares_of_runs - (len(runs) - 1) * of_iterations - (per_run - whole) * of_blocks
        of_runs = max(0.0, left / (n_all - float((run_sizes**2).sum()) / n_all))
    return Nested(
        math.sqrt(of_runs), math.sqrt(of_blocks), math.sqrt(of_iterations),
        len(runs), len(blocks), int(n_all),
    )  # fmt: skip


def blocks_per_run(found: Components, run_cost_s: float, block_cost_s: float) -> int | None:
    """Blocks a run should have so that the interval over runs shrinks most for the time spent.

    sqrt(cost of a run / cost of a block) times the ratio of their spreads, rounded up
    (Kalibera & Jones 2013). None where runs do not differ, so that more blocks in one run
    serve as well.
    """
    return _repeated(found.between_blocks, found.between_runs, block_cost_s, run_cost_s)


def iterations_per_instance(
    found: Nested, instance_cost_s: float, iteration_cost_s: float
) -> int | None:
    """The same one level below: iterations of one instance, at least one.

    Args:
        instance_cost_s: what an instance takes without its iterations.
    """
    return _repeated(
        found.between_iterations, found.between_blocks, iteration_cost_s, instance_cost_s
    )


def _repeated(spread: float, above: float, cost_s: float, above_cost_s: float) -> int | None:
    if above <= 0.0 or cost_s <= 0.0:
        return None
    best = max(1, math.ceil(math.sqrt(above_cost_s / cost_s) * (spread / above)))
    return best if best <= MOST_REPEATED else None
