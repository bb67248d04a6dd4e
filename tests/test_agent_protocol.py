"""The agent's channel under attack: malformed frames end it with a reason, never a crash."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import record
from bench.agent.frames import FRAME_MAX, STDIN_WINDOW, ClockMapping, Frame, pack, unpack
from bench.agent.session import AgentSession, run_record
from bench.errors import HvctError, LaunchFailed
from bench.model import Event, Image, ImageConfig, InstanceSpec

IMAGE = Image("none", "", Path("/"), 0, "", "amd64", ImageConfig(), "")
RUN = run_record(InstanceSpec("t", IMAGE, ("/bin/sleep", "600"), env=(("A", "b"),)))
GOOD = record.encode(RUN)


def read_to_end(channel: socket.socket, limit_s: float = 20.0) -> list[tuple[int, bytes]]:
    """All frames until the agent closes."""
    channel.settimeout(limit_s)
    buffer, frames = bytearray(), []
    try:
        while data := channel.recv(1 << 16):
            buffer += data
            frames += list(unpack(buffer))
    except ConnectionResetError:  # it ended with something of ours unread
        pass
    return frames


def violations(channel: socket.socket) -> list[str]:
    """What the agent complained of before it ended."""
    said = []
    for kind, payload in read_to_end(channel):
        fields = dict(record.decode(payload)) if kind == Frame.ERROR else {}
        if fields.get("step") == "protocol":
            said.append(fields["message"])
    return said


def run_with(*pairs: tuple[str, str]) -> bytes:
    """A RUN with pairs added."""
    return pack(Frame.RUN, record.encode([*RUN, *pairs]))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff" * 8, "header"),
        (struct.pack("<B3xI", 1, FRAME_MAX + 1), "header"),
        (struct.pack("<BBxxI", 1, 1, 0), "header"),
        (pack(Frame.HELLO, b""), "does not know"),
        (pack(Frame.RUN, b""), "arg"),
        (pack(Frame.RUN, b"arg=x"), "malformed"),
        (pack(Frame.RUN, b"arg\0"), "malformed"),
        (pack(Frame.RUN, b"\0"), "malformed"),
        (run_with(("colour", "red")), "colour"),
        (run_with(("uid", "-1")), "uid"),
        (run_with(("uid", "4294967295")), "uid"),
        (run_with(("umask", "1000")), "umask"),
        (run_with(("output", "maybe")), "output"),
        (run_with(("listen_port", "65536")), "listen_port"),
        (run_with(("rlimit", "NOFILE:1")), "rlimit"),
        (run_with(("rlimit", "SENSE:1:1")), "rlimit"),
        (run_with(*[("rlimit", "CPU:1:1")] * 20), "rlimit"),
        (run_with(*[("group", "1")] * 65), "group"),
        (run_with(("seccomp", "00")), "seccomp"),
        (run_with(("seccomp", "zz" * 8)), "seccomp"),
        (run_with(("seccomp", "00" * 8 * 4097)), "seccomp"),
        (run_with(("cwd", "")), "cwd"),
        (run_with(("guest.root", "/dev/vda")), "guest"),
        (pack(Frame.PREPARE, b"guest.root=/dev/vda\0"), "PREPARE outside a VM"),
        (pack(Frame.WAKE, b"realtime_ns=1\0entropy=" + b"00" * 64 + b"\0"), "does not know"),
        (run_with() + run_with(), "second RUN"),
        (run_with() + pack(Frame.SIGNAL, b"number=65\0"), "without what it needs"),
        (run_with() + pack(Frame.SIGNAL, b""), "without what it needs"),
        (run_with() + pack(Frame.STDIN, b"x" * (STDIN_WINDOW + 1)), "beyond its credit"),
        (pack(Frame.WINDOW, b"rows=1\0"), "without what it needs"),
        (pack(Frame.FETCH, b"path=/proc/self/exe\0") * 2, "second FETCH"),
        (pack(Frame.PING, b"token=a"), "malformed"),
    ],
)
def test_violations_are_named(agents: Any, data: bytes, said: str) -> None:
    """Each broken rule is answered by ERROR step=protocol, and the agent ends."""
    channel, process = agents.start()
    channel.sendall(data)
    assert any(said in message for message in violations(channel))
    process.wait(20)


def test_frames_may_come_in_pieces(agents: Any) -> None:
    """A frame byte by byte is as good as one at once."""
    channel, _ = agents.start()
    short = record.encode([("arg", "/bin/echo"), ("arg", "hi")])
    for byte in pack(Frame.RUN, short) + pack(Frame.PING, b"token=1\0"):
        channel.send(bytes([byte]))
    session = AgentSession(channel)
    assert session.wait(Event.EXITED, time.monotonic_ns() + 40_000_000_000)
    assert session.stdout == b"hi\n"


def test_largest_command_passes(agents: Any) -> None:
    """A RUN of nearly 1 MiB works, and its receipt comes back whole; a larger one is refused."""
    words = tuple(f"{number:05d}" + "x" * 95 for number in range(9000))
    channel, _ = agents.start()
    session = AgentSession(channel)
    session.send_run(run_record(InstanceSpec("t", IMAGE, ("/bin/true", *words))))
    assert session.wait(Event.EXITED, time.monotonic_ns() + 40_000_000_000)
    assert session.receipt["arg"] == ["/bin/true", *words]
    with pytest.raises(HvctError, match="larger than the agent's frames"):
        session.send_run(run_record(InstanceSpec("t", IMAGE, ("/bin/true", *words, *words))))


def mutations(chance: random.Random) -> Iterator[bytes]:
    """Endless bad input: valid conversations with bytes changed, cut, doubled and invented."""
    kinds = [*(int(kind) for kind in Frame), 0, 8, 255]
    while True:
        frames = [
            pack(Frame.RUN, GOOD),
            pack(Frame.PING, b"token=abc\0"),
            pack(Frame.STDIN, chance.randbytes(chance.randrange(300))),
            pack(Frame.FETCH, b"path=/proc/self/status\0"),
            pack(Frame.SIGNAL, b"number=10\0"),
            pack(Frame.WINDOW, b"rows=10\0columns=20\0"),
            pack(Frame.PREPARE, b"guest.root=/dev/vda\0"),
            pack(Frame.WAKE, b"realtime_ns=1\0entropy=" + b"00" * 64 + b"\0"),
            pack(Frame.SIGNAL, chance.randbytes(chance.randrange(40))),
            struct.pack("<B3xI", chance.choice(kinds), chance.randrange(40)),
        ]
        chance.shuffle(frames)
        data = bytearray(b"".join(frames[: chance.randrange(1, len(frames))]))
        for _ in range(chance.randrange(6)):
            place = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[place] = chance.randrange(256)
                case 1:
                    del data[place : place + chance.randrange(1, 20)]
                case 2:
                    data[place:place] = chance.randbytes(chance.randrange(20))
                case 3:
                    data[place:place] = data[place : place + chance.randrange(60)]
            data = data or bytearray(b"\0")
        yield bytes(data)


@pytest.mark.parametrize("agents", ["sanitized"], indirect=True)
def test_fuzzing(agents: Any) -> None:
    """Whatever arrives, the agent ends in order, and the sanitizers have nothing to say."""
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    until = time.monotonic() + 10
    source = mutations(chance)
    rounds = 0
    while time.monotonic() < until:
        channel, process = agents.start()
        channel.settimeout(20)
        try:
            channel.sendall(next(source))
            channel.shutdown(socket.SHUT_WR)
            read_to_end(channel)
        except (BrokenPipeError, LaunchFailed):
            pass
        channel.close()
        assert process.wait(20) == 0
        agents.forget()
        rounds += 1
    assert rounds > 20


@pytest.mark.parametrize(
    "data",
    [
        b"\x01" * 64,
        struct.pack("<B3xI", 99, 0),
        struct.pack("<B3xI", Frame.EVENT, FRAME_MAX + 1),
        pack(Frame.EVENT, b"name"),
        pack(Frame.EVENT, b""),
        pack(Frame.EXIT, b"code=x\0"),
        pack(Frame.HELLO, b"pid=1\0"),
    ],
)
def test_host_survives_a_bad_agent(data: bytes) -> None:
    """An instance whose agent talks nonsense is a failed launch, nothing else."""
    ours, theirs = socket.socketpair()
    session = AgentSession(ours)
    theirs.sendall(data)
    with pytest.raises(HvctError):
        session.wait(Event.EXITED, time.monotonic_ns() + 1_000_000_000)
    session.close()
    theirs.close()


def test_deadlines_hold() -> None:
    """Against an instance that says nothing, every wait ends."""
    ours, theirs = socket.socketpair()
    session = AgentSession(ours, shared_clock=False)
    assert not session.wait(Event.STARTED, time.monotonic_ns() + 50_000_000)
    waits: list[Callable[[], object]] = [
        lambda: session.ping(timeout_s=0.05),
        lambda: session.fetch("/x", timeout_s=0.05),
    ]
    for wait in waits:
        with pytest.raises(LaunchFailed, match="did not answer"):
            wait()
    session.send_stdin(b"x" * 10_000_000)  # nobody reads: it must not block either
    theirs.close()
    with pytest.raises(LaunchFailed, match="ended before it was up"):
        session.wait(Event.STARTED, time.monotonic_ns() + 1_000_000_000)
    session.close()


def test_two_looks_at_a_clock_tell_its_rate() -> None:
    """A guest clock that runs fast is mapped right at both ends and before the first look."""

    def host(instance_ns: int) -> int:
        return 5_000_000_000 + instance_ns * 4 // 5  # the instance's clock runs 25 % fast

    def look(instance_ns: int) -> ClockMapping:
        return ClockMapping(host(instance_ns) - instance_ns, 50_000, instance_ns, 0)

    line = look(2_000_000_000).through(look(4_000_000_000))
    for stamp in (0, 2_000_000_000, 3_000_000_000, 4_000_000_000):
        assert abs(line.host_ns(stamp) - host(stamp)) <= 1
    assert abs(line.boot_zero_ns - host(0)) <= 1


def test_offsets_that_agree_within_their_errors_tell_no_rate() -> None:
    """Noise of the round trip is not taken for a rate and stretched over the boot."""
    first = ClockMapping(1_000_000, 60_000, 2_000_000_000, 0)
    line = first.through(ClockMapping(1_040_000, 60_000, 2_000_300_000, 0))
    assert line.rate == 1.0
