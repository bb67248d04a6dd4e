"""One trial: launch, wait, hold, read, stop, release; whatever happens becomes data."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench import exchanges, metrics, output_metrics
from bench.backend import Backend, GivesBack, Instance
from bench.disturbances import Snapshot, between
from bench.errors import HvctError, Refused
from bench.host import mem_available_bytes
from bench.model import (
    CpuUsage,
    DiskUsage,
    Event,
    InstanceSpec,
    MemoryUsage,
    Outcome,
    Sample,
    Trial,
    Workload,
)
from bench.readiness import NETWORK_KINDS
from bench.schedule import Slot
from bench.startup import TrialTimeout, await_ready, ending

STOP_GRACE_S = 5.0
RELEASE_LIMIT_NS = 5_000_000_000
LOG_LIMIT = 1 << 20
SHIP_LIMIT_NS = 60_000_000_000  # for output and receipt, once the workload has ended
WINDOW_TOLERANCE = 0.02  # part of the window that may pass before its first counter is read


@dataclass
class _Readings:
    """What was read from outside at the marks of one trial."""

    helpers: Iterable[int] = ()
    idle_cpus: float = 0.0
    cpu_started: CpuUsage | None = None
    started_read_ns: int = 0
    cpu_held: CpuUsage | None = None
    cpu_hold_end: CpuUsage | None = None
    cpu_exited: CpuUsage | None = None
    disk: DiskUsage | None = None
    host_started: Snapshot | None = None
    host_exited: Snapshot | None = None
    hold_s: float = 0.0
    round_trip_s: float | None = None
    memory_started: MemoryUsage | None = None
    given_back: dict[str, float] = field(default_factory=dict)


def run_trial(
    backend: Backend,
    slot: Slot,
    workload: Workload,
    spec: InstanceSpec,
    log_dir: Path,
    attempt: int = 1,
    idle_cpus: float = 0.0,
) -> Trial:
    """Run one trial and return it as data. Raises only for an interrupt or a defect of ours.

    Args:
        idle_cpus: CPUs' worth of work of others just before, for `_attribute`.
    """
    with no_collection():
        return _run_trial(backend, slot, workload, spec, log_dir, attempt, idle_cpus)


def refused(slot: Slot, error: Refused, attempt: int = 1) -> Trial:
    """The trial of an instance that was not even requested."""
    return Trial(
        block=slot.block,
        position=slot.position,
        arm=slot.arm,
        workload=slot.workload,
        outcome=Outcome.REFUSED,
        wall_time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        attempt=attempt,
        error=one_line(error),
    )


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection in a trial: with all that is imported one takes tens of ms.

    What was put off is done at the end, before the gap to the next trial.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
        gc.collect()


def _run_trial(
    backend: Backend,
    slot: Slot,
    workload: Workload,
    spec: InstanceSpec,
    log_dir: Path,
    attempt: int,
    idle_cpus: float,
) -> Trial:
    trial = Trial(
        block=slot.block,
        position=slot.position,
        arm=slot.arm,
        workload=slot.workload,
        outcome=Outcome.OK,
        wall_time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        attempt=attempt,
    )
    before = Snapshot.take(helpers=backend.helpers())
    available = mem_available_bytes()
    readings = _Readings(helpers=backend.helpers(), idle_cpus=idle_cpus)
    instance: Instance | None = None
    try:
        instance = backend.launch(spec)
        with instance:
            trial.accelerator = instance.accelerator
            try:
                _live(instance, workload, readings, trial, available)
                instance.synchronise()
            except TrialTimeout:
                with contextlib.suppress(HvctError):  # its marks count; a hung guest has none
                    instance.synchronise()
                raise
            finally:
                _finish(instance, trial)
        judge_exit(instance, workload)
        _derive(trial, instance, workload, readings)
    except Refused as error:
        trial.outcome, trial.error = Outcome.REFUSED, one_line(error)
    except TrialTimeout as error:
        trial.outcome, trial.error = Outcome.TIMEOUT, one_line(error)
    except HvctError as error:
        trial.outcome, trial.error = Outcome.FAILED, one_line(error)
    if instance is not None:
        _bound_listening(instance, workload)
        trial.timeline = instance.timeline.seconds()
        trial.resolution = {
            event.value: value / 1e9 for event, value in instance.timeline.resolution_ns.items()
        }
        trial.receipt = dict(instance.receipt)
        if trial.outcome is not Outcome.OK:
            trial.samples = []
            trial.logs = save_logs(instance, slot, attempt, log_dir)
    charged = trial.usage.get("cpu", {}).get("cgroup_cpu_s") or 0.0
    after = Snapshot.take(charged_s=charged, helpers=readings.helpers)
    trial.disturbances = between(before, after)
    shared = os.sched_getaffinity(0) & set(spec.cpu_set)
    trial.disturbances["harness_shares_cpu"] = float(bool(shared))
    return trial


def _bound_listening(instance: Instance, workload: Workload) -> None:
    """A port is looked at now and then, and was open when it answered: never later than that."""
    marks, resolution = instance.timeline.marks_ns, instance.timeline.resolution_ns
    late = marks.get(Event.LISTENING, 0) - marks.get(Event.READY, 1 << 62)
    if workload.ready.kind in NETWORK_KINDS and late > 0:
        marks[Event.LISTENING] = marks[Event.READY]
        resolution[Event.LISTENING] = max(0, resolution.get(Event.LISTENING, 0) - late)


def _live(
    instance: Instance,
    workload: Workload,
    readings: _Readings,
    trial: Trial,
    available_bytes: int,
) -> None:
    def started() -> None:
        readings.cpu_started = instance.cpu()
        readings.started_read_ns = time.monotonic_ns()
        readings.host_started = Snapshot.take(helpers=readings.helpers)
        if workload.elastic:
            readings.memory_started = instance.memory()

    deadline = await_ready(instance, workload, started)
    if workload.exchanges:
        readings.round_trip_s = exchanges.round_trip_s(
            workload.ready, instance.connect_host, workload.exchanges
        )
    if workload.until == "ready":
        _hold(instance, workload, readings)
        _read_memory(instance, trial, available_bytes)
        readings.disk = instance.disk()
        instance.stop(STOP_GRACE_S)
        return
    if not instance.wait(Event.ENDED, deadline):
        raise TrialTimeout(f"the workload had not ended after {workload.timeout_s:g} s")
    # Now, not at EXITED: shipping the output is no part of the work.
    readings.cpu_exited = instance.cpu()
    readings.host_exited = Snapshot.take(helpers=readings.helpers)
    readings.disk = instance.disk()
    if not instance.wait(Event.EXITED, time.monotonic_ns() + SHIP_LIMIT_NS):
        raise HvctError("the workload had ended, but its output did not arrive within 60 s")


def _hold(instance: Instance, workload: Workload, readings: _Readings) -> None:
    """Leave it alone for a while: what is read then is an idle instance.

    Of one that is elastic the host takes back what its peak has left, where the arm does that.
    """
    readings.cpu_held = instance.cpu()
    began = time.monotonic()
    if workload.elastic and isinstance(instance, GivesBack):
        readings.given_back = dict(instance.give_back())
    while (left := workload.hold_s - (time.monotonic() - began)) > 0:
        instance.pump(left)
        if instance.exit is not None:
            raise HvctError(f"the workload ended while it was held: {ending(instance)}")
    readings.cpu_hold_end = instance.cpu()
    readings.hold_s = time.monotonic() - began


def _read_memory(instance: Instance, trial: Trial, available_bytes: int) -> None:
    usage: dict[str, float | int | None] = {}
    charged = instance.memory()
    if charged is not None:
        usage.update(
            current_bytes=charged.current_bytes,
            anon_bytes=charged.anon_bytes,
            shmem_bytes=charged.shmem_bytes,
            file_bytes=charged.file_bytes,
            kernel_bytes=charged.kernel_bytes,
        )
    # MemAvailable first: walking the page tables for PSS allocates nothing, but takes time.
    usage["host_delta_bytes"] = available_bytes - mem_available_bytes()
    resident = instance.process_memory()
    if resident is not None:
        usage.update(pss_bytes=resident.pss_bytes, rss_bytes=resident.rss_bytes)
    trial.usage["memory"] = usage


def _finish(instance: Instance, trial: Trial) -> None:
    instance.timeline.mark(Event.RELEASE_REQUESTED, time.monotonic_ns())
    final = instance.release()
    instance.wait_network_released(time.monotonic_ns() + RELEASE_LIMIT_NS)
    trial.usage.setdefault("cpu", {}).update(
        {key: value for key, value in final.items() if key.endswith("_s")}
    )
    trial.usage.setdefault("memory", {}).update(
        {key: value for key, value in final.items() if key.endswith("_bytes")}
    )


def judge_exit(instance: Instance, workload: Workload) -> None:
    """A workload that was to end by itself must end as the plan expects.

    Raises:
        HvctError: with how it ended.
    """
    if workload.until != "exit":
        return
    status = instance.exit
    if status is None or status.signal is not None or status.code != workload.expect_status:
        raise HvctError(
            f"the workload ended with {ending(instance)}" if status else "no exit status"
        )


def _derive(trial: Trial, instance: Instance, workload: Workload, readings: _Readings) -> None:
    samples = list(metrics.from_timeline(instance.timeline, workload))
    memory, cpu = trial.usage.get("memory", {}), trial.usage.get("cpu", {})
    samples += [
        Sample("memory_" + key.removesuffix("_bytes"), float(value), "bytes")
        for key, value in memory.items()
        if value is not None and "memory_" + key.removesuffix("_bytes") in metrics.METRICS
    ]
    if (
        workload.until == "exit"
        and readings.cpu_started
        and readings.cpu_exited
        and _window_is_whole(instance, readings)
    ):
        window = readings.cpu_exited.total_s - readings.cpu_started.total_s
        cpu["window_s"] = window
        samples.append(Sample("cpu_window", window, "s"))
        if workload.work_units and window > 0:
            unit = f"{workload.work_unit_name}/s"
            samples.append(Sample("work_per_cpu_second", workload.work_units / window, unit))
        _attribute(cpu, window, readings)
    life = cpu.get("cgroup_cpu_s")
    if life is not None:
        samples.append(Sample("cpu_life", float(life), "s"))
    if readings.cpu_held and readings.cpu_hold_end and readings.hold_s > 0:
        idle = readings.cpu_hold_end.total_s - readings.cpu_held.total_s
        samples.append(Sample("cpu_idle", idle / readings.hold_s, "CPU"))
    held = memory.get("current_bytes")
    before = readings.memory_started.current_bytes if readings.memory_started else None
    if before is not None and held is not None:
        samples.append(Sample("memory_kept", float(held) - before, "bytes"))
    if readings.given_back:
        trial.usage["balloon"] = {**readings.given_back}
    if readings.round_trip_s is not None:
        samples.append(Sample("network_round_trip", readings.round_trip_s, "s"))
    if readings.disk is not None:
        disk = readings.disk
        trial.usage["disk"] = {"flushes": disk.flushes, "read_bytes": disk.read_bytes}
        samples.append(Sample("disk_flushes", float(disk.flushes), "flushes"))
        samples.append(Sample("disk_written", float(disk.written_bytes), "bytes"))
    for rule in workload.metrics:
        samples += output_metrics.extract(rule, instance.stdout, instance.stderr)
    trial.samples = samples


def _window_is_whole(instance: Instance, readings: _Readings) -> bool:
    """Whether the counters were read at `started` soon enough to hold the work's CPU time.

    A workload of a millisecond has ended before anybody outside can read a counter: then
    there is no figure, rather than a wrong one.
    """
    marks = instance.timeline.marks_ns
    if Event.STARTED not in marks or Event.EXITED not in marks:
        return False
    window_ns = marks[Event.EXITED] - marks[Event.STARTED]
    return readings.started_read_ns - marks[Event.STARTED] <= WINDOW_TOLERANCE * window_ns


def _attribute(cpu: dict[str, float | int | None], window_s: float, readings: _Readings) -> None:
    """How much of what the host did in the window was the instance's (windows of 2 s and more).

    What others did just before the trial is taken to go on, and is not the instance's; the
    rest outside its cgroup may be work the kernel did for it (softirq, loop, vhost).
    """
    if readings.host_started is None or readings.host_exited is None:
        return
    seen = between(readings.host_started, readings.host_exited)
    if seen["window_s"] >= 2.0:
        busy = seen["busy_cpus"] - seen["harness_cpus"] - readings.idle_cpus
        busy_s = busy * seen["window_s"]
        cpu["host_busy_s"] = busy_s
        cpu["attributed"] = min(1.0, window_s / busy_s) if busy_s > 0 else 1.0


def save_logs(instance: Instance, slot: Slot, attempt: int, log_dir: Path) -> str | None:
    """Keep what an instance of a failed trial said; the file's name, None where it said nothing."""
    parts = [
        f"== {name} ==\n".encode() + data[-LOG_LIMIT:] + b"\n"
        for name, data in (
            ("stdout", instance.stdout),
            ("stderr", instance.stderr),
            ("console", instance.console()),
        )
        if data
    ]
    if not parts:
        return None
    arm = slot.arm.replace(":", "-")
    path = log_dir / f"{slot.block:03d}-{attempt}-{slot.workload}-{arm}.log"
    try:
        path.write_bytes(b"".join(parts))
    except OSError:  # a full disk: what the store says of the trial's own line is enough
        path.unlink(missing_ok=True)
        return None
    return f"{log_dir.name}/{path.name}"


def one_line(error: HvctError) -> str:
    """An error as a trial's line holds it."""
    return " ".join(error.message.split())
