"""From trials in blocks to paired differences, with everything that has no number kept visible.

A difference is a range [low, high] of which both ends are usually the same number. It is
a real range where a value is only bounded: a value below the resolution q lies in [0, q]
(so a ratio is never built on log 0), and where both arms timed out nothing is known. The
lower ends decide what is claimed upwards, the upper ends what is claimed downwards: no
claim ever rests on a guess inside a range.

A timeout of a duration ranks as +inf. A failed trial takes its pair out, and is counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.errors import BadInput
from bench.model import Better, Outcome, Scale

Floats = NDArray[np.float64]

TIME_UNITS = frozenset({"s", "ms", "us", "ns"})


ABSENT = "absent"
"""In place of an outcome, where one group has more trials than the other."""

MOST_DIFFERENCES = 4_000_000
"""Between two groups: 2,000 trials in each."""


class Design(StrEnum):
    """What the rows of a series have in common, and so which test they get."""

    PAIRED = "paired"  # both values of a row come from one block: signed ranks
    UNPAIRED = "unpaired"  # two groups of trials side by side: rank sums
    RUNS = "runs"  # each row is a whole run's own estimate: Student's t


class Test(Protocol):
    """A test with its estimate and its interval, on differences."""

    def p_greater(self, differences: Floats, shift: float = 0.0) -> float:
        """One-sided p-value for "above the shift"."""
        ...

    def p_less(self, differences: Floats, shift: float = 0.0) -> float:
        """One-sided p-value for "below the shift"."""
        ...

    def pseudomedian(self, differences: Floats, undefined: float = math.nan) -> float:
        """The estimate; `undefined` where it lies between both infinities."""
        ...

    def lower_limit(self, differences: Floats, level: float) -> float:
        """The smallest shift that the one-sided test at `level` does not reject."""
        ...

    def upper_limit(self, differences: Floats, level: float) -> float:
        """The largest."""
        ...


class Pair(NamedTuple):
    """One block: what both arms gave. A value is None where there is none."""

    block: int
    outcome_arm: Outcome | str
    value_arm: float | None
    outcome_base: Outcome | str
    value_base: float | None


@dataclass(frozen=True)
class PairedSeries:
    """One metric of one workload in two arms, block by block: what is to be compared.

    Attributes:
        metric, workload, arm, baseline: the series' key.
        margin: d of the plan: relative for a ratio (0.05 is 5 % either way), in `unit`
            for a difference.
        resolution: step of the measurement in `unit`; values below it are `< q`.
        values: `Pair`s, or plain tuples in that order.
        primary: listed in the plan's primary family.
        emulated: an arm ran under emulation: figures, but no judgement.
        refused_reason: why the comparison is refused ("" when it is not).
        floor: the host's A/A noise for this metric, on the scale of the margin.
        errors: of an arm's and the baseline's own values in `unit`, where they are larger
            than `resolution` (a stamp that was looked for, or mapped from another clock).
        undecided_reason: why nothing can be decided whatever the values ("" when it can).
        elapsed: whether a timeout means "at least this long", so that it ranks as +inf;
            None: yes for a time of which less is better, unless it is CPU time (its name
            begins with ``cpu``): a hung trial need not have used any.
        timeout: that limit in `unit`, for printing `> x`.
        design: whether a row's two values belong together; see `Design`.
        title: what to call the metric in a sentence; `phrase` completes the verb
            ("to become ready").
    """

    metric: str
    workload: str
    arm: str
    baseline: str
    unit: str
    scale: Scale
    better: Better
    margin: float
    resolution: float
    values: Sequence[Pair | tuple[int, Outcome | str, float | None, Outcome | str, float | None]]
    primary: bool = False
    emulated: bool = False
    refused_reason: str = ""
    floor: float = 0.0
    errors: tuple[float, float] = (0.0, 0.0)
    undecided_reason: str = ""
    elapsed: bool | None = None
    timeout: float | None = None
    design: Design = Design.PAIRED
    title: str = ""
    phrase: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Metric, workload, arm and baseline."""
        return (self.metric, self.workload, self.arm, self.baseline)

    @cached_property
    def effects(self) -> Effects:
        """The series paired up, once for all that ask.

        Raises:
            BadInput: see `check`.
        """
        return effects(self)

    @property
    def ranks_timeouts(self) -> bool:
        """Whether a timeout is a very long value, rather than a missing one."""
        if self.elapsed is not None:
            return self.elapsed
        shorter_is_better = self.unit in TIME_UNITS and self.better is Better.LOWER
        return shorter_is_better and not self.metric.startswith("cpu")


@dataclass(frozen=True)
class Effects:
    """Paired differences (of logs for a ratio), and what has no place among them.

    Attributes:
        low, high: both ends of each pair's difference, in block order; of two groups, all
            differences between them.
        blocks: of each pair, for groups empty.
        n_pairs: pairs that count; of two groups, the smaller one's values.
        n_trials_arm, n_trials_baseline: trials, with a value or without.
        arm, baseline: each arm's own values, timeouts as +inf.
        n_blocks: blocks in the series.
        n_failed_arm, n_failed_baseline: trials that failed.
        n_lost_arm, n_lost_baseline: trials without a usable value, failed ones included.
        n_timeouts: trials of both arms that timed out.
        n_refused: blocks in which an arm declined.
        only_arm_failed, only_baseline_failed: blocks where just one did not end well.
        n_below: values below the resolution.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    blocks: tuple[int, ...]
    n_pairs: int
    n_trials_arm: int
    n_trials_baseline: int
    arm: tuple[float, ...]
    baseline: tuple[float, ...]
    n_blocks: int
    n_failed_arm: int
    n_failed_baseline: int
    n_lost_arm: int
    n_lost_baseline: int
    n_timeouts: int
    n_refused: int
    only_arm_failed: int
    only_baseline_failed: int
    n_below: int


def check(series: PairedSeries) -> None:
    """Refuse settings that no statistic can be made from.

    Raises:
        BadInput: a margin, resolution or floor is negative or not a number, or a block
            appears twice.
    """
    name = f"{series.metric} of {series.workload}"
    for what, value in (
        ("margin", series.margin),
        ("resolution", series.resolution),
        ("floor", series.floor),
    ):
        if not (math.isfinite(value) and value >= 0.0):
            raise BadInput(f"the {what} of {name} is {value}", "give a number of at least 0")
    blocks = [row[0] for row in series.values]
    if len(set(blocks)) != len(blocks):
        raise BadInput(f"{name} has a block twice", "give each block once, repeats collapsed")


def effects(series: PairedSeries) -> Effects:
    """Pair up a series.

    Raises:
        BadInput: see `check`.
    """
    check(series)
    rows = sorted(series.values, key=itemgetter(0))
    columns = zip(*rows, strict=True) if rows else [()] * len(Pair._fields)
    blocks, outcomes, values, outcomes_base, values_base = columns
    arm = _ranges(series, outcomes, values)
    base = _ranges(series, outcomes_base, values_base)
    if series.design is Design.UNPAIRED:
        first, second = np.flatnonzero(arm.known), np.flatnonzero(base.known)
        if first.size * second.size > MOST_DIFFERENCES:
            raise BadInput(
                f"{series.metric} of {series.workload}: {first.size} and {second.size} values are "
                "too many to set each against each",
                "compare runs of fewer blocks",
            )
        n_pairs = min(first.size, second.size)
        paired_blocks: tuple[int, ...] = ()
        first, second = np.repeat(first, second.size), np.tile(second, first.size)
    else:
        first = second = np.flatnonzero(arm.known & base.known)
        n_pairs = first.size
        paired_blocks = tuple(map(blocks.__getitem__, first.tolist()))
    low, high = _differences(series.scale, arm, base, first, second)
    both = Counter(zip(outcomes, outcomes_base, strict=True))
    counts, counts_base = Counter[Outcome | str](), Counter[Outcome | str]()
    for (outcome, outcome_base), n in both.items():
        counts[outcome] += n
        counts_base[outcome_base] += n
    absent, absent_base = counts[ABSENT], counts_base[ABSENT]
    return Effects(
        low=low,
        high=high,
        blocks=paired_blocks,
        n_pairs=n_pairs,
        n_trials_arm=len(rows) - absent,
        n_trials_baseline=len(rows) - absent_base,
        arm=arm.own,
        baseline=base.own,
        n_blocks=len(rows),
        n_failed_arm=counts[Outcome.FAILED],
        n_failed_baseline=counts_base[Outcome.FAILED],
        n_lost_arm=len(rows) - len(arm.own) - absent,
        n_lost_baseline=len(rows) - len(base.own) - absent_base,
        n_timeouts=counts[Outcome.TIMEOUT] + counts_base[Outcome.TIMEOUT],
        n_refused=sum(n for pair, n in both.items() if Outcome.REFUSED in pair),
        only_arm_failed=sum(
            n for (a, b), n in both.items() if a in _CUT_SHORT and b not in _CUT_SHORT
        ),
        only_baseline_failed=sum(
            n for (a, b), n in both.items() if b in _CUT_SHORT and a not in _CUT_SHORT
        ),
        n_below=sum(int((ends.low < ends.high).sum()) for ends in (arm, base)),
    )


_CUT_SHORT = frozenset({Outcome.FAILED, Outcome.TIMEOUT})
_NO_VALUE = frozenset({Outcome.FAILED, Outcome.REFUSED, ABSENT})


@dataclass(frozen=True)
class _Ranges:
    """The ranges in which an arm's values lie, NaN where a trial has none."""

    low: Floats
    high: Floats

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which trials have one."""
        return ~np.isnan(self.low)

    @property
    def own(self) -> tuple[float, ...]:
        """The values; one below the resolution stands at its upper bound."""
        return tuple(self.high[self.known].tolist())

    @property
    def logs(self) -> _Ranges:
        """The ranges of their logarithms."""
        low = logs(self.low)
        exact = np.array_equal(self.low, self.high, equal_nan=True)
        return _Ranges(low, low if exact else logs(self.high))


def _ranges(
    series: PairedSeries, outcomes: Sequence[Outcome | str], values: Sequence[float | None]
) -> _Ranges:
    low = np.array(values, dtype=np.float64)  # None becomes NaN
    if series.ranks_timeouts:
        low[_among(outcomes, {Outcome.TIMEOUT}) & np.isnan(low)] = math.inf
    low[_among(outcomes, _NO_VALUE)] = math.nan
    high = low.copy()
    if series.scale is Scale.RATIO:
        # Negative ones come from two clocks that agree only to their resolution.
        below = (low < series.resolution) | (low <= 0.0)
    else:
        below = (low >= 0.0) & (low < series.resolution)
    if series.resolution > 0.0:
        low[below], high[below] = 0.0, series.resolution
    else:
        low[below] = high[below] = math.nan
    return _Ranges(low, high)


def _among(outcomes: Sequence[Outcome | str], some: Set[Outcome | str]) -> NDArray[np.bool_]:
    return np.fromiter(map(some.__contains__, outcomes), np.bool_, len(outcomes))


def _differences(
    scale: Scale, arm: _Ranges, base: _Ranges, first: NDArray[np.intp], second: NDArray[np.intp]
) -> tuple[Floats, Floats]:
    """Both ends of the differences between values at these places."""
    ends, ends_base = arm, base
    if scale is Scale.RATIO:
        ends, ends_base = arm.logs, base.logs
    with np.errstate(invalid="ignore"):  # inf - inf
        low = ends.low[first] - ends_base.high[second]
        high = ends.high[first] - ends_base.low[second]
    neither = np.isposinf(arm.low[first]) & np.isposinf(base.low[second])
    low[neither], high[neither] = -math.inf, math.inf
    return low, high


def logs(values: Floats) -> Floats:
    """Of what is not positive -inf.

    By `math.log`: numpy's last digit may differ from one processor to another.
    """
    return np.array([math.log(v) if v > 0.0 else -math.inf for v in values.tolist()])
