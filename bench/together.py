"""Parallel launch: several instances of one workload at once, as one trial.

They are asked for one after the other as fast as the arm takes requests, without waiting for
the one before; then everything that arrives is handled as it comes. All of them are
pinned to the CPUs that one has. How busy our own helper process and the harness were until the
last was started is measured besides: where either had no more to give, the figures are ours
and not the arm's (`bench.launch_limit`).
"""

from __future__ import annotations

import contextlib
import os
import select
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.backend import Backend, Begins, Instance, PendingLaunch, Reserves
from bench.disturbances import Snapshot, between, run_time_s
from bench.errors import HvctError, LaunchFailed, Refused
from bench.host import room_bytes
from bench.model import Event, InstanceSpec, Outcome, Sample, Trial, Workload
from bench.readiness import OutputWatch
from bench.schedule import Slot
from bench.startup import TrialTimeout, died_early
from bench.trial import (
    RELEASE_LIMIT_NS,
    SHIP_LIMIT_NS,
    STOP_GRACE_S,
    judge_exit,
    no_collection,
    one_line,
    save_logs,
)

MOST_PENDING = 32
"""Launches asked for and not completed: their answers wait in a socket."""
TICK_MS = 1.0  # how often one is looked at that has nothing to poll yet


def launch_all(backend: Backend, specs: Sequence[InstanceSpec]) -> list[Instance]:
    """Launch them without waiting for one before the next, where the backend can.

    Raises:
        HvctError: one could not be launched; nothing of the others is left.
    """
    made: list[Instance] = []
    with contextlib.ExitStack() as undo:
        if not isinstance(backend, Begins):
            for spec in specs:
                made.append(undo.enter_context(backend.launch(spec)))
            undo.pop_all()
            return made
        pending: deque[PendingLaunch] = deque()
        undo.callback(_abandon, pending)
        for spec in specs:
            if len(pending) == MOST_PENDING:
                made.append(undo.enter_context(pending.popleft().complete()))
            pending.append(backend.begin(spec))
        while pending:
            made.append(undo.enter_context(pending.popleft().complete()))
        undo.pop_all()
    return made


def _abandon(pending: Iterable[PendingLaunch]) -> None:
    """In the order in which they were asked for, which is that of the answers."""
    with contextlib.ExitStack() as undo:
        for one in reversed(list(pending)):  # the stack turns it round again
            undo.push(one)


def await_all(
    instances: Sequence[Instance], happened: Callable[[Instance], bool], deadline_ns: int
) -> bool:
    """Handle whatever arrives from any of them until it has happened to all, or the deadline.

    Raises:
        LaunchFailed: it can no longer happen to one of them.
    """
    poller = select.poll()
    waiting: dict[Instance, int | None] = dict.fromkeys(instances)
    polled: dict[int, Instance] = {}
    look: Iterable[Instance] = list(instances)
    while True:
        for instance in look:
            instance.pump(0.0)
            if (before := waiting[instance]) is not None:
                poller.unregister(before)
                del polled[before]
            if happened(instance):
                del waiting[instance]
                continue
            waiting[instance] = descriptor = _descriptor(instance)
            if descriptor is not None:
                poller.register(descriptor, select.POLLIN)
                polled[descriptor] = instance
        left_ms = (deadline_ns - time.monotonic_ns()) / 1e6
        if not waiting or left_ms <= 0:
            return not waiting
        blind = [instance for instance, descriptor in waiting.items() if descriptor is None]
        heard = poller.poll(min(left_ms, TICK_MS) if blind else left_ms)
        look = [*blind, *(polled[descriptor] for descriptor, _ in heard)]


def _descriptor(instance: Instance) -> int | None:
    """What to poll for it; None while there is nothing yet."""
    try:
        return instance.fileno()
    except LaunchFailed:
        return None


def is_started(instance: Instance) -> bool:
    """Whether its workload has been executed."""
    return Event.STARTED in instance.timeline.marks_ns


def has_ended(instance: Instance) -> bool:
    """Whether its workload has ended and all its output is here."""
    return instance.exit is not None


def _work_ended(instance: Instance) -> bool:
    """Whether its workload has ended; the output may still be under way."""
    return instance.exit is not None or instance.wait(Event.ENDED, 0)


def run_trial(
    backend: Backend,
    slot: Slot,
    workload: Workload,
    specs: Sequence[InstanceSpec],
    log_dir: Path,
    attempt: int = 1,
) -> Trial:
    """One trial of all of them; if one fails, the trial has. Raises as `bench.trial.run_trial`."""
    trial = Trial(
        block=slot.block,
        position=slot.position,
        arm=slot.arm,
        workload=slot.workload,
        outcome=Outcome.OK,
        wall_time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        attempt=attempt,
    )
    helpers = backend.helpers()
    before = Snapshot.take(helpers=helpers)
    group: list[Instance] = []
    with no_collection():
        try:
            _check_room(workload, len(specs))
            if isinstance(backend, Reserves):
                backend.reserve(specs)
            effort = _Effort(backend.helpers())
            group = launch_all(backend, specs)
            with contextlib.ExitStack() as ending:
                for instance in group:
                    ending.callback(_finish, instance, trial)
                trial.accelerator = group[0].accelerator
                samples = _live(group, workload, effort)
                for instance in group:
                    instance.synchronise()
            if workload.until == "exit":
                for instance in group:
                    judge_exit(instance, workload)
            trial.samples = [*_times(group), *samples]
        except Refused as error:
            trial.outcome, trial.error = Outcome.REFUSED, one_line(error)
        except TrialTimeout as error:
            trial.outcome, trial.error = Outcome.TIMEOUT, one_line(error)
        except HvctError as error:
            trial.outcome, trial.error = Outcome.FAILED, one_line(error)
    if group:
        slowest = max(group, key=_started_ns)
        trial.timeline = slowest.timeline.seconds()
        trial.resolution = {
            event.value: value / 1e9 for event, value in slowest.timeline.resolution_ns.items()
        }
        trial.receipt = dict(slowest.receipt)
        if trial.outcome is not Outcome.OK:
            trial.logs = save_logs(slowest, slot, attempt, log_dir)
    charged = trial.usage.get("cpu", {}).get("cgroup_cpu_s") or 0.0
    trial.disturbances = between(before, Snapshot.take(charged_s=charged, helpers=helpers))
    shared = os.sched_getaffinity(0) & set(specs[0].cpu_set)
    trial.disturbances["harness_shares_cpu"] = float(bool(shared))
    return trial


class _Effort:
    """CPU time of who launches, from now on."""

    def __init__(self, helpers: Sequence[int]) -> None:
        self._helpers = helpers
        self._before = self._now()

    def _now(self) -> tuple[list[float], float]:
        return [run_time_s(pid) for pid in self._helpers], time.process_time()

    def samples(self, group: Sequence[Instance]) -> list[Sample]:
        """Everybody's share of the time from the first request until now, in CPUs."""
        helpers, harness = self._now()
        spent = (now - then for now, then in zip(helpers, self._before[0], strict=True))
        worker, harness = max(spent, default=0.0), harness - self._before[1]
        began = min(one.timeline.marks_ns[Event.REQUESTED] for one in group)
        window_s = (time.monotonic_ns() - began) / 1e9
        inside = sum(usage.total_s for one in group if (usage := one.cpu()) is not None)
        busy = {"worker_busy": worker, "harness_busy": harness, "instances_busy": inside}
        return [Sample(name, spent_s / window_s, "CPU") for name, spent_s in busy.items()]


def _check_room(workload: Workload, count: int) -> None:
    """Refuse what could make the host swap, should all use what they may."""
    wanted, room = count * (workload.limits.memory_bytes or 0), room_bytes()
    if wanted > room:
        raise Refused(
            f"{count} instances may use {wanted / 2**20:.0f} MiB together, and the host has "
            f"{max(0.0, room) / 2**20:.0f} MiB to give",
            "launch fewer at once, or set a smaller limits.memory",
        )


def _live(group: Sequence[Instance], workload: Workload, effort: _Effort) -> list[Sample]:
    """Until all are started, ready and ended, or stopped; who was how busy until `started`."""
    requested = min(one.timeline.marks_ns[Event.REQUESTED] for one in group)
    deadline = requested + int(workload.timeout_s * 1e9)
    watches = {}
    if workload.until == "ready":
        watches = {one: OutputWatch(workload.ready) for one in group}
        for instance, watch in watches.items():
            instance.watch_output(watch)
    if not await_all(group, is_started, deadline):
        raise TrialTimeout(f"not all were started within {workload.timeout_s:g} s")
    samples = effort.samples(group)
    for instance in group:  # what an arm does at that event: a guest's clock is looked at
        instance.wait(Event.STARTED, deadline)
    if workload.until == "exit":
        if not await_all(group, _work_ended, deadline):
            raise TrialTimeout(f"not all had ended after {workload.timeout_s:g} s")
        if not await_all(group, has_ended, time.monotonic_ns() + SHIP_LIMIT_NS):
            raise HvctError("all had ended, but the output of one did not arrive within 60 s")
        return samples

    def is_ready(instance: Instance) -> bool:
        if watches[instance].ready_ns is None and instance.exit is not None:
            raise died_early(instance, workload)
        return watches[instance].ready_ns is not None

    if not await_all(group, is_ready, deadline):
        raise TrialTimeout(f"not all were ready within {workload.timeout_s:g} s")
    for instance, watch in watches.items():
        assert watch.ready_ns is not None
        instance.timeline.mark(Event.READY, watch.ready_ns)
    for instance in group:
        instance.stop(STOP_GRACE_S)
    return samples


def _finish(instance: Instance, trial: Trial) -> None:
    instance.timeline.mark(Event.RELEASE_REQUESTED, time.monotonic_ns())
    final = instance.release()
    instance.wait_network_released(time.monotonic_ns() + RELEASE_LIMIT_NS)
    cpu = trial.usage.setdefault("cpu", {})
    for key, value in final.items():
        if key.endswith("_s"):  # of all of them
            cpu[key] = (cpu.get(key) or 0.0) + value


def _started_ns(instance: Instance) -> int:
    """One that never started is the slowest."""
    return instance.timeline.marks_ns.get(Event.STARTED, 1 << 62)


def _times(group: Sequence[Instance]) -> list[Sample]:
    marks = [one.timeline.marks_ns for one in group]
    first = min(one[Event.REQUESTED] for one in marks)
    whole_s = (max(map(_started_ns, group)) - first) / 1e9
    each_s = [(one[Event.STARTED] - one[Event.REQUESTED]) / 1e9 for one in marks]
    samples = [
        Sample("together_started", whole_s, "s"),
        Sample("together_each", statistics.median(each_s), "s"),
        Sample("together_rate", len(group) / whole_s, "1/s"),
    ]
    if all(Event.ACCEPTED in one for one in marks):
        queued_s = sum(one[Event.ACCEPTED] - one[Event.REQUESTED] for one in marks) / 1e9
        samples.append(Sample("launches_queued", queued_s / sum(each_s), "1"))
    if all(Event.READY in one for one in marks):
        last = max(one[Event.READY] for one in marks)
        samples.append(Sample("together_ready", (last - first) / 1e9, "s"))
    return samples
