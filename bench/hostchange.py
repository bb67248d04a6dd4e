"""One change of a host's setting, as a value that can be written down, made and taken back.

A `Change` knows the value before, so that whoever reads it from a journal can undo it without
knowing why it was made. Everything goes through a `Tree`, so that a folder of files is a host too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bench.cgroupfs import read_text, write_text
from bench.checks.interference import cpus_of_list, cpus_of_mask
from bench.checks.tree import Tree
from bench.errors import HvctError, oserror

POSSIBLE = "/sys/devices/system/cpu/possible"
SWAP_FLAG_PREFER = 0x8000  # of linux/swap.h; the priority is in the 15 bits below
MOVES = 20  # rounds of moving tasks: those that were forked meanwhile are met in the next one


class Kind(StrEnum):
    """How a setting is read and written."""

    TEXT = "text"  # one word
    CHOICE = "choice"  # ``always [madvise] never``, written as the word alone
    LIST = "list"  # CPUs as ``0-2,7``; an empty one is no restriction
    MASK = "mask"  # CPUs as hexadecimal bits
    CONTROLLER = "controller"  # ``+cpuset`` or ``-cpuset`` in cgroup.subtree_control
    SWAP = "swap"  # a swap area: its priority, or ``off``
    OTHERS = "others"  # a cpuset of version 1 for all tasks of its parent: its CPUs, or ``none``


@dataclass(frozen=True)
class Change:
    """One value of one file, before and after.

    Attributes:
        setting: the row of `bench.settings` it belongs to.
        path: as the host names it (a swap area's or a cpuset's for these kinds).
        old, new: as `current` gives them. Equal ones are only kept to be restored, where
            another change is known to disturb them.
        optional: the kernel may refuse it, and then nothing was changed.
    """

    setting: str
    kind: Kind
    path: str
    old: str
    new: str
    optional: bool = False

    def current(self, tree: Tree) -> str | None:
        """The value now; None where there is no such thing (any more)."""
        return current(tree, self.kind, self.path)

    def make(self, tree: Tree) -> bool:
        """Put the new value in force; False where the kernel refused an optional one.

        Raises:
            HvctError: it was refused, or did not take effect.
        """
        if self.old == self.new:
            return False
        try:
            self._write(tree, self.new)
        except HvctError:
            if self.optional:
                return False
            raise
        now = self.current(tree)
        if now is None or not same(self.kind, now, self.new):
            if self.optional:
                return False
            raise HvctError(f"{self.path} is {now!r} after {self.new!r} was written to it")
        return True

    def undo(self, tree: Tree) -> bool:
        """Put the old value in force again; False where that was not needed.

        Raises:
            HvctError: it is not in force now.
        """
        now = self.current(tree)
        if now is None or same(self.kind, now, self.old):
            return False
        try:
            self._write(tree, self.old)
        except HvctError:
            if self.kind is Kind.CONTROLLER:  # somebody's groups use it by now: theirs to end
                return False
            raise
        now = self.current(tree)
        if now is not None and not (
            same(self.kind, now, self.old) or self._unrestricted(tree, now)
        ):
            raise HvctError(f"{self.path} is {now!r} after {self.old!r} was written to it")
        return True

    def _unrestricted(self, tree: Tree, now: str) -> bool:
        """Whether a list that was empty names every possible CPU: the same to the kernel."""
        every = cpus_of_list(tree.text(POSSIBLE) or "")
        return self.kind is Kind.LIST and not self.old and every == cpus_of_list(now) != frozenset()

    def _write(self, tree: Tree, value: str) -> None:
        path = tree.path(self.path)
        if self.kind is Kind.SWAP:
            swapoff(path) if value == "off" else swapon(path, int(value))
        elif self.kind is Kind.OTHERS:
            gather_back(path) if value == "none" else set_apart(path, value)
        elif self.kind is Kind.LIST and not value:
            try:
                write_value(path, value)
            except HvctError:  # Linux 6.1 empties no cpuset that has tasks (ENOSPC)
                write_value(path, tree.text(POSSIBLE) or "")
        else:
            write_value(path, value)


def write_value(path: Path, value: str) -> None:
    """Have a file hold one line.

    Raises:
        HvctError: the kernel refused it.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(descriptor, f"{value}\n".encode())  # no bytes at all would be no write
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HvctError(f"{oserror('write', path, error).message} (writing {value!r})") from error


def current(tree: Tree, kind: Kind, path: str) -> str | None:
    """The value of a setting now; None where there is no such thing."""
    if kind is Kind.SWAP:
        if not tree.there(path):
            return None
        return dict(swap_areas(tree)).get(path, "off")
    if kind is Kind.OTHERS:
        if not tree.there(path):
            return "none"
        return tree.text(f"{path}/cpuset.cpus") or ""
    if kind is Kind.CHOICE:
        return tree.chosen(path)
    value = tree.text(path)
    if kind is Kind.CONTROLLER and value is not None:
        return "+cpuset" if "cpuset" in value.split() else "-cpuset"
    return value


def same(kind: Kind, first: str, second: str) -> bool:
    """Whether two values mean the same to the kernel."""
    if kind is Kind.MASK:
        return cpus_of_mask(first) == cpus_of_mask(second)
    if kind is Kind.LIST or (kind is Kind.OTHERS and "none" not in (first, second)):
        return cpus_of_list(first) == cpus_of_list(second)
    if kind is Kind.SWAP and "off" not in (first, second):
        # Priorities below zero are the kernel's own, given in the order of switching on.
        return int(first) == int(second) or max(int(first), int(second)) < 0
    return first == second


def swap_areas(tree: Tree) -> list[tuple[str, str]]:
    """Path and priority of every swap area in use, the preferred ones first."""
    lines = (tree.text("/proc/swaps") or "").splitlines()[1:]
    areas = []
    for line in lines:
        words = line.split()
        if len(words) >= 5:
            areas.append((words[0].encode().decode("unicode_escape"), words[-1]))
    return sorted(areas, key=lambda area: -int(area[1]))


def swapoff(path: Path) -> None:
    """The system call of that name. Takes as long as reading back what is there.

    Raises:
        HvctError: the kernel has not the memory for it.
    """
    _call("swapoff", path)


def swapon(path: Path, priority: int) -> None:
    """The system call of that name; a negative priority is left to the kernel.

    Raises:
        HvctError: it is no swap area.
    """
    _call("swapon", path, SWAP_FLAG_PREFER | priority if priority >= 0 else 0)


def _call(name: str, path: Path, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(os.fsencode(path), *arguments) != 0:
        number = ctypes.get_errno()
        raise oserror(name, path, OSError(number, os.strerror(number)))


def set_apart(group: Path, cpus: str) -> None:
    """Make a cpuset of version 1 and move the tasks of its parent into it.

    Tasks that somebody has tied to certain CPUs stay (being moved would lose that), and so
    do the kernel's own that belong to a CPU.

    Raises:
        HvctError: it cannot be made.
    """
    try:
        group.mkdir(exist_ok=True)
    except OSError as error:
        raise oserror("mkdir", group, error) from error
    write_text(group / "cpuset.mems", read_text(group.parent / "cpuset.mems").strip())
    write_text(group / "cpuset.cpus", cpus)
    whole = cpus_of_list(read_text(group.parent / "cpuset.cpus"))
    stayed: set[str] = set()
    for _ in range(MOVES):
        there = [pid for pid in _tasks(group.parent) if pid not in stayed]
        if not there:
            break
        for pid in there:
            if not _free(pid, whole) or not _move(pid, group):
                stayed.add(pid)


def gather_back(group: Path) -> None:
    """Move all tasks of a cpuset back to its parent and remove it.

    Raises:
        HvctError: some cannot be moved.
    """
    for _ in range(MOVES):
        for pid in _tasks(group):
            _move(pid, group.parent)
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise oserror("rmdir", group, error) from error
    raise HvctError(f"{group} still has tasks", "run hvct tune reset again")


def _tasks(group: Path) -> list[str]:
    return read_text(group / "tasks").split()


def _free(pid: str, whole: Iterable[int]) -> bool:
    """Whether a task may use every CPU of its cpuset: then it was not tied to some."""
    return allowed_cpus(Path(f"/proc/{pid}/status")) == frozenset(whole)


def allowed_cpus(status: Path) -> frozenset[int]:
    """What a task's status says of its CPUs; none where it is gone."""
    with contextlib.suppress(OSError):
        for line in status.read_text(errors="replace").splitlines():
            if line.startswith("Cpus_allowed_list:"):
                return cpus_of_list(line.partition(":")[2])
    return frozenset()


def _move(pid: str, group: Path) -> bool:
    try:
        write_text(group / "tasks", pid)
    except HvctError:  # it has ended, or is the kernel's and belongs where it is
        return False
    return True
