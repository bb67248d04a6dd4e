"""One launch, timed: what the benchmarks of starts, releases and crowds have in common."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import cgroup
from bench.agent.build import build_static
from bench.backend import Backend
from bench.image import index
from bench.image.busybox import CONFIG, find_busybox, populate
from bench.model import Event, Image, InstanceSpec, Limits, NetworkMode, Timeline
from ct.instance import LauncherInstance

PROGRAM = """
#include <stdio.h>
#include <time.h>
int main(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return printf("%lld\\n", now.tv_sec * 1000000000LL + now.tv_nsec) < 0;
}
"""
STAMP = "/bin/stamp"
"""Prints CLOCK_MONOTONIC as its first act: what its output goes through is not in the figure."""
LIMITS = Limits(memory_bytes=256 << 20, pids=64)
LIMIT_NS = 60_000_000_000
NUMBERS = itertools.count(1)


def make_image(room: Path) -> Image:
    """The busybox image with the program in it."""
    (room / "stamp.c").write_text(PROGRAM)
    program = build_static("stamp", [room / "stamp.c"])
    with index.build_space() as space:
        populate(space / "tree", find_busybox(space))
        shutil.copy(program, space / "tree" / STAMP.lstrip("/"))
        return index.store_tree("perf", space / "tree", CONFIG, source="test", recipe="perf")


def make_spec(
    backend: Backend,
    image: Image,
    argv: tuple[str, ...] = ("/bin/true",),
    *,
    accounting: bool = True,
    bridged: bool = False,
) -> InstanceSpec:
    """A spec under a name nobody has had yet; addresses come round again after 253."""
    number = next(NUMBERS)
    context = backend.context  # type: ignore[attr-defined]  # every backend of ours has one
    spec = InstanceSpec(context.instance(number), image, argv, limits=LIMITS, accounting=accounting)
    if bridged:
        address = context.network.address(number)
        spec = replace(spec, network=NetworkMode.BRIDGE, address=address)
    return spec


@contextlib.contextmanager
def ended(backend: Backend, spec: InstanceSpec) -> Iterator[LauncherInstance]:
    """A launch whose workload has ended, with all stamps."""
    with backend.launch(spec) as instance:
        assert instance.wait(Event.EXITED, time.monotonic_ns() + LIMIT_NS), "it hangs"
        instance.synchronise()
        yield instance  # type: ignore[misc]


def started(backend: Backend, spec: InstanceSpec) -> float:
    """Seconds from the request to the workload's exec."""
    with ended(backend, spec) as instance:
        found = between(instance.timeline, Event.REQUESTED, Event.STARTED)
    instance.wait_network_released(time.monotonic_ns() + LIMIT_NS)
    return found


@contextlib.contextmanager
def joining_as_engines_do() -> Iterator[None]:
    """By ``cgroup.procs`` on v1 as well: a whole process, after a wait for the kernel."""
    ours, cgroup.SELF_MOVE = cgroup.SELF_MOVE, "cgroup.procs"
    try:
        yield
    finally:
        cgroup.SELF_MOVE = ours


def started_apart_from_joining(backend: Backend, spec: InstanceSpec) -> float:
    """The same without the steps that join a control group."""
    with ended(backend, spec) as instance:
        found = between(instance.timeline, Event.REQUESTED, Event.STARTED) - joining_s(instance)
    instance.wait_network_released(time.monotonic_ns() + LIMIT_NS)
    return found


def joining_s(instance: LauncherInstance) -> float:
    """How long the steps took that join its control group."""
    steps = instance.describe()["steps_us"]
    assert isinstance(steps, dict)
    return float(sum(us for name, us in steps.items() if name.split()[1] == "join")) / 1e6


def first_instruction(backend: Backend, spec: InstanceSpec) -> float:
    """Seconds from the request to the first instruction of `STAMP`."""
    began = time.monotonic_ns()
    with ended(backend, spec) as instance:
        return (int(instance.stdout) - began) / 1e9


def between(timeline: Timeline, first: Event, last: Event) -> float:
    """Seconds between two events that must have happened."""
    found = timeline.between(first, last)
    assert found is not None, f"{first} or {last} is missing"
    return found


def run_stamp(*argv: str | Path) -> float:
    """Seconds from the request to the first instruction, through a program that runs `STAMP`."""
    began = time.monotonic_ns()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return (int(done.stdout) - began) / 1e9


def need(program: str) -> None:
    """Skip without it."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
