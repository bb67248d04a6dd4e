"""A VM's start through libvirt against plain QEMU: the same devices, CPU model and kernel.

Plain QEMU gets the very command line libvirt made, without its monitor, and enters its
control group by the same wrapper. Both are measured from the request to the guest's
`init`, the agent's own stamp mapped to the host's clock.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from perf.table import Bound, Line, Table, interleaved

from bench.agent.session import AgentSession
from bench.cgroup import Cgroup, CgroupLimits
from bench.context import RunContext
from bench.errors import HvctError
from bench.image.busybox import busybox_image
from bench.model import Event, InstanceSpec, Limits
from hv.backend import VmBackend
from hv.emulator import JOIN_VARIABLE

pytestmark = [pytest.mark.root, pytest.mark.vm]
NUMBERS = itertools.count(1)
LIMITS = Limits(memory_bytes=256 << 20)
PAIRS = 80  # TCG is noisy: 24 left 8 % on each side, and the bound lay within
LIMIT_NS = 60_000_000_000


@pytest.fixture(scope="module")
def machines(context: RunContext) -> Iterator[VmBackend]:
    """The arm, everything settled that is settled once."""
    with VmBackend(context) as arm:
        try:
            arm.prepare(make(context))
        except HvctError as error:
            pytest.skip(error.message)
        yield arm


def make(context: RunContext) -> InstanceSpec:
    """A guest that does nothing."""
    return InstanceSpec(
        context.instance(next(NUMBERS)),
        busybox_image(),
        ("true",),
        env=(("PATH", "/bin"),),
        limits=LIMITS,
    )


def through_libvirt(backend: VmBackend, context: RunContext) -> float:
    """Seconds from the request to `init`."""
    with backend.launch(make(context)) as instance:
        assert instance.wait(Event.EXITED, time.monotonic_ns() + LIMIT_NS)
        instance.synchronise()
        return instance.timeline.between(Event.REQUESTED, Event.INIT) or 0.0


def by_qemu_alone(context: RunContext, argv: list[str], channel: Path) -> float:
    """Seconds from the request to `init`, with nothing but QEMU."""
    begin_ns = time.monotonic_ns()
    with contextlib.ExitStack() as undo:
        name = context.instance(next(NUMBERS))
        cgroup = Cgroup.create(context.tag, name, CgroupLimits(cpu_set=(0,)))
        undo.callback(cgroup.remove)
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        channel.unlink(missing_ok=True)
        listener.bind(str(channel))
        listener.listen(1)
        listener.settimeout(10)
        environment = {**os.environ, JOIN_VARIABLE: ":".join(map(str, cgroup.join_files()))}
        process = undo.enter_context(
            subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL)
        )
        undo.callback(process.kill)
        session = AgentSession(listener.accept()[0], shared_clock=False)
        undo.callback(session.close)
        assert session.wait(Event.INIT, time.monotonic_ns() + LIMIT_NS)
        session.ping()
        stamp = session.host_stamp(Event.INIT)
        assert stamp is not None
        return (stamp[0] - begin_ns) / 1e9


def plain_argv(backend: VmBackend, context: RunContext, channel: Path) -> list[str]:
    """The command line libvirt gives QEMU, without what only libvirt needs."""
    with backend.launch(make(context)) as instance:
        assert instance.wait(Event.STARTED, time.monotonic_ns() + LIMIT_NS)
        raw = Path(f"/proc/{instance.link.pid}/cmdline").read_bytes()
    words = raw.decode().rstrip("\0").split("\0")[1:]
    argv = [str(backend.emulator.wrapper)]
    while words:
        option = words.pop(0)
        value = words.pop(0) if words and not words[0].startswith("-") else ""
        if option in ("-S", "-mon", "-add-fd", "-no-shutdown", "-msg"):
            continue
        if "charmonitor" in value or "masterKey" in value:
            continue
        if "id=charserial0" in value:
            value = f"file,id=charserial0,path={channel}.console"
        if "id=charchannel0" in value:
            value = f"socket,id=charchannel0,path={channel}"
        argv += [option, value] if value else [option]
    return argv


def test_request_to_init(targets: Table, machines: VmBackend, context: RunContext) -> None:
    """vm ÷ plain QEMU with the very devices; request to init, libvirt's share of a start."""
    channel = context.runtime_dir / "plain.sock"
    argv = plain_argv(machines, context, channel)
    ours, theirs = interleaved(
        lambda: through_libvirt(machines, context),
        lambda: by_qemu_alone(context, argv, channel),
        n=PAIRS,
        gap_s=0.25,
    )
    label = machines.verdict.accelerator.label
    for source, most in (("first target", 1.10), ("launch at the limit", 1.05)):
        name = f"vm ({label}): request to init ÷ plain QEMU with the same devices ({source})"
        targets.add(Line(name, Bound(most), ours, theirs))
