"""Random faults against a comparison, by seed: what happens when, to whom, and what must hold.

A round is one comparison of six blocks that is hit by one to four faults, taken up again
after each, and finished. Round n of a seed is always the same faults at the same points of
progress; to the millisecond no two are alike, so a round that failed may need a few replays.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import faults
from daemon import Daemon, libvirtd

HELPER_S = 90.0  # without one more trial: it hangs, however slow the host is
ENDED_S = 60.0  # for one that was told to end, on a busy host
TRIAL_S = 120.0


class Fault(Enum):
    """What happens."""

    HARNESS = "harness killed"
    WORKER = "VM worker killed"
    LAUNCHER = "launcher killed"
    INSTANCE = "an instance killed"
    DAEMON = "libvirtd killed"
    POWER = "everything killed, hvct clean"
    POWER_AND_ON = "everything killed, the next command"
    CLEANER = "everything killed, and the first hvct clean as well"
    ONE_BY_ONE = "harness and helpers killed, in any order, moments apart"
    INTERRUPT = "interrupted"
    RUN_FULL = "disk of the run directory full"
    CACHE_FULL = "disk of the cache full"


ENDS = frozenset(Fault) - {Fault.WORKER, Fault.LAUNCHER, Fault.INSTANCE, Fault.DAEMON}
"""After these the comparison is over and has to be resumed; after the others it goes on."""

NATIVE = ("container", "process")
COMMON = (
    *(Fault.HARNESS, Fault.LAUNCHER, Fault.INSTANCE, Fault.POWER, Fault.POWER_AND_ON),
    *(Fault.CLEANER, Fault.ONE_BY_ONE, Fault.INTERRUPT, Fault.RUN_FULL),
)


@dataclass(frozen=True)
class Blow:
    """One fault and its moment: once so much has been done, and a little later.

    Attributes:
        share: of the trials that were left when the comparison was taken up.
        delay_s: after that; where the share is none, after the command's start.
        number: of the signal, for an interrupt.
        shuffle: the seed of whatever else it draws.
    """

    fault: Fault
    share: float
    delay_s: float
    number: int
    shuffle: int


@dataclass(frozen=True)
class Round:
    """One comparison and what befalls it."""

    seed: int
    number: int
    arms: tuple[str, ...]
    daemon: bool
    cache_bytes: int  # 0: the usual cache; else a disk of that size, which is too small
    blows: tuple[Blow, ...]

    def __str__(self) -> str:
        """What it was, for the log."""
        names = ", ".join(
            f"{blow.fault.value} ({blow.share:.0%} + {blow.delay_s:.2f} s)" for blow in self.blows
        )
        more = " by libvirtd" if self.daemon else ""
        return f"seed {self.seed} round {self.number}: {'+'.join(self.arms)}{more}: {names}"


def draw(seed: int, number: int, *, machines: bool) -> Round:
    """Round `number` of a seed.

    Args:
        machines: let virtual machines take part, in one round of three.
    """
    rng = random.Random(f"{seed}/{number}")
    kind = rng.random() if machines else 1.0
    daemon, vm = kind < 0.06, kind < 0.33
    arms = ("vm", "process") if daemon else ("vm", *NATIVE) if vm else NATIVE
    choice = [*COMMON, *([Fault.WORKER, Fault.WORKER] if vm else [])]
    choice += [Fault.DAEMON] * 4 if daemon else []
    small = not vm and rng.random() < 0.12
    blows = [_blow(rng, rng.choice(choice)) for _ in range(rng.randint(1, 4))]
    if small:
        blows.insert(0, Blow(Fault.CACHE_FULL, 0.0, 0.0, 0, 0))
    return Round(
        seed, number, arms, daemon, rng.randrange(100 << 10, 4 << 20) if small else 0, tuple(blows)
    )


def _blow(rng: random.Random, fault: Fault) -> Blow:
    begun = rng.random() < 0.65
    return Blow(
        fault,
        rng.uniform(0.0, 0.8) if begun else 0.0,
        rng.uniform(0.0, 0.4) if begun else rng.uniform(0.0, 2.5),
        rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
        rng.randrange(1 << 30),
    )


@dataclass
class Log:
    """What was done, over all rounds."""

    rounds: int = 0
    struck: dict[str, int] = field(default_factory=dict)
    late: int = 0  # the comparison had ended before the blow

    def note(self, fault: Fault, struck: bool) -> None:
        """Count one blow."""
        self.late += not struck
        if struck:
            self.struck[fault.value] = self.struck.get(fault.value, 0) + 1

    def __str__(self) -> str:
        """A line of counts, and a table for a page."""
        rows = [f"| {name} | {count} |" for name, count in sorted(self.struck.items())]
        head = (
            f"{self.rounds} rounds, {sum(self.struck.values())} faults, {self.late} came too late"
        )
        return "\n".join([head, "", "| fault | times |", "|---|---|", *rows])


def play(game: Round, folder: Path, log: Log) -> None:
    """Carry out one round in an empty folder; fails where anything does not hold."""
    with contextlib.ExitStack() as undo:
        Play(game, folder, log, undo).carry_out()
    log.rounds += 1


class Play:
    """One round as it is carried out."""

    def __init__(self, game: Round, folder: Path, log: Log, undo: contextlib.ExitStack) -> None:
        self.game, self.folder, self.log, self.undo = game, folder, log, undo
        self.env: dict[str, str] = {}
        self.extra: tuple[str, ...] = ()
        self.daemon: Daemon | None = None
        self.place = folder / "disk"
        self.place.mkdir()
        self.directory = self.place / "run"
        self.stored = self.directory / "trials.jsonl"
        self.kept = b""
        self.cut = 0  # times it was ended
        self.before = faults.traces()

    def carry_out(self) -> None:
        """The faults in turn, then to the end, and what must hold then."""
        game = self.game
        if any(blow.fault is Fault.RUN_FULL for blow in game.blows):
            self.disk(self.place, 4 << 20)
        if game.cache_bytes:
            (self.folder / "cache").mkdir()
            self.disk(self.folder / "cache", game.cache_bytes)
            self.env["XDG_CACHE_HOME"] = str(self.folder / "cache")
        if game.daemon:
            self.start_daemon()
        for blow in game.blows:
            self.strike(blow)
            self.holds()
        for _ in range(3):  # a fault that came when it was ending may leave nothing to do
            done = faults.hvct(*self.command(), env=self.env, timeout_s=TRIAL_S * 2)
            self.ends_with(done, 0)
            if self.ended():
                break
        self.holds()
        faults.assert_complete(self.directory, self.cut)

    def command(self) -> tuple[str | Path, ...]:
        """Begin it, or go on with it."""
        if (self.directory / "run.json").exists():
            return faults.resuming(self.directory)
        plan = faults.comparison(self.folder, self.game.arms, 0.02, "quiet")  # a gap is hit too
        return (*plan[:-1], self.directory, *self.extra)

    def ended(self) -> bool:
        """Whether every block is there."""
        return len(faults.trials(self.directory)) >= faults.BLOCKS * len(self.game.arms)

    def holds(self) -> None:
        """Nothing of it is left, at the latest after a command, and no trial has changed."""
        if faults.await_gone(self.before):
            done = faults.hvct("clean", env=self.env)
            assert done.code == 0, (done.code, done.err[-1500:])
        assert faults.await_gone(self.before, 1.0) == []
        now = self.stored.read_bytes() if self.stored.exists() else b""
        assert now.startswith(self.kept), (self.kept[-300:], now[-300:])
        self.kept = now

    # -- one blow --------------------------------------------------------------------

    def strike(self, blow: Blow) -> None:
        """Start it, wait for the moment, do it, and see it end as it must."""
        faults.await_turn()
        already = len(faults.trials(self.directory))
        run = faults.Harness(*self.command(), env=self.env)
        try:
            if blow.fault is Fault.CACHE_FULL:
                self.cache_full(run)
                return
            struck = self.await_moment(run, blow, already) and self.act(run, blow)
            self.log.note(blow.fault, struck)
            goes_on = not struck or blow.fault not in ENDS
            done = run.end_by_itself(self.directory, HELPER_S) if goes_on else run.end(ENDED_S)
        finally:
            run.kill()
            run.end()
        self.judge(blow, done, struck)

    def await_moment(self, run: faults.Harness, blow: Blow, already: int) -> bool:
        """Whether it still ran when the moment had come."""
        deadline = time.monotonic() + TRIAL_S
        left = faults.BLOCKS * len(self.game.arms) - already
        wanted = already + (max(1, round(blow.share * left)) if blow.share else 0)
        while len(faults.trials(self.directory)) < wanted:
            if run.process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        time.sleep(blow.delay_s)
        return run.process.poll() is None

    def act(self, run: faults.Harness, blow: Blow) -> bool:
        """Do it; False where there was nobody to do it to."""
        rng = random.Random(blow.shuffle)
        match blow.fault:
            case Fault.HARNESS:
                run.kill()
            case Fault.INTERRUPT:
                run.interrupt(blow.number)
            case Fault.RUN_FULL:
                fill(self.place)
            case Fault.DAEMON:
                assert self.daemon is not None
                self.daemon.process.kill()
                self.daemon.process.wait()
            case Fault.WORKER | Fault.LAUNCHER | Fault.INSTANCE:
                return kill_some(run, blow.fault, rng)
            case Fault.ONE_BY_ONE:
                kill_one_by_one(run, rng)
            case _:
                power_cut(run)
        return True

    def judge(self, blow: Blow, done: faults.Done, struck: bool) -> None:
        """The right end, in plain words, and cleaned up where nobody was left to do it."""
        assert "Traceback" not in done.err and "defect" not in done.err, done
        if blow.fault is Fault.DAEMON and struck:
            self.start_daemon()
            self.ends_with(done, 0, 1, 3)
            self.cut += done.code != 0
            return
        if not struck or blow.fault not in ENDS:
            self.ends_with(done, 0)
            return
        self.cut += 1
        match blow.fault:
            case Fault.INTERRUPT:
                # It may come when there is nothing left to interrupt, or before Python listens.
                self.ends_with(done, 0, 128 + blow.number, -blow.number)
            case Fault.RUN_FULL:
                (self.place / "fill").unlink(missing_ok=True)
                self.ends_with(done, 0, 3)
            case Fault.POWER:
                assert faults.hvct("clean", env=self.env).code == 0
                assert faults.await_gone(self.before, 1.0) == []
            case Fault.CLEANER:
                kill_cleaner(random.Random(blow.shuffle), self.env)
                assert faults.hvct("clean", env=self.env).code == 0
                assert faults.await_gone(self.before, 1.0) == []

    def ends_with(self, done: faults.Done, *codes: int) -> None:
        """One of these statuses, or 1 where a trial failed: that was one of the faults.

        So it is where a helper is killed first, and the harness lives to store what that did.
        """
        hit = any(blow.fault not in ENDS - {Fault.ONE_BY_ONE} for blow in self.game.blows)
        assert done.code in codes or (hit and done.code == 1), f"{done.code}: {done.err[-2000:]}"

    def cache_full(self, run: faults.Harness) -> None:
        """It says that the disk is full, or is lucky; then there is room."""
        done = run.end_by_itself(self.directory, HELPER_S)
        full = done.code == 3
        assert full or done.code == 0, done
        if full:
            faults.Done(3, "", done.err).says(3, "full|No space left", "free|make room")
            self.cut += 1
        self.log.note(Fault.CACHE_FULL, full)
        cache = self.folder / "cache"
        subprocess.run(["mount", "-o", "remount,size=64m", cache], check=True)
        faults.assert_gone(self.before)

    # -- what a round needs ----------------------------------------------------------

    def disk(self, folder: Path, size_bytes: int) -> None:
        """Make a folder a disk of its own, small."""
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", folder], check=True
        )
        self.undo.callback(subprocess.run, ["umount", "-l", folder], check=True)

    def start_daemon(self) -> None:
        """Have a private libvirtd; a second one takes the first one's place."""
        if self.daemon is None:
            self.socket = Path(self.undo.enter_context(tempfile.TemporaryDirectory(prefix="lv")))
        (self.socket / "libvirt-sock").unlink(missing_ok=True)
        self.daemon = self.undo.enter_context(libvirtd(self.socket, self.folder / "libvirtd.log"))
        self.extra = ("--libvirt-uri", self.daemon.uri)


def fill(folder: Path) -> None:
    """Leave no byte free on its disk."""
    with (folder / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


SIGNS = {
    Fault.WORKER: ("hv/worker.py",),
    Fault.LAUNCHER: ("launcher-",),
    Fault.INSTANCE: ("hvct-agent", "/qemu-system"),
}


def kill_some(run: faults.Harness, fault: Fault, rng: random.Random) -> bool:
    """SIGKILL one process of a kind, as soon as there is one."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline and run.process.poll() is None:
        found = [
            pid
            for pid, line in run.processes().items()
            if any(sign in line for sign in SIGNS[fault])
        ]
        if found:
            return kill(rng.choice(found))
        time.sleep(0.005)
    return False


def kill(pid: int) -> bool:
    """SIGKILL; False when it has gone by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill_one_by_one(run: faults.Harness, rng: random.Random) -> None:
    """Harness and helpers, in any order, up to 50 ms apart: cleaning up has begun meanwhile."""
    tag = run.tag
    victims = [run.process.pid, *(faults.marked(tag) if tag else ())]
    rng.shuffle(victims)
    for pid in victims:
        kill(pid)
        time.sleep(rng.choice((0.0, rng.uniform(0.0, 0.05))))
    run.kill()


def power_cut(run: faults.Harness) -> None:
    """SIGKILL to everything of it, and to whatever is started meanwhile, until nothing is."""
    tag = run.tag
    run.kill()
    quiet_since = time.monotonic()
    while tag and time.monotonic() - quiet_since < 0.1:
        for pid in faults.marked(tag):
            if kill(pid):
                quiet_since = time.monotonic()


def kill_cleaner(rng: random.Random, env: dict[str, str]) -> None:
    """`hvct clean`, killed in the midst of it."""
    cleaner = faults.Harness("clean", env=env)
    time.sleep(rng.uniform(0.05, 0.5))
    cleaner.kill()
    cleaner.end()
