"""What a run is about to do to this host, written down before it does it.

One small record per run in `bench.context.runtime_root`: owner and name prefix, from
which everything per instance derives. It is written and synced before the run's first
host change and removed after its last one, so a record without a living owner means that
something may have been left (`bench.cleanup`). Nothing is written per trial.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.context import RunContext, runtime_root
from bench.errors import HostCannot, HvctError, oserror

FORMAT = 1
TAG = re.compile("r[0-9a-f]{4}")

CLEANUP_CODE = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from bench.cleanup import main; sys.exit(main(sys.argv[1:]))"
)


@dataclass(frozen=True)
class Journal:
    """One run's record.

    Attributes:
        tag: the prefix of every name it makes on the host.
        pid, start_ticks: its owner; the start time (clock ticks since boot) tells a
            process that was given the same number later.
        run_dir: where its results are.
        libvirt_uri: "" for our own embedded driver, whose domains die with our processes.
        cache_dir: whose loop devices are ours.
        since: wall time, for messages only.
    """

    tag: str
    pid: int
    start_ticks: int
    run_dir: str
    libvirt_uri: str = ""
    cache_dir: str = ""
    since: str = ""
    format: int = FORMAT

    @property
    def path(self) -> Path:
        """Its file."""
        return runtime_root() / f"{self.tag}.json"

    @property
    def alive(self) -> bool:
        """True while the owner runs; a zombie, or another process of that number, does not."""
        return start_ticks(self.pid) == self.start_ticks


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot; -1 when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    fields = stat[stat.rindex(")") + 2 :].split()  # the name may hold blanks and brackets
    return -1 if fields[0] in "ZX" else int(fields[19])


def journals() -> list[Journal]:
    """Every record there is; unreadable ones are skipped."""
    found = []
    try:
        names = sorted(name for name in os.listdir(runtime_root()) if name.endswith(".json"))
    except OSError:
        return []
    for name in names:
        with contextlib.suppress(OSError, ValueError, TypeError):
            fields = json.loads((runtime_root() / name).read_text())
            known = {key: fields[key] for key in Journal.__dataclass_fields__ if key in fields}
            found.append(Journal(**known))
    return found


def live() -> list[Journal]:
    """Records of runs whose owner is alive."""
    return [journal for journal in journals() if journal.alive]


def dead() -> list[Journal]:
    """Records of runs whose owner is gone: what they made must be undone."""
    return [journal for journal in journals() if not journal.alive]


def new_tag() -> str:
    """Five characters, ``r`` and four hexadecimal ones."""
    return f"r{secrets.token_hex(2)}"


@contextmanager
def open_run(
    run_dir: Path | None,
    *,
    log_dir: Path | None = None,
    network: bool = False,
    libvirt_uri: str = "",
    kernel: Path | None = None,
) -> Iterator[RunContext]:
    """Journal a run, make its runtime folder (and bridge), and undo all of it at the end.

    Args:
        run_dir: the results folder, named in messages; None for a run that keeps none: then all
            that it writes lies in its runtime folder and goes with that, however it ends.
        log_dir: where consoles and worker logs go; ``run_dir/logs`` by default, created.
        network: make the run's bridge.

    Raises:
        HvctError: the runtime folder cannot be written, or the network cannot be made.
    """
    from bench import cleanup  # it reads journals, so it imports this module

    journal = _write_new(run_dir, libvirt_uri)
    try:
        runtime_dir = runtime_root() / journal.tag
        logs = log_dir or (run_dir or runtime_dir) / "logs"
        for folder, mode in ((runtime_dir, 0o755), (logs, 0o777)):
            try:
                folder.mkdir(mode=mode, parents=True, exist_ok=True)
            except OSError as error:
                raise oserror("mkdir", folder, error) from error
        with contextlib.ExitStack() as stack:
            bridge = None
            if network:
                from bench.network import RunNetwork  # costs an import of pyroute2

                bridge = stack.enter_context(RunNetwork(journal.tag))
            yield RunContext(
                tag=journal.tag,
                runtime_dir=runtime_dir,
                log_dir=logs,
                network=bridge,
                cleanup=cleanup_argv(journal.tag),
                libvirt_uri=libvirt_uri,
                kernel=kernel,
            )
    finally:
        cleanup.clean(journal.tag)


def cleanup_argv(tag: str) -> tuple[str, ...]:
    """What a helper process runs when the harness died; works from any working directory."""
    return (sys.executable, "-c", CLEANUP_CODE, str(Path(__file__).parent.parent), tag)


def _write_new(run_dir: Path | None, libvirt_uri: str) -> Journal:
    """Write a record under a tag that nobody has, complete from the moment it is visible."""
    from bench.cache import cache_dir

    root = runtime_root()
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        if root.stat().st_uid != os.geteuid():  # a name in /tmp that anybody can take first
            raise HostCannot(
                f"{root} is somebody else's", "set XDG_RUNTIME_DIR to a folder of yours"
            )
        for _ in range(100):
            tag = new_tag()
            journal = Journal(
                tag=tag,
                pid=os.getpid(),
                start_ticks=start_ticks(os.getpid()),
                run_dir=str((run_dir or root / tag).absolute()),
                libvirt_uri=libvirt_uri,
                cache_dir=str(cache_dir()),
                since=time.strftime("%Y-%m-%d %H:%M:%S"),
            )
            if (root / journal.tag).exists():
                continue
            draft = root / f".{journal.tag}.{os.getpid()}"
            try:
                with draft.open("w") as handle:
                    json.dump(asdict(journal), handle, indent=1)
                    handle.flush()
                    os.fsync(handle.fileno())
                os.link(draft, journal.path)  # unlike rename, fails when the name is taken
            except FileExistsError:
                continue
            finally:
                draft.unlink(missing_ok=True)
            _sync(root)
            return journal
    except OSError as error:
        raise HostCannot(
            oserror("write", root, error).message,
            "make room there; as another user than root, set XDG_RUNTIME_DIR",
        ) from error
    raise HvctError("no free name for this run", f"remove old files in {root}")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(
    wait: bool = False,
    run_dir: Path | None = None,
    told: Callable[[str], None] = lambda first: None,
) -> Iterator[None]:
    """Be the only comparison on this host: two at once would measure each other.

    Args:
        wait: queue behind the running one instead of failing.
        run_dir: named to whoever comes second.
        told: called with who is first, when there is somebody to wait for.

    Raises:
        HostCannot: another one runs, and `wait` is off.
    """
    root = runtime_root()
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(root / "compare.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise oserror("open", root / "compare.lock", error) from error
    with os.fdopen(descriptor, "r+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            first = handle.read().strip() or "a process that has not said its name yet"
            if not wait:
                raise HostCannot(
                    f"another comparison is running: {first}",
                    "wait until it has ended, or queue behind it with --wait",
                ) from None
            told(first)
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        handle.truncate()
        handle.write(f"process {os.getpid()}{f', {run_dir.absolute()}' if run_dir else ''}")
        handle.flush()
        yield
        handle.seek(0)
        handle.truncate()
