"""What is concluded about one metric: claims, verdict, comparison. Stdlib only.

Let theta be the pseudomedian of the paired differences (of logs, for a ratio), d the
plan's margin on that scale, r the resolution, f the host's A/A floor and
m = max(d, r, f). Each comparison makes three claims; each has a p-value from the same
signed-rank statistic, shifted:

* **different**, against |theta| <= m:  p = 2 min(p_greater(+m), p_less(-m));
* **equivalent**, against |theta| >= d: p = 2 max(p_greater(-d), p_less(+d)), two
  one-sided tests (Schuirmann 1987). The factor 2 is stricter than his procedure and is
  there so that a reader can check it: p <= 0.05 exactly where the printed 95 % interval
  lies within +-d, as for "different" where it lies beyond +-m;
* **detectable**, against |theta| <= max(r, f): p = 2 min(p_greater, p_less) there.

Each claim's p-values are Holm-corrected over the plan's primary family, so the chance
that a report's family holds any false "different" is at most alpha, and likewise any
false "equivalent", any false "detectable". A verdict needs its claim's adjusted p at or
below alpha *and* the printed interval to agree. Printed intervals are pointwise (95 %,
not corrected): an interval may clear the margin while the verdict is still undecided.

A comparison that lost its verdict (refused, too many failures) stays in the family with
p = 1: results do not shrink the family. Emulated ones were never in it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum

from bench.model import Scale
from bench.stats.planning import ALPHA, needed_n

CONFIDENCE = 0.95
"""Of every printed interval, pointwise."""

FAILURE_LIMIT = 0.10
"""Above this share of trials without a value in either arm there is no verdict."""


class Verdict(StrEnum):
    """What a comparison concludes."""

    DIFFERENT = "different"
    EQUIVALENT = "equivalent"
    DETECTABLE_INSIDE_MARGIN = "detectable inside margin"
    UNDECIDED = "undecided"
    EMULATED = "emulated"
    REFUSED = "refused"
    NO_VERDICT = "no verdict"

    @property
    def judged(self) -> bool:
        """Whether the comparison took part in the family of tests and earned a verdict."""
        return self in _JUDGED


_JUDGED = (Verdict.DIFFERENT, Verdict.EQUIVALENT, Verdict.DETECTABLE_INSIDE_MARGIN)


@dataclass(frozen=True)
class Claim:
    """One claim's p-value, before and after Holm's correction over the family."""

    p_value: float = 1.0
    p_adjusted: float = 1.0


@dataclass(frozen=True)
class Claims:
    """The three claims a comparison in the family makes."""

    different: Claim = Claim()
    equivalent: Claim = Claim()
    detectable: Claim = Claim()


@dataclass(frozen=True)
class ArmLevel:
    """One arm's own figure: its median, with an order-statistic interval.

    Attributes:
        value, low, high: in the metric's unit; +inf is a timeout, a value at or below the
            resolution means `< resolution`; None where there is none.
        n: trials with a value, timeouts of a duration included.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


@dataclass(frozen=True)
class Comparison:
    """An effect with interval and verdict: one metric of one workload, arm against baseline.

    Attributes:
        metric, workload, arm, baseline: the key.
        scale: with RATIO, `estimate`, `low`, `high` are arm / baseline; with DIFFERENCE,
            arm - baseline in `unit`.
        n_pairs: pairs that count; n_blocks: blocks in the series.
        n_failed_arm, n_failed_baseline: failed trials; n_timeouts: of both arms.
        n_below: values below the resolution.
        estimate: Hodges-Lehmann; infinite (or a ratio of 0) when only `bound` is known,
            i.e. it is beyond `bound`. None when nothing is known.
        low, high: pointwise 95 % interval, possibly infinite; None without pairs.
        p_value, p_adjusted: of the claim that the verdict rests on (where undecided: of
            "different"); None outside the family.
        claims: all three, None outside the family.
        family_size: primary comparisons corrected together.
        margin: d as planned (relative for a ratio); resolution: in `unit`;
        floor: A/A noise on the margin's scale.
        needed_n: where undecided, blocks that the observed spread would need; None when
            out of reach or not applicable.
        failure_p: exact McNemar on failures and timeouts; None when there were none.
        reason: one clause for a reader: why this verdict.
        timeout: the limit behind a timeout in `unit`, where known.
        title, phrase: for sentences.
    """

    metric: str
    workload: str
    arm: str
    baseline: str
    scale: Scale
    unit: str
    n_pairs: int
    n_blocks: int
    n_failed_arm: int
    n_failed_baseline: int
    n_timeouts: int
    n_below: int
    estimate: float | None
    bound: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_adjusted: float | None
    claims: Claims | None
    family_size: int
    verdict: Verdict
    margin: float
    resolution: float
    floor: float
    needed_n: int | None
    failure_p: float | None
    reason: str
    arm_level: ArmLevel
    baseline_level: ArmLevel
    higher_is_better: bool = False
    timeout: float | None = None
    title: str = ""
    phrase: str = ""

    def plain(self) -> dict[str, object]:
        """For JSON: no enums, and infinities as the strings ``inf`` and ``-inf``."""
        plain: dict[str, object] = _plain(asdict(self))  # type: ignore[assignment]
        return plain


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made from, everything on the scale of the test (logs for a ratio).

    `fewest`: so many blocks are needed for any verdict at all (0: by signed ranks).
    """

    n: int
    estimate: float
    low: float
    high: float
    margin: float
    resolution: float
    floor: float
    claims: Claims
    family_size: int
    fewest: int = 0

    @property
    def threshold(self) -> float:
        """An effect must exceed this to be called different: max(d, resolution, floor)."""
        return max(self.margin, self.resolution, self.floor)


def decide(evidence: Evidence, alpha: float = ALPHA) -> tuple[Verdict, str, int | None]:
    """Verdict, reason and the n that would be needed (see the module's docstring)."""
    e = evidence
    beyond = e.low >= e.threshold or e.high <= -e.threshold
    inside = -e.margin <= e.low and e.high <= e.margin
    least = max(e.resolution, e.floor)
    noticed = e.low >= least or e.high <= -least
    claims = e.claims
    if claims.different.p_adjusted <= alpha and beyond:
        return Verdict.DIFFERENT, "the interval lies beyond the margin", None
    if e.floor > e.margin:
        return Verdict.UNDECIDED, "host too noisy for the margin: its A/A floor exceeds it", None
    if e.resolution > e.margin:
        return Verdict.UNDECIDED, "the measurement is coarser than the margin", None
    if claims.equivalent.p_adjusted <= alpha and inside:
        if claims.detectable.p_adjusted <= alpha and noticed and least < e.margin:
            reason = "there is an effect, and it lies within the margin"
            return Verdict.DETECTABLE_INSIDE_MARGIN, reason, None
        return Verdict.EQUIVALENT, "the interval lies within the margin", None
    need = _need(e, alpha)
    if beyond or inside:
        side = "beyond" if beyond else "within"
        reason = f"the interval lies {side} the margin, but not after Holm's correction"
    elif claims.detectable.p_adjusted <= alpha and noticed:
        reason = "there is an effect, but the interval crosses the margin"
    else:
        reason = "the interval crosses the margin"
    return Verdict.UNDECIDED, reason, need


def _need(e: Evidence, alpha: float) -> int | None:
    if not math.isfinite(e.estimate):
        return None
    size = abs(e.estimate)
    gap = size - e.threshold if size > e.threshold else e.margin - size
    return needed_n(e.n, (e.high - e.low) / 2.0, gap, e.family_size, alpha, e.fewest)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
