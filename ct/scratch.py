"""An instance's scratch disk: a loop device with direct I/O on the run's backing file.

Attached by the harness rather than the launcher, so that the device's own counters can be
read until the end: a loop device detaches itself with its last user (AUTOCLEAR), and one
of them is the descriptor that is held here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import HostCannot, HvctError, oserror
from bench.model import DiskUsage
from bench.scratch import SECTOR_BYTES
from ct import steps
from ct.steps import MS_NOATIME, MS_NODEV, Steps

# linux/loop.h
LOOP_CONFIGURE, LOOP_CTL_GET_FREE = 0x4C0A, 0x4C82
LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO = 4, 16
_FLAGS_AT = 60  # of struct loop_config
_CONFIG_BYTES = 304
_ATTEMPTS = 32  # somebody else may take the device that was free just now
_DETACH_LIMIT_S = 10.0
_COUNTER_BYTES = 512  # a sector in the kernel's statistics, whatever the device's own


@dataclass(frozen=True)
class LoopDisk:
    """A loop device that is attached to a backing file.

    Attributes:
        before: its counters then: they go on from whoever had the device last.
    """

    number: int
    before: DiskUsage

    @property
    def node(self) -> str:
        """Its device node, relative to the host's root."""
        return f"dev/loop{self.number}"

    @property
    def description(self) -> str:
        """How it was made, for the run; a device without direct I/O was refused."""
        return f"loop device, direct I/O, sectors of {SECTOR_BYTES}"

    def usage(self) -> DiskUsage:
        """What has reached the backing file since it was attached."""
        now, before = _counters(self.number), self.before
        return DiskUsage(
            flushes=now.flushes - before.flushes,
            written_bytes=now.written_bytes - before.written_bytes,
            read_bytes=now.read_bytes - before.read_bytes,
        )


@contextlib.contextmanager
def attached(file: Path) -> Iterator[LoopDisk]:
    """Attach a free loop device to a file, and wait until it is free again at the end.

    Raises:
        HostCannot: there are no loop devices, or none does direct I/O on this file.
        HvctError: it is still in use at the end.
    """
    try:
        backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise oserror("open", file, error) from error
    try:
        number, device = _configure(backing)
    finally:
        os.close(backing)
    try:
        # Read back: the kernel may have attached it through the page cache all the same.
        if _sys(number, "loop/dio").read_text().strip() != "1":
            raise HostCannot(
                f"loop{number} does no direct I/O on {file}",
                "put the cache on a file system that can (XDG_CACHE_HOME)",
            )
        yield LoopDisk(number, _counters(number))
    finally:
        os.close(device)
        _await_detached(number, file)


def scratch_steps(disk: LoopDisk) -> Steps:
    """Mount it at /scratch: after the pivot, when a relative path is the host's."""
    return Steps(
        (
            steps.mkdir("/scratch"),
            # As a guest mounts it; device nodes work nowhere but in /dev.
            steps.mount(disk.node, "/scratch", "ext4", MS_NOATIME | MS_NODEV),
        )
    )


def _configure(backing: int) -> tuple[int, int]:
    """LOOP_CONFIGURE a free device; its number, and a descriptor that keeps it."""
    flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO
    config = bytearray(_CONFIG_BYTES)
    struct.pack_into("=II", config, 0, backing, SECTOR_BYTES)
    struct.pack_into("=I", config, _FLAGS_AT, flags)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _no_loop(error) from error
    try:
        for _ in range(_ATTEMPTS):
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, bytes(config))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
                continue
            return number, device
    except OSError as error:
        raise _no_loop(error) from error
    finally:
        os.close(control)
    raise HostCannot("no loop device is free", "look at losetup -a")


def _counters(number: int) -> DiskUsage:
    fields = _sys(number, "stat").read_text().split()
    return DiskUsage(
        flushes=int(fields[15]),
        written_bytes=int(fields[6]) * _COUNTER_BYTES,
        read_bytes=int(fields[2]) * _COUNTER_BYTES,
    )


def _no_loop(error: OSError) -> HostCannot:
    return HostCannot(
        f"no loop device for a scratch disk: {error.strerror}",
        "modprobe loop; in a container, allow it loop devices",
    )


def _await_detached(number: int, file: Path) -> None:
    """An instance's mounts are gone with its last process, or a moment later."""
    deadline = time.monotonic() + _DETACH_LIMIT_S
    while _backing(number) in (str(file), f"{file} (deleted)"):
        if time.monotonic() > deadline:
            raise HvctError(
                f"loop{number} with {file.name} is still in use after {_DETACH_LIMIT_S:.0f} s",
                "run hvct clean",
            )
        time.sleep(0.0005)


def _backing(number: int) -> str:
    try:
        return _sys(number, "loop/backing_file").read_text().rstrip("\n")
    except OSError:
        return ""


def _sys(number: int, name: str) -> Path:
    return Path(f"/sys/block/loop{number}/{name}")
