"""One running launch of a peer: followed through its agent, ended through its control group."""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import time
from collections.abc import Callable

from bench.agent.instance import AGENT_EVENTS, AgentInstance, final_counters
from bench.agent.session import AgentSession
from bench.cgroup import Cgroup
from bench.cgroup_tree import oom_kills_in, remove_elsewhere
from bench.errors import LaunchFailed
from bench.model import Accelerator, Event, InstanceSpec, Timeline
from bench.programs.connection import Connection, Started

END_LIMIT_S = 10.0
QUIT_LIMIT_S = 2.0
LAST_WORDS_S = 0.5  # for a program whose agent has gone to end, and to have said why
POLL_S = 0.25


class PeerInstance(AgentInstance):
    """What `bench.backend.Instance` asks for, over a peer and the agent's channel.

    The agent shares the host's CLOCK_MONOTONIC, so its stamps are taken as they are.

    Args:
        program: the peer's program in the foreground; None where a daemon has none.
        channel: the agent's channel, or the listening socket to which it will connect.
        run: the RUN record, for an agent that has yet to connect.
        ended: what must be done with the peer to be rid of it, once everything in it is dead.
        failed: why the peer could not do it, "" while nothing is known.
        agent_first: to end it the agent alone is ended, by its channel, so that the peer's own
            processes can tidy up; the rest is killed only if that takes too long.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        timeline: Timeline,
        connection: Connection,
        program: Started | None,
        cgroup: Cgroup | None,
        channel: AgentSession | socket.socket,
        run: list[tuple[str, str]],
        ended: Callable[[], None],
        failed: Callable[[], str],
        facts: dict[str, object],
        *,
        agent_first: bool = False,
    ) -> None:
        super().__init__(spec, timeline, cgroup, None)
        self.accelerator = Accelerator()
        self.connect_host = ""
        self.program = program
        self._connection = connection
        self._run = run
        self._ended, self._failed = ended, failed
        self._facts = facts
        self._agent_first = agent_first
        self._oom_kills = 0
        self._listener: socket.socket | None = None
        if isinstance(channel, AgentSession):
            self._session = channel
        else:
            self._listener = channel
        if program is not None:
            timeline.mark(Event.ACCEPTED, program.accepted_ns)
            timeline.mark(Event.SPAWNED, program.spawned_ns)

    # -- following ---------------------------------------------------------------------

    def _connected(self, deadline_ns: int) -> AgentSession | None:
        if self._session is not None or self._listener is None:
            return self._session
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        while not poller.poll(POLL_S * 1000):
            if reason := self._failed():
                raise LaunchFailed(reason, "run hvct doctor")
            if time.monotonic_ns() >= deadline_ns:
                return None
        session = AgentSession(self._listener.accept()[0])
        session.on_output, session.keep_output = self._on_output, self._keep_output
        session.send_run(self._run)
        self._session = session
        self._listener.close()
        self._listener = None
        return session

    def _note_events(self) -> None:
        for event in AGENT_EVENTS:
            if event not in self.timeline.marks_ns and self._session is not None:
                stamp = self._session.host_stamp(event)
                if stamp is not None:
                    self.timeline.mark(event, *stamp)

    def _explain(self, failure: LaunchFailed) -> LaunchFailed:
        """Say what the kernel or the peer knows about an end without a word."""
        if self._session is not None and (self._session.error or self._session.exit):
            return failure
        if kills := self.oom_kills():
            return LaunchFailed(
                f"the instance was out of memory: the kernel killed {kills} of its processes, "
                "the first one among them",
                "give the workload a larger memory limit",
            )
        program = self.program
        deadline = time.monotonic() + LAST_WORDS_S
        while not (reason := self._failed()):
            if time.monotonic() >= deadline:
                return failure
            if program is not None:
                self._connection.ended(program, deadline - time.monotonic())
            else:
                time.sleep(0.01)
        return LaunchFailed(reason, "run hvct doctor")

    def console(self) -> bytes:
        """There is none."""
        return b""

    def synchronise(self) -> None:
        """Nothing to map: the clock is the host's."""

    # -- accounting --------------------------------------------------------------------

    def oom_kills(self) -> int:
        """Processes killed for lack of memory, in the peer's own group below ours too."""
        if self.cgroup and self._released is None:
            self._oom_kills = max(self._oom_kills, oom_kills_in(self.cgroup.directory("memory")))
        return self._oom_kills

    def describe(self) -> dict[str, object]:
        """How it was set up: the program's words, control group, and image mount."""
        return dict(self._facts)

    # -- ending ------------------------------------------------------------------------

    def release(self) -> dict[str, float]:
        """Kill what is in it, let the peer tidy up, remove what is ours. Marks RELEASED."""
        if self._released is not None:
            return self._released
        self.oom_kills()
        final: dict[str, float] = {}
        self._released = final
        with contextlib.ExitStack() as undo:
            # Last in, first out; each runs whatever the others do.
            if self.cgroup:
                undo.callback(self.cgroup.remove)
            undo.callback(self._discard)
            undo.callback(self._ended)
            if self._listener is not None:
                undo.callback(self._listener.close)
            if self._session is not None:
                undo.callback(self._session.close)
            self._end()
            if self.cgroup:
                final.update(final_counters(self.cgroup))
            usage = (self.program.ended or {}) if self.program else {}
            for key in ("user_s", "system_s"):
                if key in usage:
                    final[f"rusage_{key}"] = float(usage[key])
        self.timeline.mark(Event.RELEASED, time.monotonic_ns())
        if self.cgroup:
            # A peer makes its group in hierarchies that are not ours, and leaves its parents.
            remove_elsewhere(self.cgroup.tag, self.cgroup.name)
        return final

    def _end(self) -> None:
        """Kill everything inside; the peer's program then ends by itself, and tidies up."""
        program = self.program
        if self.cgroup and not self._agent_first:
            self.cgroup.kill()
        if self._session is not None:
            self._session.close()  # the agent then kills everything it started, and ends
        if program is None:
            return
        if self.cgroup and self._agent_first and not self._connection.ended(program, QUIT_LIMIT_S):
            self.cgroup.kill()
        if not self._connection.ended(program, END_LIMIT_S if self.cgroup else QUIT_LIMIT_S):
            self._connection.kill(program)
            if not (self._connection.ended(program, END_LIMIT_S) or self._connection.dead):
                raise LaunchFailed(
                    f"{self._facts['program']} of {self.spec.id} (pid {program.pid}) outlived "
                    f"SIGKILL by {END_LIMIT_S:.0f} s",
                    "it is stuck in the kernel: look at its stack in /proc",
                )

    def _discard(self) -> None:
        if self.program is None:
            shutil.rmtree(self._connection.folder_of(self.spec.id), ignore_errors=True)
            return
        with contextlib.suppress(LaunchFailed):  # the worker is gone, and its mounts with it
            self._connection.discard(self.spec.id)
