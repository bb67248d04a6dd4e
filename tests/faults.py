"""What the fault tests share: hvct as a user starts it, and what a run can leave on the host."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cleanup, journal, loops, scratch
from bench.cache import cache_dir
from bench.cgroupfs import layout
from bench.context import RUN_VARIABLE, runtime_root

HANG = {"PYTHONFAULTHANDLER": "1"}  # SIGABRT then prints every thread's stack
GONE_S = 5.0  # everything of a dead run is gone by then

PRIVATE = "mount --make-rprivate / && "
"""Begins a script for `hidden`: its mounts are seen by nobody else."""


BLOCKS = 6  # fewer could not reach any verdict

PLAN = """
blocks = {blocks}
gap = "{gap}"
arms = {arms}
seed = 4
[[workload]]
name = "w"
image = "busybox"
argv = ["sh", "-c", "echo x; sleep {sleep_s}"]
[[primary]]
metric = "startup_started"
workload = "w"
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def says(self, code: int, *words: str) -> None:
        """One line says what is wrong, one what to do, both free of Python's own words."""
        assert self.code == code, self
        assert "Traceback" not in self.err and "defect" not in self.err, self.err
        lines = self.err.rstrip("\n").split("\n")
        assert len(lines) >= 2, self.err
        what, remedy = lines[-2:]
        assert re.match(r"hvct( \w+)?: \S", what), self.err
        assert re.match(r" {6}\S", remedy), self.err
        for word in words:
            assert re.search(word, what) or re.search(word, remedy), (word, self.err)


def argv_of(*arguments: str | Path, python: Sequence[str] = ()) -> list[str]:
    """The command line of hvct with these arguments."""
    return [*(python or [sys.executable]), "-m", "bench.cli", *map(str, arguments)]


def hvct(
    *arguments: str | Path,
    before: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 300.0,
) -> Done:
    """Run hvct to its end.

    Args:
        before: a command that starts it (``unshare``, ``setpriv``).
    """
    process = subprocess.Popen(
        [*before, *argv_of(*arguments)],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return Done(process.returncode, _text(out), _text(err))


def hidden(script: str) -> list[str]:
    """For ``before``: a mount namespace of its own in which a shell script ran first."""
    return ["unshare", "--mount", "sh", "-ec", f'{PRIVATE}{script}\nexec "$@"', "sh"]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


class Harness:
    """An hvct that is still running, with everything of its that is on the host."""

    def __init__(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> None:
        # A session of its own, so that a Ctrl-C can be sent as a terminal sends it: to all.
        self.process = subprocess.Popen(
            argv_of(*arguments),
            env={**os.environ, **HANG, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # As a terminal starts it: what a shell starts with `&` ignores Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )
        self.began = time.monotonic()

    @property
    def tag(self) -> str:
        """The name prefix of its run, "" before it has one."""
        for record in journal.journals():
            if record.pid == self.process.pid:
                return record.tag
        return ""

    def until(self, condition: Callable[[], bool], seconds: float = 400.0) -> None:
        """Wait until something is so, while it runs; another's comparison may have to end first."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < deadline, self.end()
            time.sleep(0.01)

    def catches(self, number: int) -> bool:
        """Whether it has a handler for a signal."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1)

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Ctrl-C, as a terminal sends it: to the whole foreground process group."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL to the harness alone."""
        self.process.kill()

    def end_by_itself(self, directory: Path, patience_s: float) -> Done:
        """Wait for its end; a run that gets no trial further for so long hangs, and is killed."""
        seen, since = -1, time.monotonic()
        while self.process.poll() is None and time.monotonic() - since < patience_s:
            if (count := len(trials(directory))) != seen:
                seen, since = count, time.monotonic()
            time.sleep(0.2)
        return self.end(5.0)

    def end(self, seconds: float = 60.0) -> Done:
        """Wait for its end (killing it where that does not come); output and errors are one.

        One that hangs says where, in its output: see `HANG`.
        """
        try:
            out, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            time.sleep(1.0)
            self.process.kill()
            out, _ = self.process.communicate()
        return Done(self.process.returncode, "", _text(out))

    def processes(self) -> dict[int, str]:
        """Command lines of the helpers and instances that carry the mark of its run."""
        return marked(self.tag) if self.tag else {}


def marked(tag: str) -> dict[int, str]:
    """Processes that carry the mark of a run (any run: ""), with their command lines."""
    found = {}
    mark = f"{RUN_VARIABLE}={tag}".encode()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ")
            for word in words:
                if word == mark or (not tag and word.startswith(mark)):
                    found[int(entry)] = f"{word.partition(b'=')[2].decode()}: {_text(line)[:500]}"
    return found


OWN_ROOT = re.compile(rb"^\d+ \d+ \S+ / / .* - overlay \S+ \S*lowerdir=image-[0-9a-f]{16}\b", re.M)
"""In mountinfo: an image of ours under an overlay, as the root of whoever asks."""


def namespaces() -> dict[str, str]:
    """Namespaces held by a process whose root is an instance's, whatever became of its parents.

    The environment of a workload is its image's, so it carries no mark; its group says whose it
    is. One that has left its group is nobody's.
    """
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            folder = Path("/proc", entry)
            if not OWN_ROOT.search((folder / "mountinfo").read_bytes()):
                continue
            group = re.search(r"/hvct/(r[0-9a-f]{4})\b", (folder / "cgroup").read_text())
            for kind in ("net", "mnt", "pid", "ipc", "uts"):
                inode = os.readlink(folder / "ns" / kind)
                if inode != os.readlink(f"/proc/self/ns/{kind}"):
                    found[f"namespace {inode} of process {entry}"] = group[1] if group else ""
    return found


def traces() -> dict[str, str]:
    """Everything of any run that is on this host: what it is → whose (a tag, "" for nobody's)."""
    found = {}
    for pid, line in marked("").items():
        found[f"process {pid} {line}"] = line.partition(":")[0]
    found |= namespaces()
    for mount in layout().mounts:
        for group in (mount / "hvct").glob("r????"):
            found[str(group)] = group.name
    for name in os.listdir("/sys/class/net"):
        if match := re.fullmatch(r"(?:hvct)?(r[0-9a-f]{4})(?:-.*)?", name):
            found[f"link {name}"] = match[1]
    for path in runtime_root().iterdir():
        if path.name[0] in ".r" and not _is_draft_of_a_live_process(path):
            found[str(path)] = path.name.lstrip(".").partition(".")[0]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if match := re.match(rf"{runtime_root()}/(r[0-9a-f]{{4}})\b", line.split(" ")[4]):
            found[f"mount {line.split(' ')[4]}"] = match[1]
    for device, file in loops.in_use():
        if "hvct" in file.parts:
            own = re.match(r"(r[0-9a-f]{4})-", file.name)
            found[f"loop device {device} on {file}"] = own[1] if own else ""
    for tag, path in scratch.files(cache_dir()):
        found[f"scratch disk {path}"] = tag
    return found


def _is_draft_of_a_live_process(path: Path) -> bool:
    """A journal being written at this moment: ``.<tag>.<pid>``."""
    pid = path.name.rpartition(".")[2]
    return path.name[0] == "." and pid.isdigit() and Path("/proc", pid).exists()


def foreign() -> set[str]:
    """Tags of runs whose harness lives where we cannot read its journal (in another root)."""
    found = set()
    for pid, line in marked("").items():
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            parent = int(stat[stat.rindex(")") + 2 :].split()[1])
            command = Path(f"/proc/{parent}/cmdline").read_bytes()
            if parent not in (1, os.getpid()) and (b"bench.cli" in command or b"pytest" in command):
                found.add(line.partition(":")[0])
    return found


def left(before: dict[str, str]) -> list[str]:
    """What is there that was not before, and belongs to no run that is alive."""
    # Asked before and after: another run on this host may begin or end in between.
    alive = {record.tag for record in journal.live()} | foreign() | cleanup.elsewhere()
    now = traces()
    alive |= {record.tag for record in journal.live()} | foreign() | cleanup.elsewhere()
    if alive:
        alive.add("")  # a live run's, perhaps
    return [what for what, tag in now.items() if what not in before and tag not in alive]


def await_gone(before: dict[str, str], seconds: float = GONE_S) -> list[str]:
    """What is still there after a while."""
    deadline = time.monotonic() + seconds
    while (rest := left(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return rest


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fail where what happens inside leaves anything on this host."""
    before = traces() if runtime_root().is_dir() else {}
    yield
    assert await_gone(before) == []


def trials(directory: Path) -> list[dict[str, Any]]:
    """Every trial that is stored, in order; a line that is only half there yet is left out."""
    with contextlib.suppress(FileNotFoundError):
        path = directory / "trials.jsonl"
        about = path.stat()
        return list(_trials(path, about.st_size, about.st_mtime_ns))
    return []


@functools.lru_cache(maxsize=4)
def _trials(path: Path, size: int, mtime_ns: int) -> list[dict[str, Any]]:
    """Read once: who waits for the next trial a hundred times a second leaves the host quiet."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def shell(*words: str | Path) -> str:
    """Words as a shell takes them."""
    return shlex.join(map(str, words))


def comparison(
    folder: Path,
    arms: tuple[str, ...] = ("vm", "container", "process"),
    sleep_s: float = 0.1,
    gap: str = "none",
) -> tuple[str | Path, ...]:
    """The command of a short comparison with a run directory in this folder.

    Args:
        gap: the plan's. What befalls a run does not depend on a quiet host, so nobody waits for it.
    """
    plan = folder / "plan.toml"
    plan.write_text(PLAN.format(blocks=BLOCKS, arms=json.dumps(arms), sleep_s=sleep_s, gap=gap))
    return "compare", "--wait", "--no-report", "--plan", plan, "--output", folder / "run"


def resuming(directory: Path) -> tuple[str | Path, ...]:
    """The command that goes on with it."""
    return "resume", "--wait", "--no-report", directory


def await_turn() -> None:
    """Wait until no other comparison runs: times are counted from a start without a queue."""
    with journal.exclusive(wait=True):
        pass


def assert_gone(before: dict[str, str]) -> None:
    """Nothing is left within 5 s, or after the next command."""
    if await_gone(before):
        assert hvct("run", "busybox", "--", "true").code == 0
    assert await_gone(before, 1.0) == []


def assert_complete(directory: Path, blocks_cut: int) -> None:
    """Every block is there whole, at most so many were begun in vain, and the report is valid.

    The report keeps to its schema and counts every stored trial: as one that was used, or as
    one of a block that was cut short.
    """
    import jsonschema

    from reports import report, schema

    found = trials(directory)
    run = json.loads((directory / "run.json").read_text())
    arms = set(run["plan"]["arms"])
    attempts: dict[tuple[int, int], list[str]] = {}
    for trial in found:
        attempts.setdefault((trial["block"], trial["attempt"]), []).append(trial["arm"])
    whole = {block for (block, _), names in attempts.items() if set(names) == arms}
    assert whole == set(range(BLOCKS)) and run["ended"], (directory, attempts)
    cut = [key for key, names in attempts.items() if set(names) != arms]
    assert len(cut) <= blocks_cut and len(attempts) <= BLOCKS + blocks_cut, attempts
    made = json.loads(report.as_json([directory]))
    jsonschema.Draft202012Validator(schema.schema()).validate(made)
    counts = made["runs"][0]["counts"]
    assert counts["trials"] + counts["excluded"] == len(found)
    lines = (directory / "trials.jsonl").read_bytes().splitlines()
    assert counts["damaged_lines"] == len([line for line in lines if line]) - len(found)
    assert counts["trials"] == BLOCKS * len(arms)
