"""Making, emptying and removing groups in the hierarchies, whatever lives in them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path

from bench.cgroupfs import (
    OURS,
    ROOT,
    V2_CONTROLLERS,
    Layout,
    layout,
    read_number,
    read_pairs,
    read_text,
    write_text,
)
from bench.errors import HostCannot, HvctError, oserror

REMOVE_TIMEOUT_S = 5.0

_prepared: set[str] = set()  # tags whose parent groups this process has made


def remove_all(tag: str) -> list[str]:
    """Remove every group of a run, its processes killed first; returns the paths removed."""
    _prepared.discard(tag)
    removed = remove_elsewhere(tag)
    where = layout()
    for mount in where.mounts:
        top = mount / OURS / tag
        if top.is_dir():
            remove_tree(top, time.monotonic() + REMOVE_TIMEOUT_S)
            removed.append(str(top))
        with contextlib.suppress(OSError):  # another run's groups are below it
            os.rmdir(mount / OURS)
    return removed


def prepare(where: Layout, tag: str) -> None:
    """Make ``hvct/<tag>`` in every hierarchy, once per process."""
    if tag in _prepared:
        return
    for mount in where.mounts:
        parent = mount
        for part in (OURS, tag):
            child = parent / part
            try:
                os.mkdir(child)
            except FileExistsError:
                pass
            except OSError as error:
                failure = oserror("mkdir", child, error)
                raise HostCannot(failure.message, "run as root on a host with cgroups") from error
            _inherit(where, mount, parent, child)
            parent = child
        if where.version == 2:
            _delegate(where, parent)
    _prepared.add(tag)


def _inherit(where: Layout, mount: Path, parent: Path, child: Path) -> None:
    """Give a new parent group what its children need."""
    if where.version == 2:
        _delegate(where, parent)
        return
    if mount == where.controllers.get("cpuset"):
        for name in ("cpuset.cpus", "cpuset.mems"):  # empty on v1 until written
            if not read_text(child / name).strip():
                write_text(child / name, read_text(parent / name).strip())
        # Children then start with both filled in: two writes fewer on the launch path.
        write_text(child / "cgroup.clone_children", "1")
    if (
        mount == where.controllers.get("memory")
        and read_number(child / "memory.use_hierarchy") == 0
    ):
        write_text(child / "memory.use_hierarchy", "1")  # kernels before 5.11


def _delegate(where: Layout, group: Path) -> None:
    """Let the children of a v2 group have the controllers.

    On the root group this switches on what the host had not: it stays on, as it does
    after any service with a limit, and costs nothing measurable.
    """
    enabled = read_text(group / "cgroup.subtree_control").split()
    wanted = [n for n in V2_CONTROLLERS if n in where.controllers and n not in enabled]
    if not wanted:
        return
    try:
        write_text(group / "cgroup.subtree_control", " ".join(f"+{name}" for name in wanted))
    except HvctError as error:
        raise HostCannot(
            error.message, "start hvct from the host's root cgroup, outside any container"
        ) from error


def mkdir(directory: Path | str, where: Layout, tag: str) -> None:
    """Make one group's directory, its parents too when somebody has just removed them.

    Raises:
        HvctError: it cannot be made.
    """
    for attempt in (1, 2):
        try:
            os.mkdir(directory)
            return
        except FileNotFoundError as error:  # an ending run removed an empty parent just now
            if attempt == 2:
                raise oserror("mkdir", directory, error) from error
            _prepared.discard(tag)
            prepare(where, tag)
        except OSError as error:
            raise oserror("mkdir", directory, error) from error


def _children(directory: Path) -> list[Path]:
    try:
        if os.stat(directory).st_nlink <= 2:  # kernfs counts subdirectories in it
            return []
        return [Path(entry.path) for entry in os.scandir(directory) if entry.is_dir()]
    except FileNotFoundError:
        return []


def pids_in(directory: Path) -> set[int]:
    """Process ids in a group and in all groups below it."""
    found: set[int] = set()
    with contextlib.suppress(HvctError):  # removed meanwhile
        found.update(map(int, read_text(directory / "cgroup.procs").split()))
    for child in _children(directory):
        found |= pids_in(child)
    found.discard(0)  # a process of a pid namespace that is not below ours
    return found


def kill(directory: Path) -> None:
    """SIGKILL everything in a group and below, once; what forks meanwhile may need another."""
    if os.path.exists(directory / "cgroup.kill"):
        with contextlib.suppress(HvctError):
            write_text(directory / "cgroup.kill", "1")
        return
    with contextlib.suppress(HvctError):
        write_text(directory / "pids.max", "0")  # no more forks
    with contextlib.suppress(HvctError):
        write_text(directory / "cpu.cfs_quota_us", "-1")  # a throttled task dies late
    handles = {}
    for pid in pids_in(directory):
        with contextlib.suppress(OSError):
            handles[pid] = os.pidfd_open(pid)
    still_there = pids_in(directory)  # a number that was reused meanwhile is not in here
    for pid, handle in handles.items():
        if pid in still_there and pid != os.getpid():
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)


def remove_tree(directory: Path, deadline_s: float) -> None:
    """Remove a group and all below it, killing what is in them, until the deadline.

    Raises:
        HvctError: a process did not die in time.
    """
    pause_s = 0.0002
    while True:
        for child in _children(directory):
            remove_tree(child, deadline_s)
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise oserror("rmdir", directory, error) from error
            if time.monotonic() > deadline_s:
                left = sorted(pids_in(directory))
                raise HvctError(
                    f"the control group {directory} cannot be removed: processes {left} in it",
                    "end them, then run hvct clean",
                ) from error
        kill(directory)
        time.sleep(pause_s)
        pause_s = min(0.05, pause_s * 2)


def oom_kills_in(directory: Path) -> int:
    """Processes killed for lack of memory in a memory group or one below it."""
    found = 0
    for name in ("memory.events", "memory.oom_control"):
        with contextlib.suppress(HvctError):
            found = read_pairs(directory / name).get("oom_kill", 0)
            break
    if (directory / "memory.events").exists():  # v2 counts what is below as well
        return found
    return found + sum(map(oom_kills_in, _children(directory)))


def elsewhere(tag: str) -> list[Path]:
    """A run's groups in v1 hierarchies that we do not use: peers make theirs in all of them."""
    where = layout()
    if where.version == 2:
        return []
    ours = {mount.resolve() for mount in where.mounts}
    return [
        mount / OURS / tag
        for mount in ROOT.iterdir()
        if not mount.is_symlink() and mount.resolve() not in ours and (mount / OURS / tag).is_dir()
    ]


def make_elsewhere(hierarchy: Path, tag: str, name: str) -> Path:
    """An instance's group in one of them, for a peer that works in it; returns its directory.

    Raises:
        HvctError: it cannot be made.
    """
    made = hierarchy / OURS / tag / name
    for attempt in (1, 2):
        try:
            os.makedirs(made)
            break
        except FileNotFoundError as error:  # an ending run removed an empty parent just now
            if attempt == 2:
                raise oserror("mkdir", made, error) from error
        except OSError as error:
            raise oserror("mkdir", made, error) from error
    return made


def remove_elsewhere(tag: str, name: str = "") -> list[str]:
    """Remove them, of one instance or of the whole run; returns the paths removed."""
    removed = []
    for top in elsewhere(tag):
        target = top / name if name else top
        if target.is_dir():
            remove_tree(target, time.monotonic() + REMOVE_TIMEOUT_S)
            removed.append(str(target))
        with contextlib.suppress(OSError):  # other instances, other runs
            os.rmdir(top)
            os.rmdir(top.parent)
    return removed
