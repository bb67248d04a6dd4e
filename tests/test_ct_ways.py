"""The ways taken on other hosts: a loop device for the image, birth inside a cgroup v2 group."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import cgroupfs
from bench.agent.launch_record import run_record
from bench.agent.session import AgentSession
from bench.context import RunContext
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec
from ct.backend import ContainerBackend
from ct.rootfs import Lower, kernel_steps, mount_image
from ct.steps import MS_RDONLY, Steps, detach, loop_mount
from ct.wire import LaunchRequest

pytestmark = pytest.mark.root


@pytest.fixture
def context(tmp_path: Path) -> Iterator[RunContext]:
    """A journaled run."""
    with open_run(tmp_path) as run:
        yield run


def make(context: RunContext, busybox: Image, *argv: str) -> InstanceSpec:
    """A specification."""
    return InstanceSpec(context.instance(1), busybox, argv, env=(("PATH", "/bin:/usr/bin"),))


def soon(seconds: float = 10.0) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


def test_a_loop_device_serves_where_files_cannot_be_mounted(
    context: RunContext, busybox: Image
) -> None:
    """The second way: a loop device with direct I/O, gone with the launcher."""
    with ContainerBackend(context) as arm:
        folder = "image-loop"
        (arm.worker.directory / folder).mkdir()
        number = arm.worker.setup((loop_mount(str(busybox.path), folder, "erofs", MS_RDONLY),))
        block = Path(f"/sys/block/loop{number}/loop")
        assert (block / "dio").read_text().strip() == "1"
        assert (block / "autoclear").read_text().strip() == "1"
        arm._lowers[busybox.digest] = Lower(folder, "loop", True)
        with arm.launch(make(context, busybox, "echo", "by loop")) as instance:
            assert instance.wait(Event.EXITED, soon())
            assert instance.stdout == b"by loop\n"
    deadline = soon()
    while block.exists() and time.monotonic_ns() < deadline:
        time.sleep(0.01)  # the kernel detaches it when the last namespace is gone
    assert not block.exists()


def test_born_in_a_unified_group(context: RunContext, busybox: Image) -> None:
    """The way of cgroup v2: clone3 puts the child into its group, whose root it then sees."""
    unified = cgroupfs.layout().unified or cgroupfs.layout().mounts[0]
    if cgroupfs.statfs_type(unified) != cgroupfs.CGROUP2_MAGIC:
        pytest.skip("there is no cgroup2 mount here")
    spec = make(context, busybox, "sh", "-c", "cat /proc/self/cgroup; ls /sys/fs/cgroup")
    with contextlib.ExitStack() as undo:
        group = unified / "hvct" / context.tag / "born"
        group.mkdir(parents=True)
        undo.callback(group.rmdir)
        arm = undo.enter_context(ContainerBackend(context))
        lower = mount_image(arm.worker, busybox)
        plan = arm.plan(spec, lower)
        # Already in it where the version is 2.
        mount = [step for step in kernel_steps(unified=True)[-1:] if step not in plan.steps]
        at = plan.steps.index(detach())
        ours, theirs = socket.socketpair()
        undo.enter_context(theirs)
        request = LaunchRequest(
            id=spec.id,
            flags=plan.flags,
            parts=(Steps((*plan.steps[:at], *mount, *plan.steps[at:])),),
            channel=theirs.fileno(),
            cgroup=str(group),
        )
        arm.worker.launch(request)
        session = AgentSession(ours)
        undo.callback(session.close)
        session.send_run(run_record(spec))
        launched = arm.worker.launched(request)
        undo.callback(os.close, launched.pidfd)
        groups = Path(f"/proc/{launched.pid}/cgroup").read_text().split()
        assert f"0::/hvct/{context.tag}/born" in groups
        assert session.wait(Event.EXITED, soon())
        lines = session.stdout.decode().split()
        assert "0::/" in lines and "cgroup.procs" in lines
        signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
        assert arm.worker.wait_exited(spec.id, 5)
