"""Several instances launched at once: all of them run at the same time, and nothing is left."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import faults
import pytest

from bench import arms, registry, together
from bench.backend import Backend, Instance
from bench.cgroupfs import layout
from bench.context import RunContext
from bench.errors import LaunchFailed
from bench.journal import open_run
from bench.model import (
    Event,
    Image,
    InstanceSpec,
    Limits,
    MemoryBasis,
    Outcome,
    OutputMode,
    Readiness,
    ReadyKind,
    Trial,
    Workload,
)
from bench.readiness import OUTPUT_KINDS
from bench.schedule import Slot
from bench.spec import usable_cpus
from bench.together import MOST_PENDING, await_all, has_ended, is_started, launch_all
from ct.backend import LAUNCHERS, LauncherBackend
from ct.slots import SlotBackend
from ct.wire import StepFailed

pytestmark = pytest.mark.root
ENV = (("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"),)
NUMBERS = count(1)
SMALL = Limits(memory_bytes=16 << 20)
OURS = ("container", "container:slot", "container:pooled", "process")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run."""
    with faults.nothing_left(), open_run(tmp_path_factory.mktemp("run")) as run:
        yield run


@pytest.fixture(params=OURS)
def backend(request: pytest.FixtureRequest, context: RunContext) -> Iterator[LauncherBackend]:
    """Each arm of the launcher."""
    with registry.make(arms.ARMS[request.param], context) as arm:
        assert isinstance(arm, LauncherBackend)
        yield arm


@pytest.fixture
def container(context: RunContext) -> Iterator[LauncherBackend]:
    """The plain one."""
    with registry.make(arms.ARMS["container"], context) as arm:
        assert isinstance(arm, LauncherBackend)
        yield arm


def soon(seconds: float = 20.0) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


def make(context: RunContext, image: Image, many: int, *argv: str) -> list[InstanceSpec]:
    """So many specifications of one command."""
    return [
        InstanceSpec(context.instance(next(NUMBERS)), image, argv, env=ENV, limits=SMALL)
        for _ in range(many)
    ]


def tried(
    backend: Backend, context: RunContext, image: Image, folder: Path, *argv: str, **changes: Any
) -> Trial:
    """A trial of 20 instances of a command."""
    changes = {"limits": SMALL, **changes}
    workload = Workload("w", "w", "busybox", argv=argv, together=20, **changes)
    specs = make(context, image, 20, *argv)
    streams = workload.ready.kind in OUTPUT_KINDS  # as `bench.spec` has it
    changed = {
        "limits": workload.limits,
        "output": OutputMode.STREAM if streams else OutputMode.SPOOL,
    }
    specs = [dataclasses.replace(spec, **changed) for spec in specs]  # type: ignore[arg-type]
    backend.prepare(specs[0])
    return together.run_trial(backend, Slot(0, 0, backend.name, "w"), workload, specs, folder)


def groups(context: RunContext) -> set[str]:
    """Instances' control groups, slots apart."""
    tops = [mount / "hvct" / context.tag for mount in layout().mounts]
    found = {path.name for top in tops if top.is_dir() for path in top.iterdir() if path.is_dir()}
    return {name for name in found if not name.startswith("slot-")}


def parent(instance: Instance) -> int:
    """The process id of who made it."""
    pid = instance.launched.pid  # type: ignore[attr-defined]
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def test_forty_stand_at_once_and_all_end(
    context: RunContext, backend: LauncherBackend, busybox: Image
) -> None:
    """More than may be pending; all alive together, made by several launchers, all ending."""
    many = MOST_PENDING + 8
    specs = make(context, busybox, many, "sh", "-c", "read line; echo $line; exit 3")
    specs = [dataclasses.replace(spec, stdin=True) for spec in specs]
    backend.prepare(specs[0])
    backend.reserve(specs)
    group = launch_all(backend, specs)
    assert [instance.spec.id for instance in group] == [spec.id for spec in specs]
    assert await_all(group, is_started, soon())
    assert not any(map(has_ended, group))
    makers = {parent(instance) for instance in group}
    assert makers <= set(backend.helpers())
    # What waits in slots works by itself, one for each.
    assert len(makers) == (1 if isinstance(backend, SlotBackend) else LAUNCHERS)
    assert not await_all(group, has_ended, time.monotonic_ns())
    for number, instance in enumerate(group):
        instance.send_stdin(b"%d\n" % number)
    assert await_all(group, has_ended, soon())
    said = [instance.stdout for instance in group]
    assert said == [b"%d\n" % number for number in range(many)]
    assert {instance.exit.code for instance in group if instance.exit} == {3}
    for instance in group:
        final = instance.release()
        assert "rusage_user_s" in final
    assert groups(context) == set()


def test_a_trial_of_many(
    context: RunContext, backend: LauncherBackend, busybox: Image, tmp_path: Path
) -> None:
    """Its figures are those of all; its timeline is the slowest's; no descriptor stays."""
    opened = []
    for _ in range(2):
        trial = tried(backend, context, busybox, tmp_path, "true")
        assert (trial.outcome, trial.error) == (Outcome.OK, None)
        opened.append([len(os.listdir(f"/proc/{pid}/fd")) for pid in ("self", *backend.helpers())])
    samples = {sample.metric: sample.value for sample in trial.samples}
    assert 0 < samples["together_each"] <= samples["together_started"]
    assert samples["together_rate"] == pytest.approx(20 / samples["together_started"])
    assert 0 < samples["launches_queued"] < 1
    assert {"worker_busy", "harness_busy", "instances_busy"} <= set(samples)
    assert trial.timeline["started"] <= samples["together_started"] + 1e-6
    assert (trial.usage["cpu"]["cgroup_cpu_s"] or 0) > 0
    assert trial.receipt["arg"] == ["true"]
    assert opened[0] == opened[1]


@pytest.mark.parametrize("at", [0, 7, 39])
def test_one_that_cannot_be_launched_undoes_the_others(
    context: RunContext, backend: LauncherBackend, busybox: Image, at: int
) -> None:
    """The step that failed is named; of 39 others nothing is left, answered or not."""
    specs = make(context, busybox, MOST_PENDING + 8, "sleep", "60")
    specs[at] = dataclasses.replace(specs[at], hostname="x" * 80, workdir="/")
    backend.prepare(specs[0])
    backend.reserve(specs)
    if backend.name == "process":  # which has no name of its own: its plan has no such step
        specs[at] = dataclasses.replace(
            specs[at], limits=dataclasses.replace(SMALL, writable_inodes=3)
        )
    with pytest.raises(StepFailed):
        launch_all(backend, specs)
    assert groups(context) == set()
    (one,) = make(context, busybox, 1, "echo", "on")
    with backend.launch(one) as instance:
        assert instance.wait(Event.EXITED, soon())
        assert instance.stdout == b"on\n"


def test_ready_by_a_line(
    context: RunContext, container: LauncherBackend, busybox: Image, tmp_path: Path
) -> None:
    """All are ready when the last has said so; then all are stopped."""
    ready = Readiness(ReadyKind.LINE, pattern="^up$")
    argv = ("sh", "-c", "sleep 0.1; echo up; exec sleep 60")
    trial = tried(container, context, busybox, tmp_path, *argv, until="ready", ready=ready)
    assert (trial.outcome, trial.error) == (Outcome.OK, None)
    samples = {sample.metric: sample.value for sample in trial.samples}
    assert samples["together_ready"] >= samples["together_started"]
    assert trial.timeline["stop_requested"] > trial.timeline["ready"]
    argv = ("sh", "-c", "exit 3")
    trial = tried(container, context, busybox, tmp_path, *argv, until="ready", ready=ready)
    assert trial.outcome is Outcome.FAILED and "before it was ready" in (trial.error or "")
    assert groups(context) == set()


def test_failures_are_data(
    context: RunContext, container: LauncherBackend, busybox: Image, tmp_path: Path
) -> None:
    """A wrong status, a timeout, too much memory: the trial has failed, and nothing is left."""
    trial = tried(container, context, busybox, tmp_path, "sh", "-c", "echo no >&2; exit 4")
    assert trial.outcome is Outcome.FAILED and "status 4" in (trial.error or "")
    assert trial.samples == [] and trial.logs
    trial = tried(container, context, busybox, tmp_path, "sleep", "60", timeout_s=0.5)
    assert trial.outcome is Outcome.TIMEOUT and trial.samples == []
    huge = Limits(memory_bytes=1 << 44)
    trial = tried(container, context, busybox, tmp_path, "true", limits=huge)
    assert trial.outcome is Outcome.REFUSED and "MiB" in (trial.error or "")
    trial = tried(container, context, busybox, tmp_path, "not-a-program")
    assert trial.outcome is Outcome.FAILED and "not found" in (trial.error or "")
    assert groups(context) == set()


def test_a_launcher_beside_that_was_killed_is_replaced(
    context: RunContext, container: LauncherBackend, busybox: Image, tmp_path: Path
) -> None:
    """What it made has failed; the next trial has as many launchers as before."""
    specs = make(context, busybox, 20, "sleep", "60")
    container.reserve(specs)
    group = launch_all(container, specs)
    os.kill(container.helpers()[3], signal.SIGKILL)
    with pytest.raises(LaunchFailed):
        await_all(group, has_ended, soon())
    for instance in group:
        instance.release()
    trial = tried(container, context, busybox, tmp_path, "true")
    assert (trial.outcome, trial.error) == (Outcome.OK, None)
    assert len(container.helpers()) == LAUNCHERS
    folder = container.worker.directory
    assert [one.directory for one in container._beside] == [folder] * (LAUNCHERS - 1)


@pytest.mark.vm
def test_guests_boot_at_once(context: RunContext, busybox: Image) -> None:
    """RUN is there before each guest's agent is, though nobody waits for that one alone."""
    limits = Limits(memory_bytes=96 << 20, memory_basis=MemoryBasis.NOMINAL)
    argv = ("sh", "-c", "echo guest; exit 5")
    connected: dict[str, int] = {}

    def started(instance: Instance) -> bool:
        if instance._session is not None:  # type: ignore[attr-defined]
            connected.setdefault(instance.spec.id, time.monotonic_ns())
        return is_started(instance)

    with registry.make(arms.ARMS["vm"], context) as backend:
        if not (found := backend.probe()).usable:
            pytest.skip(found.reason)
        specs = [
            dataclasses.replace(spec, limits=limits, cpu_set=usable_cpus())
            for spec in make(context, busybox, 3, *argv)
        ]
        backend.prepare(specs[0])
        group = launch_all(backend, specs)
        assert await_all(group, started, soon(200))
        assert await_all(group, has_ended, soon(60))
        for instance in group:
            instance.wait(Event.STARTED, soon())
            instance.synchronise()
        marks = [instance.timeline.marks_ns for instance in group]
        assert [instance.stdout for instance in group] == [b"guest\n"] * 3
        assert {instance.exit.code for instance in group if instance.exit} == {5}
        for instance in group:
            instance.release()
    assert all(connected[spec.id] < one[Event.INIT] for spec, one in zip(specs, marks, strict=True))
    # All were asked for before the first of them ran.
    assert max(one[Event.REQUESTED] for one in marks) < min(one[Event.INIT] for one in marks)
