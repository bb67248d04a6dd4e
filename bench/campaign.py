"""A run from its plan to its last stored trial.

The order is the order of DESIGN's "way of one trial": receipts first (untimed, and the
warm-up), then the blocks of the schedule, each trial stored before the next begins.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench import schedule, spec, store, together
from bench.arms import ARMS
from bench.backend import Backend, Mounts
from bench.context import RunContext
from bench.disturbances import wait_quiet
from bench.errors import BadInput, HvctError, Refused
from bench.identity import ARM_DECLARED, FieldClass, differences
from bench.model import (
    Gap,
    Image,
    InstanceSpec,
    Outcome,
    PageCache,
    ReceiptLevel,
    Trial,
    Workload,
)
from bench.pagecache import SharedCache, inside, make_cold
from bench.plan import Plan
from bench.receipts import loaded_files, take_receipt
from bench.registration import mark
from bench.schedule import Slot
from bench.trial import refused, run_trial

DURATION_SMOOTHING = 0.3


class Progress(Protocol):
    """Who is told how far a run is."""

    def stage(self, text: str) -> None:
        """A stage of preparation begins."""
        ...

    def begin(
        self, slot: Slot, workload: Workload, done: int, total: int, left_s: float | None
    ) -> None:
        """A trial begins; `left_s` is the estimated time of all that is left."""
        ...

    def end(self, trial: Trial) -> None:
        """A trial was stored."""
        ...


@dataclass
class Durations:
    """Running estimate of how long a trial of each kind takes, gaps included, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    def note(self, arm: str, workload: str, seconds: float) -> None:
        """Take one duration into the estimate."""
        key = f"{arm}/{workload}"
        old = self.seconds.get(key, seconds)
        self.seconds[key] = old + DURATION_SMOOTHING * (seconds - old)

    def guess(self, arm: str, workload: str, seconds: float) -> None:
        """Take a first duration, where none is known: a receipt waits for no quiet host."""
        self.seconds.setdefault(f"{arm}/{workload}", seconds)

    def of(self, slots: list[Slot]) -> float | None:
        """Seconds these slots will take, None when a kind was never seen."""
        try:
            return sum(self.seconds[f"{slot.arm}/{slot.workload}"] for slot in slots)
        except KeyError:
            return None


@dataclass
class Campaign:
    """One run being executed on this host. The caller owns backends, network and store."""

    plan: Plan
    run: dict[str, Any]
    run_store: store.RunStore
    backends: Mapping[str, Backend]
    images: Mapping[str, Image]
    context: RunContext
    shared_cache: SharedCache
    progress: Progress
    durations: Durations = field(default_factory=Durations)
    _number: int = 0

    def execute(self) -> None:
        """Take the receipts, then run what the store does not hold yet.

        Raises:
            KeyboardInterrupt: after the current instance was released; the run can be resumed.
            HvctError: the run directory could not be written.
        """
        slots = self.remaining()
        if not slots:
            return
        self.take_receipts()
        self.before_blocks()
        done_before = self.total() - len(slots)
        attempts = store.attempts(self.run_store.directory)
        for index, slot in enumerate(slots):
            workload = self.plan.workload(slot.workload)
            left = self.durations.of(slots[index:])
            self.progress.begin(slot, workload, done_before + index, self.total(), left)
            began = time.monotonic()
            attempt = attempts.get(slot.block, 0) + 1
            trial = self.one(slot, workload, attempt)
            trial.registration = mark(self.run)
            self.run_store.append(trial)
            self.durations.note(slot.arm, slot.workload, time.monotonic() - began)
            self.progress.end(trial)

    def before_blocks(self) -> None:
        """What an experiment measures besides trials, between receipts and blocks: nothing."""

    def slots(self) -> list[Slot]:
        """The whole schedule."""
        names = [workload.name for workload in self.plan.workloads]
        plan = self.plan
        return schedule.of_plan(plan.experiment, plan.arms, names, plan.blocks, plan.seed)

    def total(self) -> int:
        """Number of trials in the plan."""
        return len(self.plan.arms) * len(self.plan.workloads) * self.plan.blocks

    def remaining(self) -> list[Slot]:
        """Slots of all blocks that are not complete; a block cut short is rerun whole."""
        complete = store.load(self.run_store.directory).complete_blocks()
        return [slot for slot in self.slots() if slot.block not in complete]

    def one(self, slot: Slot, workload: Workload, attempt: int) -> Trial:
        """Settle, make sure of the page cache, and run one trial."""
        cold = self.plan.page_cache is PageCache.COLD
        if cold:
            self._forget_image(slot.arm, workload)
        settled = wait_quiet() if self.plan.gap is Gap.QUIET else {}
        try:
            if cold:
                fraction = make_cold(self.images[workload.image].path)
            else:
                fraction = self.shared_cache.ensure_warm(self.read_by(slot.arm, workload))
        except Refused as error:
            return refused(slot, error, attempt)
        log_dir = self.run_store.directory / "logs"
        backend = self.backends[slot.arm]
        if workload.together > 1:
            many = [self.make_spec(workload) for _ in range(workload.together)]
            trial = together.run_trial(backend, slot, workload, many, log_dir, attempt)
        else:
            wanted = self.make_spec(workload)
            others = settled.get("settle_other_cpus", 0.0)
            trial = run_trial(backend, slot, workload, wanted, log_dir, attempt, idle_cpus=others)
        trial.disturbances |= settled
        trial.disturbances["image_resident"] = fraction
        return trial

    def _forget_image(self, arm: str, workload: Workload) -> None:
        """Leave nothing of an image in memory but its file's pages; the host's own stays warm."""
        image, backend = self.images[workload.image], self.backends[arm]
        if isinstance(backend, Mounts):
            backend.unmount()  # its files, whose pages are not those of the image's file
        else:
            others = (path for path in self.read_by(arm, workload) if path != image.path)
            self.shared_cache.ensure_warm(others)
        backend.prepare(self.make_spec(workload))

    def read_by(self, arm: str, workload: Workload) -> list[Path]:
        """The files whose pages an arm reads: a VM the image file, the others files inside it.

        A VM's kernel and QEMU too; of the others' files program, loader and libraries, as the
        receipt found them: what else a workload reads was read in its untimed trial.
        """
        image = self.images[workload.image]
        backend: Any = self.backends[arm]
        if hasattr(backend, "files_read"):
            return list(backend.files_read(image))
        root = backend.image_root(image)
        names = {
            line.rpartition(" ")[0]
            for item in self.run["receipts"]
            if (item["arm"], item["workload"]) == (arm, workload.name)
            for line in item["receipt"].get("content", [])
        }
        paths = (inside(root, name) for name in sorted(names) if name.startswith("/"))
        return [path for path in paths if path.is_file()]

    def take_receipts(self) -> None:
        """One untimed trial per arm and workload: content digests, and the warm-up.

        Anew when a run is resumed: nothing is warm then, and what runs may have changed.

        Raises:
            BadInput: it has, since the run began.
        """
        receipts: list[dict[str, Any]] = []
        known = {(item["arm"], item["workload"]): item["receipt"] for item in self.run["receipts"]}
        descriptions = dict(self.run.get("descriptions", {}))
        arms = self.receipt_arms()
        for workload in self.plan.workloads:
            libraries: list[str] | None = None
            for arm in arms:
                number = f"{len(receipts) + 1}/{len(arms) * len(self.plan.workloads)}"
                self.progress.stage(f"identity receipts · {number} · {arm} · {workload.title}")
                began = time.monotonic()
                item: dict[str, Any] = {"arm": arm, "workload": workload.name, "receipt": {}}
                try:
                    if libraries is None:
                        libraries = loaded_files(self.backends[arm], self.make_spec(workload))
                        began = time.monotonic()
                    wanted = self.make_spec(workload, ReceiptLevel.DIGEST)
                    item["receipt"], description = take_receipt(
                        self.backends[arm], workload, wanted, libraries
                    )
                    descriptions.setdefault(arm, description)
                except HvctError as error:
                    # The measured trials will end the same way, and are counted there.
                    item["error"] = error.message
                before = known.get((arm, workload.name), {})
                if before and item["receipt"]:
                    _check_unchanged(before, store.jsonable(item["receipt"]), arm, workload)
                item["receipt"] = item["receipt"] or before
                receipts.append(item)
                took_s = time.monotonic() - began + workload.hold_s  # a receipt holds nothing
                self.durations.guess(arm, workload.name, took_s)
        self.run["receipts"] = store.jsonable(receipts)
        self.run["descriptions"] = store.jsonable(descriptions)
        self.run_store.write_run(self.run)

    def receipt_arms(self) -> list[str]:
        """Arms that give receipts: first the one that starts quickest, which lists the files."""
        return sorted(self.plan.arms, key=lambda arm: ARMS[arm].guest)

    def make_spec(
        self, workload: Workload, receipt: ReceiptLevel = ReceiptLevel.CHEAP
    ) -> InstanceSpec:
        """The specification of the run's next instance, of this workload."""
        self._number += 1
        image = self.images[workload.image]
        return spec.make(workload, image, self.context, self._number, receipt=receipt)


def _check_unchanged(
    before: dict[str, Any], now: dict[str, Any], arm: str, workload: Workload
) -> None:
    """Compare an arm with itself before and after a run was interrupted."""
    for difference in differences(before, now, (arm, arm), workload.security.value):
        # A guest's command line holds the measured rate of the host's clock; and about when its
        # workload starts it goes over from tsc-early to tsc, on the same counter.
        known = difference.name in ("pid", "cmdline", "clocksource")
        # Another engine unpacks the image anew: what an arm declares is not the same twice.
        known |= difference.name in ARM_DECLARED.get(ARMS[arm].backend, ())
        if not known and difference.field_class is not FieldClass.INFORMATIONAL:
            raise BadInput(
                f"{arm} of {workload.name} is not what it was when the run began: "
                f"{difference.name} was {difference.first}, is {difference.second}",
                "start a new run",
            )


def outcome_counts(trials: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How many trials of each arm ended how."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {name.value: 0 for name in Outcome})
    for trial in trials:
        counts[trial["arm"]][trial["outcome"]] += 1
    return dict(counts)
