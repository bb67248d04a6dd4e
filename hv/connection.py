"""The harness's side of the worker: starting it, and what it says about each domain.

A few lines over 400: all that crosses the worker's wire is read here.
"""

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
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.cache import cache_dir
from bench.context import RUN_VARIABLE, RunContext
from bench.errors import HostCannot, LaunchFailed
from bench.model import DiskUsage
from hv.emulator import Emulator

AGAIN = "run it again"
LIBVIRT_MISSING = "install libvirt-daemon-driver-qemu and libvirt-python, or run ./hvct setup"
SOCKET_PATH_MOST = 107  # sun_path of unix(7), without its NUL
_READY_LIMIT_S = 60.0
_END_LIMIT_S = 10.0

# One process, one root, our own cgroups: nothing of libvirt's own confinement is used.
QEMU_CONF = """\
security_driver = "none"
security_default_confined = 0
dynamic_ownership = 0
remember_owner = 0
stdio_handler = "file"
cgroup_controllers = [ ]
namespaces = [ ]
"""
AS_ROOT = 'user = "root"\ngroup = "root"\n'


@dataclass
class DomainLink:
    """What the worker has said about one domain; `receive` brings it up to date."""

    name: str
    wire: socket.socket
    accepted_ns: int | None = None
    spawned_ns: int | None = None
    resumed_ns: int | None = None
    ended_ns: int | None = None
    pid: int = 0
    pidfd: int = -1
    channel: socket.socket | None = None
    failure: str = ""
    words: str = ""  # what QEMU printed last, where we read that ourselves
    status: int | None = None
    usage: dict[str, float] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)  # the last answer about its disk
    memory: dict[str, int] = field(default_factory=dict)  # the last answer about the guest's, bytes
    refusal: str = ""  # why there was none
    saved_xml: str = ""  # of the file it has been saved to
    forgotten: bool = False
    lost: bool = False  # the worker died

    def fileno(self) -> int:
        """For poll: readable when the worker has said something."""
        return self.wire.fileno()

    @property
    def over(self) -> bool:
        """True when the worker has nothing more to say."""
        return self.forgotten or self.lost

    def receive(self) -> None:
        """Take in everything that has arrived, without waiting."""
        while not self.over:
            try:
                data, descriptors, _, _ = socket.recv_fds(self.wire, 1 << 16, 1)
            except BlockingIOError:
                return
            except ConnectionError:
                data, descriptors = b"", []
            if not data:
                self.lost = True
                return
            self._take(json.loads(data), descriptors)

    def _take(self, message: dict[str, Any], descriptors: list[int]) -> None:
        event = message["event"]
        if event == "accepted":
            self.accepted_ns = message["ns"]
        elif event == "spawned":
            self.spawned_ns, self.pid = message["ns"], message["pid"]
            self.channel = socket.socket(fileno=descriptors[0])
            with contextlib.suppress(ProcessLookupError):
                self.pidfd = os.pidfd_open(self.pid)
        elif event == "resumed":
            self.resumed_ns = message["ns"]
        elif event == "failed":
            self.failure = message["message"]
        elif event == "ended":
            self.ended_ns, self.status = message["ns"], message.get("status")
            keys = ("user_s", "system_s", "max_rss_kib")
            self.usage = {key: float(message[key]) for key in keys if key in message}
        elif event == "disk":
            self.counted = {key: int(value) for key, value in message.items() if key != "event"}
        elif event in ("memory", "balloon"):
            self.refusal = message.get("message", "")
            told = {key: message[key] for key in ("actual", "usable") if key in message}
            self.memory = {key: int(kib) * 1024 for key, kib in told.items()}
        elif event == "saved":
            self.saved_xml = message["xml"]
        elif event == "forgotten":
            self.forgotten = True

    def await_that(self, condition: Callable[[], bool], deadline_ns: int) -> bool:
        """Receive until `condition` holds, the worker has no more to say, or the deadline."""
        self.receive()
        poller = select.poll()
        poller.register(self.wire, select.POLLIN)
        while not condition() and not self.over:
            left_ms = (deadline_ns - time.monotonic_ns()) / 1e6
            if left_ms <= 0:
                return False
            poller.poll(max(1.0, left_ms))
            self.receive()
        return condition()

    def disk(self, deadline_ns: int) -> DiskUsage | None:
        """What the scratch disk has had to do so far; None where that is not known."""
        self.counted = {}
        with contextlib.suppress(OSError):
            self.wire.send(b"disk")
            self.await_that(lambda: bool(self.counted), deadline_ns)
        found = self.counted
        if "flush_operations" not in found:
            return None
        return DiskUsage(found["flush_operations"], found["wr_bytes"], found["rd_bytes"])

    def guest_memory(self, deadline_ns: int) -> tuple[int, int]:
        """RAM that the guest has of its balloon, and what of it it calls available, in bytes.

        Raises:
            LaunchFailed: it does not say.
        """
        found = self._ask_memory(b"memory", deadline_ns, "does not say what memory it has")
        return found["actual"], found["usable"]

    def set_balloon(self, keep_bytes: int, deadline_ns: int) -> int:
        """Have the guest's balloon leave it so much of its RAM; what it has then, in bytes.

        It may be more than was asked, where the guest can give no more.

        Raises:
            LaunchFailed: there is no balloon, or no answer.
        """
        request = b"balloon %d" % (keep_bytes // 1024)
        return self._ask_memory(request, deadline_ns, "keeps its memory")["actual"]

    def _ask_memory(self, request: bytes, deadline_ns: int, failing: str) -> dict[str, int]:
        self.memory, self.refusal = {}, ""
        with contextlib.suppress(OSError):
            self.wire.send(request)
            self.await_that(lambda: bool(self.memory or self.refusal), deadline_ns)
        if not self.memory:
            reason = self.refusal or "no answer in time"
            raise LaunchFailed(f"the virtual machine {failing}: {reason}", "run ./hvct doctor")
        return self.memory

    def save(self, path: Path, deadline_ns: int) -> str:
        """Save the guest to a file, which ends QEMU; the XML that the file holds.

        Raises:
            LaunchFailed: it was not saved; the file is then of no use.
        """
        with contextlib.suppress(OSError):
            self.wire.send(b"save " + bytes(path))
            self.await_that(lambda: bool(self.saved_xml or self.failure), deadline_ns)
        if not self.saved_xml:
            reason = self.failure or "no answer in time"
            raise LaunchFailed(f"the virtual machine was not saved: {reason}", "run ./hvct doctor")
        return self.saved_xml

    def kill(self) -> None:
        """Kill QEMU: through the worker, which knows it first, and by ourselves if it is gone."""
        with contextlib.suppress(OSError):
            self.wire.send(b"kill")
        if self.lost and self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Close what is held; the worker then kills what may still run."""
        self.wire.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class WorkerLost(LaunchFailed):
    """The worker was killed: this says nothing about the host, nor about the guest."""


class Connection:
    """The worker process of one backend, and through it libvirt. A context manager.

    Args:
        machine: libvirt's machine name, for which the emulator's capabilities are learned.
    """

    def __init__(self, context: RunContext, emulator: Emulator, machine: str = "q35") -> None:
        self.context = context
        self.emulator = emulator
        self.machine = machine
        self.uri = context.libvirt_uri
        self.root = Path()
        self.libvirt_version = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket

    @property
    def embedded(self) -> bool:
        """True when libvirt's driver runs in the worker rather than in a daemon."""
        return not self.context.libvirt_uri

    def __enter__(self) -> Self:
        if self.embedded:
            self._make_root()
            self.uri = f"qemu:///embed?root={self.root}"
        self.context.log_dir.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        with theirs, (self.context.log_dir / "vm-worker.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is the harness's affair
                env={
                    **os.environ,
                    RUN_VARIABLE: self.context.tag,
                    # Errors only: it warns about every domain that we tune.
                    "LIBVIRT_LOG_OUTPUTS": "4:stderr",
                    # libvirt has a thread for each domain, which would keep an arena of its own.
                    "MALLOC_ARENA_MAX": "1",
                },
            )
        try:
            self._await_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            self._control.send(b'{"op": "quit"}')
        self._control.close()
        try:
            self._process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        if self.embedded:
            self._keep_capabilities()
            shutil.rmtree(self.root, ignore_errors=True)

    @property
    def alive(self) -> bool:
        """Whether the worker still runs."""
        return self._process is not None and self._process.poll() is None

    def died(self, within_s: float = 0.5) -> bool:
        """Whether the worker is gone; it closes its sockets a moment before it is."""
        if self._process is None:
            return True
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def pid(self) -> int:
        """The worker's process id, 0 when it does not run."""
        return self._process.pid if self._process is not None else 0

    def start(self, name: str, xml: str, channel: Path, saved: Path | None = None) -> DomainLink:
        """Ask for a domain, or for one that was saved; returns at once.

        Raises:
            LaunchFailed: the worker is gone.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {
            "op": "start",
            "name": name,
            "xml": xml,
            "saved": str(saved or ""),
            "channel": str(channel),
            "shared": not self.embedded,
        }
        with theirs:
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise LaunchFailed(
                    f"the VM worker is gone: {error.strerror}",
                    f"its log is {self.context.log_dir / 'vm-worker.log'}",
                ) from error
        ours.setblocking(False)
        return DomainLink(name, ours)

    def _argv(self, control: int) -> list[str]:
        return [
            sys.executable,
            "-P",  # the script's folder is not a place to import from
            str(Path(__file__).with_name("worker.py")),
            f"--uri={self.uri}",
            f"--emulator={self.emulator.wrapper}",
            f"--machine={self.machine}",
            "--kinds=kvm,qemu",
            f"--cleanup={json.dumps(self.context.cleanup)}",
            f"--control={control}",
            f"--root={self.root if self.embedded else ''}",
        ]

    def _await_ready(self) -> None:
        assert self._process is not None
        self._control.settimeout(_READY_LIMIT_S)
        try:
            data = self._control.recv(1 << 16)
        except OSError:
            data = b""
        self._control.settimeout(None)
        answer = json.loads(data) if data else {}
        if answer.get("event") == "ready":
            number = int(answer["libvirt"])
            self.libvirt_version = f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_LIMIT_S)
        if (self._process.returncode or 0) < 0:
            name = signal.Signals(-self._process.returncode).name
            raise WorkerLost(f"the VM worker was ended by {name} before it was ready", AGAIN)
        reason = str(answer.get("message", "")) or self._last_words()
        if "No module named 'libvirt" in reason:
            raise HostCannot("libvirt's Python binding is not installed", LIBVIRT_MISSING)
        raise HostCannot(f"libvirt {self.uri} cannot be opened: {reason}", LIBVIRT_MISSING)

    def _last_words(self) -> str:
        log = self.context.log_dir / "vm-worker.log"
        lines = log.read_text("utf-8", "replace").strip().splitlines() if log.exists() else []
        return lines[-1] if lines else "the worker ended without a word"

    def _make_root(self) -> None:
        # One of our own for each worker: libvirt locks it.
        self.context.runtime_dir.mkdir(parents=True, exist_ok=True)
        self.root = Path(tempfile.mkdtemp(prefix="libvirt-", dir=self.context.runtime_dir))
        deepest = len(
            os.fsencode(self.root / "lib/qemu/domain-9999-hvct-s00000000-00/monitor.sock")
        )
        if deepest > SOCKET_PATH_MOST:
            shutil.rmtree(self.root, ignore_errors=True)
            raise HostCannot(
                f"{self.context.runtime_dir} is {deepest - SOCKET_PATH_MOST} bytes too long for "
                "the path of a socket",
                "set XDG_RUNTIME_DIR to a shorter path",
            )
        (self.root / "etc").mkdir()
        conf = QEMU_CONF
        if os.geteuid() == 0:
            conf += AS_ROOT
        (self.root / "etc" / "qemu.conf").write_text(conf)
        target = self.root / "cache" / "qemu" / "capabilities"
        target.mkdir(parents=True, exist_ok=True)
        for path in self._kept().glob("*.xml"):
            shutil.copy2(path, target / path.name)

    def _keep_capabilities(self) -> None:
        """Learning what QEMU can do takes libvirt 0.65 s; the next run finds it."""
        made = self.root / "cache" / "qemu" / "capabilities"
        for path in made.glob("*.xml"):
            kept = self._kept() / path.name
            partial = kept.with_suffix(f".{os.getpid()}")
            try:
                if not kept.exists() or kept.read_bytes() != path.read_bytes():
                    shutil.copy2(path, partial)
                    os.replace(partial, kept)
            except OSError:  # a full disk: the next run learns anew
                partial.unlink(missing_ok=True)

    def _kept(self) -> Path:
        return cache_dir("libvirt", self.emulator.identity)
