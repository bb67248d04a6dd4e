"""The Python end of the launcher: start it, send it plans, keep what it reports.

The launcher is started once per backend, by vfork and exec: never forked from this
process, whose page tables would take a millisecond per 30 MiB to copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.context import RUN_VARIABLE, RunContext
from bench.errors import LaunchFailed, oserror
from bench.record import encode
from ct.steps import NOTHING, Step, Steps
from ct.wire import (
    ANSWER_TIMEOUT_S,
    LOG_NAME,
    RECORD_BYTES,
    Launched,
    LaunchRequest,
    StepFailed,
    Wire,
    raise_failure,
    readable,
)


class Worker(Wire):
    """A running launcher. Leaving the context ends it with all its instances."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        connection: socket.socket,
        directory: Path,
        *,
        owns: bool = True,
    ) -> None:
        super().__init__(connection)
        self.directory = directory
        self._owns_directory = owns
        self.pid = process.pid
        self._process = process
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
            name: begins the folder's. Two arms may have the same name, and what one of them
                removes at its end is unmounted where another has mounted there.
            enter: a command that executes the launcher, in namespaces it made.

        Raises:
            HvctError: it cannot be started.
        """
        try:
            directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=context.runtime_dir))
            directory.chmod(0o755)
        except OSError as error:
            raise oserror("mkdir", context.runtime_dir / name, error) from error
        return cls._start(context, launcher, agent, directory, enter, context.cleanup)

    @classmethod
    def start_beside(
        cls, first: Worker, context: RunContext, launcher: Path, agent: Path
    ) -> Worker:
        """Start another launcher that has the first one's images: the same mounts, and its folder.

        Raises:
            HvctError: it cannot be started.
        """
        # The folder is entered from inside: one that was open before would not show the mounts.
        enter = (
            *("nsenter", f"--mount=/proc/{first.pid}/ns/mnt"),
            *("sh", "-c", 'cd "$0" && exec "$@"', str(first.directory)),
        )
        return cls._start(context, launcher, agent, first.directory, enter, (), owns=False)

    @classmethod
    def _start(
        cls,
        context: RunContext,
        launcher: Path,
        agent: Path,
        directory: Path,
        enter: Sequence[str],
        cleanup: Sequence[str],
        *,
        owns: bool = True,
    ) -> Worker:
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
                [*enter, str(launcher), str(theirs.fileno()), *cleanup],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env={**os.environ, RUN_VARIABLE: context.tag},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for the harness to decide about
            )
        worker = cls(process, ours, directory, owns=owns)
        try:
            answer, _ = worker.answer("")
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
        for _, descriptors in self._early.values():
            for descriptor in descriptors:
                os.close(descriptor)
        self._early.clear()
        if not self._owns_directory:  # its folders are where another has mounted images
            return
        for folder in (self.directory / "scratch", *self.directory.glob("image-*")):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    @property
    def alive(self) -> bool:
        """False once the launcher has ended, for whatever reason."""
        return not self._dead and self._process.poll() is None

    def _give_up(self) -> None:
        self._process.kill()

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
            self._setup([("program", 0)], [program], NOTHING)
        finally:
            os.close(program)

    def setup(self, steps: Iterable[Step]) -> int:
        """Run steps in the launcher's own namespace; the loop device's number, else -1.

        Raises:
            StepFailed: one of them failed.
        """
        return int(self._setup([], [], Steps(steps))["loop"])

    def ask_namespace(self, steps: Steps) -> str:
        """Have steps make a namespace and keep it; returns at once, `namespace` has it."""
        id = self._next_id()
        self.send([("request", "setup"), ("id", id)], [], (steps,))
        self._expected.add(id)
        return id

    def namespace(self, id: str, steps: Steps) -> int:
        """The descriptor of what `ask_namespace` asked for; the caller closes it.

        Raises:
            StepFailed: it could not be made.
            LaunchFailed: the launcher is gone.
        """
        answer, descriptors = self.answer(id)
        raise_failure(answer, (steps,))
        return descriptors[0]

    def _next_id(self) -> str:
        self._count += 1
        return f"setup {self._count}"

    def _setup(
        self, pairs: list[tuple[str, str | int]], descriptors: list[int], steps: Steps
    ) -> dict[str, str]:
        id = self._next_id()
        self.send([("request", "setup"), ("id", id), *pairs], descriptors, (steps,))
        answer, _ = self.answer(id)
        raise_failure(answer, (steps,))
        return answer

    def park(self, id: str, joins: Steps) -> ParkedSlot:
        """Have a helper join control groups and wait in them for one launch; returns at once.

        Args:
            id: the slot's name, under which the end of its instance is reported.
            joins: by which the helper enters its groups.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parked = ParkedSlot(self, ours, id)
        try:
            with theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * RECORD_BYTES)
                pairs: list[tuple[str, str | int]] = [("request", "park"), ("id", id), ("slot", 0)]
                self.send(pairs, [theirs.fileno()], (joins,))
        except BaseException:
            parked.close()
            raise
        return parked


class ParkedSlot(Wire):
    """A helper of the launcher that waits in a control group, for one launch."""

    def __init__(self, worker: Worker, connection: socket.socket, id: str) -> None:
        super().__init__(connection)
        self.exit_id = id
        self.pid: int | None = None
        self._worker = worker

    def await_parked(self) -> None:
        """Wait until it has joined its groups.

        Raises:
            StepFailed: it could not.
            LaunchFailed: it is gone.
        """
        if self.pid is None:
            answer, _ = self.answer(self.exit_id)
            raise_failure(answer, ())
            self.pid = int(answer["pid"])
        elif readable(self._socket.fileno(), 0):  # it says nothing by itself: this is its end
            raise self._gone()

    def launched(self, request: LaunchRequest) -> Launched:
        """The answer to `launch`, after which the helper is gone."""
        answer, descriptors = self.answer(request.id)
        if answer["reply"] == "failed" and int(answer["pid"]) > 0:
            self._worker.wait_exited(self.exit_id, ANSWER_TIMEOUT_S)  # its group is then empty
        return self.made(request, answer, descriptors)

    def close(self) -> None:
        """Close the socket; a helper that still waits ends."""
        self._socket.close()
        self._dead = True

    def _gone(self) -> LaunchFailed:
        self._dead = True
        return LaunchFailed(
            f"the helper that waited in {self.exit_id} has ended",
            f"look at {LOG_NAME} in the run's logs; somebody may have killed it",
        )


def _seal(descriptor: int) -> None:
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
