"""An image's user, by name or number, as the numbers the kernel wants.

Names are looked up in the image's own ``/etc/passwd`` and ``/etc/group``, opened with
``openat2(RESOLVE_IN_ROOT)``: a link in a hostile image cannot make us read the host's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BadInput, HostCannot, oserror
from bench.model import Ids

SYS_OPENAT2 = 437  # the same on every architecture
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10
LARGEST_TABLE_BYTES = 4 << 20
LARGEST_ID = 2**32 - 2


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(dirfd: int, path: str, flags: int, resolve: int) -> int:
    """Open `path` as the kernel's openat2 does; returns a file descriptor.

    Raises:
        OSError: it could not be opened.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    result: int = libc.syscall(
        ctypes.c_long(SYS_OPENAT2),
        ctypes.c_int(dirfd),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


@dataclass(frozen=True)
class Accounts:
    """The two tables of an image, as text; empty where it has none."""

    passwd: str = ""
    group: str = ""


def read_accounts(root: Path) -> Accounts:
    """Read passwd and group as a process inside `root` would see them.

    Raises:
        HostCannot: the kernel has no openat2 (Linux 5.6).
        BadInput: one of them is not a regular file of sensible size.
    """
    dirfd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return Accounts(_read(dirfd, "etc/passwd"), _read(dirfd, "etc/group"))
    finally:
        os.close(dirfd)


def _read(dirfd: int, path: str) -> str:
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    try:
        # O_NONBLOCK: a named pipe in the image must not hold us up.
        opened = openat2(dirfd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise HostCannot(
                f"Linux {platform.release()} has no openat2", "use Linux 5.6 or newer"
            ) from error
        failure = oserror("openat2", f"/{path} of the image", error)
        raise BadInput(failure.message, "repair the image") from error
    try:
        info = os.fstat(opened)
        if not stat.S_ISREG(info.st_mode) or info.st_size > LARGEST_TABLE_BYTES:
            raise BadInput(f"/{path} of the image is not a table of accounts", "repair the image")
        return os.read(opened, LARGEST_TABLE_BYTES).decode("utf-8", "replace")
    finally:
        os.close(opened)


def _rows(table: str, fields: int) -> Iterator[list[str]]:
    for line in table.splitlines():
        row = line.split(":")
        if len(row) >= fields and not line.startswith("#"):
            yield row


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 4000


def _number(text: str) -> int | None:
    """A number of a table; None where it is none, as it is in a row that means nothing."""
    return int(text) if _digits(text) and int(text) <= LARGEST_ID else None


def _asked(text: str) -> int | None:
    """A number that was asked for; None where it is a name."""
    if _digits(text) and int(text) > LARGEST_ID:
        raise BadInput(f"user or group {text} is out of range", f"use 0 to {LARGEST_ID}")
    return _number(text)


def ids_of(accounts: Accounts, user: str) -> Ids:
    """Numbers for ``user``, ``user:group``, each by name or number; "" is root.

    As container engines do it: without a group it is the account's own (0 for a number
    that has no account) and the groups that list the account are added; with one it is
    that group alone. The group is always a supplementary one too: a program that changes
    its group must not thereby escape a permission that was denied to it (CVE-2022-36109).

    Raises:
        BadInput: the image has no such user or group.
    """
    name, colon, group_name = user.partition(":")
    uid, own_gid, login = _account(accounts, name or "0")
    home = _home(accounts, uid)
    if colon:
        own_gid = _group(accounts, group_name)
        return Ids(uid, own_gid, (own_gid,), home)
    listed = {
        gid
        for row in _rows(accounts.group, 4)
        if login in row[3].split(",") and (gid := _number(row[2])) is not None
    }
    return Ids(uid, own_gid, tuple(sorted(listed | {own_gid})), home)


def _account(accounts: Accounts, name: str) -> tuple[int, int, str | None]:
    wanted = _asked(name)
    for row in _rows(accounts.passwd, 4):
        uid, gid = _number(row[2]), _number(row[3])
        if uid is not None and gid is not None and (row[0] == name or uid == wanted):
            return uid, gid, row[0]
    if wanted is None:
        known = ", ".join(row[0] for row in _rows(accounts.passwd, 4)) or "none"
        raise BadInput(f"the image has no user {name!r}", f"give a number, or one of: {known}")
    return wanted, 0, None


def _home(accounts: Accounts, uid: int) -> str:
    homes = (row[5] for row in _rows(accounts.passwd, 6) if _number(row[2]) == uid)
    return next(homes, "")


def _group(accounts: Accounts, name: str) -> int:
    for row in _rows(accounts.group, 3):
        gid = _number(row[2])
        if row[0] == name and gid is not None:
            return gid
    wanted = _asked(name)
    if wanted is None:
        raise BadInput(f"the image has no group {name!r}", "give its number")
    return wanted


def make_folders(root: Path, paths: Iterable[str]) -> None:
    """Make the folders an image declares as volumes and does not hold, as engines do at start.

    Inside the image whatever its links say; made here, they are the same in every arm.

    Raises:
        BadInput: one cannot be a folder.
    """
    for path in paths:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise BadInput(f"the image declares a volume {path!r}", "build it again")
        dirfd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for end in range(1, len(parts) + 1):
                _make_folder(dirfd, parts[:end])
        except OSError as error:
            failure = oserror("mkdir", f"the volume {path} of the image", error)
            raise BadInput(failure.message, "build it again") from error
        finally:
            os.close(dirfd)


def _make_folder(root: int, parts: list[str]) -> None:
    flags, resolve = os.O_PATH | os.O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    try:
        os.close(openat2(root, "/".join(parts), flags, resolve))
        return
    except FileNotFoundError:
        parent = openat2(root, "/".join(parts[:-1]) or ".", flags, resolve)
    try:
        os.mkdir(parts[-1], 0o755, dir_fd=parent)
        os.chmod(parts[-1], 0o755, dir_fd=parent)  # whatever our umask
    finally:
        os.close(parent)
