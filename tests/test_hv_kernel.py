"""The guest's kernel: found, unpacked, and its modules in an order that loads."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from bench.agent.build import agent_path
from bench.errors import BadInput, HostCannot
from hv import vmlinux
from hv.initramfs import CHANNEL_MODULES, DISK_MODULES, NETWORK_MODULES, cpio, initramfs
from hv.kernel import GuestKernel, guest_kernel, module_closure, own_kernel

ELF = b"\x7fELF\x02\x01" + bytes(10) + b"Linux version 6.1.0-test (who) #1 " + bytes(4000)


def bzimage(payload: bytes, setup_sectors: int = 4, gap: int = 0x100) -> bytes:
    """A file with the boot header of a bzImage around a payload (boot protocol 2.15)."""
    image = bytearray((setup_sectors + 1) * 512 + gap)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<HH", image, 0x206, 0x20F, 0)
    struct.pack_into("<H", image, 0x20E, 0x300 - 0x200)
    image[0x300:0x312] = b"6.1.0-test (who) #"
    struct.pack_into("<II", image, 0x248, gap, len(payload))
    return bytes(image) + payload + b"\x02\x21\x4c\x18 a false magic behind it"


def sized(data: bytes) -> bytes:
    """The unpacked size behind a payload, as the kernel's build appends it."""
    return data + struct.pack("<I", len(ELF))


def packed_by(program: str, *options: str) -> bytes:
    """The payload as a program packs it."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run(
        [program, *options, "-c"], input=ELF, capture_output=True, check=True
    ).stdout


@pytest.mark.parametrize("name", ["gzip", "xz", "lzma", "lz4", "zstd"])
def test_every_compression_is_unpacked(name: str) -> None:
    """The ELF comes out whole, found by the header and not by its magic number."""
    payload = {
        "gzip": lambda: gzip.compress(ELF),
        "xz": lambda: sized(lzma.compress(ELF, check=lzma.CHECK_CRC32)),
        "lzma": lambda: sized(lzma.compress(ELF, format=lzma.FORMAT_ALONE)),
        "lz4": lambda: sized(packed_by("lz4", "-l", "-9")),
        "zstd": lambda: sized(packed_by("zstd", "-q")),
    }[name]()
    image = bzimage(payload)
    assert vmlinux.unpack(image) == ELF
    assert vmlinux.release(image) == "6.1.0-test"
    assert vmlinux.release(ELF) == "6.1.0-test"


@pytest.mark.parametrize(
    "data", [b"", b"#!/bin/sh\n" * 200, bzimage(b"nothing known")[:-40], bzimage(b"X" * 64)]
)
def test_what_is_no_kernel_is_said(data: bytes, tmp_path: Path) -> None:
    """A file that is no kernel, is cut off, or packed in an unknown way: bad input."""
    path = tmp_path / "kernel"
    path.write_bytes(data)
    with pytest.raises(BadInput) as caught:
        guest_kernel(path)
    assert caught.value.hint
    with pytest.raises(BadInput):
        guest_kernel(tmp_path / "missing")


@pytest.fixture(scope="module")
def kernel() -> GuestKernel:
    """The distribution's kernel, from the cache or fetched into it."""
    try:
        return guest_kernel()
    except HostCannot as error:
        pytest.skip(f"{error.message}; {error.hint}")


def test_distribution_kernel_is_ready(kernel: GuestKernel) -> None:
    """It is an ELF that QEMU can enter, with its modules; asking again changes nothing."""
    data = kernel.boot.read_bytes()
    assert vmlinux.is_elf(data) and vmlinux.boots_directly(data)
    assert vmlinux.release(data) == kernel.release
    assert kernel.modules is not None and kernel.modules.name == kernel.release
    assert guest_kernel() == kernel


def another_distribution(kernel: GuestKernel, root: Path, name: str) -> None:
    """A root that holds the kernel as another distribution installs it."""
    assert kernel.modules is not None
    modules = root / "lib/modules" / kernel.release
    shutil.copytree(kernel.modules, modules, copy_function=os.symlink)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(kernel.boot)


@pytest.mark.parametrize(
    "name", ["boot/vmlinuz-{}", "lib/modules/{}/vmlinuz", "boot/vmlinuz-linux"]
)
def test_where_there_is_no_apt_guests_run_the_hosts_kernel(
    kernel: GuestKernel, name: str, tmp_path: Path
) -> None:
    """Found where Fedora and Arch Linux keep it, with the host's modules; said in its source."""
    another_distribution(kernel, tmp_path, name.format(kernel.release))
    found = own_kernel(tmp_path, kernel.release)
    assert (found.release, found.digest) == (kernel.release, kernel.digest)
    assert found.source == f"this host's own kernel ({kernel.release})"
    modules = module_closure(found.modules, (*CHANNEL_MODULES, *DISK_MODULES))
    assert all(path.is_relative_to(tmp_path) for path in modules)


def test_a_kernel_of_another_release_is_not_taken(kernel: GuestKernel, tmp_path: Path) -> None:
    """A file without a release in its name must be the kernel that runs; else --kernel is named."""
    another_distribution(kernel, tmp_path, "boot/vmlinuz-linux")
    (tmp_path / "lib/modules/9.9.9-arch1").mkdir(parents=True)
    with pytest.raises(HostCannot, match=r"9\.9\.9-arch1") as caught:
        own_kernel(tmp_path, "9.9.9-arch1")
    assert "--kernel" in caught.value.hint


def test_modules_come_after_what_they_need(kernel: GuestKernel) -> None:
    """Each module once, after its dependencies, what is built in left out."""
    wanted = (*CHANNEL_MODULES, *DISK_MODULES, *NETWORK_MODULES)
    names = [path.name.split(".ko")[0] for path in module_closure(kernel.modules, wanted)]
    assert len(names) == len(set(names))
    pairs = [("virtio_ring", "virtio"), ("virtio", "virtio_pci")]
    pairs += [("failover", "net_failover"), ("net_failover", "virtio_net")]
    for first, second in pairs:
        if first in names and second in names:
            assert names.index(first) < names.index(second)
    assert module_closure(kernel.modules, ("ext4",)) == [] or "ext4" in names
    with pytest.raises(BadInput, match="no module nonesuch"):
        module_closure(kernel.modules, ("nonesuch",))


def test_initramfs_is_deterministic(
    kernel: GuestKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes from another cache; groups of modules do not overlap."""
    agent = agent_path()
    first = initramfs(kernel, agent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    second = initramfs(kernel, agent)
    assert first.path != second.path and first.digest == second.digest
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.modules("disk")[-1] == "overlay.ko"
    assert set(first.modules("disk")).isdisjoint(first.modules("network"))
    more = initramfs(kernel, agent, ("loop",))
    assert more.digest != first.digest and more.modules("extra") == ["loop.ko"]


@pytest.mark.root
def test_cpio_is_read_by_cpio(tmp_path: Path) -> None:
    """Files, folders, modes and a device node as the standard program unpacks them."""
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    data = cpio(
        [
            ("dev", 0o40755, b"", 0),
            ("dev/console", 0o20600, b"", 0x501),
            ("init", 0o100755, b"program", 0),
        ]
    )
    listed = subprocess.run(
        ["cpio", "-itv", "--quiet"], input=data, capture_output=True, check=True
    ).stdout.decode()
    lines = listed.splitlines()
    assert lines[0].startswith("drwxr-xr-x") and lines[0].endswith("dev")
    assert lines[1].startswith("crw-------") and "5,   1" in lines[1]
    assert lines[2].startswith("-rwxr-xr-x") and " 7 " in lines[2]
    assert io.BytesIO(data).read(6) == b"070701"
