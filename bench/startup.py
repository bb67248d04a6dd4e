"""From a launched instance to one that is ready, by its workload's rule."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.backend import Executes, Instance
from bench.errors import HvctError, Refused
from bench.model import Event, ReadyKind, Workload
from bench.readiness import OUTPUT_KINDS, OutputWatch, await_healthy, probe


class TrialTimeout(HvctError):
    """The workload's time was over before it was ready or done."""


def await_ready(
    instance: Instance, workload: Workload, started: Callable[[], None] = lambda: None
) -> int:
    """Wait until a launched instance has started its workload and that is ready, by its rule.

    Args:
        started: called between the two.

    Returns:
        When the workload's time is over (CLOCK_MONOTONIC nanoseconds).

    Raises:
        HvctError: it is over already, or the workload ended before it was ready.
    """
    deadline = instance.timeline.marks_ns[Event.REQUESTED] + int(workload.timeout_s * 1e9)
    watch = OutputWatch(workload.ready) if workload.ready.kind in OUTPUT_KINDS else None
    if watch is not None:
        instance.watch_output(watch)
    if not instance.wait(Event.STARTED, deadline):
        raise TrialTimeout(f"the workload was not started within {workload.timeout_s:g} s")
    started()
    if workload.ready.kind is not ReadyKind.STARTED:
        _wait_ready(instance, workload, watch, deadline)
    return deadline


def _wait_ready(
    instance: Instance, workload: Workload, watch: OutputWatch | None, deadline: int
) -> None:
    if watch is not None:
        while watch.ready_ns is None:
            left = (deadline - time.monotonic_ns()) / 1e9
            if left <= 0:
                raise TrialTimeout(f"not ready within {workload.timeout_s:g} s")
            if instance.exit is not None:
                raise died_early(instance, workload)
            instance.pump(min(left, 0.25))
        stamp, resolution = watch.ready_ns, 0
    else:

        def alive(wait_s: float) -> bool:
            instance.pump(wait_s)
            return instance.exit is None

        marks = instance.timeline.marks_ns
        if workload.ready.kind is ReadyKind.HEALTH:
            instance.timeline.mark(Event.READY, *_healthy(instance, workload, deadline, alive))
            return
        reached = probe(
            workload.ready,
            instance.connect_host,
            deadline,
            alive,
            requested_ns=marks[Event.REQUESTED],
            started_ns=marks[Event.STARTED],
        )
        if reached is None:
            if instance.exit is not None:
                raise died_early(instance, workload)
            raise TrialTimeout(
                f"port {workload.ready.port} gave no useful reply within {workload.timeout_s:g} s"
            )
        instance.check_listener(workload.ready.port)
        stamp, resolution = reached.stamp_ns, reached.resolution_ns
    instance.timeline.mark(Event.READY, stamp, resolution)


def _healthy(
    instance: Instance, workload: Workload, deadline: int, alive: Callable[[float], bool]
) -> tuple[int, int]:
    """When a health check first succeeded, and how much earlier it could have, in ns."""
    check = instance.spec.health
    if check is None or not isinstance(instance, Executes):
        raise Refused("this arm runs no health check inside", "choose another rule of readiness")
    started_ns = instance.timeline.marks_ns[Event.STARTED]
    reached, said = await_healthy(check, instance.execute, deadline, alive, started_ns=started_ns)
    if reached is not None:
        return reached.stamp_ns, reached.resolution_ns
    if instance.exit is not None:
        raise died_early(instance, workload)
    raise TrialTimeout(f"not healthy within {workload.timeout_s:g} s; the last check: {said}")


def died_early(instance: Instance, workload: Workload) -> HvctError:
    """What to raise where a workload ended before it was ready."""
    assert instance.exit is not None
    return HvctError(
        f"the workload ended before it was ready: {ending(instance)}",
        "look at the trial's log",
    )


def ending(instance: Instance) -> str:
    """How it ended, with the reason where the kernel or the workload gave one."""
    assert instance.exit is not None
    kills = instance.oom_kills()
    if kills:
        return f"{instance.exit.describe()}, out of memory ({kills} killed by the kernel)"
    said = instance.stderr.decode("utf-8", "replace").strip().splitlines()
    return instance.exit.describe() + (f": {said[-1][:200]}" if said else "")
