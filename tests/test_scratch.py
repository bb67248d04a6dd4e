"""Scratch disks: the same in every arm, durable, fresh for each instance, and never left behind."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import faults
import pytest

from bench import arms, cleanup, loops, registry, scratch
from bench.backend import Backend
from bench.cache import cache_dir
from bench.context import RunContext
from bench.errors import BadInput, LaunchFailed, Refused
from bench.journal import open_run
from bench.model import Event, Ids, Image, InstanceSpec, Limits
from ct.backend import ContainerBackend

pytestmark = pytest.mark.root

MIB = 1 << 20
FSYNCS = 20
DISK = Limits(scratch_bytes=64 * MIB)
NUMBERS = count(1)
# What is to be seen of it, and so many files, each written and synced.
LOOK = f"""
grep ' /scratch ' /proc/mounts | cut -d' ' -f3,4
dev=$(grep ' /scratch ' /proc/mounts | cut -d' ' -f1)
cat /sys/block/${{dev##*/}}/queue/logical_block_size /sys/block/${{dev##*/}}/size
stat -c '%u:%g %a' /scratch
ls -A /scratch
df -k /scratch | tail -n 1 | awk '{{print $2, $3}}'
i=0
while [ $i -lt {FSYNCS} ]; do
    dd if=/dev/zero of=/scratch/file bs=4k count=1 conv=notrunc,fsync 2>/dev/null || exit 1
    i=$((i+1))
done
"""
ARMS = ["container", "process", pytest.param("vm", marks=pytest.mark.vm)]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run."""
    with open_run(tmp_path_factory.mktemp("run")) as run:
        yield run


def spec_of(context: RunContext, image: Image, *argv: str, limits: Limits = DISK) -> InstanceSpec:
    """An instance with a scratch disk, whose user is not root."""
    env = (("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"),)
    return InstanceSpec(
        context.instance(next(NUMBERS)), image, argv, env, Ids(1000, 1001), limits=limits
    )


def soon(seconds: float = 60.0) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


def scratch_loops() -> list[str]:
    """Scratch files behind loop devices."""
    return [file.name for _, file in loops.in_use() if scratch.FOLDER in file.parts]


SEEN: dict[str, list[str]] = {}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_has_the_same_disk(arm: str, context: RunContext, busybox: Image) -> None:
    """File system, sectors, size, owner and content agree; each fsync reaches the file."""
    (known,) = arms.resolve((arm,))
    backend: Backend = registry.make(known, context)
    with backend:
        spec = spec_of(context, busybox, "sh", "-c", LOOK)
        backend.prepare(spec)
        with backend.launch(spec) as instance:
            assert instance.wait(Event.EXITED, soon())
            assert instance.exit and instance.exit.code == 0, instance.stderr
            used = instance.disk()
            path = cache_dir(scratch.FOLDER) / spec.id
            status = path.stat()
            assert status.st_size == 64 * MIB <= status.st_blocks * 512, "not fully written"
            assert not scratch.abandoned(path)
        assert not path.exists() and spec.id not in scratch_loops()
        assert instance.disk() is None
        assert "sectors of 4096" in str(instance.describe()["scratch_disk"])
    lines = instance.stdout.decode().splitlines()
    assert re.match(r"ext4 rw,.*noatime", lines[0]), lines
    assert lines[1:5] == ["4096", str(64 * MIB // 512), "1000:1001 755", "lost+found"], lines
    print(f"\n  {arm}: {used}, {lines}", end="")
    # One for the data and one for the journal's commit, at the most; and what mounting needs.
    assert used and FSYNCS <= used.flushes <= 2 * FSYNCS + 12
    assert FSYNCS * 4096 <= used.written_bytes < MIB
    SEEN[arm] = lines[1:]
    assert all(seen == lines[1:] for seen in SEEN.values()), SEEN


def test_each_instance_has_a_fresh_one(context: RunContext, busybox: Image) -> None:
    """What one wrote is not there for the next, and counters begin anew."""
    with ContainerBackend(context) as backend:
        for _ in range(2):
            with backend.launch(
                spec_of(context, busybox, "sh", "-c", "ls /scratch; echo x >/scratch/x; sync")
            ) as instance:
                assert instance.wait(Event.EXITED, soon())
                used = instance.disk()
            assert instance.stdout == b"lost+found\n"
            assert used and 0 < used.flushes < 20


def test_what_cannot_be_is_refused(context: RunContext, busybox: Image) -> None:
    """A disk too small for a journal, and a user namespace."""
    with ContainerBackend(context) as backend:
        small = spec_of(context, busybox, "true", limits=Limits(scratch_bytes=MIB))
        with pytest.raises(BadInput, match="too small"):
            backend.launch(small)
    with (
        ContainerBackend(context, user=True) as backend,
        pytest.raises(Refused, match="user namespace"),
    ):
        backend.launch(spec_of(context, busybox, "true"))


def test_a_failed_launch_leaves_no_disk(context: RunContext, busybox: Image) -> None:
    """A step that fails after the disk was attached: the device is free, the file gone."""
    tiny = replace(DISK, memory_bytes=4096)
    with ContainerBackend(context) as backend, pytest.raises(LaunchFailed):
        backend.launch(spec_of(context, busybox, "true", limits=tiny))
    assert [name for name in scratch_loops() if name.startswith(context.tag)] == []
    assert [path for tag, path in scratch.files(cache_dir()) if tag == context.tag] == []


PLAN = """
blocks = 6
arms = ["container", "process"]
[[workload]]
name = "w"
image = "busybox"
argv = ["sleep", "60"]
limits = {scratch = "64 MiB"}
[[primary]]
metric = "startup_started"
workload = "w"
"""


@pytest.mark.undoes
@pytest.mark.parametrize("helpers_too", [False, True])
def test_a_killed_run_leaves_no_disk(helpers_too: bool, tmp_path: Path) -> None:
    """Harness killed, or the launchers with it: mount, loop device and file are undone."""
    before = faults.traces()
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    run = faults.Harness(
        "compare", "--wait", "--no-report", "--plan", plan, "--output", tmp_path / "run"
    )

    def under_way() -> bool:
        """All at one look: the instances that receipts are taken of come and go."""
        tag = run.tag
        return (
            bool(tag)
            and any(name.startswith(tag) for name in scratch_loops())
            and any(owner == tag for owner, _ in scratch.files(cache_dir()))
            and any("hvct-agent" in line for line in run.processes().values())
        )

    run.until(under_way)
    helpers = [pid for pid, line in run.processes().items() if "launcher-" in line]
    assert helpers
    run.kill()
    if helpers_too:
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)
    run.end()
    if helpers_too:  # then nobody cleans up but the next command
        assert faults.hvct("clean").code == 0
    assert faults.await_gone(before) == []


def test_a_power_cut_leaves_a_file_that_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busybox: Image
) -> None:
    """Without a journal the file is known by its lock: a live run's stays, a lost one goes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lost = cache_dir(scratch.FOLDER) / "r0a0a-0001"
    lost.write_bytes(b"lost")
    spec = InstanceSpec("r0b0b-0001", busybox, ("true",), limits=Limits(scratch_bytes=16 * MIB))
    with scratch.backing_file(spec) as kept:
        assert kept and cleanup._clean_drafts(dry_run=True) == [f"scratch disk {lost.name} removed"]
        assert lost.exists()
        cleanup._clean_drafts(dry_run=False)
        assert kept.exists() and not lost.exists()
    assert not kept.exists()
