"""A container's start against bwrap and runc: request to the first instruction of the same program.

The program prints CLOCK_MONOTONIC as its first act, so what its output then goes through
(a pipe, or our agent's channel) is not in the figure. All run from this process, which has
pandas loaded, as the harness has. The peers get the image read-only; hvct also lays a
writable layer over it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas  # noqa: F401  # the harness is as large when it launches
import pytest

from bench.agent.build import build_static
from bench.cgroup import version as cgroup_version
from bench.command import run
from bench.context import RunContext
from bench.image import index
from bench.image.busybox import CONFIG, find_busybox, populate
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec, Limits
from ct.backend import ContainerBackend

if TYPE_CHECKING:
    from tests.perf.conftest import Table

pytestmark = pytest.mark.root

PROGRAM = """
#include <stdio.h>
#include <time.h>
int main(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return printf("%lld\\n", now.tv_sec * 1000000000LL + now.tv_nsec) < 0;
}
"""
LIMITS = Limits(memory_bytes=256 << 20, pids=64)
NUMBERS = itertools.count(1)
STAMP = "/bin/stamp"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The busybox image with the program in it, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        room = tmp_path_factory.mktemp("image")
        patch.setenv("XDG_CACHE_HOME", str(room))
        (room / "stamp.c").write_text(PROGRAM)
        program = build_static("stamp", [room / "stamp.c"])
        with index.build_space() as space:
            populate(space / "tree", find_busybox(space))
            shutil.copy(program, space / "tree" / STAMP.lstrip("/"))
            yield index.store_tree("perf", space / "tree", CONFIG, source="test", recipe="perf")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run without a network."""
    with open_run(tmp_path_factory.mktemp("run"), network=False) as run_context:
        yield run_context


@pytest.fixture(scope="module")
def backend(context: RunContext) -> Iterator[ContainerBackend]:
    """The container arm."""
    with ContainerBackend(context) as arm:
        yield arm


@pytest.fixture(scope="module")
def root(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same image, mounted for the peers."""
    where = tmp_path_factory.mktemp("root")
    run(["mount", "-t", "erofs", "-o", "ro,loop", image.path, where])
    try:
        yield where
    finally:
        run(["umount", where])


def ours(backend: ContainerBackend, image: Image, *, accounting: bool) -> float:
    """Seconds from the request to the program's first instruction, in a container of ours."""
    name = backend.context.instance(next(NUMBERS))
    spec = InstanceSpec(name, image, (STAMP,), limits=LIMITS, accounting=accounting)
    began = time.monotonic_ns()
    with backend.launch(spec) as instance:
        assert instance.wait(Event.EXITED, time.monotonic_ns() + 10**10), "it hangs"
    return (int(instance.stdout) - began) / 1e9


def theirs(*argv: str | Path) -> float:
    """The same for a program that runs ours."""
    began = time.monotonic_ns()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return (int(done.stdout) - began) / 1e9


def need(program: str) -> None:
    """Skip without it."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def test_against_bwrap(ratios: Table, backend: ContainerBackend, image: Image, root: Path) -> None:
    """No network, no control group, the same root and namespaces; target: 0.8 of bwrap."""
    need("bwrap")
    words: list[str | Path] = ["bwrap", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev"]
    for name in ("pid", "net", "ipc", "uts", "cgroup"):
        words.append(f"--unshare-{name}")
    ratios.compare(
        "container, no cgroup: request to first instruction ÷ bwrap",
        0.8,
        lambda: ours(backend, image, accounting=False),
        lambda: theirs(*words, "--hostname", "hvct", "--tmpfs", "/tmp", STAMP),
    )


def test_against_runc(
    ratios: Table, backend: ContainerBackend, image: Image, root: Path, tmp_path: Path
) -> None:
    """The same limits in a control group joined the same way; target: 0.5 of `runc run`."""
    need("runc")

    def peer() -> float:
        name = backend.context.instance(next(NUMBERS))
        bundle = runc_bundle(root, f"/hvct/{backend.context.tag}/{name}")
        (tmp_path / "config.json").write_text(json.dumps(bundle))
        return theirs("runc", "--root", tmp_path / "state", "run", "--bundle", tmp_path, name)

    ratios.compare(
        "container, cgroup limits: request to first instruction ÷ runc",
        0.5,
        lambda: ours(backend, image, accounting=True),
        peer,
    )
    # runc makes the parent in hierarchies that we do not use, and leaves it there.
    for left in Path("/sys/fs/cgroup").glob(f"*/hvct/{backend.context.tag}"):
        with contextlib.suppress(OSError):
            left.rmdir()


def runc_bundle(root: Path, cgroup: str) -> dict[str, Any]:
    """A bundle with the namespaces and limits that our container gets."""
    memory = {"limit": LIMITS.memory_bytes, "swap": LIMITS.memory_bytes}
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": [STAMP],
            "cwd": "/",
            "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "hvct",
        "mounts": mounts,
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in RUNC_NAMESPACES],
            "resources": {
                "memory": memory,
                "pids": {"limit": LIMITS.pids},
                "cpu": {"cpus": "0"},
            },
        },
    }


RUNC_NAMESPACES = ("pid", "mount", "network", "ipc", "uts", "cgroup")


@pytest.mark.parametrize("accounting", [False, True], ids=["no cgroup", "cgroup"])
def test_against_the_floor(
    ratios: Table, backend: ContainerBackend, image: Image, accounting: bool
) -> None:
    """A C program that makes the plan's calls in the plan's order; target: 1.3 of it."""
    from tests.perf.floor import floor

    name = backend.context.instance(next(NUMBERS))
    spec = InstanceSpec(name, image, (STAMP,), limits=LIMITS, accounting=accounting, cpu_set=(0,))
    with floor(backend, backend.context, image, spec, STAMP) as alone:
        ratios.compare(
            f"container, {'' if accounting else 'no '}cgroup ÷ the same calls in C",
            1.3,
            lambda: ours(backend, image, accounting=accounting),
            lambda: alone.start(backend.context.instance(next(NUMBERS))),
        )


def test_accounting(ratios: Table, backend: ContainerBackend, image: Image) -> None:
    """Control group and limits, on or off; on v1 joining after an idle spell costs milliseconds."""
    ratios.compare(
        f"container, accounting on ÷ off (cgroup v{cgroup_version()})",
        1.03,
        lambda: ours(backend, image, accounting=True),
        lambda: ours(backend, image, accounting=False),
    )
