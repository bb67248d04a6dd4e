"""The file behind an instance's scratch disk: made afresh for each trial, the same for every arm.

Fully written, so that no measured write has to find its blocks first; with one file system,
whose block is the sector of the disk; and out of the page cache when the trial begins, since
every arm reads and writes it past that (O_DIRECT). How the file becomes a disk is the arm's
own (``hv/rootfs.py``: virtio-blk; ``ct/scratch.py``: a loop device), and a declared difference.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from bench.cache import cache_dir
from bench.command import run
from bench.errors import BadInput, oserror
from bench.model import InstanceSpec

SECTOR_BYTES = 4096
"""Of the disk, as the instance's kernel sees it; what direct I/O needs on any file system."""
LEAST_BYTES = 16 << 20  # below that mke2fs makes no journal
FOLDER = "scratch"
_UUID = "68766374-0000-4000-8000-736372617463"
"""Fixed, as is the seed of the directories' hashes: the same disk for every instance."""


def check(size_bytes: int) -> None:
    """Refuse a disk that could not hold the file system.

    Raises:
        BadInput: it is too small.
    """
    if 0 < size_bytes < LEAST_BYTES:
        raise BadInput(
            f"a scratch disk of {size_bytes} bytes is too small",
            f"use at least {LEAST_BYTES >> 20} MiB",
        )


@contextlib.contextmanager
def backing_file(spec: InstanceSpec) -> Iterator[Path | None]:
    """The file of an instance's scratch disk, removed afterwards; None where it has none.

    In the cache's file system, since O_DIRECT works on no tmpfs. Its maker holds a lock on
    it, by which a file that a killed run left is known (`bench.cleanup`).

    Raises:
        HostCannot: no room, or no mke2fs.
    """
    size = spec.limits.scratch_bytes
    if not size:
        yield None
        return
    check(size)
    path = cache_dir(FOLDER) / spec.id
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise oserror("open", path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _write_all(descriptor, path, size)
        _make_file_system(path, spec)
        _leave_cache(descriptor, path)
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _write_all(descriptor: int, path: Path, size_bytes: int) -> None:
    block = memoryview(bytes(1 << 20))
    try:
        written = 0
        while written < size_bytes:
            written += os.write(descriptor, block[: size_bytes - written])
    except OSError as error:
        raise oserror("write", path, error) from error


def _make_file_system(path: Path, spec: InstanceSpec) -> None:
    """ext4, without anything left to be initialised later, owned by the workload's user."""
    extended = (
        f"nodiscard,lazy_itable_init=0,lazy_journal_init=0,hash_seed={_UUID},"
        f"root_owner={spec.ids.uid}:{spec.ids.gid}"
    )
    run(
        ["mkfs.ext4", "-q", "-F", "-b", str(SECTOR_BYTES), "-U", _UUID, "-E", extended, path],
        hint="install the package e2fsprogs",
    )


def _leave_cache(descriptor: int, path: Path) -> None:
    """On disk, and none of it in the page cache, where direct I/O would have to look for it."""
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise oserror("fsync", path, error) from error


def files(folder: Path) -> list[tuple[str, Path]]:
    """The files of scratch disks in a cache: whose each is (its run's tag), and where."""
    try:
        names = sorted(os.listdir(folder / FOLDER))
    except OSError:
        return []
    return [(name.partition("-")[0], folder / FOLDER / name) for name in names]


def of_run(tag: str, cache: str = "") -> list[Path]:
    """The files of a run's scratch disks, in the cache it used ("": ours)."""
    folder = Path(cache) if cache else cache_dir()
    return [path for owner, path in files(folder) if owner == tag]


def abandoned(path: Path) -> bool:
    """Whether the process that made this file is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
