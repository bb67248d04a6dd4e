"""The host's loop devices: which files they show, and how one is let go."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

LOOP_CLR_FD = 0x4C01  # linux/loop.h


def in_use() -> Iterator[tuple[Path, Path]]:
    """Every device in use, with the file behind it."""
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            backing = entry.read_text().rstrip("\n").removesuffix(" (deleted)")
            yield Path("/dev") / entry.parent.parent.name, Path(backing)


def detach(device: Path) -> None:
    """Let it go; one that is still mounted goes with its last user (the autoclear flag)."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):  # detached meanwhile
            fcntl.ioctl(descriptor, LOOP_CLR_FD)
    finally:
        os.close(descriptor)
