"""From trials to verdicts: margins, Holm over the family, failures, timeouts, resolution."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bench.errors import BadInput
from bench.model import Better, Scale
from bench.stats.family import compare_family, order_findings
from bench.stats.pairs import PairedSeries
from bench.stats.verdict import Comparison, Verdict

MIB = float(1 << 20)
N = 12


def series(
    arm: Sequence[float | None], baseline: Sequence[float | None], **settings: Any
) -> PairedSeries:
    """A primary start-up metric; None is a timeout."""
    rows = [
        (block, "ok" if a is not None else "timeout", a, "ok" if b is not None else "timeout", b)
        for block, (a, b) in enumerate(zip(arm, baseline, strict=True))
    ]
    defaults: dict[str, Any] = {
        "metric": "startup_ready",
        "workload": "redis",
        "arm": "vm",
        "baseline": "container",
        "unit": "s",
        "scale": Scale.RATIO,
        "better": Better.LOWER,
        "margin": 0.05,
        "resolution": 0.0,
        "values": rows,
        "primary": True,
    }
    return PairedSeries(**{**defaults, **settings})


def ratios(
    centre: float, spread: float, n: int = N, seed: int = 1, **settings: Any
) -> PairedSeries:
    """Arm over baseline with these logs: evenly spread about the centre, so exactly known."""
    rng = np.random.default_rng(seed)
    base = np.exp(rng.normal(0.0, 0.3, n))
    steps = np.linspace(-spread, spread, n)
    rng.shuffle(steps)
    return series((base * centre * np.exp(steps)).tolist(), base.tolist(), **settings)


def one(paired: PairedSeries) -> Comparison:
    """Compare a family of one."""
    return compare_family([paired])[0]


def test_a_ratio_is_recovered_with_its_interval() -> None:
    """The estimate is the pseudomedian of the ratios; block effects cancel."""
    c = one(ratios(84.0, 0.05))
    assert c.estimate == pytest.approx(84.0, rel=1e-9)
    assert c.low is not None and c.high is not None
    assert 84 * math.exp(-0.05) < c.low < 84 < c.high < 84 * math.exp(0.05)
    assert c.low * c.high == pytest.approx(84.0**2, rel=1e-9)
    assert (c.n_pairs, c.verdict) == (N, Verdict.DIFFERENT)
    assert c.p_value == pytest.approx(2 / 2**N)


def test_a_difference_is_recovered_in_its_unit() -> None:
    """Memory: arm - baseline, absolute margin, each arm's own median beside it."""
    base = [100 * MIB + 4096 * i for i in range(N)]
    arm = [value + 118 * MIB + 4096 * ((5 * i) % N) for i, value in enumerate(base)]
    c = one(
        series(arm, base, unit="bytes", scale=Scale.DIFFERENCE, margin=2 * MIB, resolution=4096.0)
    )
    assert c.estimate == pytest.approx(118 * MIB + 4096 * 5.5)
    assert c.verdict is Verdict.DIFFERENT
    assert c.baseline_level.value == pytest.approx(100 * MIB + 4096 * 5.5)
    assert c.baseline_level.low == base[2] and c.baseline_level.high == base[9]


@pytest.mark.parametrize(
    ("centre", "spread", "verdict"),
    [
        (1.20, 0.05, Verdict.DIFFERENT),
        (0.80, 0.05, Verdict.DIFFERENT),
        (1.00, 0.03, Verdict.EQUIVALENT),
        (1.02, 0.01, Verdict.DETECTABLE_INSIDE_MARGIN),
        (1.05, 0.02, Verdict.UNDECIDED),
        (1.00, 0.50, Verdict.UNDECIDED),
    ],
)
def test_the_verdict_is_where_the_interval_lies(
    centre: float, spread: float, verdict: Verdict
) -> None:
    """Beyond the margin, within it, within it but not zero, or across it."""
    assert one(ratios(centre, spread)).verdict is verdict


def test_the_margin_of_a_ratio_is_the_same_both_ways() -> None:
    """Swapping the arms inverts the ratio and keeps verdict and p."""
    there = one(ratios(1.06, 0.012))
    paired = ratios(1.06, 0.012)
    swapped = [(row[0], row[3], row[4], row[1], row[2]) for row in paired.values]
    back = one(ratios(1.06, 0.012, values=swapped))
    assert back.estimate == pytest.approx(1 / (there.estimate or 0))
    assert (back.verdict, back.p_value) == (there.verdict, there.p_value)


def test_undecided_names_the_blocks_that_would_do() -> None:
    """With that many blocks of the same spread the verdict is reached, not with half."""
    c = one(ratios(1.0, 0.2))
    assert c.verdict is Verdict.UNDECIDED and c.needed_n is not None
    assert one(ratios(1.0, 0.2, n=round(c.needed_n * 1.2))).verdict is Verdict.EQUIVALENT
    assert one(ratios(1.0, 0.2, n=c.needed_n // 2)).verdict is Verdict.UNDECIDED


def test_a_noisy_host_cannot_decide_a_small_margin() -> None:
    """A/A floor 8 % over a margin of 5 %: no equivalence, a difference only beyond the floor."""
    quiet = one(ratios(1.0, 0.03, floor=0.08))
    assert quiet.verdict is Verdict.UNDECIDED and "too noisy" in quiet.reason
    assert one(ratios(1.07, 0.005, floor=0.08)).verdict is Verdict.UNDECIDED
    assert one(ratios(1.07, 0.005)).verdict is Verdict.DIFFERENT
    assert one(ratios(1.20, 0.02, floor=0.08)).verdict is Verdict.DIFFERENT


def test_a_coarse_measurement_cannot_decide_a_small_margin() -> None:
    """Steps of 1 MiB cannot prove equality within half of one."""
    c = one(
        series(
            [10 * MIB] * N,
            [10 * MIB] * N,
            unit="bytes",
            scale=Scale.DIFFERENCE,
            margin=MIB / 2,
            resolution=MIB,
        )
    )
    assert c.verdict is Verdict.UNDECIDED and "coarser" in c.reason


def test_an_interval_of_equal_differences_is_as_wide_as_the_resolution() -> None:
    """Twelve times the same number is known to one step of the measurement, not to nothing."""
    c = one(
        series(
            [12 * MIB] * N,
            [10 * MIB] * N,
            unit="bytes",
            scale=Scale.DIFFERENCE,
            margin=MIB,
            resolution=4096.0,
        )
    )
    assert (c.low, c.high) == (2 * MIB - 4096, 2 * MIB + 4096)
    ratio = one(series([0.2] * N, [0.1] * N, resolution=0.01))
    assert ratio.low == pytest.approx(2 / (1 + 0.005 / 0.2) / (1 + 0.005 / 0.1))
    assert ratio.verdict is Verdict.DIFFERENT


def test_holm_judges_the_primary_family_only() -> None:
    """Alone p = 0.03 is a verdict, among four it is not; its printed interval is the same."""
    doubtful = ratios(1.085, 0.07)
    alone = one(doubtful)
    others = [ratios(1.0, 0.3, seed=seed, metric=f"m{seed}") for seed in range(3)]
    among = compare_family([doubtful, *others])[0]
    assert alone.p_value is not None and 0.0125 < alone.p_value < 0.05
    assert alone.verdict is Verdict.DIFFERENT
    assert among.verdict is Verdict.UNDECIDED and "Holm" in among.reason
    assert (among.low, among.high) == (alone.low, alone.high)
    assert among.family_size == 4 and among.p_adjusted == pytest.approx(4 * alone.p_value)
    described = [ratios(1.0, 0.3, metric=f"m{i}", primary=False) for i in range(3)]
    assert compare_family([doubtful, *described])[0] == alone


def test_what_is_not_primary_is_described_without_a_verdict() -> None:
    """Estimate and interval, no p, no verdict."""
    c = one(ratios(3.0, 0.1, primary=False))
    assert c.verdict is Verdict.NO_VERDICT and "descriptive" in c.reason
    assert c.estimate == pytest.approx(3.0) and c.p_value is None and c.claims is None


def test_emulated_figures_are_printed_and_not_judged() -> None:
    """An emulated arm keeps its numbers, has no p and no place in the family."""
    emulated, real = compare_family(
        [ratios(300.0, 0.1, emulated=True), ratios(2.0, 0.1, metric="other")]
    )
    assert emulated.verdict is Verdict.EMULATED and emulated.p_value is None
    assert emulated.estimate == pytest.approx(300.0)
    assert real.family_size == 1 and real.verdict is Verdict.DIFFERENT


def test_a_refused_comparison_says_why_and_stays_in_the_family() -> None:
    """Results and refusals never shrink the correction of the others."""
    refused, other = compare_family(
        [
            ratios(2.0, 0.1, refused_reason="argv differs between the arms"),
            ratios(2.0, 0.1, metric="other"),
        ]
    )
    assert refused.verdict is Verdict.REFUSED and refused.reason.startswith("argv differs")
    assert other.family_size == 2 and other.verdict is Verdict.DIFFERENT
    rows = [(block, "refused", None, "ok", 1.0) for block in range(N)]
    assert one(ratios(1.0, 0.1, values=rows)).verdict is Verdict.REFUSED


def test_a_failed_trial_takes_its_pair_out_and_is_counted() -> None:
    """One failure in twelve: eleven pairs, the rest unchanged."""
    whole = ratios(2.0, 0.1)
    rows = list(whole.values)
    rows[3] = (3, "failed", None, *rows[3][3:])
    c = one(ratios(2.0, 0.1, values=rows))
    assert (c.n_pairs, c.n_blocks, c.n_failed_arm, c.n_failed_baseline) == (11, 12, 1, 0)
    assert c.verdict is Verdict.DIFFERENT
    without = [row for row in whole.values if row[0] != 3]
    assert c.estimate == one(ratios(2.0, 0.1, values=without)).estimate
    assert (c.arm_level.n, c.baseline_level.n) == (11, 12)


def test_above_ten_per_cent_failures_there_is_no_verdict() -> None:
    """Two of twelve: figures stay, the verdict goes, rates are compared by McNemar."""
    rows = list(ratios(2.0, 0.1).values)
    for block in (3, 7):
        rows[block] = (block, *rows[block][1:3], "failed", None)
    c = one(ratios(2.0, 0.1, values=rows))
    assert c.verdict is Verdict.NO_VERDICT and "2 of 12 trials of container" in c.reason
    assert c.estimate is not None and c.failure_p == pytest.approx(0.5)
    assert one(ratios(2.0, 0.1)).failure_p is None


def test_a_timeout_of_a_duration_ranks_last_and_keeps_its_pair() -> None:
    """Two timeouts in twelve leave a finite estimate and an unbounded upper limit."""
    base = [1.0 + i / 100 for i in range(N)]
    arm: list[float | None] = [2.0 * value * (1 + i / 200) for i, value in enumerate(base)]
    arm[0] = arm[5] = None
    c = one(series(arm, base, timeout=60.0))
    assert (c.n_pairs, c.n_timeouts) == (12, 2)
    assert c.estimate is not None and 2.0 < c.estimate < 2.2
    assert c.low is not None and c.low > 1.9
    assert c.arm_level.n == 12 and c.verdict is Verdict.DIFFERENT
    most = one(series([None] * 3 + arm[3:], base, timeout=60.0))
    assert most.high == math.inf


def test_mostly_timeouts_give_an_estimate_that_is_only_bounded() -> None:
    """The estimate is infinite, and known to exceed what the limit itself would give."""
    base = [1.0] * N
    arm = [2.0, 2.1, *[None] * (N - 2)]
    c = one(series(arm, base, timeout=60.0))
    assert c.estimate == math.inf and c.bound == pytest.approx(60.0)
    assert c.verdict is Verdict.DIFFERENT
    unknown = one(series(arm, base))
    assert unknown.bound == pytest.approx(2.1)
    assert one(series(base, arm, timeout=60.0)).estimate == 0.0


def test_where_both_arms_time_out_nothing_is_claimed() -> None:
    """Such a pair neither helps a difference nor an equivalence."""
    both = one(series([None] * N, [None] * N))
    assert both.estimate is None and both.verdict is Verdict.UNDECIDED
    clear = ratios(1.0, 0.01)
    rows = list(clear.values)
    for block in range(4):
        rows[block] = (block, "timeout", None, "timeout", None)
    assert one(clear).verdict is Verdict.EQUIVALENT
    assert one(ratios(1.0, 0.01, values=rows)).verdict is Verdict.UNDECIDED


def test_a_timeout_of_what_is_not_a_duration_takes_its_pair_out() -> None:
    """Memory and CPU time of a hung trial are unknown, not infinite."""
    for settings in ({"unit": "bytes"}, {"metric": "cpu_window"}, {"elapsed": False}):
        c = one(series([None, *[2.0] * 11], [1.0] * N, **settings))
        assert (c.n_pairs, c.n_timeouts, c.estimate) == (11, 1, pytest.approx(2.0))


def test_each_arm_has_the_error_of_its_own_stamps() -> None:
    """A coarse stamp widens by its share of that arm's value, not of the other's."""
    arm, base = [2.0 + i / 1e4 for i in range(N)], [0.02 + i / 1e6 for i in range(N)]
    exact = one(series(arm, base))
    coarse = one(series(arm, base, errors=(0.01, 0.0)))
    assert exact.low is not None and coarse.low is not None
    assert coarse.low == pytest.approx(coarse.estimate / (1 + 0.005 / 2.0), rel=1e-3)
    assert coarse.low < exact.low and coarse.n_below == 0
    assert one(series(arm, base, errors=(0.0, 0.01))).low < 0.9 * coarse.low  # type: ignore[operator]


def test_what_cannot_be_decided_stays_in_the_family() -> None:
    """CPU time that is nobody's: figures and interval, but no decision, and no smaller family."""
    c, other = compare_family(
        [ratios(2.0, 0.01, undecided_reason="only 70 % is its own"),
         ratios(2.0, 0.01, workload="nginx")]
    )  # fmt: skip
    assert (c.verdict, c.reason) == (Verdict.UNDECIDED, "only 70 % is its own")
    assert c.estimate == pytest.approx(2.0) and c.family_size == 2
    assert other.verdict is Verdict.DIFFERENT


def test_below_the_resolution_is_a_range_and_never_the_log_of_zero() -> None:
    """All values of one arm below q: the ratio is below q / baseline, and that is a verdict."""
    c = one(series([0.0] * N, [0.03 + i / 1e5 for i in range(N)], resolution=0.001))
    assert c.estimate == 0.0 and c.bound is not None and c.bound == pytest.approx(0.0333, rel=0.01)
    assert c.low == 0.0 and c.high is not None and c.high < 0.04
    assert c.n_below == N and c.verdict is Verdict.DIFFERENT
    neither = one(series([0.0] * N, [0.0005] * N, resolution=0.001))
    assert neither.estimate is None and neither.verdict is Verdict.UNDECIDED


def test_a_zero_without_a_stated_resolution_has_no_ratio() -> None:
    """It takes its pair out rather than becoming minus infinity."""
    c = one(series([0.0, *[2.0] * 11], [1.0] * N))
    assert c.n_pairs == 11 and c.estimate == pytest.approx(2.0)


def test_differences_below_the_resolution_are_equal_to_within_it() -> None:
    """Idle CPU of two arms, both under one tick: 0 to within a tick, and equivalent if d allows."""
    c = one(
        series(
            [0.0004] * N,
            [0.0] * N,
            unit="CPU",
            scale=Scale.DIFFERENCE,
            margin=0.01,
            resolution=0.001,
        )
    )
    assert c.estimate == 0.0 and (c.low, c.high) == (-0.001, 0.001)
    assert c.verdict is Verdict.EQUIVALENT


def test_nothing_measured_is_no_verdict() -> None:
    """No block, or none with both values."""
    assert one(series([], [])).verdict is Verdict.NO_VERDICT
    rows = [(block, "ok", None, "ok", 1.0) for block in range(N)]
    c = one(ratios(1.0, 0.1, values=rows))
    assert c.verdict is Verdict.NO_VERDICT and c.estimate is None and c.low is None


def test_too_few_blocks_are_undecided_and_named() -> None:
    """Five blocks cannot reach 5 %: the interval is unbounded and six are asked for."""
    c = one(ratios(3.0, 0.01, n=4))
    assert (c.low, c.high) == (0.0, math.inf)
    assert c.verdict is Verdict.UNDECIDED and c.needed_n == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": -0.1}, "margin"),
        ({"resolution": math.nan}, "resolution"),
        ({"floor": math.inf}, "floor"),
        ({"values": [(1, "ok", 1.0, "ok", 1.0)] * 2}, "block twice"),
    ],
)
def test_malformed_series_are_refused(settings: dict[str, Any], message: str) -> None:
    """Settings that no statistic can be made from are named with their metric."""
    with pytest.raises(BadInput, match=message):
        one(ratios(1.0, 0.1, **settings))


def test_the_same_comparison_twice_is_refused() -> None:
    """A duplicate would be corrected for twice and printed twice."""
    with pytest.raises(BadInput, match="compared twice"):
        compare_family([ratios(1.0, 0.1), ratios(1.1, 0.1)])


def test_a_drift_between_blocks_is_found_in_the_differences() -> None:
    """Arms that drift together are fine; a ratio that drifts is not."""
    base = [1.0 + i for i in range(30)]
    noise = np.random.default_rng(2).normal(0, 0.01, 30)
    together = series([2 * b * math.exp(e) for b, e in zip(base, noise, strict=True)], base)
    apart = series([b * (1 + i / 10) for i, b in enumerate(base)], base, workload="nginx")
    findings = order_findings([together, apart])
    assert [finding.code for finding in findings] == ["lag1-correlation"]
    assert "nginx" in findings[0].message


def test_a_comparison_becomes_json_with_nothing_lost() -> None:
    """Enums become text, infinities the strings inf and -inf."""
    c = one(series([2.0, *[None] * 11], [1.0] * N))
    plain = json.loads(json.dumps(c.plain(), allow_nan=False))
    assert plain["verdict"] == "different" and plain["estimate"] == "inf"
    assert plain["claims"]["different"]["p_value"] == c.p_value
