"""The container arm, and what it has in common with the bare process: one launch.

A launch is: control group, channel, a plan of steps, one request to the launcher, the
agent's RUN record. Nothing here waits for the instance to be up.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from bench import scratch
from bench.agent.build import agent_path
from bench.agent.launch_record import run_record
from bench.agent.seccomp import seccomp_program
from bench.agent.session import AgentSession
from bench.cgroup import Cgroup
from bench.cgroup import version as cgroup_version
from bench.context import RUN_VARIABLE, RunContext
from bench.errors import HvctError, LaunchFailed, Refused
from bench.model import (
    Capability,
    Event,
    Image,
    InstanceSpec,
    NetworkMode,
    Security,
    Timeline,
)
from ct import network, rootfs, security, steps
from ct.groups import join_steps, limits_of, new_cgroup
from ct.instance import LauncherInstance
from ct.launcher.build import launcher_path
from ct.pending import Pending, Place, facts
from ct.rootfs import Lower
from ct.scratch import LoopDisk, attached, scratch_steps
from ct.steps import Plan, Steps
from ct.wire import Launched, LaunchRequest
from ct.worker import Worker

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
LAUNCHERS = 8  # that share what is launched at once; each waits while the kernel makes one
IDENTITY_MAP = "0 0 65536"  # files keep their owners; what goes is power over the host
HOST_LOOPBACK = "127.0.0.1"
# After the joining, so that its root is the instance's own group.
NEW_CGROUP = Steps([steps.unshare(CLONE_NEWCGROUP)])


class LauncherBackend(ABC):
    """A backend over the launcher; subclasses say which plan an instance gets."""

    name: str
    instance_class: ClassVar[type[LauncherInstance]] = LauncherInstance
    enter: ClassVar[tuple[str, ...]] = ()  # a command that starts the launcher
    uses_bridge: ClassVar[bool] = True  # False: the host's network whatever is asked for

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self._worker: Worker | None = None
        self._lowers: dict[str, Lower] = {}
        self._beside: list[Worker] = []
        self._turns: deque[Worker] = deque()  # who makes the next instances

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
        self._end_beside()
        if self._worker is not None:
            self._worker.close()
            self._worker = None
            self._lowers.clear()

    def _end_beside(self) -> None:
        self._turns.clear()
        while self._beside:
            self._beside.pop().close()

    @property
    def worker(self) -> Worker:
        """The launcher, started on first use, and again after somebody killed it."""
        if self._worker is not None and not self._worker.alive:
            self._close()
        if self._worker is None:
            self._worker = Worker.start(
                self.context, launcher_path(), agent_path(), f"ct-{self.name}", self.enter
            )
        return self._worker

    @abstractmethod
    def plan(self, spec: InstanceSpec, lower: Lower, disk: Steps = steps.NOTHING) -> Plan:
        """Namespaces and steps of one instance, after it has joined its control group.

        Args:
            disk: what mounts its scratch disk.
        """

    @abstractmethod
    def connect_host(self, spec: InstanceSpec) -> str:
        """The address at which the host reaches the instance ("" when it cannot)."""

    def check(self, spec: InstanceSpec) -> None:
        """Decline what this arm cannot honour.

        Raises:
            Refused: with the reason.
        """
        scratch.check(spec.limits.scratch_bytes)
        if spec.network is NetworkMode.BRIDGE and spec.address is None:
            raise Refused("network = bridge, but the run has no bridge", "this is a defect of hvct")

    def probe(self) -> Capability:
        """Start the launcher, whose first act needs all the privileges there are."""
        if os.geteuid() != 0:
            return Capability(self.name, False, "not root", "run hvct as root")
        try:
            worker = self.worker
            version = cgroup_version()
        except HvctError as error:
            return Capability(self.name, False, error.message, error.hint)
        return Capability(
            self.name,
            True,
            version=f"Linux {platform.release()}",
            details={"cgroup": f"v{version}", "launcher": str(worker.pid)},
        )

    def helpers(self) -> tuple[int, ...]:
        """The process ids of the launcher, once it runs, and of those beside it."""
        first = () if self._worker is None else (self._worker.pid,)
        return (*first, *(one.pid for one in self._beside))

    def prepare(self, spec: InstanceSpec) -> None:
        """Start the launcher and mount the image: once per run, in no trial."""
        self._lower(spec.image)
        security.mask_steps()
        seccomp_program()

    def reserve(self, specs: Sequence[InstanceSpec]) -> None:
        """Have several launchers share these: one makes an instance only after the other.

        Raises:
            HvctError: one cannot be started.
        """
        self._turns.clear()
        mounted = len(self._lowers)
        for spec in specs:
            self._lower(spec.image)
        wanted = min(len(specs), LAUNCHERS) - 1
        if mounted != len(self._lowers) or not all(one.alive for one in self._beside):
            self._end_beside()  # they have the images that were mounted when they were started
        while len(self._beside) < wanted:
            self._beside.append(
                Worker.start_beside(self.worker, self.context, launcher_path(), agent_path())
            )
        if wanted > 0:
            launchers = (self.worker, *self._beside)
            self._turns.extend(launchers[number % len(launchers)] for number in range(len(specs)))

    def _lower(self, image: Image) -> Lower:
        _ = self.worker  # first: a new launcher has mounted nothing
        if image.digest not in self._lowers:
            self._lowers[image.digest] = self._mount(image)
        return self._lowers[image.digest]

    def _mount(self, image: Image) -> Lower:
        return rootfs.mount_image(self.worker, image)

    def unmount(self) -> None:
        """End the launcher, and with its namespace all it has mounted: files, folders, inodes."""
        self._close()

    def image_root(self, image: Image) -> Path:
        """The image's files as this arm reads them, for looking at or touching its page cache.

        The mount is in the launcher's namespace; its files are not the pages of the image file.
        """
        lower = self._lower(image)
        directory = self.worker.directory.resolve()
        return Path(f"/proc/{self.worker.pid}/root{directory}/{lower.folder}")

    def launch(self, spec: InstanceSpec) -> LauncherInstance:
        """Start an instance and return without waiting for it to be up."""
        with self.begin(spec) as pending:
            return pending.complete()

    def begin(self, spec: InstanceSpec) -> Pending:
        """Ask for an instance without waiting for the launcher's answer.

        Several may be asked for before the first is completed (`bench.together` says how
        many); they are completed in the same order.
        """
        # Our questions and what `prepare` has done (or has to do again, after somebody killed
        # the launcher) are not part of the start.
        self.check(spec)
        lower = self._lower(spec.image)
        worker = self._turns.popleft() if self._turns else self.worker
        with contextlib.ExitStack() as undo:
            held = undo.enter_context(contextlib.ExitStack())
            # Writing a scratch disk is preparation, attaching it is not: as for a VM.
            file = held.enter_context(scratch.backing_file(spec))
            place = self._place(spec, held, worker)
            undo.enter_context(place.until_answered)
            if place.cgroup:
                undo.callback(place.cgroup.remove)
            timeline = Timeline()
            timeline.mark(Event.REQUESTED, time.monotonic_ns())
            loop = undo.enter_context(contextlib.ExitStack())
            disk = loop.enter_context(attached(file)) if file else None
            cgroup = place.cgroup
            if not cgroup and spec.accounting:
                cgroup = new_cgroup(self.context.tag, spec.id, limits_of(spec))
                undo.callback(cgroup.remove)
            ours, theirs = socket.socketpair()
            undo.enter_context(ours)
            with theirs:
                request = self._request(spec, lower, disk, cgroup, place, theirs.fileno())
                place.wire.launch(request)
                undo.callback(place.wire.forget, request.id)
            session = AgentSession(ours)

            def make(launched: Launched) -> LauncherInstance:
                return self.instance_class(
                    spec,
                    timeline,
                    worker,
                    launched,
                    session,
                    cgroup,
                    self.context.network if self.uses_bridge else None,
                    self.connect_host(spec),
                    facts(lower, disk, request, place.joined, launched),
                    disk,
                    loop.pop_all(),
                    held.pop_all(),
                )

            failure = self._meanwhile(spec, session)
            return Pending(worker, place, request, make, failure, undo.pop_all())

    def _place(self, spec: InstanceSpec, held: contextlib.ExitStack, worker: Worker) -> Place:
        """What an instance finds ready before it is requested: here nothing but the launcher.

        Args:
            held: what is done after its release, or when there will be none.
            worker: whose turn it is.
        """
        return Place(worker)

    def _request(
        self,
        spec: InstanceSpec,
        lower: Lower,
        disk: LoopDisk | None,
        cgroup: Cgroup | None,
        place: Place,
        channel: int,
    ) -> LaunchRequest:
        plan = self.plan(spec, lower, scratch_steps(disk) if disk else steps.NOTHING)
        joined = cgroup if not place.parked else None
        first = [join_steps(joined, born=bool(joined.cradle))] if joined else []
        first += [
            # The channel is the first descriptor that is passed.
            Steps([steps.enter(number, CLONE_NEWNET)])
            for number, _ in enumerate(place.namespaces, start=1)
        ]
        if not cgroup and spec.cpu_set:
            first.append(steps.affinity(spec.cpu_set))
        return LaunchRequest(
            id=spec.id,
            flags=plan.flags,
            parts=(*first, *plan.parts),
            channel=channel,
            cgroup=(joined and joined.cradle) or "",
            namespaces=place.namespaces,
            user_map=plan.user_map,
            environment={RUN_VARIABLE: self.context.tag},  # so that a cleaner finds it
        )

    def _meanwhile(self, spec: InstanceSpec, session: AgentSession) -> HvctError | None:
        """What can be done while the launcher works; a failure waits until it has answered."""
        try:
            session.send_run(run_record(spec, seccomp=_agent_filter(spec)))
            if spec.address and self.context.network and self.uses_bridge:
                self.context.network.add_neighbour(spec.address)
        except HvctError as error:
            return error
        except Exception as error:  # pyroute2 has its own hierarchy
            return LaunchFailed(f"instance {spec.id} cannot be set up: {error}")
        return None


class ContainerBackend(LauncherBackend):
    """Native namespace containers.

    Args:
        user: put each container into a user namespace too (identity map: files keep their
            owners, root inside has no power outside).
        mask: hide and protect the paths container engines do.
    """

    name = "container"
    enters_network: ClassVar[bool] = False  # one that waits for it, with lo up

    def __init__(self, context: RunContext, *, user: bool = False, mask: bool = True) -> None:
        super().__init__(context)
        self.user = user
        self.mask = mask

    @property
    def binds_devices(self) -> bool:
        """Whether device nodes are the host's: in a user namespace none can be made."""
        return self.user

    def check(self, spec: InstanceSpec) -> None:
        """A user namespace cannot have the host's network's /sys, nor a disk."""
        super().check(spec)
        if self.user and spec.limits.scratch_bytes:
            raise Refused(
                "no file system on a disk can be mounted in a user namespace",
                "use a workload without a scratch disk, or another arm",
            )
        if self.user and spec.network is NetworkMode.HOST:
            raise Refused(
                "a container in a user namespace cannot have the host's network",
                "use network none or bridge",
            )

    def plan(self, spec: InstanceSpec, lower: Lower, disk: Steps = steps.NOTHING) -> Plan:
        """The container's set-up, in the order in which it happens."""
        new_network = spec.network is not NetworkMode.HOST and not self.enters_network
        flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
        flags |= CLONE_NEWNET if new_network else 0
        flags |= CLONE_NEWUSER if self.user else 0
        unified = spec.accounting and cgroup_version() == 2
        return Plan(
            flags,
            (
                NEW_CGROUP,
                network.link_steps(spec),
                rootfs.root_steps(lower, spec.limits),
                rootfs.kernel_steps(unified=unified),
                rootfs.device_steps(spec.limits.shm_bytes, bind=self.binds_devices, own_ipc=True),
                disk,
                rootfs.hosts_steps(spec),
                steps.hostname(spec.hostname),
                network.LOOPBACK if new_network else steps.NOTHING,
                network.interface_steps(spec),
                security.mask_steps() if self.mask else steps.NOTHING,
                rootfs.DETACH,
                # "same" has the agent do it, in every arm at the same point.
                steps.NOTHING if spec.security is Security.SAME else security.confine_steps(),
            ),
            IDENTITY_MAP if self.user else "",
        )

    def connect_host(self, spec: InstanceSpec) -> str:
        """Its address on the bridge, the loopback address where it has the host's network."""
        if spec.network is NetworkMode.HOST:
            return HOST_LOOPBACK
        return spec.address.ip if spec.address else ""


def _agent_filter(spec: InstanceSpec) -> bytes:
    return seccomp_program() if spec.security is Security.SAME else b""
