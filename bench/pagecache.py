"""What of a file is in memory; and reading it in without charging any arm for it.

A page of a file is charged to the control group of whoever touches it first. So images,
kernels and programs are touched by one small process that lives in the run's own group
``hvct/<tag>/shared``: neither the arm that happens to run first nor the harness pays.
(A thread would not do: the kernel charges the group of the whole address space.)

`resident_fraction` only looks: it maps the file and asks mincore(2), which reads nothing
in. It needs root or write permission, else the kernel claims everything resident.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.cgroup import Cgroup
from bench.context import RUN_VARIABLE
from bench.errors import HvctError, Refused, oserror

CHUNK_BYTES = 1 << 30  # mapped at a time: 256 KiB of mincore vector

# Reads each file named on its stdin in full and answers the number of bytes, or "-errno".
TOUCHER = """
import os, sys
buffer = memoryview(bytearray(1 << 20))
for line in sys.stdin.buffer:
    total = 0
    try:
        with open(line[:-1], "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    except OSError as error:
        total = -error.errno
    sys.stdout.write(f"{total}\\n")
    sys.stdout.flush()
"""


class SharedCache:
    """The process in ``hvct/<tag>/shared`` that touches files on behalf of nobody."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.group: Cgroup | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.group = Cgroup.create(self.tag, "shared")
        try:
            # No site packages, nothing imported: 7 MB. It ends with its standard input,
            # so it cannot outlive the harness.
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", TOUCHER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={RUN_VARIABLE: self.tag},
                cwd="/",
                start_new_session=True,  # Ctrl-C is the harness's affair
            )
            self.group.join(self._child.pid)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
        if self.group is not None:
            self.group.remove()

    def warm(self, path: Path) -> int:
        """Read a file in full, charged to the shared group; returns its bytes.

        Raises:
            HvctError: it cannot be read, or the process is gone.
        """
        child, name = self._child, os.fsencode(path.absolute())
        if child is None or child.stdin is None or child.stdout is None or b"\n" in name:
            raise HvctError(f"{path} cannot be read into the page cache")
        try:
            child.stdin.write(name + b"\n")
            child.stdin.flush()
            count = int(child.stdout.readline())
        except (OSError, ValueError) as error:
            raise HvctError(
                "the process that warms the page cache is gone", "somebody may have killed it"
            ) from error
        if count < 0:
            raise oserror("read", path, OSError(-count, ""))
        return count

    def ensure_warm(self, paths: Iterable[Path]) -> float:
        """Read what is not fully resident; returns the resident fraction of all of them after."""
        files = list(paths)
        for path in files:
            if resident_fraction(path) < 1.0:
                self.warm(path)
        return resident_fraction(*files)


def inside(root: Path, name: str) -> Path:
    """The file that `name` is below `root`, symbolic links followed as a process in there would."""
    path, left = root, name.split("/")
    for _ in range(256):
        if not left:
            return path
        part = left.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            path = path if path == root else path.parent
            continue
        step = path / part
        if step.is_symlink():
            target = os.readlink(step)
            left = target.split("/") + left
            path = root if target.startswith("/") else path
        else:
            path = step
    return root


def warm(path: Path) -> int:
    """Read a file in full, charged to the caller's own group; returns its bytes."""
    total, buffer = 0, memoryview(bytearray(1 << 20))
    try:
        with open(path, "rb", buffering=0) as handle:
            while count := handle.readinto(buffer):
                total += count
    except OSError as error:
        raise oserror("read", path, error) from error
    return total


def drop(path: Path) -> float:
    """Drop a file's clean pages from memory; returns the fraction that stayed.

    Pages that are mapped by a running program, or locked, stay.
    """
    descriptor = _open(path)
    try:
        os.fsync(descriptor)  # a dirty page is not dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise oserror("posix_fadvise", path, error) from error
    finally:
        os.close(descriptor)
    return resident_fraction(path)


def make_cold(path: Path) -> float:
    """Drop all of a file's pages from memory; returns the part that stayed, which is 0.

    Raises:
        Refused: some stay.
    """
    stayed = drop(path)
    if stayed > 0.0:
        raise Refused(
            f"{stayed:.1%} of {path.name} stays in the host's memory, so no start is cold",
            "another program may have it mapped; or it lies on tmpfs: set XDG_CACHE_HOME to a disk",
        )
    return stayed


def resident_fraction(*paths: Path) -> float:
    """Which part of the pages of one or several regular files is in memory (1.0 for empty ones).

    Raises:
        HvctError: a file cannot be opened or mapped.
    """
    resident = total = 0
    for path in paths:
        here, pages = resident_pages(path)
        resident, total = resident + here, total + pages
    return resident / total if total else 1.0


def resident_pages(path: Path) -> tuple[int, int]:
    """Pages of a regular file in memory, and all its pages, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                          ctypes.c_int, ctypes.c_long]  # fmt: skip
    descriptor = _open(path)
    resident = total = 0
    try:
        size = os.fstat(descriptor).st_size
        for offset in range(0, size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, size - offset)
            # Not Python's mmap: it gives no address of a mapping that is read-only.
            address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
            if address is None or address == ctypes.c_void_p(-1).value:
                raise oserror("mmap", path, OSError(ctypes.get_errno(), ""))
            try:
                pages = -(-length // mmap.PAGESIZE)
                vector = (ctypes.c_ubyte * pages)()
                if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), vector) != 0:
                    raise oserror("mincore", path, OSError(ctypes.get_errno(), ""))
                # Bits but the lowest are reserved.
                resident += sum(bytes(vector).translate(LOWEST_BIT))
                total += pages
            finally:
                libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(length))
    finally:
        os.close(descriptor)
    return resident, total


LOWEST_BIT = bytes(value & 1 for value in range(256))


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise oserror("open", path, error) from error
