"""Restored guests: each is itself, its receipt a cold guest's, and nothing half saved is used.

A few lines over 400, since all of it shares one worker and its saved guests.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import faults
import pytest

from bench import cleanup
from bench.backend import Reserves
from bench.cache import cache_dir
from bench.context import RunContext
from bench.errors import LaunchFailed, Refused
from bench.findings import USABLE_TOLERANCE
from bench.identity import FieldClass, differences
from bench.journal import open_run
from bench.model import (
    Event,
    Image,
    InstanceSpec,
    Limits,
    MemoryBasis,
    NetworkMode,
    OutputMode,
    ReceiptLevel,
)
from hv.backend import VmBackend
from hv.domain import Disk, DomainPlan, Nic, domain_xml
from hv.instance import VmInstance
from hv.restore import RestoreBackend
from hv.saved import SEED_MAC, Slot, make_room, restored_xml, saved_key

PORT = 7000
MIB = 1 << 20
NUMBERS = count(1)
LIMITS = Limits(memory_bytes=128 * MIB, memory_basis=MemoryBasis.NOMINAL)
CHECKOUT = Path(__file__).resolve().parent.parent
AGE_S = 2.0  # of a saved guest before it is restored: its clock would be so much behind
CLOCK_S = 0.05  # besides the delay that the instance itself tells

SCRIPT = f"""
cat /sys/class/net/eth0/address /etc/machine-id /etc/hosts
hostname
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid
head -c 64 /dev/urandom | od -An -tx1 | tr -d ' \\n'
echo
exec nc -ll -p {PORT} -e cat
"""

HARNESS = """
import sys
from pathlib import Path
from bench.image.busybox import busybox_image
from bench.journal import open_run
from bench.model import InstanceSpec, Limits, MemoryBasis
from hv.restore import RestoreBackend
limits = Limits(memory_bytes=int(sys.argv[2]), memory_basis=MemoryBasis.NOMINAL)
with open_run(Path(sys.argv[1])) as context, RestoreBackend(context) as backend:
    print(context.tag, flush=True)
    backend.prepare(InstanceSpec(context.instance(1), busybox_image(), ("true",), limits=limits))
    print("saved", flush=True)
"""

PLAN = DomainPlan(
    name="hvct-x",
    kind="tcg",
    memory_bytes=128 << 20,
    vcpus=1,
    emulator=Path("/a/qemu"),
    kernel=Path("/k"),
    initramfs=Path("/i"),
    channel=Path("/run/old.sock"),
    console=Path("/old"),
    disks=(Disk("vda", Path("/image")),),
    nic=Nic("old-1", SEED_MAC),
    environment={"OLD": "1"},
)
FACTS = ["image", "kernel", "initramfs", "qemu", "9.0.0", "cpu"]


# --- values -----------------------------------------------------------------------------------


def test_the_key_holds_what_a_saved_guest_depends_on() -> None:
    """Each fact (the agent is in the initramfs), each part of the plan, each word of PREPARE."""
    prepare = [("guest.root", "/dev/vda")]
    keys = [saved_key(PLAN, prepare, FACTS), saved_key(PLAN, [*prepare, *prepare], FACTS)]
    for number in range(len(FACTS)):
        keys.append(saved_key(PLAN, prepare, [*FACTS[:number], "other", *FACTS[number + 1 :]]))
    for change in (
        {"memory_bytes": 256 << 20},
        {"vcpus": 2},
        {"nic": None},
        {"kind": "kvm"},
        {"disks": (Disk("vda", Path("/other")),)},
    ):
        keys.append(saved_key(dataclasses.replace(PLAN, **change), prepare, FACTS))  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys)


def test_the_key_holds_nothing_of_one_launch() -> None:
    """Name, paths, tap, environment and the measured frequency make no other guest."""
    mine = dataclasses.replace(
        PLAN,
        name="y",
        channel=Path("/c"),
        console=Path("/d"),
        nic=Nic("t", "02:00:00:00:00:09"),
        environment={},
        tsc_khz=5,
    )
    assert saved_key(PLAN, [], FACTS) == saved_key(mine, [], FACTS)


def test_restored_xml_replaces_what_is_a_launchs_own() -> None:
    """Channel, console, tap and environment; the card's address and all else stay."""
    mine = dataclasses.replace(
        PLAN,
        channel=Path("/run/new.sock"),
        console=Path("/new"),
        nic=Nic("new-1", "02:00:00:00:00:09"),
        environment={"NEW": "2"},
    )
    made = restored_xml(domain_xml(PLAN), mine)
    wanted = domain_xml(dataclasses.replace(mine, nic=Nic("new-1", SEED_MAC)))
    assert ET.canonicalize(_sorted(made)) == ET.canonicalize(_sorted(wanted))


def _sorted(xml: str) -> str:
    """With the environment last, wherever it was added."""
    root = ET.fromstring(xml)
    for parent in root.iter():
        parent[:] = sorted(parent, key=lambda child: child.tag.endswith("env"))
    return ET.tostring(root, encoding="unicode")


def test_a_saveable_guest_under_kvm_may_be_saved() -> None:
    """Only there is the counter that forbids saving taken away."""
    kvm = dataclasses.replace(PLAN, kind="kvm")
    assert 'migratable="off"' in domain_xml(kvm)
    assert 'migratable="on"' in domain_xml(dataclasses.replace(kvm, saveable=True))


def test_room_is_made_by_age_and_what_is_held_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one used longest ago goes first, with its XML; a file that a process holds does not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    slots = [Slot(letter * 8, 0) for letter in "abc"]
    for age, slot in enumerate(slots):
        assert not slot.hold()
        slot.file.write_bytes(b"x" * MIB)
        slot.xml_file.write_text("<domain/>")
        os.utime(slot.file, (1000 + age, 1000 + age))
    held = Slot("a" * 8, 0)
    assert held.hold()
    os.utime(held.file, (1, 1))
    assert make_room(2 * MIB) == [slots[1].file]
    assert held.file.exists() and slots[2].file.exists()
    assert not slots[1].xml_file.exists()
    held.drop()
    assert make_room(MIB) == [held.file]


# --- guests -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run with a bridge."""
    with faults.nothing_left(), open_run(tmp_path_factory.mktemp("run"), network=True) as run:
        yield run


@pytest.fixture(scope="module")
def backend(context: RunContext) -> Iterator[RestoreBackend]:
    """The arm with its worker."""
    with RestoreBackend(context) as arm:
        yield arm


def soon(seconds: float = 60.0) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


def make(context: RunContext, image: Image, *argv: str, **changes: object) -> InstanceSpec:
    """A specification on the bridge."""
    assert context.network is not None
    number = next(NUMBERS)
    changes = {
        "network": NetworkMode.BRIDGE,
        "address": context.network.address(number),
        "hostname": f"host{number}",
        "env": (("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"),),
        "limits": LIMITS,
        **changes,
    }
    return InstanceSpec(context.instance(number), image, argv, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def twins(
    backend: RestoreBackend, context: RunContext, busybox: Image
) -> Iterator[list[VmInstance]]:
    """Two restored guests alive at once, that have said who they are and serve a port."""
    specs = [
        make(context, busybox, "sh", "-c", SCRIPT, listen_port=PORT, output=OutputMode.STREAM)
        for _ in range(2)
    ]
    backend.prepare(specs[0])
    time.sleep(AGE_S)
    with backend.launch(specs[0]) as first, backend.launch(specs[1]) as second:
        for one in (first, second):
            assert one.wait(Event.LISTENING, soon())
            one.synchronise()
        yield [first, second]


@pytest.mark.root
@pytest.mark.vm
def test_two_clones_are_two(twins: list[VmInstance]) -> None:
    """MAC, host name, machine-id and address are the specification's; nothing random is shared."""
    said = [one.stdout.decode().splitlines() for one in twins]
    for one, lines in zip(twins, said, strict=True):
        address = one.spec.address
        assert address is not None and address.mac != SEED_MAC
        assert lines[0] == address.mac
        assert lines[1] == one.spec.machine_id and re.fullmatch("[0-9a-f]{32}", lines[1])
        assert lines[4] == f"{address.ip}\t{one.spec.hostname}"
        assert lines[5] == one.spec.hostname
        with socket.create_connection((one.connect_host, PORT), 10) as wire:
            wire.sendall(address.ip.encode())
            assert wire.recv(100) == address.ip.encode()
    assert all(len(lines) == 9 and len(lines[8]) == 128 for lines in said)
    # boot_id, a UUID, 64 bytes of /dev/urandom.
    assert all(said[0][place] != said[1][place] for place in (0, 1, 4, 5, 6, 7, 8))


@pytest.mark.root
@pytest.mark.vm
def test_the_clock_is_the_hosts(twins: list[VmInstance]) -> None:
    """Not that of the saved guest, which is seconds old: right but for the delay that is told."""
    for one in twins:
        late = one.describe()["clock_late_ns"]
        assert isinstance(late, int) and late >= 0
        before = time.time()
        said = one.execute(["adjtimex"], 20.0).said
        after = time.time()
        seconds, micros = (re.findall(rf"tv_{unit}:\s+(\d+)", said)[0] for unit in ("sec", "usec"))
        inside = int(seconds) + int(micros) / 1e6
        assert before - late / 1e9 - CLOCK_S <= inside <= after + CLOCK_S


@pytest.mark.root
@pytest.mark.vm
def test_timeline_has_no_boot(twins: list[VmInstance]) -> None:
    """Its kernel started long before: no such mark, and no bound that comes from it."""
    wanted = [Event.REQUESTED, Event.ACCEPTED, Event.SPAWNED, Event.INIT, Event.STARTED,
              Event.LISTENING]  # fmt: skip
    for one in twins:
        marks = one.timeline.marks_ns
        assert Event.KERNEL not in marks
        stamps = [marks[event] for event in wanted]
        assert stamps == sorted(stamps)
        assert 0 < one.timeline.resolution_ns[Event.STARTED] < AGE_S * 5e8


@pytest.mark.root
@pytest.mark.vm
def test_a_restored_guest_is_charged_to_its_own_group(twins: list[VmInstance]) -> None:
    """QEMU entered the launch's group, not the seed's, before it read the guest's memory."""
    for one in twins:
        assert one.cgroup is not None and one.cgroup.pids() == (one.link.pid,)
        resident, charged = one.process_memory(), one.memory()
        assert resident is not None and charged is not None and charged.anon_bytes is not None
        assert charged.anon_bytes > 48 * MIB
        assert abs(charged.anon_bytes - resident.pss_anon_bytes) < 8 * MIB
        assert (one.guest_memory_bytes() or 0) > 32 * MIB


@pytest.mark.root
@pytest.mark.vm
def test_three_restores_overlap(
    twins: list[VmInstance], backend: RestoreBackend, context: RunContext, busybox: Image
) -> None:
    """A third slot is made where two are taken; and all three are restored at the same time."""
    for one in twins:
        one.release()
    specs = [make(context, busybox, "true") for _ in range(3)]
    backend.reserve(specs)
    assert isinstance(backend, Reserves) and len(backend._slots_of(specs[0]).files) == 3
    running = [backend.launch(spec) for spec in specs]
    try:
        for one in running:
            assert one.wait(Event.EXITED, soon())
            one.link.receive()
        assert len({one.link.name for one in running}) == 3
        begun = [one.link.accepted_ns or 0 for one in running]
        done = [one.link.resumed_ns or 0 for one in running]
        assert max(begun) < min(done)
    finally:
        for one in running:
            one.release()


@pytest.mark.root
@pytest.mark.vm
def test_a_slot_is_used_again_at_once_and_the_receipt_is_a_cold_guests(
    backend: RestoreBackend, context: RunContext, busybox: Image
) -> None:
    """One after another without a gap; what must match a cold guest's receipt does."""
    script = "df -k / | tail -n 1; echo e >&2; exit 7"
    cold = make(context, busybox, "sh", "-c", script, hostname="same")
    receipts = []
    slots = backend._slots_of(cold)
    for _ in range(len(slots.files) + 1):
        spec = make(context, busybox, "sh", "-c", script, hostname="same")
        with backend.launch(spec) as instance:
            assert instance.wait(Event.EXITED, soon())
            assert instance.exit is not None and instance.exit.code == 7
            assert instance.stderr == b"e\n"
            receipts.append(dict(instance.receipt))
            final = instance.release()
            assert final["cgroup_cpu_s"] > 0
    with VmBackend(context) as plain, plain.launch(cold) as instance:
        assert instance.wait(Event.EXITED, soon(90))
        receipts.append(dict(instance.receipt))
    for other in receipts[:-1]:
        found = differences(other, receipts[-1], ("vm:restore", "vm"), "")
        assert [one for one in found if one.field_class is FieldClass.MUST_MATCH] == []


@pytest.mark.root
@pytest.mark.vm
@pytest.mark.parametrize("size", [128 * MIB, 512 * MIB])
def test_a_guest_of_any_size_can_be_saved(
    backend: RestoreBackend, context: RunContext, busybox: Image, size: int
) -> None:
    """And what it has available when it is restored is its limit, as in a cold guest."""
    limits = Limits(memory_bytes=size, memory_basis=MemoryBasis.USABLE)
    spec = make(context, busybox, "true", limits=limits, receipt=ReceiptLevel.DIGEST)
    with backend.launch(spec) as instance:
        assert instance.wait(Event.EXITED, soon())
        available = int(str(instance.receipt["mem_available_bytes"]))
    assert available == pytest.approx(size, rel=USABLE_TOLERANCE)


@pytest.mark.root
@pytest.mark.vm
def test_what_cannot_be_restored_is_refused(
    backend: RestoreBackend, context: RunContext, busybox: Image
) -> None:
    """A scratch disk, and a daemon that would keep the domain."""
    with pytest.raises(Refused, match="scratch"):
        backend.launch(make(context, busybox, "true", limits=Limits(scratch_bytes=64 * MIB)))
    elsewhere = dataclasses.replace(context, libvirt_uri="qemu:///system")
    with pytest.raises(Refused, match="daemon"):
        RestoreBackend(elsewhere).launch(make(context, busybox, "true"))


# --- whoever dies during a save ---------------------------------------------------------------


def until(condition: Callable[[], object], seconds: float = 90.0) -> bool:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def half_saved(pid: int) -> list[Path]:
    """Files that a process's worker is just writing a guest into."""
    drafts = cache_dir("tmp").glob(f"saved-p{pid}-*/guest")
    return [path for path in drafts if path.stat().st_size]


def qemu_of(tag: str) -> int:
    """The run's one QEMU."""
    return next(pid for pid, line in faults.marked(tag).items() if "guest=hvct-s" in line)


@pytest.fixture
def limits() -> Iterator[Limits]:
    """Of guests that nobody has saved; what was saved of them is removed."""
    before = set(cache_dir("saved").iterdir())
    yield dataclasses.replace(LIMITS, memory_bytes=131 * MIB)
    for made in set(cache_dir("saved").iterdir()) - before:
        shutil.rmtree(made)


@pytest.mark.root
@pytest.mark.vm
def test_what_dies_during_a_save_leaves_no_saved_guest(
    backend: RestoreBackend, context: RunContext, busybox: Image, limits: Limits
) -> None:
    """QEMU, or the worker: that is said, no file is taken for a guest, the next save works."""
    spec = make(context, busybox, "true", limits=limits)
    victims: list[Callable[[], int]] = [
        lambda: qemu_of(context.tag),
        lambda: backend.connection.pid,
    ]
    slots = backend._slots_of(spec)
    for victim in victims:
        failures: list[LaunchFailed] = []

        def ensure(failures: list[LaunchFailed] = failures) -> None:
            try:
                slots.ensure(1)
            except LaunchFailed as failure:
                failures.append(failure)

        saving = threading.Thread(target=ensure)
        saving.start()
        assert until(lambda: half_saved(os.getpid()))
        os.kill(victim(), signal.SIGKILL)
        saving.join(60)
        assert len(failures) == 1
        assert not slots.files and not list(cache_dir("saved", slots.key).iterdir())
        assert not half_saved(os.getpid())
    with backend.launch(spec) as instance:
        assert instance.wait(Event.EXITED, soon())
    assert [path.name for path in slots.files] == ["0.save"]


@pytest.mark.root
@pytest.mark.vm
def test_a_harness_killed_during_a_save_leaves_nothing(limits: Limits, tmp_path: Path) -> None:
    """No process, group or folder of the run, no saved guest; the half one goes with `clean`."""
    before = set(cache_dir("saved").glob("*/*"))
    with faults.nothing_left():
        harness = subprocess.Popen(
            [sys.executable, "-c", HARNESS, str(tmp_path), str(limits.memory_bytes)],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert harness.stdout is not None
        try:
            assert harness.stdout.readline()
            assert until(lambda: half_saved(harness.pid))
        finally:
            harness.kill()
            harness.wait()
            harness.stdout.close()
    assert set(cache_dir("saved").glob("*/*")) == before
    cleanup._clean_drafts(False)
    assert not list(cache_dir("tmp").glob(f"saved-p{harness.pid}-*"))
