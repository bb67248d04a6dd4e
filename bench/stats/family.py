"""From paired series to comparisons: the one function that reports and the command line call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.errors import BadInput
from bench.model import Better, Finding, Outcome, Scale
from bench.stats import order, quantiles, signed_rank, two_sample
from bench.stats.holm import holm
from bench.stats.mcnemar import failure_p, group_failure_p
from bench.stats.pairs import Design, Effects, Pair, PairedSeries, Test
from bench.stats.planning import ALPHA, smallest_n
from bench.stats.signed_rank import SignedRank
from bench.stats.student import LEAST_RUNS, Student
from bench.stats.two_sample import RankSum
from bench.stats.verdict import (
    CONFIDENCE,
    FAILURE_LIMIT,
    ArmLevel,
    Claim,
    Claims,
    Comparison,
    Evidence,
    Verdict,
    decide,
)


def compare_family(pairs: Sequence[PairedSeries], alpha: float = ALPHA) -> list[Comparison]:
    """Compare every series; the primary ones are judged together, the others described.

    Returns one comparison per series, in order.

    Raises:
        BadInput: two series have the same key, or one is malformed (`pairs.check`).
    """
    _no_duplicates(pairs)
    measured = [_measure(series) for series in pairs]
    family = [index for index, one in enumerate(measured) if one.in_family]
    claims = dict(zip(family, _corrected([measured[index] for index in family]), strict=True))
    return [
        _conclude(one, claims.get(index), len(family), alpha) for index, one in enumerate(measured)
    ]


def order_findings(pairs: Sequence[PairedSeries]) -> list[Finding]:
    """A Finding for each series whose paired differences remember their past."""
    found = []
    for series in pairs:
        paired = series.effects
        label = f"{series.title or series.metric} of {series.workload}, {series.arm}"
        known = paired.low[paired.low == paired.high]
        found.append(order.lag1_finding(f"{label} against {series.baseline}", known.tolist()))
    return [finding for finding in found if finding is not None]


@dataclass(frozen=True)
class _Measured:
    """A series with its estimate and interval; margin, resolution, floor on the test's scale."""

    series: PairedSeries
    effects: Effects
    estimate: float
    bound: float | None
    low: float
    high: float
    margin: float
    resolution: float
    floor: float
    test: Test

    @property
    def in_family(self) -> bool:
        """Primary and not emulated: known before the run, so results cannot change it."""
        return self.series.primary and not self.series.emulated

    @property
    def obstacle(self) -> tuple[Verdict, str] | None:
        """Why there can be no verdict whatever the numbers say."""
        series, paired = self.series, self.effects
        if series.refused_reason:
            return Verdict.REFUSED, series.refused_reason
        if paired.n_refused:
            return Verdict.REFUSED, f"an arm declined in {paired.n_refused} blocks"
        if series.emulated:
            return Verdict.EMULATED, "figures describe an emulator, not virtualisation"
        if paired.n_pairs == 0:
            return Verdict.NO_VERDICT, "no block has a value in both arms"
        for name, lost, trials in (
            (series.arm, paired.n_lost_arm, paired.n_trials_arm),
            (series.baseline, paired.n_lost_baseline, paired.n_trials_baseline),
        ):
            if lost > FAILURE_LIMIT * trials:
                share = f"{lost} of {trials} trials"
                return Verdict.NO_VERDICT, f"{share} of {name} gave no value (limit 10 %)"
        if not series.primary:
            return Verdict.NO_VERDICT, "descriptive: not in the plan's primary family"
        if series.undecided_reason:
            return Verdict.UNDECIDED, series.undecided_reason
        if math.isnan(self.estimate):
            return Verdict.UNDECIDED, "both arms are below the resolution, or timed out"
        return None


def _measure(series: PairedSeries) -> _Measured:
    paired = series.effects
    ratio = series.scale is Scale.RATIO
    margin = math.log1p(series.margin) if ratio else series.margin
    floor = math.log1p(series.floor) if ratio else series.floor
    resolution = _effect_resolution(series, paired)
    if paired.n_pairs == 0:
        nothing = (math.nan, None, math.nan, math.nan)
        return _Measured(series, paired, *nothing, margin, resolution, floor, SignedRank())
    test = _test(series, paired)
    estimate, bound = _estimate(series, paired, test)
    level = (1.0 - CONFIDENCE) / 2.0
    low = test.lower_limit(paired.low, level)
    high = test.upper_limit(paired.high, level)
    if math.isfinite(estimate):
        # No interval is narrower than the measurement's own step.
        low, high = min(low, estimate - resolution), max(high, estimate + resolution)
    return _Measured(
        series, paired, estimate, bound, low, high, margin, resolution, floor, test
    )  # fmt: skip


def _test(series: PairedSeries, paired: Effects) -> Test:
    if series.design is Design.UNPAIRED:
        return RankSum(
            paired.n_trials_arm - paired.n_lost_arm,
            paired.n_trials_baseline - paired.n_lost_baseline,
        )
    return Student() if series.design is Design.RUNS else SignedRank()


def _estimate(series: PairedSeries, paired: Effects, test: Test) -> tuple[float, float | None]:
    """The pseudomedian, or (infinity, the value it is known to be beyond)."""
    low = test.pseudomedian(paired.low, undefined=-math.inf)
    if (paired.low == paired.high).all() and math.isfinite(low):
        return low, None
    high = test.pseudomedian(paired.high, undefined=math.inf)
    if low == high and math.isinf(low):
        return low, _beyond(series, paired, low)
    if math.isinf(low) and math.isinf(high):
        return math.nan, None
    if math.isinf(low):
        return low, high
    if math.isinf(high):
        return high, low
    return low / 2.0 + high / 2.0, None


def _beyond(series: PairedSeries, paired: Effects, side: float) -> float | None:
    """A bound for an estimate that timeouts made infinite: the limit put in their place."""
    if series.timeout is not None and series.design is Design.PAIRED:
        limit = series.timeout
        arm = [limit if math.isinf(value) else value for value in paired.arm]
        base = [limit if math.isinf(value) else value for value in paired.baseline]
        if len(arm) == len(base) == paired.n_pairs and min(*arm, *base) > 0.0:
            ratio = series.scale is Scale.RATIO
            return signed_rank.pseudomedian(
                [math.log(a / b) if ratio else a - b for a, b in zip(arm, base, strict=True)]
            )
    if series.design is Design.UNPAIRED:
        means = np.sort(paired.low)
    else:
        means = signed_rank.walsh_averages(paired.low)
    finite = means[abs(means) != math.inf]
    if finite.size == 0:
        return None
    return float(finite[-1] if side > 0 else finite[0])


def _effect_resolution(series: PairedSeries, paired: Effects) -> float:
    """How far one step of the measurement moves an effect: half a step in each value."""
    steps = [max(series.resolution, error) for error in series.errors]
    if series.scale is Scale.DIFFERENCE:
        return sum(steps) / 2.0
    total = 0.0
    for values, step in zip((paired.arm, paired.baseline), steps, strict=True):
        level = quantiles.median(values)
        if level is not None and level.value > 0.0:
            total += math.log1p(step / 2.0 / level.value)
    return total


def _corrected(family: Sequence[_Measured]) -> list[Claims]:
    """The three claims of each member, each kind corrected over the whole family."""
    raw = [_p_values(one) for one in family]
    adjusted = [holm(column) for column in zip(*raw, strict=True)]
    by_member = zip(*adjusted, strict=True)
    return [
        Claims(*(Claim(p, corrected) for p, corrected in zip(before, after, strict=True)))
        for before, after in zip(raw, by_member, strict=True)
    ]


def _p_values(one: _Measured) -> tuple[float, float, float]:
    """Different, equivalent, detectable: see bench.stats.verdict. 1 where nothing may be said."""
    if one.obstacle is not None:
        return 1.0, 1.0, 1.0
    low, high, test = one.effects.low, one.effects.high, one.test
    least = max(one.resolution, one.floor)
    threshold = max(one.margin, least)

    def outside(limit: float) -> float:
        above, below = test.p_greater(low, limit), test.p_less(high, -limit)
        return min(1.0, 2.0 * min(above, below))

    within = 2.0 * max(test.p_greater(low, -one.margin), test.p_less(high, one.margin))
    return outside(threshold), min(1.0, within), outside(least)


def _conclude(one: _Measured, claims: Claims | None, family_size: int, alpha: float) -> Comparison:
    series, paired = one.series, one.effects
    needed: int | None = None
    if one.obstacle is not None:
        verdict, reason = one.obstacle
        claims = None
    else:
        assert claims is not None  # no obstacle means primary and not emulated
        evidence = Evidence(
            paired.n_pairs, one.estimate, one.low, one.high,
            one.margin, one.resolution, one.floor, claims, family_size,
            _fewest(series, alpha / max(1, family_size)),
        )  # fmt: skip
        verdict, reason, needed = decide(evidence, alpha)
    rests_on = _rests_on(verdict, claims)
    return Comparison(
        metric=series.metric,
        workload=series.workload,
        arm=series.arm,
        baseline=series.baseline,
        scale=series.scale,
        unit=series.unit,
        n_pairs=paired.n_pairs,
        n_blocks=paired.n_blocks,
        n_failed_arm=paired.n_failed_arm,
        n_failed_baseline=paired.n_failed_baseline,
        n_timeouts=paired.n_timeouts,
        n_below=paired.n_below,
        estimate=_printed(series, one.estimate),
        bound=None if one.bound is None else _printed(series, one.bound),
        low=_printed(series, one.low),
        high=_printed(series, one.high),
        p_value=None if rests_on is None else rests_on.p_value,
        p_adjusted=None if rests_on is None else rests_on.p_adjusted,
        claims=claims,
        family_size=family_size,
        verdict=verdict,
        margin=series.margin,
        resolution=series.resolution,
        floor=series.floor,
        needed_n=needed,
        failure_p=_failure_p(series, paired),
        reason=reason,
        arm_level=_level(paired.arm),
        baseline_level=_level(paired.baseline),
        higher_is_better=series.better is Better.HIGHER,
        timeout=series.timeout,
        title=series.title,
        phrase=series.phrase,
    )


def _fewest(series: PairedSeries, threshold: float) -> int:
    """The fewest rows whose smallest p can pass a threshold, by what the rows are."""
    if series.design is Design.UNPAIRED:
        return two_sample.smallest_n(threshold)
    return LEAST_RUNS if series.design is Design.RUNS else smallest_n(threshold)


def _failure_p(series: PairedSeries, paired: Effects) -> float | None:
    """Whether the arms fail equally often; None where none did."""
    if series.design is not Design.UNPAIRED:
        if not paired.only_arm_failed + paired.only_baseline_failed:
            return None
        return failure_p(paired.only_arm_failed, paired.only_baseline_failed)
    failed = [
        sum(Pair(*row)[1 + 2 * side] in (Outcome.FAILED, Outcome.TIMEOUT) for row in series.values)
        for side in (0, 1)
    ]
    if not any(failed):
        return None
    return group_failure_p(failed[0], paired.n_trials_arm, failed[1], paired.n_trials_baseline)


def _rests_on(verdict: Verdict, claims: Claims | None) -> Claim | None:
    if claims is None:
        return None
    if verdict is Verdict.EQUIVALENT:
        return claims.equivalent
    if verdict is Verdict.DETECTABLE_INSIDE_MARGIN:
        return claims.detectable
    return claims.different


def _printed(series: PairedSeries, effect: float) -> float | None:
    """From the test's scale to the reader's: a ratio, or a difference in the unit."""
    if math.isnan(effect):
        return None
    if series.scale is Scale.DIFFERENCE:
        return effect
    try:
        return math.exp(effect)
    except OverflowError:
        return math.inf


def _level(values: Sequence[float]) -> ArmLevel:
    level = quantiles.median(values, CONFIDENCE)
    return ArmLevel() if level is None else ArmLevel(level.value, level.low, level.high, level.n)


def _no_duplicates(pairs: Sequence[PairedSeries]) -> None:
    seen = set()
    for series in pairs:
        if series.key in seen:
            raise BadInput(
                f"{series.metric} of {series.workload} is compared twice "
                f"({series.arm} against {series.baseline})",
                "give each comparison once",
            )
        seen.add(series.key)
