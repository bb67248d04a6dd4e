"""One running launch of the launcher: a container, or a bare process."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from bench.agent.instance import AGENT_EVENTS, AgentInstance, final_counters
from bench.agent.session import AgentSession
from bench.cgroup import Cgroup
from bench.errors import HvctError, LaunchFailed
from bench.model import Accelerator, DiskUsage, Event, InstanceSpec, Timeline
from ct.scratch import LoopDisk
from ct.wire import Exited, Launched, readable
from ct.worker import Worker

if TYPE_CHECKING:
    from bench.network import RunNetwork

END_TIMEOUT_S = 10.0


class LauncherInstance(AgentInstance):
    """What `bench.backend.Instance` asks for, over the launcher and the agent's channel.

    The agent shares the host's CLOCK_MONOTONIC, so its stamps are taken as they are.

    Args:
        loop, file: the scratch disk and what is behind it, which `release` gives back last.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        timeline: Timeline,
        worker: Worker,
        launched: Launched,
        session: AgentSession,
        cgroup: Cgroup | None,
        network: RunNetwork | None,
        connect_host: str,
        facts: Callable[[], dict[str, object]],
        scratch: LoopDisk | None,
        loop: contextlib.ExitStack,
        file: contextlib.ExitStack,
    ) -> None:
        super().__init__(spec, timeline, cgroup, network)
        self.accelerator = Accelerator()
        self.connect_host = connect_host
        self.launched = launched
        self._worker = worker
        self._session: AgentSession = session
        self._facts = facts
        self._scratch = scratch
        self._loop, self._file = loop, file
        self._ended: Exited | None = None
        self._oom_kills = 0
        timeline.mark(Event.ACCEPTED, launched.accepted_ns)
        timeline.mark(Event.SPAWNED, launched.born_ns)
        self._begin()

    def _begin(self) -> None:
        """Note what ending it will need; nothing for a container."""

    # -- following ---------------------------------------------------------------------

    def _connected(self, deadline_ns: int) -> AgentSession:
        return self._session  # it was inherited, and is there from the start

    def _note_events(self) -> None:
        for event in AGENT_EVENTS:
            if event not in self.timeline.marks_ns:
                stamp = self._session.host_stamp(event)
                if stamp is not None:
                    if stamp[0] < self.launched.accepted_ns:
                        raise LaunchFailed(f"the instance says it was {event} before its launch")
                    self.timeline.mark(event, *stamp)

    def _explain(self, failure: LaunchFailed) -> LaunchFailed:
        """Say what the kernel or the launcher knows about an end without a word."""
        if self._session.error or self._session.exit:
            return failure
        if kills := self.oom_kills():
            return LaunchFailed(
                f"the instance was out of memory: the kernel killed {kills} of its processes, "
                "the first one among them",
                "give the workload a larger memory limit",
            )
        if not self._worker.alive:
            return LaunchFailed(
                "the launcher has ended, and all its instances with it",
                "somebody may have killed it; start the run again",
            )
        return failure

    def console(self) -> bytes:
        """There is none."""
        return b""

    def synchronise(self) -> None:
        """Nothing to map: the clock is the host's."""

    # -- accounting --------------------------------------------------------------------

    def oom_kills(self) -> int:
        """Processes the kernel killed in it for lack of memory."""
        if self.cgroup and self._released is None:
            self._oom_kills = self.cgroup.oom_kills()
        return self._oom_kills

    def disk(self) -> DiskUsage | None:
        """By the loop device's own counters; None without one, and once it is released."""
        return self._scratch.usage() if self._scratch and self._released is None else None

    def describe(self) -> dict[str, object]:
        """How it was set up: mount path, join path, namespaces, and the launcher's steps."""
        return self._facts()

    # -- ending ------------------------------------------------------------------------

    def release(self) -> dict[str, float]:
        """End it if it runs, reap, remove the cgroup; idempotent. Marks RELEASED."""
        if self._released is not None:
            return self._released
        final: dict[str, float] = {}
        self._released = final
        with self._file.pop_all():  # removed when all is over, as a VM's is
            self._release(final)
        return final

    def _release(self, final: dict[str, float]) -> None:
        with contextlib.ExitStack() as undo:
            # Last in, first out; each runs whatever the others do.
            undo.push(self._loop.pop_all())
            undo.callback(os.close, self.launched.pidfd)
            if self.cgroup:
                undo.callback(self.cgroup.remove)
            undo.callback(self._session.close)
            self._end()
            if self.cgroup:
                with contextlib.suppress(HvctError):
                    self._oom_kills = self.cgroup.oom_kills()
                final.update(final_counters(self.cgroup))
        if self._ended:
            final["rusage_user_s"] = self._ended.user_s
            final["rusage_system_s"] = self._ended.system_s
            final["rusage_max_rss_bytes"] = float(self._ended.max_rss_bytes)
        self.timeline.mark(Event.RELEASED, time.monotonic_ns())

    def _end(self) -> None:
        """Kill and reap. The first process takes its pid namespace with it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.launched.pidfd, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        try:
            self._ended = self._worker.wait_exited(self.launched.id, END_TIMEOUT_S)
        except LaunchFailed:
            # The launcher is gone, and with it its children (each has it as death signal's
            # sender); somebody else reaps them.
            readable(self.launched.pidfd, END_TIMEOUT_S)
            return
        if self._ended is None:
            raise LaunchFailed(
                f"the first process of {self.spec.id} (pid {self.launched.pid}) outlived "
                f"SIGKILL by {END_TIMEOUT_S:.0f} s",
                "it is stuck in the kernel: look at its stack in /proc",
            )
