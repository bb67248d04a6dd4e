"""What is said to the launcher over one socket, and what it answers.

The same words go to the launcher itself (`ct.worker.Worker`) and to a helper of it that
waits in a control group (`ct.slots.ParkedSlot`): one request to launch, one answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from errno import E2BIG, ELOOP, ENOMEM, EXDEV

from bench.agent.frames import LINK
from bench.errors import HvctError, LaunchFailed
from bench.record import decode, encode
from ct.steps import Step, Steps, flat

ANSWER_TIMEOUT_S = 20.0
RECORD_BYTES = 1 << 18  # as in launcher/launcher.h
LOG_NAME = "ct-launcher.log"
AGENT = ("hvct-agent", "--channel=3")


def readable(descriptor: int, timeout_s: float) -> bool:
    """Wait for something to read (poll: unlike select it knows descriptors beyond 1023)."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


class StepFailed(LaunchFailed):
    """A step of a plan failed: which one, and why.

    Attributes:
        name: the step's name in the launcher, ``clone3``, ``exec`` or ``user namespace``.
        errno: what the kernel said.
        reason: the same in words.
    """

    def __init__(self, name: str, errno: int, step: Step | None) -> None:
        self.name, self.errno, self.reason = name, errno, os.strerror(errno)
        said = f"the launcher failed at {step.describe() if step else name}: {self.reason}"
        hint = _HINTS.get(name, "")
        if errno in (ENOMEM, E2BIG):  # charged to the instance, whatever the step; exec says E2BIG
            said = f"the instance was out of memory before its workload began, at {name}"
            hint = "give it a larger memory limit"
        if name in ("mount", "write") and errno in (ELOOP, EXDEV):
            hint = LINK
        super().__init__(said, hint)


_HINTS = {
    "clone3": "run ./hvct doctor: a namespace may be switched off on this host",
    "join": "the control group cannot take a process: look at its limits",
    "link": "look at the bridge with ip link; run ./hvct clean",
    "user namespace": "look at /proc/sys/user/max_user_namespaces",
    "write": "give the instance a larger writable layer",
    "exec": "the agent cannot run in this root file system",
}


@dataclass(frozen=True)
class LaunchRequest:
    """Everything the launcher needs for one instance.

    Attributes:
        flags: namespaces, as clone3's flags.
        parts: the steps that are run in the child, in order.
        channel: descriptor that becomes the program's 3.
        cgroup: where it is born: `Cgroup.cradle`; "" for the launcher's own.
        namespaces: descriptors of namespaces that a step enters.
        user_map: content of uid_map and gid_map, for a user namespace.
    """

    id: str
    flags: int
    parts: tuple[Steps, ...]
    channel: int
    cgroup: str = ""
    namespaces: tuple[int, ...] = ()
    user_map: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[Step, ...]:
        """One after the other, as an answer counts them."""
        return flat(self.parts)


@dataclass(frozen=True)
class Launched:
    """A process that exists. All stamps are CLOCK_MONOTONIC nanoseconds.

    Attributes:
        id: the name under which the launcher will report its end.
    """

    id: str
    pid: int
    pidfd: int
    accepted_ns: int
    born_ns: int
    step_ns: tuple[int, ...]
    exec_ns: int


@dataclass(frozen=True)
class Exited:
    """How an instance's first process ended, by the launcher's wait4."""

    status: int
    monotonic_ns: int
    user_s: float
    system_s: float
    max_rss_bytes: int


class Wire:
    """One socket to who launches.

    Attributes:
        exit_id: under which the launcher reports the end of what is launched here; "" for the
            name it is launched by.
    """

    exit_id = ""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._exited: dict[str, Exited] = {}
        self._expected: set[str] = set()
        self._early: dict[str, tuple[dict[str, str], list[int]]] = {}
        self._dead = False

    def launch(self, request: LaunchRequest) -> None:
        """Ask for an instance; `launched` has the answer."""
        pairs: list[tuple[str, str | int]] = [
            ("request", "launch"),
            ("id", request.id),
            ("flags", request.flags),
            ("channel", 0),
        ]
        descriptors = [request.channel, *request.namespaces]
        if request.cgroup:
            pairs.append(("cgroup", request.cgroup))
        if request.user_map:
            pairs.append(("uid_map", request.user_map))
        pairs += [("argv", word) for word in AGENT]
        pairs += [("env", f"{name}={value}") for name, value in request.environment.items()]
        self.send(pairs, descriptors, request.parts)
        self._expected.add(request.id)

    def forget(self, id: str) -> None:
        """Nobody waits for this answer any more: what it brings is ended."""
        self._expected.discard(id)
        if id in self._early:
            self._note(*self._early.pop(id))

    def launched(self, request: LaunchRequest) -> Launched:
        """The answer to `launch`.

        Raises:
            StepFailed: a step failed; nothing of the instance is left.
            LaunchFailed: the launcher is gone.
        """
        return self.made(request, *self.answer(request.id))

    def made(
        self, request: LaunchRequest, answer: dict[str, str], descriptors: list[int]
    ) -> Launched:
        """The process that an answer tells of; raises what `launched` does."""
        raise_failure(answer, request.parts)
        return Launched(
            id=self.exit_id or request.id,
            pid=int(answer["pid"]),
            pidfd=descriptors[0],
            accepted_ns=int(answer["accepted_ns"]),
            born_ns=int(answer["born_ns"]),
            step_ns=tuple(map(int, answer.get("step_ns", "").split())),
            exec_ns=int(answer["exec_ns"]),
        )

    def wait_exited(self, id: str, timeout_s: float) -> Exited | None:
        """How an instance's first process ended; None when it has not within `timeout_s`.

        Raises:
            LaunchFailed: the launcher is gone.
        """
        deadline = time.monotonic() + timeout_s
        while id not in self._exited:
            left = deadline - time.monotonic()
            if left < 0 or not readable(self._socket.fileno(), left):
                return None
            self._note(*self._receive())
        return self._exited.pop(id)

    def send(
        self, pairs: list[tuple[str, str | int]], descriptors: list[int], parts: Sequence[Steps]
    ) -> None:
        """Send one request.

        Raises:
            LaunchFailed: nobody is there any more.
        """
        data = encode(pairs) + b"".join([part.encoded for part in parts])
        if len(data) >= RECORD_BYTES:
            raise HvctError(f"a plan of {len(data)} bytes is too long for the launcher")
        try:
            if descriptors:
                socket.send_fds(self._socket, [data], descriptors)
            else:
                self._socket.send(data)
        except OSError as error:
            raise self._gone() from error

    def answer(self, id: str) -> tuple[dict[str, str], list[int]]:
        """The reply to the request of this id; exits that arrive meanwhile are kept."""
        if id in self._early:
            self._expected.discard(id)
            return self._early.pop(id)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            left = max(0.0, deadline - time.monotonic())
            if not readable(self._socket.fileno(), left):
                self._give_up()
                raise self._gone()
            answer, descriptors = self._receive()
            if answer["reply"] != "exited" and answer.get("id", "") == id:
                self._expected.discard(id)
                return answer, descriptors
            self._note(answer, descriptors)

    def _receive(self) -> tuple[dict[str, str], list[int]]:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, RECORD_BYTES, 4)
        except OSError as error:
            raise self._gone() from error
        if not data:
            raise self._gone()
        answer: dict[str, str] = {}
        for key, value in decode(data):
            answer[key] = f"{answer[key]} {value}" if key in answer else value
        return answer, descriptors

    def _note(self, answer: dict[str, str], descriptors: list[int]) -> None:
        """Keep an exit, and what is expected later. Else an interrupt made us leave the request."""
        id = answer.get("id", "")
        if id in self._expected and answer["reply"] != "exited":
            self._early[id] = (answer, descriptors)
            return
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # it has ended, or is no process
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)
        if answer["reply"] == "exited":
            self._exited[answer["id"]] = Exited(
                int(answer["status"]),
                int(answer["monotonic_ns"]),
                int(answer["user_us"]) / 1e6,
                int(answer["system_us"]) / 1e6,
                int(answer["max_rss_kib"]) * 1024,
            )

    def _give_up(self) -> None:
        """End who has not answered."""

    def _gone(self) -> LaunchFailed:
        self._dead = True
        return LaunchFailed(
            "the launcher has ended, and all its instances with it",
            f"look at {LOG_NAME} in the run's logs; somebody may have killed it",
        )


def raise_failure(answer: dict[str, str], parts: Sequence[Steps]) -> None:
    """Raise what an answer says went wrong, if anything."""
    if answer["reply"] == "bad":
        raise HvctError(f"the launcher refused a request: {answer['message']}")
    if answer["reply"] == "failed":
        index, steps = int(answer["step"]), flat(parts)
        step = steps[index] if 0 <= index < len(steps) else None
        raise StepFailed(answer["name"], int(answer["errno"]), step)
