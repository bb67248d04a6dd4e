"""The harness's side of the worker: starting it, asking it, keeping what it says."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.context import RUN_VARIABLE, RunContext
from bench.errors import HostCannot, LaunchFailed, oserror
from bench.model import Image

ANSWER_LIMIT_S = 30.0
PACKET_BYTES = 1 << 16
LOG_NAME = "programs.log"


@dataclass(frozen=True)
class Layer:
    """A writable layer over a mounted image, and what a program finds in it.

    Attributes:
        lower: the mounted image.
        size, inodes: of the tmpfs that holds what is written.
        plan: acts of `worker.lay`: ``mkdir PATH``, ``write PATH TEXT``, ``mknod PATH TYPE
            MAJOR MINOR``, ``symlink PATH TARGET``, ``mount PATH SOURCE KIND FLAGS DATA``.
    """

    lower: str
    size: int
    inodes: int
    plan: tuple[tuple[str | int, ...], ...] = ()


@dataclass
class Started:
    """One program as the worker has told of it; stamps are CLOCK_MONOTONIC nanoseconds."""

    id: str
    folder: Path
    accepted_ns: int
    spawned_ns: int
    pid: int
    ended: dict[str, Any] | None = None

    @property
    def layer_root(self) -> Path:
        """The root file system that was laid for it."""
        return self.folder / "fs" / "root"

    @property
    def words(self) -> str:
        """What it printed last."""
        with contextlib.suppress(OSError):
            lines = (self.folder / "log").read_text("utf-8", "replace").strip().splitlines()
            return " · ".join(line.strip() for line in lines[-3:])[-600:]
        return ""


@dataclass
class Connection:
    """A running worker. `close` ends it, with everything that was started."""

    context: RunContext
    directory: Path
    process: subprocess.Popen[bytes]
    control: socket.socket
    dead: bool = False
    _messages: list[dict[str, Any]] = field(default_factory=list)
    _started: dict[str, Started] = field(default_factory=dict)

    @classmethod
    def open(cls, context: RunContext, name: str) -> Connection:
        """Start the worker with a folder of its own in the run's runtime directory.

        Raises:
            HostCannot: it cannot be started.
        """
        directory = context.runtime_dir / f"run-{name}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            context.log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise oserror("mkdir", directory, error) from error
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = str(Path(__file__).with_name("worker.py"))
        with theirs, (context.log_dir / LOG_NAME).open("ab") as log:
            process = subprocess.Popen(
                # No site packages, nothing imported that is not needed: it is forked at each start.
                [
                    sys.executable,
                    "-I",
                    "-S",
                    script,
                    str(theirs.fileno()),
                    json.dumps(context.cleanup),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env={**os.environ, RUN_VARIABLE: context.tag},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for the harness to decide about
            )
        made = cls(context, directory, process, ours)
        try:
            made._await("ready", "")
        except LaunchFailed as failure:
            made.close()
            raise HostCannot(
                f"the worker of {name} did not start: {failure.message}", "run hvct as root"
            ) from failure
        return made

    def close(self) -> None:
        """End it and all it started; its mounts go with its namespace."""
        with contextlib.suppress(OSError):
            self.control.send(b'{"op": "quit"}')
        self.control.close()
        self.dead = True
        try:
            self.process.wait(ANSWER_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # What was mounted there was so in the worker's namespace alone, which is gone.
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def alive(self) -> bool:
        """False once the worker has ended, for whatever reason."""
        return not self.dead and self.process.poll() is None

    def seen(self, path: Path) -> Path:
        """A path of the worker's mount namespace, as the harness can reach it."""
        return Path(f"/proc/{self.process.pid}/root{path.resolve()}")

    # -- asking ------------------------------------------------------------------------

    def mount(self, image: Image) -> tuple[Path, str]:
        """Mount an image read-only; its folder, and which way was taken (``file``, ``loop``).

        Raises:
            LaunchFailed: neither way works.
        """
        folder = self.directory / ("image-" + image.digest.removeprefix("sha256:")[:16])
        request = {
            "op": "mount",
            "id": str(folder),
            "image": str(image.path),
            "folder": str(folder),
        }
        self._send(request, [])
        answer = self._await("mounted", str(folder))
        return folder, str(answer["path_taken"])

    def start(
        self,
        id: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        descriptors: Sequence[int] = (),
        layer: Layer | None = None,
        tmpfs: Mapping[Path, str] | None = None,
        join: Sequence[str] = (),
        cradle: str | None = None,
    ) -> None:
        """Ask for a program; `started` has the answer.

        Args:
            descriptors: become 3, 4, … of the program.
            layer: laid into ``<folder of the program>/fs/root`` first.
            tmpfs: folder → size of file systems in memory that it finds mounted.
            join: `Cgroup.join_files` that it enters before it is executed.
            cradle: the `Cgroup.cradle` in which it is born.
        """
        request = {
            "op": "start",
            "id": id,
            "argv": list(argv),
            "env": dict(env),
            "folder": str(self.folder_of(id)),
            "layer": layer.__dict__ if layer else None,
            "tmpfs": {str(path): size for path, size in (tmpfs or {}).items()},
            "join": list(join),
            "cradle": cradle or "",
        }
        self._send(request, descriptors)

    def folder_of(self, id: str) -> Path:
        """The folder of one program; it is removed when the program is discarded."""
        return self.directory / id

    def started(self, id: str) -> Started:
        """The answer to `start`.

        Raises:
            LaunchFailed: it could not be started; nothing of it is left.
        """
        answer = self._await("spawned", id)
        made = Started(
            id, self.folder_of(id), int(answer["accepted_ns"]), int(answer["ns"]), answer["pid"]
        )
        self._started[id] = made
        for message in [m for m in self._messages if m["event"] == "ended" and m["id"] == id]:
            self._messages.remove(message)
            made.ended = message
        return made

    def fileno(self) -> int:
        """For poll: readable when the worker has said something, about whichever program."""
        return self.control.fileno()

    def ended(self, program: Started, timeout_s: float) -> bool:
        """Whether a program has ended, after waiting for it at most so long."""
        deadline = time.monotonic() + timeout_s
        while program.ended is None and self._receive(deadline - time.monotonic()):
            pass
        return program.ended is not None

    def discard(self, id: str) -> None:
        """Have a program killed if it still runs, and its mounts and folder removed."""
        self._send({"op": "discard", "id": id}, [])
        self._await("gone", id)
        self._started.pop(id, None)

    def kill(self, program: Started) -> None:
        """SIGKILL to a program that the worker has not reaped."""
        if program.ended is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(program.pid, signal.SIGKILL)

    # -- packets -----------------------------------------------------------------------

    def _send(self, request: dict[str, Any], descriptors: Sequence[int]) -> None:
        data = json.dumps(request).encode()
        try:
            if descriptors:
                socket.send_fds(self.control, [data], list(descriptors))
            else:
                self.control.send(data)
        except OSError as error:
            raise self._gone() from error

    def _await(self, event: str, id: str) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while True:
            for message in self._messages:
                if message["id"] == id and message["event"] in (event, "failed"):
                    self._messages.remove(message)
                    if message["event"] == "failed" and event != "gone":
                        raise LaunchFailed(message["message"], f"look at {LOG_NAME} in the logs")
                    return message
            if not self._receive(deadline - time.monotonic()):
                raise self._gone()

    def _receive(self, timeout_s: float) -> bool:
        """Take in one packet; False when none came in time, or none will come."""
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        if self.dead or not poller.poll(max(0.0, timeout_s) * 1000):
            return False
        try:
            data = self.control.recv(PACKET_BYTES)
        except OSError:
            data = b""
        if not data:
            self.dead = True
            return False
        message = json.loads(data)
        program = self._started.get(message["id"])
        if message["event"] == "ended" and program is not None:
            program.ended = message
        else:
            self._messages.append(message)
        return True

    def _gone(self) -> LaunchFailed:
        self.dead = True
        return LaunchFailed(
            "the worker has ended, and all its instances with it",
            f"look at {LOG_NAME} in the run's logs; somebody may have killed it",
        )
