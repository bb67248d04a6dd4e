"""Options of the vm arm do what their names say: --kernel, direct, balloon, hostkernel."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import signal
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faults
import pytest

from bench import registry
from bench.arms import resolve
from bench.backend import Backend, Instance
from bench.context import RunContext
from bench.errors import HostCannot, LaunchFailed
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec, OutputMode
from bench.pagecache import drop, resident_fraction
from hv.balloon import MARGIN_BYTES, keep_bytes
from hv.instance import VmInstance
from hv.kernel import GuestKernel, guest_kernel, own_kernel, packed_kernel

pytestmark = [pytest.mark.root, pytest.mark.vm]
LIMIT_NS = 90_000_000_000
MIB = 1 << 20


@pytest.fixture(scope="module")
def kernel() -> GuestKernel:
    """The distribution's kernel."""
    try:
        return guest_kernel()
    except HostCannot as error:
        pytest.skip(f"{error.message}; {error.hint}")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run without a network."""
    with faults.nothing_left(), open_run(tmp_path_factory.mktemp("a run")) as run:
        yield run


@contextmanager
def ended(
    arm: str, context: RunContext, number: int, image: Image, *argv: str
) -> Iterator[Instance]:
    """An instance of the arm of this name, when its workload has ended well."""
    (chosen,) = resolve([arm])
    with registry.make(chosen, context) as backend:
        found = backend.probe()
        if not found.usable:
            pytest.skip(f"{found.reason}; {found.remedy}")
        spec = InstanceSpec(
            context.instance(number), image, argv, env=(("PATH", "/bin:/sbin:/usr/bin"),)
        )
        backend.prepare(spec)
        with backend.launch(spec) as instance:
            assert instance.wait(Event.EXITED, time.monotonic_ns() + LIMIT_NS)
            assert instance.exit is not None and instance.exit.code == 0, instance.stderr
            yield instance


def test_a_kernel_given_by_its_path_is_the_guests(
    context: RunContext, kernel: GuestKernel, busybox: Image, tmp_path: Path
) -> None:
    """As distributions ship it (a bzImage), with its modules beside it and nowhere else."""
    chosen = tmp_path / "vmlinuz-mine"
    shutil.copy(packed_kernel(kernel), chosen)
    assert kernel.modules is not None
    (tmp_path / kernel.release).symlink_to(kernel.modules)
    found = guest_kernel(chosen)
    assert found.modules == tmp_path / kernel.release
    mine = dataclasses.replace(context, kernel=chosen)
    with ended("vm", mine, 1, busybox, "uname", "-r") as instance:
        assert instance.stdout.decode().strip() == kernel.release
        said = instance.describe()
        assert said["kernel"] == str(chosen)
        booted = ET.fromstring(str(said["domain_xml"])).findtext("os/kernel")
        assert booted == str(found.boot) != str(kernel.boot)


@pytest.mark.parametrize("arm", ["vm", "vm:direct"])
def test_vm_direct_reads_its_image_past_the_page_cache(
    context: RunContext, busybox: Image, tmp_path: Path, arm: str
) -> None:
    """Nothing of the image file is in the host's memory afterwards; of the arm vm's it is."""
    own = dataclasses.replace(busybox, path=tmp_path / "image.erofs")
    shutil.copy(busybox.path, own.path)
    assert drop(own.path) == 0.0
    number = 2 + (arm == "vm")
    with ended(arm, context, number, own, "sha256sum", "/bin/busybox") as instance:
        assert instance.stdout.endswith(b"/bin/busybox\n")
        assert instance.describe()["image_cache"] == ("none" if arm == "vm:direct" else "writeback")
        assert (resident_fraction(own.path) > 0.5) == (arm == "vm")


PEAKS = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def peak(mib):
    block = bytearray(mib << 20)
    block[::4096] = b"x" * (mib << 8)
peak(64); print("one", flush=True)
signal.sigwait([signal.SIGUSR1])
peak(200); print("two", flush=True)
"""
"""The second peak is larger than what an inflated balloon leaves."""


@pytest.fixture(scope="module")
def ballooned(context: RunContext) -> Iterator[Backend]:
    """The arm vm:balloon."""
    (chosen,) = resolve(["vm:balloon"])
    with registry.make(chosen, context) as backend:
        if not (found := backend.probe()).usable:
            pytest.skip(f"{found.reason}; {found.remedy}")
        yield backend


def said(instance: Instance, word: bytes) -> None:
    """Wait until the workload has said a word."""
    deadline_ns = time.monotonic_ns() + LIMIT_NS
    while word not in instance.stdout:
        instance.pump(0.1)
        assert instance.exit is None or word in instance.stdout, (instance.exit, instance.console())
        assert time.monotonic_ns() < deadline_ns


def charged(instance: Instance) -> int:
    """What the host's memory holds of it."""
    found = instance.memory()
    assert found is not None and found.anon_bytes is not None
    return found.anon_bytes


@pytest.mark.parametrize("announced", [True, False])
def test_a_balloon_takes_a_freed_peak_and_leaves_the_next_one_room(
    context: RunContext, ballooned: Backend, default_image: Image, announced: bool
) -> None:
    """Inflated, the host has the memory back; deflated, by host or guest, the workload goes on."""
    spec = InstanceSpec(
        context.instance(40 + announced),
        default_image,
        ("python3", "-I", "-S", "-c", PEAKS),
        env=(("PATH", "/bin:/sbin:/usr/bin"),),
        output=OutputMode.STREAM,
    )
    ballooned.prepare(spec)
    with ballooned.launch(spec) as instance:
        assert isinstance(instance, VmInstance)
        said(instance, b"one")
        full = charged(instance)
        done = instance.give_back()
        assert (
            done["left_bytes"]
            == done["asked_bytes"]
            == keep_bytes(int(done["had_bytes"]), int(done["available_bytes"]))
        )
        assert charged(instance) <= full - 40 * MIB
        small = int(done["left_bytes"])
        if announced:
            assert instance.deflate() == done["had_bytes"]
        instance.signal(signal.SIGUSR1)
        assert instance.wait(Event.EXITED, time.monotonic_ns() + LIMIT_NS)
        assert instance.exit is not None and instance.exit.code == 0, instance.console()
        assert instance.stdout.split() == [b"one", b"two"] and instance.oom_kills() == 0
        has, _ = instance.link.guest_memory(time.monotonic_ns() + LIMIT_NS)
        if announced:
            assert has == done["had_bytes"]
        else:
            assert small < has < done["had_bytes"], "it took what it needed, and no more"
        assert charged(instance) >= full


def test_a_guest_without_a_balloon_has_nothing_to_inflate(
    context: RunContext, busybox: Image
) -> None:
    """Of the arm vm the host takes nothing; asked all the same, libvirt says why not."""
    with ended("vm", context, 4, busybox, "true") as instance:
        assert isinstance(instance, VmInstance) and instance.give_back() == {}
        with pytest.raises(LaunchFailed, match=r"keeps its memory: .*balloon"):
            instance.deflate()


def test_what_a_balloon_leaves() -> None:
    """What the guest uses and the margin, in whole KiB; of one that is short nothing is taken."""
    has = 600 * MIB
    assert keep_bytes(has, 500 * MIB) == 100 * MIB + MARGIN_BYTES
    assert keep_bytes(has, 500 * MIB + 5) % 1024 == 0
    assert keep_bytes(has, MARGIN_BYTES) == keep_bytes(has, 0) == has


def test_vm_hostkernel_boots_the_hosts_or_says_why_not(context: RunContext, busybox: Image) -> None:
    """Where the running kernel's file is not to be had, the arm is refused with its name."""
    (chosen,) = resolve(["vm:hostkernel"])
    try:
        own_kernel()
    except HostCannot:
        with registry.make(chosen, context) as backend:
            found = backend.probe()
        assert not found.usable
        assert f"({platform.release()}) is not in /boot or /lib/modules" in found.reason
        assert "--kernel PATH" in found.remedy
        return
    with ended(chosen.name, context, 5, busybox, "uname", "-r") as instance:
        assert instance.stdout.decode().strip() == platform.release()
