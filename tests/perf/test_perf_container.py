"""A container's start against bwrap, unshare and runc, the floor, and itself with less.

All run from this process, which has pandas loaded, as the harness has. The peers get the image
read-only; hvct also lays a writable layer over it, and sets capabilities and a filter.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pandas  # noqa: F401  # the harness is as large when it launches
import pytest
from perf.floor import floor
from perf.launches import (
    LIMIT_NS,
    LIMITS,
    NUMBERS,
    STAMP,
    between,
    ended,
    first_instruction,
    joining_as_engines_do,
    joining_s,
    make_spec,
    need,
    run_stamp,
    started,
    started_apart_from_joining,
)
from perf.table import Bound, Kind, Line, Table, equivalent, interleaved
from perf.test_perf_peers import backend_of

from bench.cgroup import version as cgroup_version
from bench.context import RunContext
from bench.model import Event, Image
from ct.backend import ContainerBackend

pytestmark = pytest.mark.root

NAMESPACES = ("pid", "net", "ipc", "uts", "cgroup")


def to_first(backend: ContainerBackend, image: Image, *, accounting: bool) -> float:
    """Seconds from the request to the program's first instruction, in a container of ours."""
    return first_instruction(backend, make_spec(backend, image, (STAMP,), accounting=accounting))


def without_group(
    targets: Table,
    backend: ContainerBackend,
    image: Image,
    peer: str,
    argv: list[str | Path],
    bounds: list[tuple[str, float]],
) -> None:
    """Compare with a program that makes the same namespaces and no group; a row for each target."""
    ours, theirs = interleaved(
        lambda: to_first(backend, image, accounting=False),
        lambda: run_stamp(*argv),
        n=80,
        gap_s=0.02,
    )
    for source, most in bounds:
        name = f"container, no cgroup: request to first instruction ÷ {peer} ({source})"
        targets.add(Line(name, Bound(most), ours, theirs))


def test_against_bwrap(
    targets: Table, backend: ContainerBackend, stamp_image: Image, root: Path
) -> None:
    """container ÷ bwrap; no network, no control group, the same root and namespaces."""
    need("bwrap")
    words: list[str | Path] = ["bwrap", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev"]
    words += [f"--unshare-{name}" for name in NAMESPACES]
    words += ["--hostname", "hvct", "--tmpfs", "/tmp", STAMP]
    bounds = [("first target", 0.8), ("launch at the limit", 0.6)]
    without_group(targets, backend, stamp_image, "bwrap", words, bounds)


def test_against_unshare(
    targets: Table, backend: ContainerBackend, stamp_image: Image, root: Path
) -> None:
    """container ÷ unshare; no network, no control group, the same namespaces, chroot and /proc."""
    need("unshare")
    names = [f"--{name}" for name in ("mount", *NAMESPACES)]
    words: list[str | Path] = ["unshare", *names, "--fork", f"--root={root}"]
    words += ["--mount-proc", STAMP]
    without_group(targets, backend, stamp_image, "unshare", words, [("launch at the limit", 1.0)])


@pytest.mark.parametrize("same_join", [False, True], ids=["", "same join"])
def test_against_runc(
    targets: Table,
    backend: ContainerBackend,
    stamp_image: Image,
    root: Path,
    tmp_path: Path,
    same_join: bool,
) -> None:
    """container ÷ runc run; the same limits, joining the group by our way and by runc's."""
    need("runc")
    if same_join and cgroup_version() != 1:
        pytest.skip("on cgroup v2 both are born in their group")

    def peer() -> float:
        name = backend.context.instance(next(NUMBERS))
        bundle = runc_bundle(root, f"/hvct/{backend.context.tag}/{name}")
        (tmp_path / "config.json").write_text(json.dumps(bundle))
        return run_stamp("runc", "--root", tmp_path / "state", "run", "--bundle", tmp_path, name)

    try:
        with joining_as_engines_do() if same_join else contextlib.nullcontext():
            targets.compare(
                f"container, cgroup limits{', joining as engines do' * same_join}: "
                "request to first instruction ÷ runc",
                Bound(0.5),
                lambda: to_first(backend, stamp_image, accounting=True),
                peer,
                n=240 if same_join else 60,  # either may find the kernel's wait already over
            )
    finally:
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


@pytest.mark.parametrize("first", [True, False], ids=["with a first process", "plan alone"])
@pytest.mark.parametrize(
    ("accounting", "gap_s"),
    [(False, 0.02), (True, 0.0), (True, 0.05)],
    ids=["no cgroup", "cgroup", "cgroup after an idle spell"],
)
def test_against_the_floor(
    targets: Table,
    backend: ContainerBackend,
    stamp_image: Image,
    accounting: bool,
    gap_s: float,
    first: bool,
) -> None:
    """container ÷ the same calls in C; request to started, in the plan's order."""
    spec = make_spec(backend, stamp_image, (STAMP,), accounting=accounting)
    what = "the same calls in C" if first else "the plan's calls alone in C"
    group = f"cgroup, {gap_s * 1e3:.0f} ms apart" if accounting else "no cgroup"
    with floor(backend, backend.context, stamp_image, spec, STAMP, first=first) as alone:
        targets.compare(
            f"container, {group}: request to started ÷ {what}",
            Bound(1.3),
            lambda: started(
                backend, make_spec(backend, stamp_image, (STAMP,), accounting=accounting)
            ),
            lambda: alone.start(backend.context.instance(next(NUMBERS)))[0],
            n=40,
            gap_s=gap_s,
        )


def test_network(targets: Table, backend: ContainerBackend, stamp_image: Image) -> None:
    """container with veth, address, route − without; request to started, both in a cgroup."""
    targets.compare(
        "container with veth, address and route − without: request to started",
        Bound(0.0015),
        lambda: started_apart_from_joining(backend, make_spec(backend, stamp_image, bridged=True)),
        lambda: started_apart_from_joining(backend, make_spec(backend, stamp_image)),
        n=40,
        kind=Kind.DIFFERENCE,
        note="both in a group, less the steps that join it",
    )


def test_accounting(targets: Table, backend: ContainerBackend, stamp_image: Image) -> None:
    """Accounting on ÷ off; request to started, with and without the time that joining takes."""
    joined: list[float] = []

    def with_group() -> float:
        with ended(backend, make_spec(backend, stamp_image)) as instance:
            joined.append(joining_s(instance))
            return between(instance.timeline, Event.REQUESTED, Event.STARTED)

    ours, theirs = interleaved(
        with_group,
        lambda: started(backend, make_spec(backend, stamp_image, accounting=False)),
        n=24,
        gap_s=0.02,
    )
    what = f"accounting on ÷ off (cgroup v{cgroup_version()})"
    note = "a group is made, limited and joined"
    name = f"container, {what}: request to started"
    targets.add(Line(name, equivalent(theirs), ours, theirs, note=note))
    apart = [all_ - join for all_, join in zip(ours, joined[1:], strict=True)]
    note = "made and limited; the time of the join steps taken out"
    targets.add(Line(f"{name}, less joining", equivalent(theirs), apart, theirs, note=note))


def test_accounting_in_a_slot(
    targets: Table, context: RunContext, backend: ContainerBackend, stamp_image: Image
) -> None:
    """Accounting on, in a group that waited ÷ off; request to started."""
    with contextlib.ExitStack() as stack:
        slots = backend_of("container:slot", context, stack)
        ours, theirs = interleaved(
            lambda: started(slots, make_spec(slots, stamp_image)),
            lambda: started(backend, make_spec(backend, stamp_image, accounting=False)),
            n=160,
            gap_s=0.05,
        )
    name = "container:slot, accounting on ÷ container, off: request to started"
    targets.add(Line(name, equivalent(theirs), ours, theirs, note="born in a group that waited"))


def test_counters(targets: Table, backend: ContainerBackend, stamp_image: Image) -> None:
    """Accounting on ÷ off; exec to exit of a busy workload, its counters read as a trial does."""

    def busy(accounting: bool) -> float:
        with backend.launch(
            make_spec(backend, stamp_image, BUSY, accounting=accounting)
        ) as instance:
            assert instance.wait(Event.STARTED, time.monotonic_ns() + LIMIT_NS)
            for read in (instance.cpu, instance.memory, instance.process_memory):
                read()  # None without accounting
            assert instance.wait(Event.EXITED, time.monotonic_ns() + LIMIT_NS)
            instance.cpu()
            return between(instance.timeline, Event.STARTED, Event.EXITED)

    # A few per cent of a loop is the host's own noise: 24 pairs leave 3 % open.
    ours, theirs = interleaved(lambda: busy(True), lambda: busy(False), n=80, gap_s=0.02)
    name = f"container, accounting on ÷ off (cgroup v{cgroup_version()}): exec to exit of a loop"
    note = "in a group, counters and PSS read once meanwhile"
    targets.add(Line(name, equivalent(theirs), ours, theirs, note=note))


BUSY = ("/bin/sh", "-c", "i=0; while [ $i -lt 40000 ]; do i=$((i+1)); done")
