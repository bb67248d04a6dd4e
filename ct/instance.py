"""One running launch of the launcher: a container, or a bare process."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bench.agent.session import AgentSession
from bench.cgroup import Cgroup
from bench.errors import HvctError, LaunchFailed
from bench.model import (
    Accelerator,
    CpuUsage,
    Event,
    ExitStatus,
    InstanceSpec,
    MemoryUsage,
    ProcessMemory,
    Timeline,
)
from ct.worker import Exited, Launched, Worker, readable

if TYPE_CHECKING:
    from bench.network import RunNetwork

END_TIMEOUT_S = 10.0
_AGENT_EVENTS = (Event.INIT, Event.STARTED, Event.LISTENING, Event.EXITED)


class LauncherInstance:
    """What `bench.backend.Instance` asks for, over the launcher and the agent's channel.

    The agent shares the host's CLOCK_MONOTONIC, so its stamps are taken as they are.
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
    ) -> None:
        self.spec = spec
        self.timeline = timeline
        self.accelerator = Accelerator()
        self.connect_host = connect_host
        self.launched = launched
        self.cgroup = cgroup
        self._worker = worker
        self._session = session
        self._network = network
        self._facts = facts
        self._ended: Exited | None = None
        self._released: dict[str, float] | None = None
        self._oom_kills = 0
        timeline.mark(Event.ACCEPTED, launched.accepted_ns)
        timeline.mark(Event.SPAWNED, launched.born_ns)
        self._begin()

    def _begin(self) -> None:
        """Note what ending it will need; nothing for a container."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    # -- following ---------------------------------------------------------------------

    def wait(self, event: Event, deadline_ns: int) -> bool:
        """Handle what arrives until `event` has happened or the deadline passed."""
        try:
            return self._session.wait(event, deadline_ns)
        except LaunchFailed as failure:
            raise self._explain(failure) from failure
        finally:
            self._note_events()

    def pump(self, timeout_s: float) -> None:
        """Handle whatever has arrived, waiting at most `timeout_s` for something."""
        self._session.pump(timeout_s)
        self._note_events()
        if self._session.error:
            raise self._session.error
        if self._session.closed and self._session.exit is None and self._released is None:
            raise self._explain(LaunchFailed("the instance ended without saying why"))

    def _note_events(self) -> None:
        for event in _AGENT_EVENTS:
            if event not in self.timeline.marks_ns:
                stamp = self._session.host_stamp(event)
                if stamp is not None:
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

    @property
    def exit(self) -> ExitStatus | None:
        """How the workload ended, None while it runs."""
        return self._session.exit

    @property
    def stdout(self) -> bytes:
        """What arrived so far (all of it after EXITED)."""
        return self._session.stdout

    @property
    def stderr(self) -> bytes:
        """What arrived so far (all of it after EXITED)."""
        return self._session.stderr

    @property
    def receipt(self) -> dict[str, object]:
        """What the agent reported about what really runs."""
        return self._session.receipt

    def watch_output(
        self, callback: Callable[[str, bytes, int], None], *, keep: bool = True
    ) -> None:
        """Have `callback(stream, data, host stamp)` called for output as it arrives."""
        self._session.on_output = callback
        self._session.keep_output = keep

    def fileno(self) -> int:
        """What to poll for `pump` to have work."""
        return self._session.fileno()

    def check_listener(self, port: int) -> None:
        """A network namespace of its own holds nobody else's sockets."""

    def console(self) -> bytes:
        """There is none."""
        return b""

    # -- acting ------------------------------------------------------------------------

    def send_stdin(self, data: bytes) -> None:
        """Pass bytes to the workload's stdin; b"" closes it."""
        self._session.send_stdin(data)

    @property
    def stdin_pending(self) -> int:
        """Bytes passed to `send_stdin` that have not left yet."""
        return self._session.stdin_pending

    def resize(self, rows: int, columns: int) -> None:
        """Tell the workload's terminal its size."""
        self._session.window(rows, columns)

    def signal(self, number: int) -> None:
        """Send a signal to the workload (through the agent)."""
        self._session.signal(number)

    def stop(self, grace_s: float = 10.0) -> None:
        """Stop signal, then SIGKILL after the grace; returns at EXITED."""
        self.timeline.mark(Event.STOP_REQUESTED, time.monotonic_ns())
        try:
            self._session.stop(self.spec.stop_signal, grace_s)
        except LaunchFailed as failure:
            raise self._explain(failure) from failure
        finally:
            self._note_events()

    def synchronise(self) -> None:
        """Nothing to map: the clock is the host's."""

    def fetch(self, path: str) -> bytes:
        """The bytes of a regular file as seen from inside (untimed trials only)."""
        return self._session.fetch(path)

    # -- accounting --------------------------------------------------------------------

    def cpu(self) -> CpuUsage | None:
        """CPU time of its cgroup so far; None without accounting."""
        return self.cgroup.cpu() if self.cgroup else None

    def memory(self) -> MemoryUsage | None:
        """Memory charged to its cgroup now; None without accounting."""
        return self.cgroup.memory() if self.cgroup else None

    def process_memory(self) -> ProcessMemory | None:
        """PSS and RSS of its processes now; None without accounting."""
        return self.cgroup.process_memory() if self.cgroup else None

    def oom_kills(self) -> int:
        """Processes the kernel killed in it for lack of memory."""
        if self.cgroup and self._released is None:
            self._oom_kills = self.cgroup.oom_kills()
        return self._oom_kills

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
        with contextlib.ExitStack() as undo:
            # Last in, first out; each runs whatever the others do.
            undo.callback(os.close, self.launched.pidfd)
            if self.cgroup:
                undo.callback(self.cgroup.remove)
            undo.callback(self._session.close)
            self._end()
            if self.cgroup:
                with contextlib.suppress(HvctError):
                    self._oom_kills = self.cgroup.oom_kills()
                final.update(self._counters(self.cgroup))
        if self._ended:
            final["rusage_user_s"] = self._ended.user_s
            final["rusage_system_s"] = self._ended.system_s
            final["rusage_max_rss_bytes"] = float(self._ended.max_rss_bytes)
        self.timeline.mark(Event.RELEASED, time.monotonic_ns())
        return final

    def _end(self) -> None:
        """Kill and reap. The first process takes its pid namespace with it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.launched.pidfd, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        try:
            self._ended = self._worker.wait_exited(self.spec.id, END_TIMEOUT_S)
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

    @staticmethod
    def _counters(cgroup: Cgroup) -> dict[str, float]:
        """The cgroup's final values: exact, since nothing runs in it any more."""
        final: dict[str, float] = {}
        with contextlib.suppress(HvctError):
            usage = cgroup.cpu()
            final["cgroup_cpu_s"] = usage.total_s
            final["cgroup_user_s"] = usage.user_s
            final["cgroup_system_s"] = usage.system_s
            final["throttled_s"] = usage.throttled_s
        with contextlib.suppress(HvctError):
            peak = cgroup.memory().peak_bytes
            if peak is not None:
                final["peak_bytes"] = float(peak)
        return final

    def wait_network_released(self, deadline_ns: int) -> bool:
        """Wait until the kernel has dropped its link; marks NETWORK_RELEASED."""
        address = self.spec.address
        if address is not None and self._network is not None:
            if not self._network.wait_link_gone(address.link, deadline_ns):
                return False
            self.timeline.mark(Event.NETWORK_RELEASED, time.monotonic_ns(), 1_000_000)
        return True
