"""The guest's disks: the image read-only, and a scratch disk made afresh for each instance."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bench.cache import cache_dir
from bench.command import run
from bench.errors import oserror
from bench.model import InstanceSpec
from hv.domain import Disk

ROOT_TARGET = "vda"
SCRATCH_TARGET = "vdb"


def image_disk(spec: InstanceSpec, *, direct: bool) -> Disk:
    """The image as every arm has it; through the host's page cache unless `direct`."""
    return Disk(ROOT_TARGET, spec.image.path, True, "none" if direct else "writeback")


@contextlib.contextmanager
def scratch_disk(spec: InstanceSpec) -> Iterator[tuple[Disk, ...]]:
    """A fully written backing file with ext4 in it, read and written past the page cache.

    In the cache's file system, since O_DIRECT works on no tmpfs. Removed afterwards.
    """
    if not spec.limits.scratch_bytes:
        yield ()
        return
    path = cache_dir("scratch") / spec.id
    try:
        _write_all(path, spec.limits.scratch_bytes)
        run(
            ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", path],
            hint="install the package e2fsprogs",
        )
        yield (Disk(SCRATCH_TARGET, path, False, "none"),)
    finally:
        path.unlink(missing_ok=True)


def guest_keys(spec: InstanceSpec) -> list[tuple[str, str]]:
    """What the agent mounts, and how large the writable parts are."""
    limits = spec.limits
    keys = [
        ("guest.root", f"/dev/{ROOT_TARGET}"),
        ("guest.writable_bytes", str(limits.writable_bytes)),
        ("guest.writable_inodes", str(limits.writable_inodes)),
        ("guest.shm_bytes", str(limits.shm_bytes)),
        ("guest.pids", str(limits.pids)),
    ]
    thp = host_thp()
    if thp:
        keys.append(("guest.thp", thp))
    if limits.scratch_bytes:
        keys.append(("guest.scratch", f"/dev/{SCRATCH_TARGET}"))
    return keys


def host_thp() -> str:
    """The host's mode of transparent huge pages, which the guest is to have too; "" unknown."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]


def _write_all(path: Path, size_bytes: int) -> None:
    """Allocated and written, so that no measured write has to find its blocks first."""
    block = bytes(1 << 20)
    try:
        with path.open("wb") as file:
            for start in range(0, size_bytes, len(block)):
                file.write(block[: size_bytes - start])
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise oserror("write", path, error) from error
