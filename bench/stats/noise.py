"""What an arm shows against itself (A/A): floor, order effects, memory, what could be detected.

Both trials of a pair are the same arm running the same workload in the same block, so
every difference between them is the host's, or the measuring's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bench.model import Scale
from bench.stats import batch, drift, order, signed_rank
from bench.stats.pairs import PairedSeries, effects
from bench.stats.verdict import CONFIDENCE

SIZES = (10, 12, 20, 50)
"""Numbers of blocks for which the smallest detectable effect is said."""

POWER = 0.8
"""How often an effect of that size would be detected."""

RESAMPLES = 400
LEAST_PAIRS = 6
"""Fewer pairs give no interval, so no floor."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """Where the two trials of one block stood.

    Attributes:
        positions: of the second and of the first trial within the block.
        after: the arms that ran just before them.
    """

    positions: tuple[int, int]
    after: tuple[str, str]


@dataclass(frozen=True)
class Follows:
    """What it does to a trial to run just after an arm, on the scale of the margin."""

    arm: str
    n: int
    estimate: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out nothing."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class Noise:
    """One metric of one workload in one arm, against itself. Ratios as margins are: 0.05 is 5 %.

    Attributes:
        n: pairs that count; n_blocks: pairs measured.
        low, high: 95 % interval of the difference that should be nothing.
        floor: the farther end of it: a difference up to this may be the host's alone;
            None with fewer than 6 pairs or where the interval is unbounded.
        false_alarm: the interval leaves out nothing (expected in one of twenty).
        lag1: correlation of one pair's difference with the next one's.
        level_lag1: the same of the pairs' means: does the host remember?
        position: what standing one place later in the block does; `position_p` its p-value.
        follows: what the arm before does.
        detectable: n → the effect that would be detected in 80 % of runs with this spread,
            at p = 0.05 for a single comparison; None where n cannot.
    """

    metric: str
    workload: str
    arm: str
    unit: str
    scale: Scale
    resolution: float
    n: int
    n_blocks: int
    low: float
    high: float
    floor: float | None
    false_alarm: bool
    lag1: float
    level_lag1: float
    position: float
    position_p: float
    follows: tuple[Follows, ...] = ()
    detectable: Mapping[int, float | None] = field(default_factory=dict)


def analyse(series: PairedSeries, places: Mapping[int, Place]) -> Noise | None:
    """Judge an arm against itself; None where no pair has two values.

    Args:
        series: second trial against first, the arm's name as `arm`.
        places: block → where its two trials stood.
    """
    paired = effects(series)
    known = paired.low == paired.high
    differences = paired.low[known]
    blocks = [block for block, good in zip(paired.blocks, known, strict=True) if good]
    finite = np.isfinite(differences)
    differences = differences[finite]
    blocks = [block for block, good in zip(blocks, finite, strict=True) if good]
    if not blocks:
        return None
    ratio = series.scale is Scale.RATIO
    low, high = signed_rank.interval(differences, CONFIDENCE)
    farther = max(abs(low), abs(high))
    usable = len(blocks) >= LEAST_PAIRS and math.isfinite(farther)
    placed = [places[block] for block in blocks]
    position, position_p = _position(differences, placed)
    return Noise(
        metric=series.metric,
        workload=series.workload,
        arm=series.arm,
        unit=series.unit,
        scale=series.scale,
        resolution=series.resolution,
        n=len(blocks),
        n_blocks=paired.n_blocks,
        low=_margin(low, ratio),
        high=_margin(high, ratio),
        floor=_margin(farther, ratio) if usable else None,
        false_alarm=low > 0.0 or high < 0.0,
        lag1=order.lag1(differences.tolist()),
        level_lag1=order.lag1(_levels(series, blocks)),
        position=_margin(position, ratio),
        position_p=position_p,
        follows=tuple(_follows(differences, placed, ratio)),
        detectable={n: _detectable(differences, n, series.resolution, ratio) for n in SIZES},
    )


def _margin(effect: float, ratio: bool) -> float:
    """From the test's scale (logarithms) to the margin's: 0.05 for 5 %, both ways."""
    if not ratio:
        return effect
    try:
        return math.copysign(math.expm1(abs(effect)), effect)
    except OverflowError:
        return math.copysign(math.inf, effect)


def _levels(series: PairedSeries, blocks: Sequence[int]) -> list[float]:
    rows = {row[0]: row for row in series.values}
    sums = [(rows[block][2], rows[block][4]) for block in blocks]
    return [(a + b) / 2.0 for a, b in sums if a is not None and b is not None]


def _position(differences: Floats, placed: Sequence[Place]) -> tuple[float, float]:
    """Median slope per place, and the p-value of differences growing with the distance."""
    apart = np.array([place.positions[0] - place.positions[1] for place in placed], np.float64)
    if len(placed) < drift.LEAST_VALUES or not apart.any():
        return 0.0, 1.0
    slope = float(np.median(differences[apart != 0] / apart[apart != 0]))
    in_order = differences[np.argsort(apart, kind="stable")]
    return slope, drift.trend_p(in_order.tolist())


def _follows(differences: Floats, placed: Sequence[Place], ratio: bool) -> list[Follows]:
    found = []
    for arm in sorted({name for place in placed for name in place.after if name}):
        sign = np.array([(p.after[0] == arm) - (p.after[1] == arm) for p in placed], np.float64)
        told = differences[sign != 0] * sign[sign != 0]
        if told.size >= LEAST_PAIRS:
            low, high = signed_rank.interval(told, CONFIDENCE)
            estimate = signed_rank.pseudomedian(told)
            effect = (_margin(value, ratio) for value in (estimate, low, high))
            found.append(Follows(arm, int(told.size), *effect))
    return found


def _detectable(differences: Floats, n: int, resolution: float, ratio: bool) -> float | None:
    """The effect whose interval would leave out nothing in 80 % of runs of n such blocks.

    Resampled from the differences and their mirror images, since which of the two trials is
    called the second is arbitrary. What so few trials never showed is not in it.
    """
    if differences.size < LEAST_PAIRS:
        return None
    rng = np.random.default_rng(n)
    drawn = rng.choice(differences, (RESAMPLES, n)) * rng.choice([-1.0, 1.0], (RESAMPLES, n))
    lower, _ = batch.limits(drawn, drawn, CONFIDENCE)
    reach = float(np.quantile(-lower, POWER))
    if not math.isfinite(reach):
        return None
    return _margin(max(reach, 0.0), ratio) if ratio else max(reach, resolution)
