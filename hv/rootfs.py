"""The guest's disks: the image read-only, and a scratch disk made afresh for each instance.

A guest that boots from a disk of its own has that as the third.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench import scratch
from bench.model import InstanceSpec
from hv.domain import Disk

ROOT_TARGET = "vda"
SCRATCH_TARGET = "vdb"
SYSTEM_TARGET = "vdc"  # of a guest that firmware boots
SCRATCH_MODULES = ("ext4",)  # in the initramfs of guests with a scratch disk, and of no other


def image_disk(spec: InstanceSpec, *, direct: bool) -> Disk:
    """The image as every arm has it; through the host's page cache unless `direct`."""
    return Disk(ROOT_TARGET, spec.image.path, True, "none" if direct else "writeback")


@contextlib.contextmanager
def scratch_disk(spec: InstanceSpec) -> Iterator[tuple[Disk, ...]]:
    """The same backing file as in every arm, read and written past the page cache."""
    with scratch.backing_file(spec) as path:
        if path is None:
            yield ()
        else:
            yield (Disk(SCRATCH_TARGET, path, False, "none", scratch.SECTOR_BYTES),)


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
