"""Spike-in controls: an effect of known size, injected and measured as any other.

Two workloads differ in one injected effect and run on the same arm, in an ordinary
campaign: receipts, settled trials in seeded blocks, balanced order, the store, and the
statistics of a report. What comes out must be what was put in. An interval that holds
the truth but also "nothing" or "twice as much" has shown little, so both are asked.

A report's interval is right 95 times in 100, so of nine one is expected to miss every
other time or so. A gate therefore asks for the truth inside the *wide* interval
(99.9 %, or the widest finite one that so few blocks allow), which a sound path leaves
once in a thousand, and for the wrong values outside the *printed* one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import schedule, store
from bench.arms import ARMS
from bench.backend import Backend
from bench.campaign import Campaign, Progress
from bench.context import RunContext
from bench.controls import Control, Injection
from bench.metrics import table
from bench.model import Image, Outcome, Scale
from bench.numbers import format_estimate, format_interval, quantity
from bench.output_metrics import of_trial
from bench.pagecache import SharedCache
from bench.plan import Plan
from bench.schedule import Slot
from bench.stats import signed_rank
from bench.stats.family import compare_family
from bench.stats.pairs import Pair, PairedSeries, effects
from bench.stats.verdict import Comparison

WIDE_CONFIDENCE = 0.999


@dataclass(frozen=True)
class Recovery:
    """What an arm's measurements say about one injection.

    Attributes:
        comparison: spiked against base, as a report would print it.
        wide: the interval for gates (see the module), on the same scale.
    """

    arm: str
    control: Control
    injection: Injection
    comparison: Comparison
    wide: tuple[float, float]

    @property
    def printed(self) -> tuple[float, float]:
        """The report's 95 % interval; everything where there is none."""
        low, high = self.comparison.low, self.comparison.high
        return -math.inf if low is None else low, math.inf if high is None else high

    @property
    def recovered(self) -> bool:
        """Whether the truth lies inside the printed interval."""
        return _meet((self.injection.low, self.injection.high), self.printed)

    @property
    def sound(self) -> bool:
        """Whether the truth lies inside the wide interval, and that is one."""
        finite = all(map(math.isfinite, self.wide))
        return finite and _meet((self.injection.low, self.injection.high), self.wide)

    @property
    def detected(self) -> bool:
        """Whether the printed interval leaves out "nothing"."""
        return not _meet(self.injection.nothing, self.printed)

    @property
    def bounded(self) -> bool:
        """Whether the printed interval leaves out twice the truth."""
        return not _meet(self.injection.twice, self.printed)

    @property
    def resolves(self) -> float:
        """The smallest effect that as many blocks tell from nothing here, infinite where none.

        Half the printed interval's width; of a ratio, as margins are (0.05 is 5 %).
        """
        low, high = self.printed
        if not (math.isfinite(low) and math.isfinite(high)):
            return math.inf
        if self.injection.scale is Scale.RATIO:
            return math.sqrt(high / low) - 1.0 if low > 0.0 else math.inf
        return max((high - low) / 2.0, self.injection.step)

    def line(self) -> str:
        """One line for a terminal."""
        found, injection = self.comparison, self.injection
        unit, signed = injection.unit, injection.scale is Scale.DIFFERENCE
        truth = " to ".join(
            dict.fromkeys(quantity(end, unit, digits=4) for end in (injection.low, injection.high))
        )
        estimate = format_estimate(found.estimate, found.low, found.high, unit, signed=signed)
        wide = format_interval(*self.wide, unit, near=found.estimate or 0.0)
        return (
            f"{self.control.name} on {self.arm}: {injection.metric} {estimate}, wide {wide}, "
            f"truth {truth}, {'recovered' if self.recovered else 'missed'}, "
            f"{found.n_pairs} of {found.n_blocks} pairs"
        )


def _meet(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


class SpikeIn(Campaign):
    """A campaign whose Williams design balances the two variants instead of the arms."""

    def slots(self) -> list[Slot]:
        """The whole schedule: both variants directly after each other, arm by arm."""
        variants = [workload.name for workload in self.plan.workloads]
        turned = schedule.build(variants, self.plan.arms, self.plan.blocks, self.plan.seed)
        # `arm` holds what is compared, `workload` what is not: here they are exchanged.
        return [Slot(slot.block, slot.position, slot.arm, slot.workload) for slot in turned]

    def receipt_arms(self) -> list[str]:
        """Not of VMs: program and arm are the same in both variants, and a boot takes seconds."""
        return [arm for arm in super().receipt_arms() if not ARMS[arm].guest]


def plan_of(control: Control, arms: Sequence[str], seed: int, blocks: int | None = None) -> Plan:
    """The plan of one control on these arms; one arm is enough."""
    name = f"spike-in {control.name}"
    count = control.blocks if blocks is None else blocks
    return Plan(name, tuple(arms), control.workloads, count, seed, (), {}, experiment="spike-in")


@dataclass(frozen=True)
class Surroundings:
    """What a campaign needs besides its plan; the caller opened it and closes it."""

    backends: Mapping[str, Backend]
    images: Mapping[str, Image]
    context: RunContext
    shared_cache: SharedCache
    progress: Progress


def run(
    control: Control, plan: Plan, directory: Path, surroundings: Surroundings
) -> list[Recovery]:
    """Measure a control into a new run directory and say what was recovered.

    Raises:
        HvctError: see `measure`.
    """
    stored = measure(plan, directory, surroundings)
    return [
        recovery(stored, control, injection, arm)
        for arm in plan.arms
        for injection in control.injections
    ]


def measure(plan: Plan, directory: Path, surroundings: Surroundings) -> store.StoredRun:
    """Run a plan's workloads against each other and read back what was stored.

    The caller keeps the harness off the instances' CPUs, as for any campaign.

    Raises:
        HvctError: an arm could not be prepared, or the directory not be written.
    """
    run_store = store.RunStore.create(directory)
    record = {"plan": store.jsonable(plan), "receipts": [], "descriptions": {}}
    run_store.write_run(record)
    s = surroundings
    campaign = SpikeIn(
        plan, record, run_store, s.backends, s.images, s.context, s.shared_cache, s.progress
    )
    for arm in plan.arms:
        for workload in plan.workloads:
            s.backends[arm].prepare(campaign.make_spec(workload))
    campaign.execute()
    return store.load(directory)


def recovery(stored: store.StoredRun, control: Control, injection: Injection, arm: str) -> Recovery:
    """What a stored run says about one injection on one arm."""
    compared = series(stored, control, injection, arm)
    (comparison,) = compare_family([compared])
    return Recovery(arm, control, injection, comparison, _wide(compared))


def series(
    stored: store.StoredRun, control: Control, injection: Injection, arm: str
) -> PairedSeries:
    """Spiked against base, block by block: what `compare_family` takes."""
    found: dict[tuple[int, str], tuple[str, float | None]] = {}
    for trial in stored.trials:
        if trial["arm"] == arm:
            values = of_trial(trial["samples"])
            key = int(trial["block"]), str(trial["workload"])
            found[key] = trial["outcome"], values.get(injection.metric)
    missing = (Outcome.FAILED.value, None)
    rows = [
        Pair(
            block,
            *found.get((block, control.spiked.name), missing),
            *found.get((block, control.base.name), missing),
        )
        for block in sorted({block for block, _ in found})
    ]
    metric = table(control.workloads)[injection.metric]
    return PairedSeries(
        metric=injection.metric,
        workload=arm,
        arm=control.spiked.name,
        baseline=control.base.name,
        unit=metric.unit,
        scale=injection.scale,
        better=metric.better,
        margin=0.0,
        resolution=metric.resolution,
        values=rows,
    )


def _wide(compared: PairedSeries) -> tuple[float, float]:
    paired = effects(compared)
    if not paired.n_pairs:
        return -math.inf, math.inf
    # n pairs reject nothing at less than 2 / 2**n: beyond that the interval is everything.
    rejected = max(1.0 - WIDE_CONFIDENCE, 2.0 / 2**paired.n_pairs)
    low = signed_rank.lower_limit(paired.low, rejected / 2.0)
    high = signed_rank.upper_limit(paired.high, rejected / 2.0)
    if compared.scale is Scale.RATIO:
        return math.exp(low), math.exp(high)
    # As in a report, no narrower than what one step of the measurement leaves open.
    middle = signed_rank.pseudomedian(paired.low)
    return min(low, middle - compared.resolution), max(high, middle + compared.resolution)
