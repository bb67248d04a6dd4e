"""What a hostile instance says to the harness: a failed trial at worst, never more."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest

from bench import record, store
from bench.agent import build
from bench.agent import session as sessions
from bench.agent.frames import STDIN_WINDOW, Frame, pack
from bench.agent.session import AgentSession
from bench.command import run
from bench.context import RunContext
from bench.errors import HvctError, LaunchFailed
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec, Outcome, Readiness, ReadyKind, Workload
from bench.schedule import Slot
from bench.trial import run_trial
from ct import backend as ct_backend

HUGE = str(10**30)


def frame(kind: Frame, **fields: object) -> bytes:
    """One frame of a record."""
    return pack(kind, record.encode((key, str(value)) for key, value in fields.items()))


def now() -> int:
    """A stamp that an honest agent on this host could send."""
    return time.monotonic_ns()


def hello(stamp: int | None = None) -> bytes:
    """How every agent begins."""
    return frame(Frame.HELLO, pid=1, monotonic_ns=now() if stamp is None else stamp)


@contextlib.contextmanager
def talking(data: bytes, *, shared_clock: bool = True, times: int = 1) -> Iterator[AgentSession]:
    """A session whose other end says this, again and again, and then listens for ever."""
    ours, theirs = socket.socketpair()

    def talk() -> None:
        with contextlib.suppress(OSError):
            for _ in range(times):
                theirs.sendall(data)

    speaker = threading.Thread(target=talk, daemon=True)
    session = AgentSession(ours, shared_clock=shared_clock)
    speaker.start()
    try:
        yield session
    finally:
        session.close()
        theirs.close()
        speaker.join()


def soon(seconds: float = 20.0) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


EXIT = {"user_us": 1, "system_us": 1, "max_rss_kib": 1, "monotonic_ns": 1 << 40}
BAD = {
    "stamp of the future": lambda: hello(now() + 10**12),
    "negative stamp": lambda: hello(-1),
    "huge stamp": lambda: hello(10**30),
    "stamp of 5,000 digits": lambda: frame(Frame.HELLO, monotonic_ns="9" * 5000),
    "stamp that is no number": lambda: frame(Frame.HELLO, monotonic_ns="1e9"),
    "started before init": lambda: hello() + frame(Frame.EVENT, name="started", monotonic_ns=1),
    "doubt older than time": lambda: frame(
        Frame.EVENT, name="listening", monotonic_ns=now(), since_ns=-(10**30)
    ),
    "endless names of events": lambda: b"".join(
        frame(Frame.EVENT, name=f"e{number}", monotonic_ns=now()) for number in range(100)
    ),
    "exit with code 10^30": lambda: frame(Frame.EXIT, code=HUGE, **EXIT),
    "exit with signal 999": lambda: frame(Frame.EXIT, signal=999, **EXIT),
    "exit with endless time": lambda: frame(Frame.EXIT, code=0, **{**EXIT, "user_us": "9" * 400}),
    "error of no number": lambda: frame(Frame.ERROR, step="exec", message="x", errno=HUGE),
    "negative credit": lambda: frame(Frame.CREDIT, bytes=-5),
    "credit nobody owes": lambda: frame(Frame.CREDIT, bytes=STDIN_WINDOW + 1),
    "no record": lambda: pack(Frame.RECEIPT, b"\xff" * 1000),
    "end of file with errno 10^30": lambda: frame(Frame.FILE_END, errno=HUGE),
    "a command nobody ran": lambda: frame(Frame.EXEC_DONE, code=0, output=""),
    "a frame only we send": lambda: pack(Frame.RUN, b""),
}


@pytest.mark.parametrize("kind", BAD)
def test_nonsense_is_a_failed_launch(kind: str) -> None:
    """It is named as such, the channel is closed, and nothing of it is kept as a figure."""
    with talking(BAD[kind]()) as session:
        with pytest.raises(HvctError):
            session.wait(Event.EXITED, soon())
        assert session.exit is None


def test_stdin_credit_cannot_go_wrong() -> None:
    """Neither a negative nor an excessive credit makes us send for ever."""
    for credit in (-1, -(10**9), 1, STDIN_WINDOW * 2):
        with talking(frame(Frame.CREDIT, bytes=credit)) as session:
            session.send_stdin(b"x" * 10 * STDIN_WINDOW)
            with contextlib.suppress(HvctError):
                session.wait(Event.EXITED, soon(0.2))
            assert session.stdin_pending >= 8 * STDIN_WINDOW


FLOODS = {
    "output": (pack(Frame.STDOUT, b"x" * (1 << 20)), "OUTPUT_MOST_BYTES"),
    "a file": (pack(Frame.FILE, b"x" * (1 << 20)), "FILE_MOST_BYTES"),
    "receipts": (frame(Frame.RECEIPT, arg="x" * 100_000), "RECEIPT_MOST_BYTES"),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_is_cut_off(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we would keep in memory is bounded, whatever is sent."""
    data, limit = FLOODS[kind]
    monkeypatch.setattr(sessions, limit, 4 << 20)
    with talking(data, times=10_000) as session:
        with pytest.raises(LaunchFailed, match="sent more than 4 MiB"):
            session.wait(Event.EXITED, soon())
        assert session.closed


def test_a_million_frames_do_not_outlast_the_deadline() -> None:
    """Frames that mean nothing (answers nobody asked for, HELLO again) are handled or end it."""
    pong = frame(Frame.PONG, token="p99", monotonic_ns=1, boottime_ns=1)
    began = time.monotonic()
    with talking((pong + hello(5)) * 1000, times=500, shared_clock=False) as session:
        with contextlib.suppress(LaunchFailed):
            assert not session.wait(Event.STARTED, soon(1.0))
        assert session.hello and set(session.events) == {"init"}
    assert time.monotonic() - began < 30


def test_a_trickle_does_not_outlast_the_deadline() -> None:
    """One byte of a frame that never ends, now and then, is silence."""
    with talking(struct.pack("<B3xI", Frame.STDOUT, 1 << 20)) as session:
        assert not session.wait(Event.STARTED, soon(0.2))


def conversations(chance: random.Random) -> Iterator[bytes]:
    """Endless nonsense from the agent's side: true frames changed, cut, doubled, shuffled."""
    values = ["", "-1", "0", "1", HUGE, "nan", "x" * 2000, "1e308", "\udcff", "٣", "0x10"]
    names = ["init", "started", "listening", "ended", "exited", "mounted", "x", ""]
    while True:
        frames = [
            hello(),
            frame(Frame.EVENT, name=chance.choice(names), monotonic_ns=now()),
            frame(Frame.EVENT, name="started", monotonic_ns=chance.choice(values)),
            frame(Frame.RECEIPT, **{chance.choice(["arg", "uid", "program"]): "x"}),
            frame(Frame.EXIT, code=chance.choice(values), **EXIT),
            frame(Frame.ERROR, step=chance.choice(["exec", "cwd", "?"]), errno="2"),
            frame(Frame.PONG, token="p0", monotonic_ns=chance.choice(values), boottime_ns="1"),
            frame(Frame.CREDIT, bytes=chance.choice(values)),
            frame(Frame.FILE_END, errno=chance.choice(values)),
            frame(Frame.EXEC_DONE, code=chance.choice(values), output="x"),
            pack(Frame.STDOUT, chance.randbytes(chance.randrange(50))),
            struct.pack("<B3xI", chance.randrange(256), chance.randrange(40)),
        ]
        chance.shuffle(frames)
        data = bytearray(b"".join(frames[: chance.randrange(1, len(frames))]))
        for _ in range(chance.randrange(4)):
            place = chance.randrange(len(data))
            data[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
        yield bytes(data)


def test_fuzzing_the_host() -> None:
    """Whatever arrives, a session ends in an HvctError or a deadline, and can be stored."""
    chance = random.Random(seed := time.time_ns())
    print(f"seed {seed}")
    until, rounds = time.monotonic() + 3, 0
    for data in conversations(chance):
        ours, theirs = socket.socketpair()
        theirs.sendall(data)
        theirs.close()
        session = AgentSession(ours, shared_clock=chance.random() < 0.5)
        for act in (
            lambda session=session: session.wait(Event.STARTED, soon(1)),
            lambda session=session: session.ping(2, timeout_s=1),
            lambda session=session: session.fetch("/x", timeout_s=1),
            lambda session=session: session.stop(grace_s=0.1),
        ):
            with contextlib.suppress(HvctError):
                act()
        session.close()
        kept = [session.events, session.receipt, session.exit, session.stdout, session.hello]
        json.dumps(store.jsonable(kept), allow_nan=False)
        rounds += 1
        if time.monotonic() > until:
            break
    assert rounds > 50


# --- the same, as the first process of a real instance ----------------------------------------


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run."""
    with faults.nothing_left(), open_run(tmp_path_factory.mktemp("run")) as opened:
        yield opened


@pytest.fixture(scope="module")
def hostile_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that says what it is told, in the agent's place."""
    made = tmp_path_factory.mktemp("hostile") / "agent"
    source = Path(__file__).with_name("hostile_agent.c")
    run([*build.compiler(), *build.FLAGS, "-o", made, source])
    return made


def exited(**changes: object) -> bytes:
    """The end of a workload, with stamps of the year 1."""
    return frame(Frame.EXIT, **{"code": 0, **EXIT, "monotonic_ns": 2, **changes})


STARTED = frame(Frame.EVENT, name="started", monotonic_ns=2)
ENDED = frame(Frame.EVENT, name="ended", monotonic_ns=2)
HOSTILE = {
    "silence": (b"", 1, "wait"),
    "it ends at once": (b"", 1, "end"),
    "noise": (b"\xff" * 4096, 100, "wait"),
    "a flood of output": (pack(Frame.STDOUT, b"x" * 60_000), 100_000, "wait"),
    "a flood of receipts": (frame(Frame.RECEIPT, arg="x" * 60_000), 100_000, "wait"),
    "frames without end": (frame(Frame.HELLO, pid=1, monotonic_ns=1), 10_000_000, "wait"),
    "all happened at boot": (hello(1) + STARTED + ENDED + exited(), 1, "wait"),
    "it exits before it starts": (hello(1) + exited(), 1, "wait"),
    "figures beyond all bounds": (hello(1) + STARTED + exited(user_us="9" * 400), 1, "wait"),
}


@pytest.mark.root
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_instance_is_a_failed_trial(
    kind: str,
    context: RunContext,
    hostile_agent: Path,
    busybox: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The trial is data, nothing of the instance is left, and the next one finds all in order."""
    monkeypatch.setattr(ct_backend, "agent_path", lambda: hostile_agent)
    data, times, end = HOSTILE[kind]
    workload = Workload(
        "w", "w", "busybox", ready=Readiness(ReadyKind.STARTED), until="exit", timeout_s=1.5
    )
    argv = ("x", data.hex(), str(times), end)
    with ct_backend.ContainerBackend(context) as backend:
        number = 1 + list(HOSTILE).index(kind)
        spec = InstanceSpec(context.instance(number), busybox, argv)
        trial = run_trial(backend, Slot(0, 0, "container", "w"), workload, spec, tmp_path)
        assert trial.outcome in (Outcome.FAILED, Outcome.TIMEOUT), trial
        assert trial.error and "\n" not in trial.error
        assert trial.samples == []
        json.dumps(store.jsonable(trial), allow_nan=False)
        assert all(size < 3 << 20 for size in (path.stat().st_size for path in tmp_path.iterdir()))
