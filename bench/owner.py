"""Whose the results are: under sudo they belong to the user who called it, not to root.

The cache is another matter: root executes what lies in it, so root keeps one of its own.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path


def caller() -> tuple[int, int] | None:
    """User and group who called us through sudo (or doas with the same variables); else None."""
    if os.geteuid() != 0:
        return None
    try:
        uid, gid = int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"])
    except (KeyError, ValueError):
        return None
    return (uid, gid) if 0 < uid < 2**32 - 1 and 0 <= gid < 2**32 - 1 else None


def hand_over(path: Path) -> None:
    """Give what root made there, with all that is in it, to the caller.

    Only what is root's, and never through a link: the caller may write in that folder, and
    could have put a link to somebody else's file there.
    """
    them = caller()
    if them is None:
        return
    with contextlib.suppress(OSError):
        _give(path.name or ".", them, os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY))
        if path.is_dir() and not path.is_symlink():
            for _, folders, files, here in os.fwalk(path, follow_symlinks=False):
                for name in (*folders, *files):
                    _give(name, them, os.dup(here))


def _give(name: str, them: tuple[int, int], folder: int) -> None:
    """Give one entry away; `folder` is closed."""
    try:
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        linked = info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode)
        if info.st_uid == 0 and not linked:
            os.chown(name, *them, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        pass
    finally:
        os.close(folder)


def make_folder(path: Path) -> None:
    """Make a folder for results, with the folders above it; those we make are the caller's.

    Raises:
        OSError: it cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        hand_over(folder)


@contextlib.contextmanager
def handed_over(path: Path) -> Iterator[None]:
    """Hand it over at the end, however that comes."""
    try:
        yield
    finally:
        hand_over(path)
