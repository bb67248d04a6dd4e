"""The floor in parts: what kernel and QEMU take for each, and what our launch takes for the same.

No targets of their own: they say where the time goes, in docs/launch.md.
"""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from pathlib import Path

import pytest
from perf.launches import LIMITS, NUMBERS, PROGRAM, between, ended, make_spec
from perf.table import Part, Table, pairs

from bench.agent.build import build_static
from bench.cgroup import SELF_MOVE, Cgroup, CgroupLimits
from bench.model import Event, Image
from ct.backend import ContainerBackend
from hv.architecture import here

pytestmark = pytest.mark.root

IDLE_S = 0.05
ROUNDS = 24


def test_floor(
    targets: Table, backend: ContainerBackend, stamp_image: Image, root: Path, tmp_path: Path
) -> None:
    """Floor of a container in parts, and ours."""
    alone = by_c(backend, root, tmp_path)
    ours = by_us(backend, stamp_image)
    for name, title in PARTS.items():
        targets.parts.append(Part(title, alone[name], ours.get(name, ())))


PARTS = {
    "clone3": "clone3, sharing memory, to the child's first instruction",
    "clone3+pid": "the same into a PID namespace",
    "clone3+mnt": "the same into a mount namespace",
    "clone3+net": "the same into a network namespace",
    "clone3+ipc": "the same into an IPC namespace",
    "clone3+uts": "the same into a UTS namespace",
    "clone3+cgroup": "the same into a cgroup namespace",
    "clone3+six": "the same into all six; ours: request accepted to the child's first instruction",
    "cgroup-mkdir": "control group made in every hierarchy; ours: with its limits, from Python",
    "cgroup-join": "control group joined, 50 ms after another",
    "cgroup-procs": "the same by its cgroup.procs, as container engines do",
    "overlay": "tmpfs and overlay mounted",
    "pivot": "pivot_root and the old root detached",
    "proc": "/proc mounted",
    "lo-up": "loopback up",
    "exec": "execve of a static program to its first instruction; ours: the agent's",
}


def by_c(backend: ContainerBackend, root: Path, folder: Path) -> dict[str, list[float]]:
    """Seconds of each part in a C program that does nothing else."""
    (folder / "stamp.c").write_text(PROGRAM)
    stamp = build_static("stamp", [folder / "stamp.c"])
    parts = build_static("floor-parts", [Path(__file__).parent / "floor_parts.c"])
    tag = backend.context.tag
    group = Cgroup.create(tag, f"{tag}-floor")  # makes what is above it
    how = [str(pairs(ROUNDS)), str(int(IDLE_S * 1e6)), root, stamp]
    argv = [parts, *how, SELF_MOVE, *group.directories]
    group.remove()
    # In a mount namespace whose mounts do not spread, and with /mnt as its own.
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", *map(str, argv)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = defaultdict(list)
    for line in done.stdout.splitlines():
        name, nanoseconds = line.split()
        found[name].append(int(nanoseconds) / 1e9)
    return found


def by_us(backend: ContainerBackend, image: Image) -> dict[str, list[float]]:
    """Seconds of the same parts in launches of ours, by the launcher's own stamps."""
    found: dict[str, list[float]] = defaultdict(list)
    limits = CgroupLimits(LIMITS.memory_bytes, LIMITS.swap_bytes, (0,), None, LIMITS.pids)
    tag = backend.context.tag
    for _ in range(pairs(ROUNDS)):
        began = time.monotonic()
        group = Cgroup.create(tag, backend.context.instance(next(NUMBERS)), limits)
        found["cgroup-mkdir"].append(time.monotonic() - began)
        group.remove()
        time.sleep(IDLE_S)
        spec = make_spec(backend, image)
        with ended(backend, spec) as instance:
            steps = steps_s(instance.describe()["steps_us"])
            marks = instance.timeline
            found["cgroup-join"].append(total(steps, "join"))
            found["clone3+six"].append(between(marks, Event.ACCEPTED, Event.SPAWNED))
            found["overlay"].append(
                total(steps, "mount tmpfs scratch", "mkdir scratch", "mount overlay")
            )
            found["pivot"].append(total(steps, "pivot", "detach"))
            found["proc"].append(total(steps, "mount proc"))
            found["lo-up"].append(total(steps, "interface lo"))
            launched = instance.launched
            found["exec"].append((marks.marks_ns[Event.INIT] - launched.exec_ns) / 1e9)
    return found


def steps_s(steps_us: object) -> list[tuple[str, float]]:
    """(step, seconds) in order."""
    assert isinstance(steps_us, dict)
    return [(name.partition(" ")[2], us / 1e6) for name, us in steps_us.items()]


def total(steps: list[tuple[str, float]], *beginnings: str) -> float:
    """All steps that begin with one of these."""
    return sum(seconds for name, seconds in steps if name.startswith(beginnings))


@pytest.mark.vm
def test_emulator(targets: Table) -> None:
    """QEMU to its first word on its monitor; the process alone, no guest."""
    words = first_words(pairs(12))
    targets.parts.append(
        Part("QEMU to its first word on its monitor; ours: request to QEMU's process", words)
    )


def first_words(n: int) -> list[float]:
    """Seconds until a QEMU without devices greets."""
    machine = f"{here().machines[0]},accel=tcg"
    argv = [here().qemu, "-machine", machine, "-nodefaults", "-display", "none", "-S"]
    found = []
    for _ in range(n):
        began = time.monotonic()
        with subprocess.Popen(
            [*argv, "-qmp", "stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            found.append(time.monotonic() - began)
            process.kill()
        assert b"QMP" in line
    return found
