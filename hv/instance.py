"""One running virtual machine: the worker's word about QEMU, and the agent's channel.

A few lines over 400: one class, which follows an instance from its request to its release.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.agent.instance import AGENT_EVENTS, AgentInstance, final_counters
from bench.agent.session import AgentSession
from bench.cgroup import Cgroup
from bench.errors import LaunchFailed
from bench.model import Accelerator, DiskUsage, Event, InstanceSpec, Timeline
from hv import balloon
from hv.connection import DomainLink
from hv.domain import Balloon

if TYPE_CHECKING:
    from bench.network import RunNetwork

END_LIMIT_NS = 10_000_000_000
COUNT_LIMIT_NS = 5_000_000_000  # for QEMU to say what it has counted
BALLOON_LIMIT_NS = 30_000_000_000  # for the guest's driver to answer, or to take and give pages
VERDICT_LIMIT_NS = 1_000_000_000  # from a channel's end until the worker says why
ARRIVAL_RESOLUTION_NS = 1_000_000  # of a guest event known only by its arrival
CLOCK_RATE_ERROR = 50e-6  # of a guest's clock against the host's; 10e-6 were seen under TCG
CONSOLE_TAIL_LINES = 4
FIRST_PINGS = 5
ENTROPY_BYTES = 64  # for a restored guest's random generator
QUIET_NS = 2_000_000  # half a round trip to a guest that has nothing else to do
QUIET_TRIES = 20
_OOM_MARK = b"Out of memory: Killed process"


class VmInstance(AgentInstance):
    """What `bench.backend.Instance` asks for, over the worker and the agent's channel.

    Args:
        resources: what `release` gives back after QEMU is dead: cgroup, tap, files.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        timeline: Timeline,
        accelerator: Accelerator,
        link: DomainLink,
        run_pairs: list[tuple[str, str]] | None,
        cgroup: Cgroup | None,
        network: RunNetwork | None,
        console_path: Path,
        resources: contextlib.ExitStack,
        facts: dict[str, object],
        *,
        reclaim: Balloon = Balloon.NONE,
        restored: bool = False,
    ) -> None:
        super().__init__(spec, timeline, cgroup, network)
        self.accelerator = accelerator
        self.connect_host = spec.address.ip if spec.address else ""
        self.link = link
        self._run_pairs = run_pairs
        self._balloon = reclaim
        self._restored = restored
        self._opened: AgentSession | None = None  # the same session, RUN perhaps not yet sent
        self._woken_ns = 0
        self._console_path = console_path
        self._console = b""
        self._resources = resources
        self._facts = facts

    # -- following ---------------------------------------------------------------------

    def wait(self, event: Event, deadline_ns: int) -> bool:
        """Handle what arrives until `event` has happened or the deadline passed."""
        happened = super().wait(event, deadline_ns)
        if event is Event.STARTED and happened and self.exit is None:
            # The first of two looks at the guest's clock: together they tell its rate.
            self._need_session().ping(FIRST_PINGS)
        return happened

    def fileno(self) -> int:
        """What to poll for `pump` to have work: until QEMU has its channel, the worker's word."""
        return self.link.fileno() if self._session is None else super().fileno()

    def _connected(self, deadline_ns: int) -> AgentSession | None:
        """The session, once QEMU has opened the channel; RUN is sent at that moment."""
        if self._session is not None:
            return self._session
        session = self._opened or self._open(deadline_ns)
        if session is None or (self._restored and not self._resumed(deadline_ns)):
            return None
        if self._restored:
            # Not before the guest runs: the time it is told would be older by the wait.
            self._woken_ns = time.monotonic_ns()
            session.send_wake(time.time_ns(), os.urandom(ENTROPY_BYTES))
        if self._run_pairs is not None:
            session.send_run(self._run_pairs)
        self._session = session
        return session

    def _resumed(self, deadline_ns: int) -> bool:
        """Whether the restored guest runs."""
        link = self.link
        link.await_that(lambda: link.resumed_ns is not None or bool(link.failure), deadline_ns)
        if link.failure or (link.resumed_ns is None and link.over):
            raise self._explain(LaunchFailed("the virtual machine was not restored"))
        return link.resumed_ns is not None

    def _open(self, deadline_ns: int) -> AgentSession | None:
        link = self.link
        link.await_that(lambda: link.channel is not None or bool(link.failure), deadline_ns)
        if link.accepted_ns is not None:
            self.timeline.mark(Event.ACCEPTED, link.accepted_ns)
        if link.channel is None:
            if link.failure or link.over:
                raise self._explain(LaunchFailed("the virtual machine was not started"))
            return None
        assert link.spawned_ns is not None
        self.timeline.mark(Event.SPAWNED, link.spawned_ns)
        channel, link.channel = link.channel, None
        session = AgentSession(channel, shared_clock=False, on_output=self._on_output)
        session.keep_output = self._keep_output
        self._opened = session
        return session

    def save(self, prepare: list[tuple[str, str]], path: Path, deadline_ns: int) -> str:
        """Have a guest without RUN prepared and saved to a file; the XML of the file.

        It has ended then.

        Raises:
            LaunchFailed: it did not come so far.
        """
        try:
            session = self._need_session()
            session.send_prepare(prepare)
            if not session.wait("prepared", deadline_ns):
                raise LaunchFailed("the guest to be saved was not ready in time")
            for _ in range(
                QUIET_TRIES
            ):  # what its start has left to do is done before, if possible
                if session.ping(FIRST_PINGS).error_ns <= QUIET_NS:
                    break
        except LaunchFailed as failure:
            raise self._explain(failure) from failure
        return self.link.save(path, deadline_ns)

    def _note_events(self) -> None:
        """Until clocks are compared, an event's arrival stands for it."""
        if self._session is None:
            return
        for event in AGENT_EVENTS:
            if event not in self.timeline.marks_ns and event in self._session.received:
                stamp = self._session.received[event]
                self.timeline.mark(event, stamp, ARRIVAL_RESOLUTION_NS)

    def synchronise(self) -> None:
        """Map the guest's stamps to the host's clock by ping-pong; `kernel` becomes known.

        With the look at its clock at `started` this tells the clock's rate too. What is
        left of a wrong rate shows in an event mapped to later than its arrival, or to before
        the VMM was there; that, and what could have stayed unseen, is in the resolution.
        """
        session = self._session
        if session is None or session.closed or "init" not in session.events:
            return
        try:
            mapping = session.ping()
        except LaunchFailed as failure:
            raise self._explain(failure) from failure
        marks, resolution = self.timeline.marks_ns, self.timeline.resolution_ns
        boots = not self._restored  # else its kernel started long before this launch
        spawned = marks.get(Event.SPAWNED, 0)
        late = 0
        for event in AGENT_EVENTS:
            if event in session.events:
                mapped = mapping.host_ns(session.events[event])
                late = max(late, mapped - session.received[event])
                marks[event] = min(mapped, session.received[event])
        early = max(
            0,
            spawned
            - min(
                *([mapping.boot_zero_ns - late] if boots else []),
                *(marks[e] for e in AGENT_EVENTS if e in marks),
                spawned,
            ),
        )
        for event in AGENT_EVENTS:  # a guest may say anything about its clock
            if event in marks:
                marks[event] = max(spawned, marks[event])
        error_ns = mapping.error_ns + late + early
        if boots:
            marks[Event.KERNEL] = max(spawned, mapping.boot_zero_ns - late)
        elif Event.INIT in marks:  # the time it was told was so old when it set its clock, at most
            self._facts["clock_late_ns"] = max(0, marks[Event.INIT] - self._woken_ns)
        self._facts["clock_rate"] = mapping.rate
        now = time.monotonic_ns()
        for event in (Event.KERNEL, *AGENT_EVENTS):
            if event in marks:
                drift_ns = int((now - marks[event]) * CLOCK_RATE_ERROR)
                resolution[event] = error_ns + drift_ns + session.doubt.get(event, 0)
        self._facts["clock_error_ns"] = error_ns

    def _explain(self, failure: LaunchFailed) -> LaunchFailed:
        """Say what worker and console know about an end without a word."""
        session, link = self._opened, self.link
        if session is not None and (session.error or session.exit):
            return failure
        link.await_that(
            lambda: link.ended_ns is not None or bool(link.failure),
            time.monotonic_ns() + VERDICT_LIMIT_NS,
        )
        if link.failure:
            return LaunchFailed(
                f"libvirt did not start the virtual machine: {_one_line(link.failure)}",
                "run ./hvct doctor",
            )
        if link.lost:
            return LaunchFailed(
                "the VM worker has ended, and all its virtual machines with it",
                "somebody may have killed it; start the run again",
            )
        if link.ended_ns is None:
            return failure
        words = self._console_tail()
        said = f"; its console said: {words}" if words else ""
        if link.status is None:  # a daemon's child: how it ended is not told
            return LaunchFailed(
                f"QEMU ended{said}", f"look at the daemon's log of domain {link.name}"
            )
        if os.WIFSIGNALED(link.status):
            return LaunchFailed(
                f"QEMU ended with signal {os.WTERMSIG(link.status)}{said}",
                "it may have been killed from outside, or for lack of host memory",
            )
        code = os.waitstatus_to_exitcode(link.status)
        if code:
            # What QEMU printed is in libvirt's own word, which comes a moment later.
            late_ns = time.monotonic_ns() + VERDICT_LIMIT_NS
            told = link.await_that(lambda: bool(link.failure), late_ns)
            said_by_qemu = link.words or (link.failure if told else "")
            reason = f": {_last_line(said_by_qemu)}" if said_by_qemu else ""
            return LaunchFailed(f"QEMU ended with status {code}{reason}{said}", "run ./hvct doctor")
        doing = "before its agent ran" if session is None or not session.hello else "by itself"
        return LaunchFailed(
            f"the guest ended {doing}{said}", "it may have too little memory, or have crashed"
        )

    @property
    def up(self) -> bool:
        """True once the agent runs in the guest."""
        return self._session is not None and bool(self._session.hello)

    def console(self) -> bytes:
        """What the guest's kernel complained about: errors and worse, a panic above all."""
        if self._released is None:
            with contextlib.suppress(OSError):
                self._console = self._console_path.read_bytes()
        return self._console

    def _console_tail(self) -> str:
        lines = self.console().decode("utf-8", "replace").split("\n")
        kept = [" ".join(line.split()) for line in lines if line.strip()]
        panics = [number for number, line in enumerate(kept) if "Kernel panic" in line]
        if panics:
            return kept[panics[0]]
        return " · ".join(kept[-CONSOLE_TAIL_LINES:])

    def _need_session(self) -> AgentSession:
        session = self._connected(time.monotonic_ns() + END_LIMIT_NS)
        if session is None:
            raise LaunchFailed("the virtual machine has not opened its channel")
        return session

    # -- accounting --------------------------------------------------------------------

    def guest_memory_bytes(self) -> int | None:
        """Host memory behind the guest's RAM: the mapping of QEMU's that is as large."""
        size = self._facts.get("guest_ram_bytes")
        if self.cgroup is None or not isinstance(size, int):
            return None
        found = [resident_of(pid, size) for pid in self.cgroup.pids()]
        return max((bytes for bytes in found if bytes is not None), default=None)

    def give_back(self) -> dict[str, float]:
        """Take what lies idle in the guest, by the rule of `hv.balloon`; {} where the arm does not.

        Raises:
            LaunchFailed: it has a balloon to inflate, and that cannot be done.
        """
        if not self._balloon.inflates:
            return {}
        began_ns = time.monotonic_ns()
        has, available = self.link.guest_memory(began_ns + BALLOON_LIMIT_NS)
        wanted = balloon.keep_bytes(has, available)
        kept = self.link.set_balloon(wanted, time.monotonic_ns() + BALLOON_LIMIT_NS)
        return {
            "had_bytes": has,
            "available_bytes": available,
            "asked_bytes": wanted,
            "left_bytes": kept,
            "took_s": (time.monotonic_ns() - began_ns) / 1e9,
        }

    def deflate(self) -> int:
        """Give the guest all of its RAM again, for a peak that is to come; what it has then.

        Raises:
            LaunchFailed: it has no balloon.
        """
        size = self._facts["guest_ram_bytes"]
        assert isinstance(size, int)
        return self.link.set_balloon(size, time.monotonic_ns() + BALLOON_LIMIT_NS)

    def oom_kills(self) -> int:
        """Processes killed for lack of memory, by the guest's kernel or by the host's.

        The guest's says so on its console.
        """
        inside = self.console().count(_OOM_MARK)
        if self.cgroup and self._released is None:
            self._facts["host_oom_kills"] = self.cgroup.oom_kills()
        outside = self._facts.get("host_oom_kills", 0)
        return inside + (outside if isinstance(outside, int) else 0)

    def disk(self) -> DiskUsage | None:
        """As QEMU counts what its guest asks of the scratch disk; None without one."""
        if not self.spec.limits.scratch_bytes or self._released is not None:
            return None
        return self.link.disk(time.monotonic_ns() + COUNT_LIMIT_NS)

    def describe(self) -> dict[str, object]:
        """What was really set up: domain XML, kernel, RAM, disk path, versions."""
        return dict(self._facts)

    # -- ending ------------------------------------------------------------------------

    def release(self) -> dict[str, float]:
        """Kill QEMU, reap, remove the cgroup and the tap; idempotent. Marks RELEASED.

        libvirt forgets the domain up to 0.2 s later, in the gap before the next trial.
        """
        if self._released is not None:
            return self._released
        final: dict[str, float] = {}
        with contextlib.ExitStack() as undo:
            # Last in, first out; each runs whatever the others do.
            undo.push(self._resources.pop_all())
            undo.callback(self.link.close)
            if self._opened is not None:
                undo.callback(self._opened.close)
            self._end()
            self.oom_kills()
            if self.cgroup:
                final.update(final_counters(self.cgroup))
                self.cgroup.remove()
            self.timeline.mark(Event.RELEASED, time.monotonic_ns())
        usage = self.link.usage
        if usage:
            final["rusage_user_s"] = usage["user_s"]
            final["rusage_system_s"] = usage["system_s"]
            final["rusage_max_rss_bytes"] = usage["max_rss_kib"] * 1024
        self._released = final
        return final

    def _end(self) -> None:
        """Kill QEMU and wait until it is reaped; by ourselves where the worker is gone."""
        link = self.link
        link.receive()
        link.kill()
        deadline_ns = time.monotonic_ns() + END_LIMIT_NS
        link.await_that(lambda: link.ended_ns is not None or bool(link.failure), deadline_ns)
        if link.lost:
            link.kill()
            if self.cgroup:
                self.cgroup.kill()
            if link.pidfd >= 0:
                select.select([link.pidfd], [], [], END_LIMIT_NS / 1e9)
        elif link.ended_ns is None and not link.failure and not link.forgotten:
            raise LaunchFailed(
                f"QEMU of {self.spec.id} (pid {link.pid}) outlived SIGKILL by 10 s",
                "it is stuck in the kernel: look at its stack in /proc",
            )


def resident_of(pid: int, size: int) -> int | None:
    """Resident bytes of a process's smallest anonymous mapping of at least `size`.

    The kernel joins neighbouring mappings of the same kind, so it may be a little larger.
    """
    best: tuple[int, int] | None = None
    large = 0
    try:
        with open(f"/proc/{pid}/smaps") as lines:
            for line in lines:
                words = line.split()
                if "-" in words[0] and not words[0].endswith(":"):
                    first, last = (int(end, 16) for end in words[0].split("-"))
                    large = last - first if last - first >= size and words[4] == "0" else 0
                elif large and words[0] == "Rss:":
                    resident = int(words[1]) * 1024
                    if best is None or large < best[0]:
                        best = large, resident
    except OSError:  # it ended while we looked
        return None
    return None if best is None else best[1]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]


def _last_line(text: str) -> str:
    return " ".join((text.strip().splitlines() or [""])[-1].split())[:400]
