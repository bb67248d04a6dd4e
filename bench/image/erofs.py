"""A directory tree as one reproducible, uncompressed erofs file: same tree, same bytes.

The volume UUID is derived from the content, so two machines that unpack the same
image make the same file. Times are kept: setting them to 1970 makes Python find its
bytecode stale and compile it again on every start, which falsifies every start-up figure.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.command import run
from bench.errors import HvctError, oserror

HINT = "install erofs-utils, or run ./hvct doctor"
ROOM_BYTES = 64 << 10  # with less, a disk is full for a program that writes in blocks
HOST_XATTRS = ("security.selinux",)  # the host's labels, not the image's


@dataclass(frozen=True)
class Volume:
    """An erofs file just made.

    Attributes:
        digest: ``sha256:…`` of the file.
        newest_mtime: newest time of any file in it, seconds since the epoch.
    """

    path: Path
    digest: str
    uuid: str
    size_bytes: int
    newest_mtime: int


def walk(root: Path) -> Iterator[Path]:
    """Every path of the tree in a fixed order, the root first, never following a link."""
    waiting = [(root, True)]  # a tree may be deeper than Python's stack
    while waiting:
        path, is_folder = waiting.pop()
        yield path
        if is_folder:
            with os.scandir(path) as inside:
                entries = sorted(inside, key=lambda item: os.fsencode(item.name), reverse=True)
            waiting += [(Path(one.path), one.is_dir(follow_symlinks=False)) for one in entries]


def normalise_times(root: Path, latest: int) -> None:
    """Drop fractions of seconds and cap every time at `latest` (seconds since the epoch).

    Tar archives carry whole seconds, package managers stamp the files they write with
    the time of the build: neither may decide whether two builds are the same image.
    """
    for path in walk(root):
        seconds = min(int(path.lstat().st_mtime), latest)
        os.utime(path, ns=(seconds * 10**9, seconds * 10**9), follow_symlinks=False)


def sha256_file(path: Path) -> str:
    """``sha256:…`` of a file's bytes."""
    with path.open("rb") as handle:
        return "sha256:" + hashlib.file_digest(handle, "sha256").hexdigest()


def _xattrs(path: Path) -> list[tuple[str, bytes]]:
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
        return [
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in names
            if name not in HOST_XATTRS
        ]
    except OSError:  # the file system has none
        return []


def fingerprint(root: Path) -> tuple[str, int]:
    """Digest of everything the tree is, and its newest time.

    Covers names, types, modes, owners, times, link targets, device numbers, extended
    attributes, hard links and content.
    """
    total = hashlib.sha256()
    newest = 0
    first_name: dict[tuple[int, int], bytes] = {}
    for path in walk(root):
        name = os.fsencode(path.relative_to(root))
        info = path.lstat()
        newest = max(newest, int(info.st_mtime))
        # Who is not root owns all he makes; in the volume it is root's (make_volume).
        owner = (info.st_uid, info.st_gid) if os.geteuid() == 0 else (0, 0)
        fields: list[object] = [name, info.st_mode, *owner, info.st_mtime_ns]
        if stat.S_ISLNK(info.st_mode):
            fields.append(os.fsencode(os.readlink(path)))
        elif stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode):
            fields.append(info.st_rdev)
        elif stat.S_ISREG(info.st_mode):
            linked = first_name.setdefault((info.st_dev, info.st_ino), name)
            fields.append(sha256_file(path) if linked == name else linked)
        fields.append(_xattrs(path))
        total.update(repr(fields).encode())
    return total.hexdigest(), newest


def make_volume(tree: Path, output: Path) -> Volume:
    """Write `tree` as the erofs file `output`.

    Raises:
        HostCannot: mkfs.erofs is not installed.
        HvctError: the tree cannot be read or written (disk full).
    """
    try:
        content, newest = fingerprint(tree)
    except OSError as error:
        raise oserror("read", error.filename or tree, error) from error
    volume_uuid = str(uuid.uuid5(uuid.NAMESPACE_OID, content))
    # SOURCE_DATE_EPOCH without -T only fixes the volume's own time; each file keeps its own.
    # Tail data outside the inodes: it is then read with direct I/O like all other content.
    try:
        run(
            [
                "mkfs.erofs",
                "--quiet",
                f"-U{volume_uuid}",
                "-Enoinline_data,force-inode-extended",
                *(() if os.geteuid() == 0 else ("--all-root",)),
                output,
                tree,
            ],
            env={**os.environ, "SOURCE_DATE_EPOCH": str(newest), "LC_ALL": "C"},
            hint=HINT,
        )
    except HvctError as error:
        raise _about_room(output) or error from error
    return Volume(output, sha256_file(output), volume_uuid, output.stat().st_size, newest)


def _about_room(output: Path) -> HvctError | None:
    """The real reason where the disk is full, for which mkfs.erofs has several names.

    Among them "Numerical result out of range"; what it had written is still there.
    """
    try:
        if shutil.disk_usage(output.parent).free >= ROOM_BYTES:
            return None
    except OSError:
        return None
    return oserror("write", output, OSError(errno.ENOSPC, ""))
