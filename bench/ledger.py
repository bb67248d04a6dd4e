"""What instances cost, from stored steps: the memory ledger, and the cost model.

A step is so many instances of one arm standing idle, and what was read then. Everything
here is a pure function of a run directory: ``steps.jsonl`` (what stood), and the run's own
trials (what starting an instance and a unit of work take).

The ledger sets what the host lost against the sum of what can be named::

    fall of MemAvailable = anonymous + tmpfs + kernel, charged to the instances
                         + kernel memory charged to nobody (links, namespaces, tables)
                         + growth of launcher or worker, and of the harness
                         + what is left unexplained

all as slopes over the number of instances. Page cache that instances were charged for is
listed, and takes no part: the kernel counts it as available.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.metrics import METRICS
from bench.model import Accelerator, Outcome
from bench.stats.slope import Estimate, bend, least_squares, mean
from bench.steps import PAGE_BYTES, Step, passes, read_steps

MODEL_FILE = "cost-model.json"
MODEL_FORMAT = 1
"""Of cost-model.json; 1: first version."""

RESOLUTION_BYTES = 64 << 10
"""Unexplained bytes per instance below this say nothing.

The kernel keeps its page counters per CPU and folds them in at a threshold of tens of pages
("vm stats threshold" in /proc/zoneinfo), so /proc/meminfo is never more exact than that.
"""


@dataclass(frozen=True)
class Part:
    """A line of the ledger: bytes that one more instance adds.

    `counted` parts add up to `ArmCosts.explained`; the others are within them, or no loss.
    """

    name: str
    title: str
    counted: bool
    bytes: Estimate


@dataclass(frozen=True)
class ArmCosts:
    """What one arm costs. Means, since totals are sums; never pseudomedians.

    Attributes:
        emulated: its figures describe an emulator.
        steps: numbers of instances that stood; `shrunk` says why fewer than asked for.
        passes: of all steps, complete.
        fixed_memory_bytes: of launcher or worker, whatever number of instances.
        shared_memory_bytes: image, programs, kernel in the page cache, once for all instances.
        fixed_cpus: CPUs' worth of launcher or worker with nothing to do.
        marginal_memory_bytes: of one more instance, all that is named but the harness; what
            `unexplained` is shown to hold besides comes on top.
        marginal_cpus: CPUs' worth of one more idle instance.
        start_cpu_s, start_s: host CPU time of a whole life without work, and time to ready.
        active_cpu_s: host CPU time for one unit of work.
        ledger: the parts, per instance; see the module.
        host_delta, explained, unexplained: the fall of MemAvailable, the parts counted, the rest.
        bend: how much more an instance adds in the upper half of the steps than in the lower.
    """

    arm: str
    label: str
    emulated: bool
    steps: tuple[int, ...]
    shrunk: str
    passes: int
    fixed_memory_bytes: Estimate
    shared_memory_bytes: Estimate
    fixed_cpus: Estimate
    marginal_memory_bytes: Estimate
    marginal_cpus: Estimate
    start_cpu_s: Estimate | None
    start_s: Estimate | None
    active_cpu_s: Estimate | None
    ledger: tuple[Part, ...]
    host_delta: Estimate
    explained: Estimate
    unexplained: Estimate
    bend: Estimate | None

    @property
    def closes(self) -> bool:
        """Whether nothing is shown to be unexplained, beyond what /proc/meminfo can tell."""
        low, high = self.unexplained.low, self.unexplained.high
        if low is None or high is None:
            return False
        return low <= RESOLUTION_BYTES and high >= -RESOLUTION_BYTES


@dataclass(frozen=True)
class CostModel:
    """What a planner takes as input: cost-model.json.

    Attributes:
        workload: what stood idle, and was started.
        work, work_unit: what was worked on, and its unit.
        incomplete: passes that were cut short, which do not count.
    """

    run: str
    created: str
    hvct_version: str
    host: str
    workload: str
    work: str
    work_unit: str
    incomplete: int
    arms: tuple[ArmCosts, ...]
    format: int = MODEL_FORMAT

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values; `format` first."""
        return {"format": self.format, **asdict(self)}


# -- what they say ---------------------------------------------------------------------------


def cost_model(directory: Path, run: Mapping[str, Any], trials: Sequence[Any]) -> CostModel | None:
    """The cost model of a run; None for one that holds no steps.

    Args:
        run: the contents of run.json.
        trials: of complete blocks, as stored.

    Raises:
        BadInput: what is stored cannot be what hvct wrote.
    """
    steps = read_steps(directory)
    about = run.get("costs")
    if not steps or not isinstance(about, Mapping):
        return None
    try:
        wanted = {arm: tuple(map(int, item["steps"])) for arm, item in about["arms"].items()}
        complete, short = passes(steps, wanted)
        held, work = run["plan"]["workloads"][:2]
        arms = tuple(
            _arm(arm, about["arms"][arm], own, _Trials(trials, arm, held, work))
            for arm in run["plan"]["arms"]
            if (own := [steps for (name, _), steps in complete.items() if name == arm])
        )
        return CostModel(
            run=str(run["id"]),
            created=str(run["created"]),
            hvct_version=str(run["hvct_version"]),
            host=str(about["host"]),
            workload=str(held["name"]),
            work=str(work["name"]),
            work_unit=str(work["work_unit_name"]),
            incomplete=short,
            arms=arms,
        )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BadInput(
            f"{directory}: its costs cannot be read ({type(error).__name__}: {error})",
            "run.json was changed by hand; restore it from a copy",
        ) from error


@dataclass(frozen=True)
class _Trials:
    """What trials of one arm add to its costs."""

    trials: Sequence[Any]
    arm: str
    held: Mapping[str, Any]
    work: Mapping[str, Any]

    def _of(self, workload: Mapping[str, Any], metric: str) -> list[float]:
        return [
            float(sample["value"])
            for trial in self.trials
            if trial["arm"] == self.arm
            and trial["workload"] == workload["name"]
            and trial["outcome"] == Outcome.OK
            for sample in trial["samples"]
            if sample["metric"] == metric
        ]

    def start(self, metric: str) -> Estimate | None:
        """Of the workload that is held."""
        values = self._of(self.held, metric)
        return mean(values, METRICS[metric].resolution) if values else None

    def active(self) -> Estimate | None:
        """Host CPU time for one unit of work."""
        units = float(self.work["work_units"])
        values = [value / units for value in self._of(self.work, "cpu_window")]
        return mean(values) if values else None

    @property
    def accelerator(self) -> Accelerator:
        """How its guests were executed."""
        for trial in self.trials:
            if trial["arm"] == self.arm and (said := trial.get("accelerator")):
                return Accelerator(**said)
        return Accelerator()


def _arm(
    arm: str, about: Mapping[str, Any], own: Sequence[Sequence[Step]], trials: _Trials
) -> ArmCosts:
    parts = tuple(_ledger(own))
    lost = [_slopes(one, lambda s: -s.available_bytes) for one in own]
    harness = [_slopes(one, lambda s: s.harness_bytes) for one in own]
    named = [_slopes(one, _named) for one in own]
    bends = [found for one in own if (found := _bend(one)) is not None]
    said = Accelerator(**about["accelerator"]) if about.get("accelerator") else trials.accelerator
    return ArmCosts(
        arm=arm,
        label=f"{arm} ({said.label})" if said.label else arm,
        emulated=said.emulated,
        steps=tuple(sorted(step.instances for step in own[0])),
        shrunk=str(about.get("shrunk", "")),
        passes=len(own),
        fixed_memory_bytes=mean(
            [_line(one, lambda s: s.helpers_pss_bytes)[1] for one in own], PAGE_BYTES
        ),
        shared_memory_bytes=mean([max(s.shared_bytes for s in one) for one in own], PAGE_BYTES),
        fixed_cpus=mean([_line(one, _helper_cpus)[1] for one in own]),
        marginal_memory_bytes=mean(
            [a - b for a, b in zip(named, harness, strict=True)], PAGE_BYTES
        ),
        marginal_cpus=mean([_slopes(one, _cpus) for one in own]),
        start_cpu_s=trials.start("cpu_life"),
        start_s=trials.start("startup_ready"),
        active_cpu_s=trials.active(),
        ledger=parts,
        host_delta=mean(lost, PAGE_BYTES),
        explained=mean(named, PAGE_BYTES),
        unexplained=mean([a - b for a, b in zip(lost, named, strict=True)], PAGE_BYTES),
        bend=mean(bends, PAGE_BYTES) if bends else None,
    )


def _ledger(own: Sequence[Sequence[Step]]) -> Iterator[Part]:
    def part(name: str, title: str, value: Any, *, counted: bool = True) -> Part:
        return Part(name, title, counted, mean([_slopes(one, value) for one in own], PAGE_BYTES))

    guest = all(step.guest_bytes is not None or not step.instances for one in own for step in one)
    guest = guest and any(step.guest_bytes for one in own for step in one)
    if guest:
        yield part("guest", "guest RAM in use", lambda s: s.guest_bytes or 0.0)
        yield part("vmm", "QEMU itself, anonymous", lambda s: s.anon_bytes - (s.guest_bytes or 0.0))
    else:
        yield part("anon", "anonymous memory", lambda s: s.anon_bytes)
    yield part("shmem", "shared memory and tmpfs", lambda s: s.shmem_bytes)
    yield part("kernel", "kernel memory, charged", lambda s: s.charged_kernel_bytes)
    yield part("kernel_beyond", "kernel memory beyond the charge, whole host", _beyond)
    yield part("helpers", "growth of launcher or worker", lambda s: s.helpers_bytes)
    yield part("harness", "growth of hvct itself", lambda s: s.harness_bytes)
    yield part("file", "page cache charged; stays available", lambda s: s.file_bytes, counted=False)
    yield part("pss", "the same instances by PSS", lambda s: s.pss_bytes, counted=False)


def _beyond(step: Step) -> float:
    return step.kernel_bytes - step.charged_kernel_bytes


def _named(step: Step) -> float:
    own = step.anon_bytes + step.shmem_bytes + step.kernel_bytes
    return own + step.helpers_bytes + step.harness_bytes


def _cpus(step: Step) -> float:
    return (step.cpu_s + step.helpers_cpu_s) / step.window_s


def _helper_cpus(step: Step) -> float:
    return step.helpers_cpu_s / step.window_s


def _line(own: Sequence[Step], value: Any) -> tuple[float, float]:
    found = least_squares([step.instances for step in own], [value(step) for step in own])
    return found.slope, found.intercept


def _slopes(own: Sequence[Step], value: Any) -> float:
    return _line(own, value)[0]


def _bend(own: Sequence[Step]) -> float | None:
    return bend([step.instances for step in own], [_named(step) for step in own])
