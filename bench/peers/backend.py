"""What all peers that are a program in the foreground have in common: one launch.

The peer is handed the mounted image with a writable layer over it, and our agent as the
program to run, by descriptor: 3 is the agent's channel, 4 the agent itself. One that passes no
descriptors on is given both as paths, bound into its container.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from bench.agent.build import agent_path
from bench.agent.launch_record import run_record
from bench.agent.seccomp import seccomp_program
from bench.agent.session import AgentSession
from bench.cgroup import Cgroup, CgroupLimits, way_in
from bench.cgroup_tree import remove_elsewhere
from bench.command import run
from bench.context import RUN_VARIABLE, RunContext
from bench.errors import HvctError, LaunchFailed, Refused, oserror
from bench.model import (
    Capability,
    Event,
    Image,
    ImageConfig,
    InstanceSpec,
    Limits,
    NetworkMode,
    Security,
    Timeline,
)
from bench.peers.instance import PeerInstance
from bench.programs.connection import Connection, Layer, Started

PROBE_LIMIT_NS = 15_000_000_000
AGENT = ("/proc/self/fd/4", "--channel=3")
"""The agent's words for a peer that passes descriptors on."""

INSIDE = "/.hvct"
"""Where agent and channel are in a container of a peer that passes no descriptors on."""

SOCKET_AGENT = (f"{INSIDE}/agent", f"--socket={INSIDE}/channel/socket")
"""The agent's words there."""

BOX = "box"
"""The group that a peer makes for itself, below the instance's own, which stays to be read."""


PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Command:
    """What one launch executes, as a value.

    Attributes:
        argv: the peer's program and its words.
        plan: what is put into the root file system first, see `connection.Layer`.
        files: name → content, written into the instance's folder.
        env: variables of the peer's program, not of what it runs.
    """

    argv: tuple[str, ...]
    plan: tuple[tuple[str | int, ...], ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


class PeerBackend(ABC):
    """A peer; subclasses say which command starts an instance.

    Attributes:
        name: of the arm, and of the program.
        package: Debian's package that has it.
        own_group: it joins a control group by itself, and sets its limits; else our worker
            enters the instance's group before the peer's program is executed.
        tidies_up: processes of its own are in the instance's group and must outlive the agent.
        passes_descriptors: else the agent connects to a socket in the instance's folder, see
            `listening`.
    """

    name: str
    package: ClassVar[str]
    own_group: ClassVar[bool]
    tidies_up: ClassVar[bool] = False
    passes_descriptors: ClassVar[bool] = True

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self._connection: Connection | None = None
        self._lowers: dict[str, tuple[Path, str]] = {}
        self._agent = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._agent >= 0:
            os.close(self._agent)
            self._agent = -1
        self._lowers.clear()

    @property
    def connection(self) -> Connection:
        """The worker, started on first use, and again after somebody killed it."""
        if self._connection is not None and not self._connection.alive:
            self._close()
        if self._connection is None:
            self._connection = Connection.open(self.context, self.name)
            self._agent = agent_in_memory()
        return self._connection

    # -- what a peer adds --------------------------------------------------------------

    @abstractmethod
    def command(self, spec: InstanceSpec, folder: Path, group: str) -> Command:
        """What starts an instance.

        Args:
            folder: the instance's; its root file system will be at ``fs/root`` in it.
            group: the control group to join, below each hierarchy's mount; "" for none.
        """

    def joined(self, cgroup: Cgroup) -> Sequence[str]:
        """The files by which the worker's child, born in the group's cradle, enters the rest."""
        return cgroup.join_files(born=True)

    def rlimits(self) -> Sequence[tuple[str, int, int]] | None:
        """The workload's limits where the peer cannot grant those that every other arm has."""
        return None

    def version_of(self, said: str) -> str:
        """The version in what ``--version`` prints first."""
        found = re.search(r"\d+\.\d[\w.+~-]*", said)
        return found[0] if found else said

    def program(self) -> str:
        """The peer's program, by its full path; "" when it is not installed."""
        return installed(self.name)

    # -- settled once ------------------------------------------------------------------

    def check(self, spec: InstanceSpec) -> None:
        """Decline what this arm cannot honour.

        Raises:
            Refused: with the reason.
        """
        if spec.network is not NetworkMode.NONE:
            raise Refused(
                f"peers are compared without a network, and this workload has network "
                f"{spec.network.value}",
                "use a workload with network none, or leave this arm out",
            )
        if spec.limits.scratch_bytes:
            raise Refused("a scratch disk is not offered to peers", "use a workload without one")
        if spec.tty:
            raise Refused("peers are given no terminal", "use the arm container")
        if not spec.accounting and self.own_group:
            raise Refused(f"{self.name} always makes a control group", "use accounting")

    def probe(self) -> Capability:
        """Start the agent through it, in a root file system that holds nothing else."""
        if os.geteuid() != 0:
            return Capability(self.name, False, "not root", "run hvct as root")
        program = self.program()
        if not program:
            remedy = f"apt-get install {self.package}"
            return Capability(self.name, False, f"{self.name} is not installed", remedy)
        version = ""
        try:
            said = run([program, "--version"], timeout_s=20).decode().strip().splitlines()
            version = self.version_of(said[0] if said else "")
            self._try()
        except HvctError as error:
            return Capability(self.name, False, error.message, self.remedy(error), version)
        return Capability(self.name, True, version=f"{self.name} {version}")

    def remedy(self, error: HvctError) -> str:
        """What to do about a probe that failed."""
        return error.hint if "hvct doctor" not in error.hint else "leave this arm out"

    def _try(self) -> None:
        empty = self.connection.directory / "nothing"
        empty.mkdir(exist_ok=True)
        image = Image("nothing", "", empty, 0, "", "amd64", ImageConfig(), "")
        spec = InstanceSpec(f"{self.context.tag}-p{self.name}", image, ("true",), limits=Limits())
        self._lowers[""] = (empty, "nothing")
        with self.launch(spec) as instance:
            if not instance.wait(Event.INIT, time.monotonic_ns() + PROBE_LIMIT_NS):
                raise LaunchFailed(f"{self.name} did not start the agent within 15 s")

    def helpers(self) -> tuple[int, ...]:
        """The process id of the worker, once it runs."""
        return () if self._connection is None else (self._connection.process.pid,)

    def prepare(self, spec: InstanceSpec) -> None:
        """Start the worker and mount the image: once per run, in no trial."""
        self.check(spec)
        self.lower(spec.image)
        seccomp_program()

    def lower(self, image: Image) -> tuple[Path, str]:
        """The mounted image, in the worker's namespace, and how it was mounted."""
        connection = self.connection  # first: a new worker has mounted nothing
        if image.digest not in self._lowers:
            self._lowers[image.digest] = connection.mount(image)
        return self._lowers[image.digest]

    def image_root(self, image: Image) -> Path:
        """The image's files as this arm reads them, for looking at or touching its page cache."""
        return self.connection.seen(self.lower(image)[0])

    # -- launching ---------------------------------------------------------------------

    def launch(self, spec: InstanceSpec) -> PeerInstance:
        """Start an instance and return without waiting for it to be up."""
        self.check(spec)
        lower, path_taken = self.lower(spec.image)
        connection = self.connection
        timeline = Timeline()
        with contextlib.ExitStack() as undo:
            cgroup = None
            if self.own_group:  # only to be read: making it is not the peer's work
                cgroup = group_of(self.context.tag, spec, limited=False)
            timeline.mark(Event.REQUESTED, time.monotonic_ns())
            if spec.accounting and not self.own_group:
                cgroup = group_of(self.context.tag, spec, limited=True)
            if cgroup:
                undo.callback(remove_elsewhere, cgroup.tag, cgroup.name)
                undo.callback(cgroup.remove)
            group = f"/hvct/{self.context.tag}/{spec.id}/{BOX}" if self.own_group else ""
            joined = self.joined(cgroup) if cgroup and not self.own_group else ()
            folder = connection.folder_of(spec.id)
            command = self.command(spec, folder, group)
            if command.files:
                folder.mkdir(exist_ok=True)
                for name, content in command.files.items():
                    (folder / name).write_text(content)
            channel: AgentSession | socket.socket
            if self.passes_descriptors:
                ours, theirs = socket.socketpair()
            else:
                ours, theirs = listening(folder / "channel"), None
            undo.enter_context(ours)
            with contextlib.ExitStack() as passed:
                descriptors: tuple[int, ...] = ()
                if theirs is not None:
                    passed.enter_context(theirs)
                    descriptors = passed.enter_context(self._descriptors(spec, theirs))
                connection.start(
                    spec.id,
                    command.argv,
                    {"PATH": PATH, RUN_VARIABLE: self.context.tag, **command.env},
                    descriptors=descriptors,
                    layer=Layer(
                        str(lower),
                        spec.limits.writable_bytes,
                        spec.limits.writable_inodes,
                        command.plan,
                    ),
                    join=joined,
                    cradle=cgroup.cradle if cgroup and not self.own_group else None,
                )
                record = run_record(spec, seccomp=agent_filter(spec), rlimits=self.rlimits())
                channel = ours
                if theirs is not None:
                    channel = AgentSession(ours)
                    channel.send_run(record)
                program = connection.started(spec.id)
            undo.callback(self._undo, connection, program)
            instance = PeerInstance(
                spec,
                timeline,
                connection,
                program,
                cgroup,
                channel,
                record,
                lambda: None,
                lambda: said_at_its_end(self.name, connection, program),
                agent_first=self.tidies_up,
                facts={
                    "program": self.name,
                    "command": list(command.argv),
                    "image_mount": path_taken,
                    "join": f"cgroup.procs, by {self.name}"
                    if group
                    else way_in(joined, born=bool(cgroup and cgroup.cradle)),
                },
            )
            undo.pop_all()
        return instance

    @contextlib.contextmanager
    def _descriptors(self, spec: InstanceSpec, channel: socket.socket) -> Iterator[tuple[int, ...]]:
        """What the peer's program gets as 3, 4, ….

        A context manager for what subclasses open besides.
        """
        yield (channel.fileno(), self._agent)

    @staticmethod
    def _undo(connection: Connection, program: Started) -> None:
        with contextlib.suppress(LaunchFailed):
            connection.discard(program.id)


def installed(name: str) -> str:
    """A program by its full path; "" when it is not installed."""
    return shutil.which(name, path=PATH) or ""


def agent_in_memory() -> int:
    """A descriptor of the agent, in memory: it needs no path in any root."""
    descriptor = os.memfd_create("hvct-agent", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, agent_path().read_bytes())
        os.fchmod(descriptor, 0o555)
        # A file that is open for writing cannot be executed (ETXTBSY).
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(descriptor)


def listening(folder: Path) -> socket.socket:
    """A socket in this folder, made with it, to which an agent will connect."""
    folder.mkdir(parents=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(folder / "socket"))
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise oserror("bind", folder / "socket", error) from error
    return listener


def said_at_its_end(name: str, connection: Connection, program: Started) -> str:
    """How a program in the foreground has ended, and what it printed last; "" while it runs."""
    if not connection.ended(program, 0.0):
        return "the worker has ended" if connection.dead else ""
    code = os.waitstatus_to_exitcode(int((program.ended or {})["status"]))
    return f"{name} ended with status {code}{': ' if program.words else ''}{program.words}"


def agent_filter(spec: InstanceSpec) -> bytes:
    """The filter that the agent loads itself, where the profile is the same in every arm."""
    return seccomp_program() if spec.security is Security.SAME else b""


def hosts_of(spec: InstanceSpec) -> str:
    """/etc/hosts, as our own containers have it."""
    return f"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{spec.hostname}\n"


def group_of(tag: str, spec: InstanceSpec, *, limited: bool) -> Cgroup:
    """The instance's control group; without limits where the peer sets them in its own below.

    Raises:
        LaunchFailed: the kernel refused a limit.
    """
    limits = CgroupLimits(
        memory_bytes=spec.limits.memory_bytes,
        swap_bytes=spec.limits.swap_bytes,
        cpu_set=spec.cpu_set,
        cpu_quota=spec.cpu_quota,
        pids=spec.limits.pids,
    )
    return Cgroup.create(tag, spec.id, limits if limited else CgroupLimits(swap_bytes=1))
