"""A machine that boots as a distribution does runs the same workload, seen the same way."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from launching import settled_neighbour

from bench import arms, registry
from bench.agent.build import agent_path
from bench.backend import Instance
from bench.cache import cache_dir, hold
from bench.command import run
from bench.context import RunContext
from bench.errors import HvctError, Refused
from bench.identity import FieldClass, differences
from bench.journal import open_run
from bench.model import (
    Event,
    Ids,
    Image,
    InstanceSpec,
    Limits,
    MemoryBasis,
    NetworkMode,
    ReceiptLevel,
    Security,
)
from hv.distro import DistroBackend
from hv.system_disk import FIRST_SECTOR, SystemDisk, make_room, system_disk

pytestmark = [pytest.mark.root, pytest.mark.vm]
PORT = 7000
MIB = 1 << 20
BOOT_S = 240.0  # it takes half a minute under TCG on an idle host

SCRIPT = f"""
pwd; id; umask; hostname; env | sort; cat /etc/hosts | tail -n 1 | cut -f 2
mount | grep -e ' / ' -e /dev/shm | cut -d ' ' -f 1-5; ls /
echo to stderr >&2
nc -l -p {PORT} -e cat
exit 7
"""


@pytest.fixture(scope="module")
def disk(context: RunContext) -> SystemDisk:
    """The system disk; fetched and made where this cache has none."""
    with DistroBackend(context) as backend:
        found = backend.make(lambda what, fraction: None)
    if not found.usable:
        pytest.skip(f"{found.reason}; {found.remedy}")
    return system_disk(agent_path())


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run with a bridge."""
    with faults.nothing_left(), open_run(tmp_path_factory.mktemp("run"), network=True) as made:
        yield made


def work(context: RunContext, number: int, image: Image) -> InstanceSpec:
    """The same work for each arm: as another user, in another folder, serving one connection."""
    assert context.network is not None
    return InstanceSpec(
        context.instance(number),
        image,
        ("sh", "-c", SCRIPT),
        env=(("PATH", "/bin:/sbin"), ("ODD", "a=b c")),
        workdir="/tmp",
        ids=Ids(1000, 1000, (5,)),
        hostname="named",
        limits=Limits(memory_bytes=256 * MIB, memory_basis=MemoryBasis.NOMINAL, pids=50),
        security=Security.SAME,
        network=NetworkMode.BRIDGE,
        address=context.network.address(number),
        listen_port=PORT,
        receipt=ReceiptLevel.DIGEST,
        cpu_set=(0,),
    )


@dataclasses.dataclass
class Seen:
    """What one arm showed of the work."""

    instance: Instance
    answer: bytes
    final: dict[str, float]
    receipt: dict[str, object]


def seen(arm: str, context: RunContext, spec: InstanceSpec) -> Seen:
    """One instance of an arm, from its request until nothing of it is left."""
    (chosen,) = arms.resolve([arm])
    deadline_ns = time.monotonic_ns() + int(BOOT_S * 1e9)
    with registry.make(chosen, context) as backend:
        backend.prepare(spec)
        with backend.launch(spec) as instance:
            assert instance.wait(Event.LISTENING, deadline_ns)
            with socket.create_connection((instance.connect_host, PORT), 5) as wire:
                wire.sendall(b"through the bridge\n")
                answer = wire.recv(100)
            assert settled_neighbour(instance.connect_host), "the host has to ask by ARP"
            instance.synchronise()
            assert instance.wait(Event.EXITED, deadline_ns)
            receipt = dict(instance.receipt)
            final = instance.release()
            assert instance.wait_network_released(time.monotonic_ns() + 5_000_000_000)
    return Seen(instance, answer, final, receipt)


@pytest.fixture(scope="module")
def booted(context: RunContext, disk: SystemDisk, busybox: Image) -> Seen:
    """The one boot that the tests below look at."""
    before = hashlib.sha256(disk.path.read_bytes()).hexdigest()
    result = seen("vm:distro", context, work(context, 1, busybox))
    assert hashlib.sha256(disk.path.read_bytes()).hexdigest() == before, "the guest wrote to it"
    return result


@pytest.fixture(scope="module")
def contained(context: RunContext, busybox: Image) -> Seen:
    """The same work in a container."""
    return seen("container", context, work(context, 2, busybox))


def test_the_same_output_and_exit_as_in_a_container(booted: Seen, contained: Seen) -> None:
    """User, folder, environment, names, root file system, streams, status; and the port answers."""
    assert b"uid=1000" in booted.instance.stdout and b"ODD=a=b c" in booted.instance.stdout
    assert booted.instance.stdout == contained.instance.stdout
    assert booted.instance.stderr == contained.instance.stderr == b"to stderr\n"
    assert booted.instance.exit is not None and booted.instance.exit.code == 7
    assert booted.answer == contained.answer == b"through the bridge\n"


def test_only_declared_differences(booted: Seen, contained: Seen) -> None:
    """No field of its receipt that must match differs from a container's."""
    assert booted.receipt.keys() >= {"arg", "env", "rlimit", "program_inode", "seccomp", "thp"}
    found = differences(booted.receipt, contained.receipt, ("vm:distro", "container"), "same",
                        emulated=True)  # fmt: skip
    assert [item for item in found if item.field_class is FieldClass.MUST_MATCH] == []


def test_it_booted_as_a_distribution_does(booted: Seen, disk: SystemDisk) -> None:
    """The loader's command line, the disk's kernel, and an init that is not our agent."""
    line = str(booted.receipt["cmdline"])
    assert "BOOT_IMAGE=/boot/vmlinuz-" in line and "rdinit" not in line
    assert booted.receipt["release"] == disk.release
    said = booted.instance.describe()
    assert said["system_disk"] == disk.digest and said["kernel"] == disk.source
    assert "<kernel>" not in str(said["domain_xml"]) and "qcow2" in str(said["domain_xml"])


def test_its_timeline_and_its_account_are_whole(booted: Seen) -> None:
    """Firmware and loader lie before `kernel`, systemd before `init`; all CPU time is counted."""
    marks = booted.instance.timeline.marks_ns
    wanted = [Event.REQUESTED, Event.ACCEPTED, Event.SPAWNED, Event.KERNEL, Event.INIT,
              Event.STARTED, Event.LISTENING, Event.EXITED, Event.RELEASED]  # fmt: skip
    stamps = [marks[event] for event in wanted]
    assert stamps == sorted(stamps)
    final = booted.final
    assert final["cgroup_cpu_s"] > 1.0
    assert abs(final["rusage_user_s"] + final["rusage_system_s"] - final["cgroup_cpu_s"]) < 0.2


def test_nothing_is_left(booted: Seen, context: RunContext) -> None:
    """Neither process, group, tap nor the file of its changes."""
    assert list(context.runtime_dir.glob("vm-*")) == []
    address = booted.instance.spec.address
    assert address is not None and not Path(f"/sys/class/net/{address.link}").exists()


def test_a_harness_killed_leaves_nothing(disk: SystemDisk) -> None:
    """SIGKILL while firmware is at work."""
    before = faults.traces()
    one = faults.Harness("run", "--arm", "vm:distro", "busybox", "--", "sleep", "300")
    one.until(lambda: any("/qemu-system" in line for line in one.processes().values()))
    one.kill()
    one.end()
    assert faults.await_gone(before) == []


MAKE = """
import sys
from pathlib import Path
from hv.system_disk import system_disk
found = system_disk(Path(sys.argv[1]))
print(found.digest, found.path)
"""


def test_another_agent_needs_no_network(disk: SystemDisk, tmp_path: Path) -> None:
    """Two at once, cut off from any network, get one sound disk with that agent in it."""
    agent = tmp_path / "agent"
    shutil.copy(agent_path(), agent)
    with agent.open("ab") as file:
        file.write(os.urandom(64))
    argv = ["unshare", "--net", sys.executable, "-c", MAKE, str(agent)]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    digest, path = said[0].split()
    made = Path(path)
    try:
        assert digest != disk.digest and made.parent == disk.path.parent
        inside = f"{made}?offset={FIRST_SECTOR * 512}"
        run(["e2fsck", "-f", "-n", inside])
        shown = run(["partx", "--noheadings", "--raw", "-o", "START,SECTORS,TYPE", made])
        first, size, kind = shown.split()
        assert int(first) == FIRST_SECTOR and kind == b"0x83"
        assert (int(first) + int(size)) * 512 == made.stat().st_size
    finally:
        made.unlink()


def test_room_is_made_by_age_and_what_is_held_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk used longest ago goes first; one in use does not; a note goes with its disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_dir("system")
    names = ("held.raw", "old.base", "older.raw", "new.raw")
    held, base, older, new = (folder / name for name in names)
    note = base.with_suffix(".json")
    note.write_text("{}")
    for path in (held, base, older, new):
        path.write_bytes(b"x" * MIB)
    descriptor = hold(held)
    assert descriptor is not None
    for age, path in enumerate((held, older, base, new)):
        os.utime(path, (1000 + age, 1000 + age))
    assert make_room(4 * MIB) == []
    assert make_room(2 * MIB) == [older, base]
    assert sorted(folder.iterdir()) == [held, new], "the note speaks of nothing that is there"
    os.close(descriptor)
    assert make_room(MIB) == [held]


def test_an_open_backend_keeps_its_disk(context: RunContext, disk: SystemDisk) -> None:
    """Whoever makes room meanwhile leaves it; that it was used is seen by its time."""
    os.utime(disk.path, (1, 1))
    with DistroBackend(context) as backend:
        assert backend.disk == disk and disk.path.stat().st_mtime > 1
        with disk.path.open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_agent_ends_no_machine_that_is_not_its_own(tmp_path: Path) -> None:
    """Started by hand as a guest's service, it finds no channel and only ends."""
    # In a namespace, whose end is all that an attempt to power off would bring about.
    script = f"{agent_path()} --port; echo $? > {tmp_path / 'status'}"
    before = Path("/proc/self/mountinfo").read_bytes()
    run(["unshare", "--pid", "--fork", "--mount", "sh", "-c", script], timeout_s=60)
    assert (tmp_path / "status").read_text() == "1\n"
    assert Path("/proc/self/mountinfo").read_bytes() == before


def test_what_is_missing_is_named(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its programs the arm is unusable, and their packages are named; never an error."""
    (tmp_path / "mmdebstrap").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    with DistroBackend(context) as backend:
        found = backend.probe()
    assert not found.usable
    assert found.reason == "not installed: debugfs, mkfs.ext4, qemu-img"
    assert "e2fsprogs qemu-utils" in found.remedy


OFFLINE = """
import sys
from pathlib import Path
from bench.journal import open_run
from hv.distro import DistroBackend
with open_run(Path(sys.argv[1])) as run, DistroBackend(run) as backend:
    found = backend.make(lambda what, fraction: None)
    print(found.usable, found.reason, found.remedy)
"""


def test_a_build_without_a_network_is_no_error(tmp_path: Path) -> None:
    """Where nothing is in the cache and no package is to be had, the arm says so."""
    argv = ["unshare", "--net", sys.executable, "-c", OFFLINE, str(tmp_path)]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("False the system disk of vm:distro could not be built: ")
    assert "apt-get update" in done.stdout
    assert not list((tmp_path / "cache").rglob("*.base"))


def test_what_it_cannot_honour_is_refused(context: RunContext, busybox: Image) -> None:
    """Another kernel, other modules, less memory than its initramfs unpacks in."""
    spec = work(context, 3, busybox)
    small = Limits(memory_bytes=128 * MIB, memory_basis=MemoryBasis.NOMINAL)
    cases: list[tuple[RunContext, InstanceSpec, str]] = [
        (dataclasses.replace(context, kernel=Path("/vmlinuz")), spec, "kernel"),
        (context, dataclasses.replace(spec, extra_modules=("dummy",)), "modules"),
        (context, dataclasses.replace(spec, limits=small), "128 MiB"),
    ]
    for where, wanted, word in cases:
        with DistroBackend(where) as backend, pytest.raises(Refused, match=word) as caught:
            backend.launch(wanted)
        assert isinstance(caught.value, HvctError) and caught.value.hint
