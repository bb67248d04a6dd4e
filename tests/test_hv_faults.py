"""Whoever dies: it is said, nothing of it stays, and the next launch works."""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from launching import soon, until

from bench.cgroupfs import layout
from bench.context import RUN_VARIABLE, RunContext
from bench.errors import HvctError, LaunchFailed
from bench.journal import open_run
from bench.model import Accelerator, Event, Image, InstanceSpec, Limits, MemoryBasis
from hv.backend import VmBackend
from hv.connection import WorkerLost
from hv.probe import Verdict

pytestmark = [pytest.mark.root, pytest.mark.vm]
ENV = (("PATH", "/bin"),)
LIMITS = Limits(memory_bytes=128 << 20, memory_basis=MemoryBasis.NOMINAL)
CHECKOUT = Path(__file__).resolve().parent.parent
NUMBERS = count(1)

HARNESS = """
import sys, time
from pathlib import Path
from bench.image.busybox import busybox_image
from bench.journal import open_run
from bench.model import Event, InstanceSpec, Limits, MemoryBasis
from hv.backend import VmBackend
limits = Limits(memory_bytes=128 << 20, memory_basis=MemoryBasis.NOMINAL)
with open_run(Path(sys.argv[1]), network=True) as context, VmBackend(context) as backend:
    print(context.tag, flush=True)
    address = context.network.address(1)
    spec = InstanceSpec(context.instance(1), busybox_image(), ("sleep", "60"),
                        env=(("PATH", "/bin"),), limits=limits, address=address)
    with backend.launch(spec) as instance:
        deadline = time.monotonic_ns() + 30 * 10**9
        while instance.link.channel is None:
            instance.link.receive()
            time.sleep(0.001)
        print("spawned", flush=True)
        instance.wait(Event.EXITED, deadline)
"""


def marked(tag: str) -> list[int]:
    """Live processes that carry the run's mark."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"{RUN_VARIABLE}={tag}".encode() in environment:
            found.append(int(entry))
    return found


def groups(tag: str) -> list[Path]:
    """Control groups of the run's instances."""
    return [
        path
        for mount in layout().mounts
        if (top := mount / "hvct" / tag).is_dir()
        for path in top.iterdir()
        if path.is_dir()
    ]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run without a network."""
    with open_run(tmp_path_factory.mktemp("run")) as run:
        yield run


@pytest.fixture(scope="module")
def backend(context: RunContext) -> Iterator[VmBackend]:
    """The arm with its worker."""
    with VmBackend(context) as arm:
        yield arm


def make(context: RunContext, image: Image, *argv: str) -> InstanceSpec:
    """A small specification."""
    return InstanceSpec(context.instance(next(NUMBERS)), image, argv, env=ENV, limits=LIMITS)


def test_killed_qemu_is_said(backend: VmBackend, context: RunContext, busybox: Image) -> None:
    """SIGKILL to QEMU mid-trial: one line says so, and nothing of the instance stays."""
    with backend.launch(make(context, busybox, "sleep", "60")) as instance:
        assert instance.wait(Event.STARTED, soon(30))
        os.kill(instance.link.pid, signal.SIGKILL)
        with pytest.raises(LaunchFailed, match="QEMU ended with signal 9"):
            instance.wait(Event.EXITED, soon(5))
    assert not groups(context.tag)


def test_killed_worker_takes_its_guests_and_is_replaced(
    backend: VmBackend, context: RunContext, busybox: Image
) -> None:
    """SIGKILL to the worker: its QEMU dies with it, that is said, the next launch works."""
    with backend.launch(make(context, busybox, "sleep", "60")) as instance:
        assert instance.wait(Event.STARTED, soon(30))
        pid = instance.link.pid
        os.kill(backend.connection.pid, signal.SIGKILL)
        with pytest.raises(LaunchFailed, match="worker has ended") as caught:
            instance.wait(Event.EXITED, soon(5))
        assert caught.value.hint
    assert until(lambda: pid not in marked(context.tag))
    assert not groups(context.tag)
    with backend.launch(make(context, busybox, "echo", "again")) as again:
        assert again.wait(Event.EXITED, soon(30))
    assert again.stdout == b"again\n"


def test_a_qemu_that_cannot_enter_its_group_is_said_at_once(
    backend: VmBackend, context: RunContext, busybox: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is executed before QEMU ends then, and libvirt waits 40 s for who is not reaped."""
    start = backend.connection.start

    def without_group(name: str, *rest: Any) -> Any:
        for directory in groups(context.tag):
            directory.rmdir()
        return start(name, *rest)

    monkeypatch.setattr(backend.connection, "start", without_group)
    with (
        contextlib.suppress(HvctError),  # its release has no counters to read, and says so
        backend.launch(make(context, busybox, "true")) as instance,
        pytest.raises(HvctError) as caught,
    ):
        instance.wait(Event.STARTED, soon(20))
    assert caught.value
    monkeypatch.undo()
    with backend.launch(make(context, busybox, "true")) as instance:
        assert instance.wait(Event.EXITED, soon(60))


def test_release_before_anything_happened(
    backend: VmBackend, context: RunContext, busybox: Image
) -> None:
    """An instance given up at once leaves no QEMU; its id can be used again directly."""
    spec = make(context, busybox, "echo", "second")
    backend.prepare(spec)
    with backend.launch(spec):
        pass
    with backend.launch(spec) as instance:
        assert instance.wait(Event.EXITED, soon(30))
    assert instance.stdout == b"second\n"
    assert not groups(context.tag)


@pytest.mark.parametrize("after_s", [0.0, 0.9])
def test_killed_harness_leaves_nothing(after_s: float, tmp_path: Path) -> None:
    """SIGKILL to the harness: within 5 s no process, group, link or runtime folder is left."""
    harness = subprocess.Popen(
        [sys.executable, "-c", HARNESS, str(tmp_path)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert harness.stdout is not None
    try:
        tag = harness.stdout.readline().strip()
        assert harness.stdout.readline().strip() == "spawned"
        time.sleep(after_s)
    finally:
        harness.kill()
        harness.wait()
        harness.stdout.close()
    assert until(lambda: not marked(tag)), "processes are left"
    assert until(lambda: not groups(tag)), "control groups are left"
    assert until(lambda: not Path("/run/hvct", tag).exists()), "the runtime folder is left"
    links = os.listdir("/sys/class/net")
    assert not [name for name in links if name.startswith(tag) or name == f"hvct{tag}"]


@pytest.mark.parametrize("closer", [0, 1])
def test_what_is_closed_within_a_turn_is_not_looked_at(closer: int) -> None:
    """Two things happen at once and one closes the other: the worker goes on.

    The harness gives an instance up at the moment its QEMU ends, for one.
    """
    from hv.worker import Worker  # imports libvirt, which is not everywhere

    ours, theirs = socket.socketpair()
    with ours, socket.socket(fileno=theirs.detach()) as control:
        worker = Worker("qemu:///embed", control.detach())
        ends = [socket.socketpair() for _ in range(2)]
        handled = []

        def on_ready(own: int, other: int) -> None:
            handled.append(own)
            worker.selector.unregister(ends[other][0])
            ends[other][0].close()

        for own, other in ((closer, 1 - closer), (1 - closer, closer)):
            act = functools.partial(on_ready, own, other)
            worker.selector.register(ends[own][0], selectors.EVENT_READ, act)
            ends[own][1].send(b"x")
        worker._turn(1.0)
        assert len(handled) == 1
        for pair in ends:
            for end in pair:
                end.close()
        for end in (worker.control, worker.inbox, worker.outbox):
            end.close()


def test_missing_libvirt_is_said(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where libvirt cannot be opened the probe says so, with what to do about it."""
    elsewhere = RunContext(
        context.tag, context.runtime_dir, context.log_dir, libvirt_uri="qemu+unix:///system?socket=/nonexistent"
    )  # fmt: skip
    with VmBackend(elsewhere) as arm:
        found = arm.probe()
    assert not found.usable and found.reason and found.remedy


def test_missing_qemu_is_said(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where QEMU is not installed the probe says so, and names the package."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with VmBackend(context) as arm:
        found = arm.probe()
    assert not found.usable and "qemu-system-x86" in found.remedy


def test_a_worker_killed_in_the_probe_says_nothing_of_the_host(tmp_path: Path) -> None:
    """Not "libvirt is missing": the command ends, to be run again."""
    with open_run(tmp_path) as run, VmBackend(run) as backend, ThreadPoolExecutor(1) as pool:
        probing = pool.submit(backend.probe)
        assert until(lambda: bool(marked(run.tag)))
        os.kill(marked(run.tag)[0], signal.SIGKILL)
        with pytest.raises(WorkerLost, match="SIGKILL before it was ready"):
            probing.result()
        assert backend.probe().usable


def is_probe(pid: int) -> bool:
    """Whether a process is the QEMU that `try_boot` starts."""
    try:
        return b"-probe," in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_worker_killed_while_the_probe_boots_is_no_verdict(
    backend: VmBackend, context: RunContext
) -> None:
    """It does not count as a guest that does not boot, which would be kept: no KVM here."""
    verdict = Verdict(Accelerator("tcg", "the quickest that works here"))
    with ThreadPoolExecutor(1) as pool:
        booting = pool.submit(backend.try_boot, verdict)
        assert until(lambda: any(map(is_probe, marked(context.tag))), 20.0)
        os.kill(backend.connection.pid, signal.SIGKILL)
        with pytest.raises(WorkerLost):
            booting.result()
    assert backend.try_boot(verdict) == ""
