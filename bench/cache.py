"""The cache: content-addressed, safe to delete, written atomically, safe under two at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.command import run
from bench.errors import HostCannot, HvctError, oserror
from bench.owner import caller

_REMEDY = "set XDG_CACHE_HOME to a folder you can write"


def cache_dir(*parts: str) -> Path:
    """``$XDG_CACHE_HOME/hvct/parts…``, created.

    Raises:
        HostCannot: it cannot be created or written.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")
    path = base.joinpath("hvct", *parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostCannot(oserror("mkdir", path, error).message, _REMEDY) from error
    if not os.access(path, os.W_OK):
        raise HostCannot(f"the cache {path} is not writable", _REMEDY)
    return path


def _home() -> Path:
    """Our home; root's own where sudo kept the caller's: root executes what is in the cache."""
    home = Path.home()
    if caller() is not None and home.exists() and home.stat().st_uid != 0:
        return Path(pwd.getpwuid(0).pw_dir)
    return home


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold an exclusive lock of this name; a second process waits for the first."""
    path = cache_dir("locks") / f"{name}.lock"
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def workspace(prefix: str) -> Iterator[Path]:
    """A fresh folder inside the cache (so that a rename out of it is atomic), removed after."""
    path = Path(tempfile.mkdtemp(prefix=f"{prefix}-p{os.getpid()}-", dir=cache_dir("tmp")))
    try:
        yield path
    finally:
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it, however deep; what cannot be removed stays."""
    # Python before 3.13 needs its stack for each level.
    with contextlib.suppress(RecursionError):
        shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        with contextlib.suppress(HvctError):
            if os.geteuid() != 0:  # folders of an image may be read-only
                run(["chmod", "-R", "u+rwX", "--", path])
            run(["rm", "-rf", "--", path])


def publish(made: Path, final: Path) -> Path:
    """Move a finished file into place: durable first, then visible, all or nothing."""
    with made.open("rb") as handle:
        os.fsync(handle.fileno())
    final.parent.mkdir(parents=True, exist_ok=True)
    os.replace(made, final)
    return final


def hold(path: Path) -> int | None:
    """Note that a file is used, and keep `make_room` from removing it; None where it is not there.

    Until the descriptor that is returned is closed.
    """
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink:
            os.utime(descriptor)
            return descriptor
        os.close(descriptor)
    return None


def make_room(
    files: Iterable[Path], most_bytes: int, forget: Callable[[Path], None] = Path.unlink
) -> list[Path]:
    """Remove files, those used longest ago first, until all are within the bound.

    One that any process holds stays.

    Args:
        forget: removes a file and what belongs to it.

    Returns:
        What was removed.
    """
    found = []
    for path in files:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime, status.st_blocks * 512, path))
    total = sum(size for _, size, _ in found)
    removed = []
    for _, size, path in sorted(found):
        if total <= most_bytes:
            break
        if _forget_unheld(path, forget):
            removed.append(path)
            total -= size
    return removed


def _forget_unheld(path: Path, forget: Callable[[Path], None]) -> bool:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            forget(path)
            return True
        finally:
            os.close(descriptor)
    return False
