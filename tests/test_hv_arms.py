"""Options of the vm arm do what their names say: --kernel, direct, balloon, hostkernel."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faults
import pytest

from bench import registry
from bench.arms import resolve
from bench.backend import Instance
from bench.context import RunContext
from bench.errors import HostCannot
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec
from bench.pagecache import drop, resident_fraction
from hv.kernel import GuestKernel, guest_kernel, own_kernel, packed_kernel

pytestmark = [pytest.mark.root, pytest.mark.vm]
LIMIT_NS = 90_000_000_000


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


def test_vm_balloon_has_a_balloon(context: RunContext, busybox: Image) -> None:
    """The guest's driver has taken hold of the device."""
    script = "ls /sys/bus/virtio/drivers/virtio_balloon"
    with ended("vm:balloon", context, 4, busybox, "sh", "-c", script) as instance:
        assert b"virtio" in instance.stdout
        device = ET.fromstring(str(instance.describe()["domain_xml"])).find("devices/memballoon")
        assert device is not None and device.get("model") == "virtio"


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
