"""Undo what dead runs left on this host; every step may be repeated.

Also the program that launcher and worker run when the harness died, so it imports
little. Nothing is ever killed by its name: only members of the run's control groups, and
processes that carry ``HVCT_RUN=<tag>`` in the environment they were started with.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import cgroup, cgroupfs, journal, loops, scratch, tuning
from bench.cgroupfs import OURS
from bench.context import RUN_VARIABLE, runtime_root
from bench.errors import BadInput, HostCannot, HvctError, oserror

TAG = re.compile(r"[a-z0-9]{1,8}")
MNT_DETACH = 2
DAEMON_DEADLINE_S = 3.0  # for libvirtd to answer
OWNER_DEADLINE_S = 3.0  # how long a killed harness may take to become a zombie
DRAFT_AGE_S = 86400.0


def clean(tag: str | None = None, dry_run: bool = False) -> list[str]:
    """Undo one run (its owner dead, or the caller), or every dead one.

    Args:
        tag: the run; None for all dead runs and half-made files in the cache.
        dry_run: only say what would be done.

    Returns:
        What was done, one line each.

    Raises:
        BadInput: the tag is not one.
        HostCannot: the run is alive and somebody else's.
        HvctError: a step failed (the others were done; the journal stays).
    """
    if tag is not None:
        return _clean_run(tag, dry_run)
    done = []
    for record in journal.dead():
        done += _clean_run(record.tag, dry_run)
    for lost in _without_journal():
        done += _clean_run(lost, dry_run)
    return done + tuning.reset_dead(dry_run=dry_run) + _clean_drafts(dry_run)


def _without_journal() -> list[str]:
    """Tags that left groups or a bridge here, but no journal and no process.

    So does a run that was killed in another root directory, whose /run is gone with it.
    """
    tops = [top for mount in cgroupfs.layout().mounts for top in (mount / OURS).glob("r????")]
    bridges = [path.name.removeprefix("hvct") for path in Path("/sys/class/net").glob("hvctr????")]
    # Only now: whatever was seen of a run that begins at this moment has its record by then.
    known = {record.tag for record in journal.journals()} | elsewhere()
    return [
        tag
        for tag in sorted({top.name for top in tops} | set(bridges))
        if tag not in known
        and TAG.fullmatch(tag)
        and not any(
            cgroupfs.read_text(procs).strip()
            for top in tops
            if top.name == tag
            for procs in top.rglob("cgroup.procs")
        )
    ]


def elsewhere() -> set[str]:
    """Tags with a record in another root directory, of a chroot or container, that is in use."""
    found: set[str] = set()
    seen = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            root = Path("/proc", pid, "root")
            about = root.stat()
            place = os.readlink(f"/proc/{pid}/ns/mnt"), about.st_dev, about.st_ino
            if place not in seen:
                seen.add(place)
                folder = root / runtime_root().relative_to("/")
                found |= {path.stem for path in folder.glob("r????.json")}
    return found - {record.tag for record in journal.journals()}


def clean_dead() -> list[str]:
    """What every command does first: free when nothing was left (one listing)."""
    done = []
    for record in journal.dead():
        with contextlib.suppress(HvctError):  # `hvct clean` tells; other commands go on
            done += _clean_run(record.tag, dry_run=False)
    with contextlib.suppress(HvctError):
        done += tuning.reset_dead()
    return done


def _clean_run(tag: str, dry_run: bool) -> list[str]:
    if not TAG.fullmatch(tag):
        raise BadInput(f"{tag!r} is not the tag of a run", "hvct clean names them")
    record = next((entry for entry in journal.journals() if entry.tag == tag), None)
    if record and record.alive and record.pid != os.getpid():
        raise HostCannot(
            f"run {tag} is alive: process {record.pid}, {record.run_dir}", "end it first"
        )
    steps: list[Callable[[str, journal.Journal | None, bool], list[str]]] = [
        _leave_group,
        _end_domains,
        _end_processes,
        _remove_groups,
        _remove_links,
        _unmount,
        _free_loops,
        _remove_scratch_files,
        _remove_runtime_dir,
    ]
    done, failures = [], []
    with _one_at_a_time():
        for step in steps:
            try:
                done += step(tag, record, dry_run)
            except HvctError as error:
                failures.append(error)
        if record and not dry_run and not failures:
            record.path.unlink(missing_ok=True)
    if failures:
        raise failures[0]
    return done


def _leave_group(tag: str, record: journal.Journal | None, dry_run: bool) -> list[str]:
    """Step out of the run's own group, lest removing it kills the cleaner."""
    inside = f"/{cgroupfs.OURS}/{tag}" in cgroupfs.read_text("/proc/self/cgroup")
    if inside and not dry_run:
        for mount in cgroupfs.layout().mounts:
            cgroupfs.write_text(mount / "cgroup.procs", "0")
    return []


def _end_domains(tag: str, record: journal.Journal | None, dry_run: bool) -> list[str]:
    """Domains of a libvirt daemon outlive us; those of the embedded driver do not.

    A daemon that is down, or hangs, is not waited for: its QEMU is killed by its mark next.
    """
    if record is None or not record.libvirt_uri or "/embed" in record.libvirt_uri:
        return []
    done: list[str] = []
    asking = threading.Thread(
        target=_destroy_domains,
        args=(record.libvirt_uri, f"hvct-{tag}-", dry_run, done),
        daemon=True,  # one that hangs must not keep us
    )
    asking.start()
    asking.join(DAEMON_DEADLINE_S)
    return list(done)


def _destroy_domains(uri: str, prefix: str, dry_run: bool, done: list[str]) -> None:
    try:
        import libvirt
    except ImportError:  # then no domain was started by us
        return
    libvirt.registerErrorHandler(lambda *_: None, None)  # else it prints each error as well
    with contextlib.suppress(libvirt.libvirtError):
        connection = libvirt.open(uri)
        try:
            for domain in connection.listAllDomains():
                if domain.name().startswith(prefix):
                    done.append(f"domain {domain.name()} destroyed")
                    if not dry_run:
                        with contextlib.suppress(libvirt.libvirtError):
                            domain.destroy()
        finally:
            connection.close()


def _end_processes(tag: str, record: journal.Journal | None, dry_run: bool) -> list[str]:
    """SIGKILL whatever was started with the run's mark, but not who asked for this."""
    mine = _ancestry()
    mark = f"{RUN_VARIABLE}={tag}".encode()
    done = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in mine or not _marked(entry, mark):
            continue
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(int(entry))
            try:
                if _marked(entry, mark):  # still the same process, now that it is held
                    name = Path(f"/proc/{entry}/comm").read_text().strip()
                    if not dry_run:
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                    done.append(f"process {entry} ({name}) killed")
            finally:
                os.close(handle)
    return done


def _marked(pid: str, mark: bytes) -> bool:
    """By its environment; a QEMU that libvirt only questions has none, but names the run's root."""
    root = os.fsencode(runtime_root() / os.fsdecode(mark.partition(b"=")[2])) + b"/libvirt-"
    try:
        if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return True
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"-pidfile" in words and any(word.startswith(root) for word in words)


def _ancestry() -> set[int]:
    """This process and all its ancestors."""
    found, pid = set(), os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            break
        pid = int(stat[stat.rindex(")") + 2 :].split()[1])
    return found


def _remove_groups(tag: str, record: journal.Journal | None, dry_run: bool) -> list[str]:
    try:
        mounts = cgroupfs.layout().mounts
    except HostCannot:
        return []
    left = [str(path) for mount in mounts if (path := mount / cgroupfs.OURS / tag).is_dir()]
    if left and not dry_run:
        cgroup.remove_all(tag)
    return [f"control group {path} removed" for path in left]


def _remove_links(tag: str, record: journal.Journal | None, dry_run: bool) -> list[str]:
    from bench import network

    names = network.links_of(tag)
    if names and not dry_run:
        network.delete_links(tag)
        left = [name for name in network.links_of(tag)]
        if left:
            raise HvctError(f"links {', '.join(left)} cannot be deleted", f"ip link del {left[0]}")
    return [f"link {name} deleted" for name in names]


def _mounts_below(folder: Path) -> list[str]:
    """Mount points at or below a folder, the last mounted first."""
    points = []
    for line in cgroupfs.read_text("/proc/self/mountinfo").splitlines():
        point = line.split(" ")[4].encode().decode("unicode_escape")
        if Path(point).is_relative_to(folder):
            points.append(point)
    return points[::-1]


def _unmount(tag: str, record: journal.Journal | None, dry_run: bool) -> list[str]:
    points = _mounts_below(runtime_root() / tag)
    if not dry_run:
        for point in points:
            umount2(point, MNT_DETACH)
    return [f"{point} unmounted" for point in points]


def umount2(point: str, flags: int) -> None:
    """Detach a mount (the system call of that name).

    Raises:
        HvctError: it is busy or not ours.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(point), flags) != 0:
        number = ctypes.get_errno()
        raise oserror("umount2", point, OSError(number, os.strerror(number)))


def _free_loops(tag: str, record: journal.Journal | None, dry_run: bool) -> list[str]:
    """Detach loop devices of the run, and of the cache where no run is alive to need them.

    A device that is still mounted somewhere only gets the autoclear flag by this.
    """
    roots = [runtime_root() / tag, *scratch.of_run(tag, record.cache_dir if record else "")]
    others = [entry for entry in journal.live() if entry.tag != tag]
    if record and record.cache_dir and not others:
        roots.append(Path(record.cache_dir))
    done = []
    for device, backing in loops.in_use():
        if any(backing.is_relative_to(root) for root in roots):
            if not dry_run:
                loops.detach(device)
            done.append(f"{device} ({backing.name}) detached")
    return done


def _remove_scratch_files(tag: str, record: journal.Journal | None, dry_run: bool) -> list[str]:
    done = []
    for path in scratch.of_run(tag, record.cache_dir if record else ""):
        if not dry_run:
            path.unlink(missing_ok=True)
        done.append(f"scratch disk {path.name} removed")
    return done


def _remove_runtime_dir(tag: str, record: journal.Journal | None, dry_run: bool) -> list[str]:
    folder = runtime_root() / tag
    if not folder.is_dir() or folder.is_symlink():
        return []
    if not dry_run:
        if _mounts_below(folder):  # never delete through a mount
            raise HvctError(f"{folder} still has mounts below it", "run hvct clean again")
        shutil.rmtree(folder, ignore_errors=True)
    return [f"{folder} removed"]


def _clean_drafts(dry_run: bool) -> list[str]:
    """Half-made files in the cache whose maker is gone, and drafts of journals."""
    from bench.cache import cache_dir

    done = []
    alive = {record.tag for record in journal.live()}
    for tag, path in scratch.files(cache_dir()):  # after a power cut there is no journal of it
        if tag not in alive and scratch.abandoned(path):
            done.append(f"scratch disk {path.name} removed")
            if not dry_run:
                path.unlink(missing_ok=True)
    for folder in cache_dir("tmp").iterdir():
        owner = re.search(r"-p(\d+)-[^-]*$", folder.name)
        with contextlib.suppress(OSError):
            old = time.time() - folder.stat().st_mtime > DRAFT_AGE_S
            orphan = owner is not None and journal.start_ticks(int(owner[1])) < 0
            if old or orphan:
                done.append(f"half-made {folder} removed")
                if not dry_run:
                    shutil.rmtree(folder, ignore_errors=True)
    for draft in runtime_root().glob(".r*.*"):
        if draft.suffix[1:].isdigit() and journal.start_ticks(int(draft.suffix[1:])) < 0:
            done.append(f"half-made {draft} removed")
            if not dry_run:
                draft.unlink(missing_ok=True)
    return done


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Launcher, worker and the next command may all clean up the same run at once."""
    root = runtime_root()
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle = (root / "clean.lock").open("w")
    except OSError as error:
        raise oserror("open", root / "clean.lock", error) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m bench.cleanup TAG…``: clean up after a harness that has just died.

    A process that gets SIGKILL closes its sockets a moment before it is gone, so its
    death is awaited first.
    """
    status = 0
    for tag in sys.argv[1:] if arguments is None else arguments:
        deadline = time.monotonic() + OWNER_DEADLINE_S
        while any(entry.tag == tag for entry in journal.live()) and time.monotonic() < deadline:
            time.sleep(0.01)
        status = _told(lambda tag=tag: clean(tag)) or status  # type: ignore[misc]
    return _told(tuning.reset_dead) or status


def _told(step: Callable[[], list[str]]) -> int:
    """Print what a step has done, or why not; its exit code."""
    try:
        for line in step():
            print(line)
    except HvctError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
