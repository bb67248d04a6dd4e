"""Settings of the host changed for a while: written down first, undone whatever happens.

There is one record per host, `tuning` in `bench.context.runtime_root`, on disk before the first
change. It names who must undo it: a process (`hvct compare --tune`), whose death makes it the
next command's matter, or nobody (`hvct tune apply`), where it stands until `hvct tune reset`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.checks.tree import Tree
from bench.context import runtime_root
from bench.errors import HostCannot, HvctError, oserror
from bench.hostchange import Change, Kind
from bench.journal import start_ticks

FORMAT = 1
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True)
class Record:
    """What was changed, by whom.

    Attributes:
        pid, start_ticks: who undoes it; 0 where it is to stay.
        boot_id: after another boot nothing of it is in force.
        measured: CPUs kept for instances.
        changes: in the order they were made.
        since: wall time, for messages only.
    """

    pid: int
    start_ticks: int
    boot_id: str
    measured: tuple[int, ...]
    changes: tuple[Change, ...]
    since: str = ""
    format: int = FORMAT

    @property
    def kept(self) -> bool:
        """It stands until somebody asks for its end."""
        return self.pid == 0

    @property
    def dead(self) -> bool:
        """Its owner is gone: it must be undone."""
        return not self.kept and start_ticks(self.pid) != self.start_ticks

    @property
    def settings(self) -> tuple[str, ...]:
        """The rows it concerns."""
        return tuple(dict.fromkeys(change.setting for change in self.changes))


def record_path(tree: Tree) -> Path:
    """Where it is, in a host's own tree."""
    return tree.path(str(runtime_root() / "tuning"))


def read(tree: Tree | None = None) -> Record | None:
    """What is in force; None where nothing is.

    Raises:
        HostCannot: there is a record that cannot be read.
    """
    path = record_path(tree or Tree())
    try:
        fields = json.loads(path.read_text())
        changes = tuple(
            Change(**{**change, "kind": Kind(change["kind"])}) for change in fields.pop("changes")
        )
        return Record(**{**fields, "measured": tuple(fields["measured"]), "changes": changes})
    except FileNotFoundError:
        return None
    except PermissionError:  # another user's: nothing that we could undo
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HostCannot(
            f"{path} cannot be read ({error})", "it says what was changed: restore that by hand"
        ) from error


def measured_cpus() -> tuple[int, ...]:
    """The CPUs that are kept for instances now; the scheduler hides them from everybody else."""
    try:
        record = read()
    except HvctError:
        return ()
    return record.measured if record and "cpuset" in record.settings else ()


def in_force() -> dict[str, object] | None:
    """What a run records of the settings it was made under; None where none are changed."""
    record = read()
    if record is None or record.dead:
        return None
    return {
        "settings": list(record.settings),
        "measured_cpus": list(record.measured),
        "for_this_run": not record.kept,
    }


def apply(
    changes: Sequence[Change], measured: Sequence[int], tree: Tree | None = None, *, keep: bool
) -> list[Change]:
    """Make changes, all of them or none.

    Args:
        keep: they stand after this process, until `reset`.

    Returns:
        What was really changed: the kernel refuses some optional ones.

    Raises:
        HostCannot: others are in force already, or the kernel refused one. Nothing is changed then.
    """
    host = tree or Tree()
    with _locked(host):
        _undo_if_dead(host)
        if (before := read(host)) is not None:
            who = "hvct tune apply" if before.kept else f"process {before.pid}"
            raise HostCannot(
                f"settings are changed already, by {who} since {before.since}",
                "undo that first: hvct tune reset"
                if before.kept
                else "they are undone when it ends",
            )
        for change in changes:
            _check_writable(host, change)
        record = Record(
            pid=os.getpid(),
            start_ticks=start_ticks(os.getpid()),
            boot_id=host.text(BOOT_ID) or "",
            measured=tuple(measured),
            changes=tuple(changes),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )
        _write(record, host)
        try:
            made = [change for change in changes if change.make(host)]
        except BaseException as error:
            _undo(record, host)
            if isinstance(error, HvctError):
                raise HostCannot(
                    f"nothing was changed: {error.message}", "leave that setting out with --only"
                ) from error
            raise
        # What the kernel refused need not be undone; what is only to be restored must be.
        real = tuple(change for change in changes if change in made or change.old == change.new)
        record = replace(record, changes=real)
        _write(replace(record, pid=0, start_ticks=0) if keep else record, host)
        return made


def reset(tree: Tree | None = None) -> list[str]:
    """Undo what is in force, unless a living process does.

    Returns:
        What was restored, one line each.

    Raises:
        HostCannot: its owner lives.
        HvctError: something could not be restored (the rest was; the record stays).
    """
    host = tree or Tree()
    with _locked(host):
        record = read(host)
        if record is None:
            return []
        if not (record.kept or record.dead or record.pid == os.getpid()):
            raise HostCannot(
                f"process {record.pid} changed these settings and lives",
                "it undoes them when it ends",
            )
        return _undo(record, host)


def reset_dead(tree: Tree | None = None, *, dry_run: bool = False) -> list[str]:
    """Undo what a process that died had changed: what every command does first.

    Raises:
        HvctError: something could not be restored.
    """
    host = tree or Tree()
    if not record_path(host).exists():
        return []
    if dry_run:
        record = read(host)
        return [_line(change) for change in record.changes] if record and record.dead else []
    with _locked(host):
        return _undo_if_dead(host)


@contextmanager
def applied(
    changes: Sequence[Change], measured: Sequence[int], tree: Tree | None = None
) -> Iterator[list[Change]]:
    """Changes in force for the time of a block.

    Raises:
        HostCannot: as `apply`.
        HvctError: as `reset`.
    """
    made = apply(changes, measured, tree, keep=False)
    try:
        yield made
    finally:
        reset(tree)


def _undo_if_dead(host: Tree) -> list[str]:
    record = read(host)
    return _undo(record, host) if record is not None and record.dead else []


def _undo(record: Record, host: Tree) -> list[str]:
    """Restore every old value, the last changed first; remove the record when all are."""
    done, failed, left = [], [], []
    if record.boot_id == (host.text(BOOT_ID) or ""):
        for change in reversed(record.changes):
            try:
                if change.undo(host):
                    done.append(_line(change))
            except HvctError as error:
                if not (change.optional and change.current(host) is not None):
                    failed.append(error)
                    left.append(change)
    if failed:
        _write(replace(record, changes=tuple(reversed(left))), host)
        raise HvctError(
            f"{len(failed)} of {len(record.changes)} settings could not be restored:"
            f" {failed[0].message}",
            f"write {left[0].old!r} to {left[0].path} yourself, then hvct tune reset",
        )
    record_path(host).unlink(missing_ok=True)
    return done


def _line(change: Change) -> str:
    return f"{change.path} is {change.old or 'empty'} again"


def _check_writable(host: Tree, change: Change) -> None:
    """What cannot even be opened (a container's /sys) must fail before anything is changed."""
    if change.kind in (Kind.SWAP, Kind.OTHERS) or not host.there(change.path):
        return
    path = host.path(change.path)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        raise HostCannot(
            oserror("open", path, error).message, "run it as root, on the host itself"
        ) from error


def _write(record: Record, host: Tree) -> None:
    """The record, whole and on disk when this returns."""
    path = record_path(host)
    draft = path.with_name(f".tuning.{os.getpid()}")
    try:
        with draft.open("w") as handle:
            json.dump(asdict(record), handle, indent=1)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(draft, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise oserror("write", path, error) from error


@contextmanager
def _locked(host: Tree) -> Iterator[None]:
    """Several commands may want to undo the same record at once."""
    root = record_path(host).parent
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle = (root / "tuning.lock").open("w")
    except OSError as error:
        raise oserror("open", root / "tuning.lock", error) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
