"""A guest is what the specification says: argv, user, memory, network, output, entropy."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from launching import settled_neighbour

from bench.context import RunContext
from bench.errors import LaunchFailed, Refused
from bench.journal import open_run
from bench.model import (
    Event,
    Ids,
    Image,
    InstanceSpec,
    Limits,
    MemoryBasis,
    NetworkMode,
    OutputMode,
    ReceiptLevel,
)
from hv.backend import VmBackend
from hv.instance import VmInstance

pytestmark = [pytest.mark.root, pytest.mark.vm]
ENV = (("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"), ("ODD", "a=b c"))
PORT = 7000
MIB = 1 << 20
NUMBERS = count(1)
SMALL = Limits(memory_bytes=128 * MIB, memory_basis=MemoryBasis.NOMINAL)
OUTPUT_BYTES = 64 * MIB

SERVER = f"""
pwd
env | sort
nproc
dmesg | sed -n 's/^.*random: crng init done.*/entropy &/p;s/^.*Run .init as init.*/init &/p'
grep MemAvailable /proc/meminfo
mount | grep ' /dev/shm '
stat -c '%F %n' /scratch 2>&1 || true
echo to stderr >&2
exec nc -ll -p {PORT} -e cat
"""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run with a bridge."""
    with open_run(tmp_path_factory.mktemp("run"), network=True) as run:
        yield run


@pytest.fixture(scope="module")
def backend(context: RunContext) -> Iterator[VmBackend]:
    """The arm with its worker."""
    with VmBackend(context) as arm:
        yield arm


def soon(seconds: float = 30.0) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


def make(context: RunContext, image: Image, *argv: str, **changes: object) -> InstanceSpec:
    """A specification; `bridge=True` gives it an address."""
    number = next(NUMBERS)
    if changes.pop("bridge", False):
        assert context.network is not None
        changes |= {"network": NetworkMode.BRIDGE, "address": context.network.address(number)}
    changes = {"env": ENV, "limits": SMALL, "cpu_set": (0,), **changes}
    return InstanceSpec(context.instance(number), image, argv, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(backend: VmBackend, context: RunContext, busybox: Image) -> Iterator[VmInstance]:
    """One guest that prints what it sees and then serves a port; shared by many tests."""
    spec = make(
        context,
        busybox,
        "sh",
        "-c",
        SERVER,
        bridge=True,
        listen_port=PORT,
        workdir="/var/tmp",
        hostname="named",
        limits=Limits(memory_bytes=192 * MIB, shm_bytes=8 * MIB),
        output=OutputMode.STREAM,
        receipt=ReceiptLevel.DIGEST,
    )
    backend.prepare(spec)
    with backend.launch(spec) as instance:
        assert instance.wait(Event.LISTENING, soon())
        instance.synchronise()
        yield instance


def test_argv_environment_and_place_arrive(server: VmInstance) -> None:
    """Exactly the environment, the working directory, and the two streams apart."""
    lines = server.stdout.decode().splitlines()
    assert lines[0] == "/var/tmp"
    assert "ODD=a=b c" in lines and f"PATH={dict(ENV)['PATH']}" in lines
    assert b"to stderr" in server.stderr and b"to stderr" not in server.stdout
    assert "1" in lines, "one vCPU for cpus = 1"
    assert "size=8192k" in server.stdout.decode()


def test_entropy_is_there_before_init(server: VmInstance) -> None:
    """The kernel's random generator is ready before our init runs: nobody waits for it."""
    order = [line.split()[0] for line in server.stdout.decode().splitlines() if "random:" in line
             or "Run /init" in line]  # fmt: skip
    assert order and order[0] == "entropy"


def test_memory_available_agrees_with_the_limit(server: VmInstance) -> None:
    """The reserve of the guest's kernel is on top: what is available is the limit, within 2 %."""
    inside = int(re.findall(r"MemAvailable: +(\d+) kB", server.stdout.decode())[0]) * 1024
    limit = server.spec.limits.memory_bytes
    assert limit is not None and abs(inside - limit) <= 0.02 * limit


def test_host_reaches_the_port(server: VmInstance) -> None:
    """A TCP connection from the host over the bridge; ARP is not asked, so it is not waited for."""
    with socket.create_connection((server.connect_host, PORT), 5) as wire:
        wire.sendall(b"through the bridge\n")
        assert wire.recv(100) == b"through the bridge\n"
    assert settled_neighbour(server.connect_host)


def test_timeline_is_complete_and_in_order(server: VmInstance) -> None:
    """Host marks and mapped guest marks follow each other, with their resolution."""
    wanted = [Event.REQUESTED, Event.ACCEPTED, Event.SPAWNED, Event.KERNEL, Event.INIT,
              Event.STARTED, Event.LISTENING]  # fmt: skip
    marks = server.timeline.marks_ns
    assert [event for event in wanted if event in marks] == wanted
    stamps = [marks[event] for event in wanted]
    assert stamps == sorted(stamps)
    for event in (Event.KERNEL, Event.INIT, Event.STARTED):
        assert 0 < server.timeline.resolution_ns[event] < 10_000_000


def test_qemu_lives_in_our_cgroup_on_its_cpus(server: VmInstance) -> None:
    """Every thread of QEMU is in the instance's group from the start, on the CPUs given."""
    assert server.cgroup is not None
    assert server.cgroup.pids() == (server.link.pid,)
    assert {os.sched_getaffinity(int(task)) == {0} for task in _tasks(server)} == {True}
    resident, charged = server.process_memory(), server.memory()
    assert resident is not None and charged is not None and charged.anon_bytes is not None
    # Entered before exec: nothing was charged elsewhere (60 MB would be, had it been moved).
    private = resident.pss_anon_bytes
    assert abs(charged.anon_bytes - private) < 8 * MIB


def _tasks(instance: VmInstance) -> list[str]:
    return os.listdir(f"/proc/{instance.link.pid}/task")


def test_receipt_says_what_runs(server: VmInstance, busybox: Image) -> None:
    """A file fetched from inside is the image's, huge pages and the kernel's line are known."""
    program = server.fetch("/bin/busybox")
    assert program[:4] == b"\x7fELF"
    assert "entropy" not in server.fetch("/proc/cmdline").decode()
    described = server.describe()
    assert "hvct-" in str(described["domain_xml"]) and described["guest_ram_bytes"]
    host = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    assert server.fetch("/sys/kernel/mm/transparent_hugepage/enabled").decode() == host


def test_stop_ends_it_and_nothing_stays(server: VmInstance, backend: VmBackend) -> None:
    """The stop signal reaches the workload; then QEMU, group, tap and files are gone."""
    server.stop(5.0)
    assert server.exit is not None and server.exit.signal == signal.SIGTERM
    assert server.receipt["thp"] and server.receipt["arg"]
    pid = server.link.pid
    final = server.release()
    assert final["cgroup_cpu_s"] > 0
    assert abs(final["rusage_user_s"] + final["rusage_system_s"] - final["cgroup_cpu_s"]) < 0.2
    assert server.wait_network_released(soon(5))
    assert not Path(f"/proc/{pid}").exists()
    assert server.cgroup is not None and not any(d.exists() for d in server.cgroup.directories)
    assert server.spec.address is not None
    assert not Path(f"/sys/class/net/{server.spec.address.link}").exists()
    assert not list(backend.context.runtime_dir.glob("vm-*"))
    marks = server.timeline.marks_ns
    assert marks[Event.EXITED] <= marks[Event.RELEASED] <= marks[Event.NETWORK_RELEASED]


def test_64_mib_of_output_arrive_whole_as_another_user(
    backend: VmBackend, context: RunContext, busybox: Image
) -> None:
    """Every byte of both streams, in order, from a workload that is not root; exit status too."""
    script = f"id -u >&2; id -G >&2; yes hvct | head -c {OUTPUT_BYTES}; exit 3"
    spec = make(
        context, busybox, "sh", "-c", script, ids=Ids(1000, 1001, (1001, 2002)),
        output=OutputMode.STREAM,
    )  # fmt: skip
    with backend.launch(spec) as instance:
        assert instance.wait(Event.EXITED, soon(90))
    want = (b"hvct\n" * (OUTPUT_BYTES // 5 + 1))[:OUTPUT_BYTES]
    assert hashlib.sha256(instance.stdout).digest() == hashlib.sha256(want).digest()
    assert instance.stderr == b"1000\n1001 2002\n"
    assert instance.exit is not None and instance.exit.code == 3


def test_guest_out_of_memory_is_said(
    backend: VmBackend, context: RunContext, busybox: Image
) -> None:
    """The guest's kernel kills the workload: exit by signal 9, and counted as out of memory."""
    with backend.launch(make(context, busybox, "tail", "/dev/zero")) as instance:
        assert instance.wait(Event.EXITED, soon(60))
        assert instance.exit is not None and instance.exit.signal == signal.SIGKILL
        assert instance.oom_kills() >= 1


def test_panic_is_visible(backend: VmBackend, context: RunContext, busybox: Image) -> None:
    """A guest whose kernel panics ends, and the error carries the console's words."""
    script = "echo c > /proc/sysrq-trigger; sleep 60"
    with backend.launch(make(context, busybox, "sh", "-c", script)) as instance:
        with pytest.raises(LaunchFailed) as caught:
            instance.wait(Event.EXITED, soon())
        assert "Kernel panic" in caught.value.message
    assert b"sysrq triggered crash" in instance.console()


def test_missing_program_is_an_error_of_the_launch(
    backend: VmBackend, context: RunContext, busybox: Image
) -> None:
    """What cannot be executed never counts as started."""
    with backend.launch(make(context, busybox, "/bin/nonesuch")) as instance:
        with pytest.raises(LaunchFailed, match="not found"):
            instance.wait(Event.STARTED, soon())
        assert Event.STARTED not in instance.timeline.marks_ns


def test_what_a_vm_cannot_honour_is_refused(
    backend: VmBackend, context: RunContext, busybox: Image
) -> None:
    """The host's network, and memory no guest boots with: refused at once, with the minimum."""
    with pytest.raises(Refused):
        backend.launch(make(context, busybox, "true", network=NetworkMode.HOST))
    for basis in MemoryBasis:
        limits = Limits(memory_bytes=8 * MIB, memory_basis=basis)
        with pytest.raises(Refused) as caught:
            backend.launch(make(context, busybox, "true", limits=limits))
        assert "MiB" in caught.value.hint


def test_second_stage_of_the_probe_boots_the_real_kernel(backend: VmBackend) -> None:
    """Without disk or card to the agent: "" where it works, here under what this host has."""
    assert backend.try_boot(backend.verdict) == ""
    found = backend.probe()
    assert found.usable and found.accelerator.reason and "libvirt" in found.version
