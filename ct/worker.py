"""The Python end of the launcher: start it, send it plans, keep what it reports.

The launcher is started once per backend, by vfork and exec: never forked from this
process, whose page tables would take a millisecond per 30 MiB to copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from errno import E2BIG, ELOOP, ENOMEM, EXDEV
from pathlib import Path

from bench.agent.frames import LINK
from bench.context import RUN_VARIABLE, RunContext
from bench.errors import HvctError, LaunchFailed, oserror
from bench.record import decode, encode
from ct.steps import Step

ANSWER_TIMEOUT_S = 20.0
RECORD_BYTES = 1 << 18  # as in launcher.c
LOG_NAME = "ct-launcher.log"


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
        what = step.describe() if step else name
        hint = _HINTS.get(name, "")
        if errno in (ENOMEM, E2BIG):  # charged to the instance, whatever the step; exec says E2BIG
            hint = "give the instance a larger memory limit"
        if name in ("mount", "write") and errno in (ELOOP, EXDEV):
            hint = LINK
        super().__init__(f"the launcher failed at {what}: {self.reason}", hint)


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
        steps: run in the child, in order.
        channel: descriptor that becomes the program's 3.
        cgroup: directory descriptor for CLONE_INTO_CGROUP (cgroup v2).
        join: descriptors of ``cgroup.procs`` files (cgroup v1).
        user_map: content of uid_map and gid_map, for a user namespace.
    """

    id: str
    flags: int
    steps: tuple[Step, ...]
    channel: int
    cgroup: int | None = None
    join: tuple[int, ...] = ()
    user_map: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Launched:
    """A process that exists. All stamps are CLOCK_MONOTONIC nanoseconds."""

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


class Worker:
    """A running launcher. Leaving the context ends it with all its instances."""

    def __init__(
        self, process: subprocess.Popen[bytes], connection: socket.socket, directory: Path
    ) -> None:
        self.directory = directory
        self.pid = process.pid
        self._process = process
        self._socket = connection
        self._exited: dict[str, Exited] = {}
        self._dead = False
        self._count = 0

    @classmethod
    def start(
        cls,
        context: RunContext,
        launcher: Path,
        agent: Path,
        name: str,
        enter: Sequence[str] = (),
    ) -> Worker:
        """Start the launcher with a folder of its own in the run's runtime directory.

        Args:
            enter: a command that executes the launcher, in namespaces it made.

        Raises:
            HvctError: it cannot be started.
        """
        directory = context.runtime_dir / name
        try:
            (directory / "scratch").mkdir(parents=True, exist_ok=True)
            context.log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise oserror("mkdir", directory, error) from error
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * RECORD_BYTES)
        with theirs, (context.log_dir / LOG_NAME).open("ab") as log:
            process = subprocess.Popen(
                [*enter, str(launcher), str(theirs.fileno()), *context.cleanup],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env={**os.environ, RUN_VARIABLE: context.tag},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for the harness to decide about
            )
        worker = cls(process, ours, directory)
        try:
            answer, _ = worker._answer("")
            if answer["reply"] != "ready":
                raise StepFailed("unshare", int(answer["errno"]), None)
            worker._set_program(agent)
        except BaseException:
            worker.close()
            raise
        return worker

    def close(self) -> None:
        """End it: every instance is killed and reaped, image mounts go with its namespace."""
        if not self._dead:
            with contextlib.suppress(OSError):
                self._socket.send(encode([("request", "end")]))
        try:
            self._process.wait(ANSWER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()
        self._dead = True
        for folder in (self.directory / "scratch", *self.directory.glob("image-*")):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    @property
    def alive(self) -> bool:
        """False once the launcher has ended, for whatever reason."""
        return not self._dead and self._process.poll() is None

    def _set_program(self, agent: Path) -> None:
        """Hand over the agent as a sealed copy in memory: it needs no path in any root."""
        content = agent.read_bytes()
        writable = os.memfd_create("hvct-agent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(writable, content)
            os.fchmod(writable, 0o555)
            _seal(writable)
            # A file that is open for writing cannot be executed (ETXTBSY).
            program = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(writable)
        try:
            self._setup([("program", 0)], [program], ())
        finally:
            os.close(program)

    def setup(self, steps: Sequence[Step]) -> int:
        """Run steps in the launcher's own namespace; the loop device's number, else -1.

        Raises:
            StepFailed: one of them failed.
        """
        return int(self._setup([], [], steps)["loop"])

    def _setup(
        self, pairs: list[tuple[str, str | int]], descriptors: list[int], steps: Sequence[Step]
    ) -> dict[str, str]:
        self._count += 1
        id = f"setup {self._count}"
        self._send([("request", "setup"), ("id", id), *pairs], descriptors, steps)
        answer, _ = self._answer(id)
        _raise_failure(answer, steps)
        return answer

    def launch(self, request: LaunchRequest) -> None:
        """Ask for an instance; `launched` has the answer."""
        pairs: list[tuple[str, str | int]] = [
            ("request", "launch"),
            ("id", request.id),
            ("flags", request.flags),
            ("channel", 0),
        ]
        descriptors = [request.channel]
        if request.cgroup is not None:
            pairs.append(("cgroup", len(descriptors)))
            descriptors.append(request.cgroup)
        descriptors += request.join
        if request.user_map:
            pairs.append(("uid_map", request.user_map))
        pairs += [("argv", "hvct-agent"), ("argv", "--channel=3")]
        pairs += [("env", f"{name}={value}") for name, value in request.environment.items()]
        self._send(pairs, descriptors, request.steps)

    def launched(self, request: LaunchRequest) -> Launched:
        """The answer to `launch`.

        Raises:
            StepFailed: a step failed; nothing of the instance is left.
            LaunchFailed: the launcher is gone.
        """
        answer, descriptors = self._answer(request.id)
        _raise_failure(answer, request.steps)
        return Launched(
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

    def _send(
        self, pairs: list[tuple[str, str | int]], descriptors: list[int], steps: Sequence[Step]
    ) -> None:
        data = encode(pairs) + b"".join(step.encoded for step in steps)
        if len(data) >= RECORD_BYTES:
            raise HvctError(f"a plan of {len(data)} bytes is too long for the launcher")
        try:
            if descriptors:
                socket.send_fds(self._socket, [data], descriptors)
            else:
                self._socket.send(data)
        except OSError as error:
            raise self._gone() from error

    def _answer(self, id: str) -> tuple[dict[str, str], list[int]]:
        """The reply to the request of this id; exits that arrive meanwhile are kept."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            left = max(0.0, deadline - time.monotonic())
            if not readable(self._socket.fileno(), left):
                self._process.kill()
                raise self._gone()
            answer, descriptors = self._receive()
            if answer["reply"] != "exited" and answer.get("id", "") == id:
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
        """Keep an exit. Anything else answers a request that an interrupt made us leave."""
        for descriptor in descriptors:
            with contextlib.suppress(ProcessLookupError):
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

    def _gone(self) -> LaunchFailed:
        self._dead = True
        return LaunchFailed(
            "the launcher has ended, and all its instances with it",
            f"look at {LOG_NAME} in the run's logs; somebody may have killed it",
        )


def _raise_failure(answer: dict[str, str], steps: Sequence[Step]) -> None:
    if answer["reply"] == "bad":
        raise HvctError(f"the launcher refused a request: {answer['message']}")
    if answer["reply"] == "failed":
        index = int(answer["step"])
        step = steps[index] if 0 <= index < len(steps) else None
        raise StepFailed(answer["name"], int(answer["errno"]), step)


def _seal(descriptor: int) -> None:
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
