"""The run directory: ``run.json`` written once per stage, ``trials.jsonl`` appended line by line.

Format history:
    1: first version.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shlex
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

from bench.errors import BadInput, HostCannot, oserror
from bench.model import FORMAT, Trial
from bench.owner import make_folder

RUN_FILE = "run.json"
TRIALS_FILE = "trials.jsonl"
LOGS = "logs"
LARGEST_RUN_BYTES = 64 << 20
LARGEST_LINE_BYTES = 32 << 20  # a piece of a longer line is a damaged line


def jsonable(value: Any) -> Any:
    """Turn our dataclasses, enums, paths and bytes into what JSON holds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode("ascii")
        except UnicodeDecodeError:
            return "base64:" + base64.b64encode(value).decode("ascii")
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, str):
        # A name from outside may hold bytes that are no UTF-8; JSON must.
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value


@dataclass
class StoredRun:
    """A run as read back.

    Attributes:
        directory: where it lies.
        run: the contents of ``run.json``.
        trials: trials of complete blocks, each block's last complete attempt.
        excluded: trials of blocks that were cut short.
        damaged_lines: lines of ``trials.jsonl`` that could not be read (the last line
            of a run that was killed while writing).
    """

    directory: Path
    run: dict[str, Any]
    trials: list[dict[str, Any]]
    excluded: list[dict[str, Any]] = field(default_factory=list)
    damaged_lines: int = 0

    def complete_blocks(self) -> set[int]:
        """Numbers of the blocks of which every trial was stored."""
        return {trial["block"] for trial in self.trials}


class RunStore:
    """Writes one run directory. Every trial is on disk before the next begins."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def create(cls, directory: Path) -> RunStore:
        """Make a new run directory, or take one in which nothing is.

        Raises:
            BadInput: something is there already, or it cannot be created.
        """
        try:
            make_folder(directory)
            _drop_unbegun(directory)
            (directory / LOGS).mkdir()
        except FileExistsError as error:
            raise _exists(directory) from error
        except OSError as error:
            failure = oserror("mkdir", directory, error)
            raise BadInput(
                failure.message, "choose a folder you can write with --output"
            ) from error
        return cls(directory)

    @property
    def begun(self) -> bool:
        """True once a trial was stored."""
        return (self.directory / TRIALS_FILE).exists()

    def discard(self) -> None:
        """Take a run directory away again in which there is no trial."""
        if not self.begun:
            shutil.rmtree(self.directory, ignore_errors=True)

    def write_run(self, run: dict[str, Any]) -> None:
        """Replace ``run.json``, all or nothing."""
        write_json(self.directory / RUN_FILE, {"format": FORMAT, **run})

    def append(self, trial: Trial) -> None:
        """Add one trial and flush it to disk.

        A line cut off by a kill is closed first, so that it can spoil nothing but itself.

        Raises:
            HostCannot: the disk is full or not writable; nothing half-written stays.
        """
        line = json.dumps({"format": FORMAT, **jsonable(trial)}, allow_nan=False).encode() + b"\n"
        path = self.directory / TRIALS_FILE
        try:
            # Unbuffered: what a full disk did not take must not be written once more on closing.
            with path.open("ab+", buffering=0) as handle:
                end = handle.seek(0, os.SEEK_END)
                if end:
                    handle.seek(end - 1)
                    if handle.read(1) != b"\n":
                        line = b"\n" + line
                try:
                    while line:
                        line = line[handle.write(line) :]
                    os.fsync(handle.fileno())
                except OSError:
                    os.ftruncate(handle.fileno(), end)
                    raise
        except OSError as error:
            raise _not_written(path, error) from error


def _drop_unbegun(directory: Path) -> None:
    """Remove what a run left that was killed before its description was written.

    Raises:
        FileExistsError: there is anything else.
    """
    entries = list(directory.iterdir())
    drafts = [entry for entry in entries if entry.name.startswith(f".{RUN_FILE}.")]
    if set(entries) - set(drafts) - {directory / LOGS}:
        raise FileExistsError
    for draft in drafts:
        draft.unlink()
    if directory / LOGS in entries:
        try:
            (directory / LOGS).rmdir()
        except OSError as error:
            raise FileExistsError from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside its place, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            json.dump(jsonable(value), handle, indent=1, allow_nan=False)
            handle.write("\n")
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> HostCannot:
    return HostCannot(
        oserror("write", path, error).message,
        f"make room, then go on with: hvct resume {shlex.quote(str(path.parent))}",
    )


def check_free(directory: Path) -> None:
    """Refuse now what `RunStore.create` would refuse after having waited for another run.

    Raises:
        BadInput: something is there already.
    """
    entries = set(directory.iterdir()) if directory.is_dir() else set()
    if entries - {directory / LOGS} - set(directory.glob(f".{RUN_FILE}.*")):
        raise _exists(directory)
    if os.path.lexists(directory) and not directory.is_dir():
        raise _exists(directory)


def _exists(directory: Path) -> BadInput:
    hint = "name another folder with --output"
    if (directory / RUN_FILE).is_file():
        hint = f"resume it with: hvct resume {shlex.quote(str(directory))}"
    return BadInput(f"{directory} exists already", hint)


def load(directory: Path) -> StoredRun:
    """Read a run directory.

    Raises:
        BadInput: it is no run directory, or of a format this version cannot read.
    """
    directory = Path(directory)
    run = _read_run(directory)
    slots_per_block = len(run["plan"]["arms"]) * len(run["plan"]["workloads"])
    by_attempt: dict[tuple[int, int], list[dict[str, Any]]] = {}
    damaged = 0
    for line_number, trial in _read_trials(directory / TRIALS_FILE):
        if trial is None:
            damaged += 1
            continue
        if wrong := _wrong_key(trial):
            raise BadInput(
                f"{directory / TRIALS_FILE}: line {line_number} is no trial ({wrong})",
                "the file was changed by hand; restore it from a copy",
            )
        key = (trial["block"], trial.get("attempt", 1))
        by_attempt.setdefault(key, []).append(trial)
    complete: dict[int, int] = {}
    for (block, attempt), trials in by_attempt.items():
        distinct = {(trial["arm"], trial["workload"]) for trial in trials}
        if len(distinct) == len(trials) == slots_per_block:
            complete[block] = max(attempt, complete.get(block, 0))
    chosen: list[dict[str, Any]] = []
    excluded: list[dict[str, Any]] = []
    for (block, attempt), trials in sorted(by_attempt.items()):
        (chosen if complete.get(block) == attempt else excluded).extend(trials)
    return StoredRun(directory, run, chosen, excluded, damaged)


def _wrong_key(trial: dict[str, Any]) -> str:
    """Which of the keys everything rests on is missing or of the wrong type, "" for none."""
    for name, kind in (
        ("block", int),
        ("attempt", int),
        ("arm", str),
        ("workload", str),
        ("outcome", str),
    ):
        value = trial.get(name, 1 if name == "attempt" else None)
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"its {name} is {value!r:.40}"
    return ""


def attempts(directory: Path) -> dict[int, int]:
    """The highest attempt number that any stored trial of each block carries."""
    highest: dict[int, int] = {}
    for _, trial in _read_trials(directory / TRIALS_FILE):
        if trial is not None and not _wrong_key(trial):
            block = trial["block"]
            highest[block] = max(highest.get(block, 0), trial.get("attempt", 1))
    return highest


def find_runs(base: Path) -> Iterator[Path]:
    """Run directories below `base`, oldest first."""
    if base.is_dir():
        for path in sorted(base.iterdir()):
            if (path / RUN_FILE).is_file():
                yield path


def _read_run(directory: Path) -> dict[str, Any]:
    path = directory / RUN_FILE
    hint = "name a folder made by hvct compare; hvct list shows them"
    try:
        with _regular(path) as handle:
            data = handle.read(LARGEST_RUN_BYTES + 1)
        if len(data) > LARGEST_RUN_BYTES:
            raise ValueError(f"it is larger than {LARGEST_RUN_BYTES >> 20} MiB")
        run = json.loads(data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadInput(f"{directory} is not a run directory: it has no {RUN_FILE}", hint) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} cannot be read: {error}", hint) from error
    if not isinstance(run, dict) or not isinstance(run.get("plan"), dict):
        raise BadInput(f"{path} does not describe a run", hint)
    if run.get("format") != FORMAT:
        raise BadInput(
            f"{path} has format {run.get('format')!r}, this version reads {FORMAT}",
            "use the version of hvct that wrote it",
        )
    plan = run["plan"]
    if not isinstance(plan.get("arms"), list) or not isinstance(plan.get("workloads"), list):
        raise BadInput(f"{path}: its plan names no arms or workloads", hint)
    named = (item.get("name") if isinstance(item, dict) else None for item in plan["workloads"])
    if not all(isinstance(name, str) for name in (*plan["arms"], *named)):
        raise BadInput(f"{path}: its plan names an arm or workload by something else", hint)
    return run


def _regular(path: Path) -> BinaryIO:
    """Open a file for reading; what else may lie there (a pipe, a device) is not waited for.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no regular file")
    return open(descriptor, "rb")


def _parsed(line: bytes) -> Any:
    """What a line of JSON says, None if it says nothing."""
    import orjson  # what never reads a run does not wait for it

    try:
        return orjson.loads(line)  # in half the time, of which there is much in a long run
    except orjson.JSONDecodeError:
        pass  # it refuses what others may have written: NaN, half of a surrogate pair
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _read_trials(path: Path) -> Iterable[tuple[int, dict[str, Any] | None]]:
    if not path.exists():
        return
    try:
        with _regular(path) as handle:
            number = 0
            while line := handle.readline(LARGEST_LINE_BYTES):
                number += 1
                if not line.strip():
                    continue
                trial = _parsed(line)
                yield number, trial if isinstance(trial, dict) else None
    except ValueError as error:
        raise BadInput(f"{path} cannot be read: {error}", "restore it from a copy") from error
    except OSError as error:
        raise BadInput(oserror("read", path, error).message, "check its permissions") from error
