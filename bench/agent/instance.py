"""What every instance of ours does the same way, through its agent's channel and its cgroup.

The arms differ in how an instance comes to be and ends; what is asked of it in between is
the same code for all of them.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bench.agent.session import AgentSession
from bench.cgroup import Cgroup
from bench.errors import HvctError, LaunchFailed
from bench.model import (
    CpuUsage,
    DiskUsage,
    Event,
    Execution,
    ExitStatus,
    InstanceSpec,
    MemoryUsage,
    ProcessMemory,
    Timeline,
)

if TYPE_CHECKING:
    from bench.network import RunNetwork

AGENT_EVENTS = (Event.INIT, Event.STARTED, Event.LISTENING, Event.EXITED)
"""Events the agent reports."""

LINK_RESOLUTION_NS = 1_000_000  # how often it is looked whether a link is gone


class AgentInstance(ABC):
    """The part of `bench.backend.Instance` that is the same for every arm of ours.

    Attributes:
        cgroup: the instance's own; None without accounting.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        timeline: Timeline,
        cgroup: Cgroup | None,
        network: RunNetwork | None,
    ) -> None:
        self.spec = spec
        self.timeline = timeline
        self.cgroup = cgroup
        self._network = network
        self._session: AgentSession | None = None
        self._on_output: Callable[[str, bytes, int], None] | None = None
        self._keep_output = True
        self._released: dict[str, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    # -- what an arm adds --------------------------------------------------------------

    @abstractmethod
    def release(self) -> dict[str, float]:
        """End it if it runs, reap, remove the cgroup; idempotent. Marks RELEASED."""

    @abstractmethod
    def _connected(self, deadline_ns: int) -> AgentSession | None:
        """The session, once there is one; None when there was none until the deadline."""

    @abstractmethod
    def _note_events(self) -> None:
        """Put what the agent has reported into the timeline."""

    @abstractmethod
    def _explain(self, failure: LaunchFailed) -> LaunchFailed:
        """Say what is known from outside about an end without a word."""

    # -- following ---------------------------------------------------------------------

    def wait(self, event: Event, deadline_ns: int) -> bool:
        """Handle what arrives until `event` has happened or the deadline passed."""
        session = self._connected(deadline_ns)
        if session is None:
            return False
        try:
            return session.wait(event, deadline_ns)
        except LaunchFailed as failure:
            raise self._explain(failure) from failure
        finally:
            self._note_events()

    def pump(self, timeout_s: float) -> None:
        """Handle whatever has arrived, waiting at most `timeout_s` for something."""
        if self._session is None:
            self._connected(time.monotonic_ns() + int(timeout_s * 1e9))
            return
        self._session.pump(timeout_s)
        self._note_events()
        if self._session.error:
            raise self._session.error
        if self._session.closed and self._session.exit is None and self._released is None:
            raise self._explain(LaunchFailed("the instance ended without saying why"))

    def _need_session(self) -> AgentSession:
        session = self._session
        if session is None:
            raise LaunchFailed("the instance has not opened its channel")
        return session

    @property
    def exit(self) -> ExitStatus | None:
        """How the workload ended, None while it runs."""
        return self._session.exit if self._session else None

    @property
    def stdout(self) -> bytes:
        """What arrived so far (all of it after EXITED)."""
        return self._session.stdout if self._session else b""

    @property
    def stderr(self) -> bytes:
        """What arrived so far (all of it after EXITED)."""
        return self._session.stderr if self._session else b""

    @property
    def receipt(self) -> dict[str, object]:
        """What the agent reported about what really runs."""
        return self._session.receipt if self._session else {}

    def watch_output(
        self, callback: Callable[[str, bytes, int], None], *, keep: bool = True
    ) -> None:
        """Have `callback(stream, data, host stamp)` called for output as it arrives."""
        self._on_output, self._keep_output = callback, keep
        if self._session is not None:
            self._session.on_output, self._session.keep_output = callback, keep

    def fileno(self) -> int:
        """What to poll for `pump` to have work."""
        return self._need_session().fileno()

    def check_listener(self, port: int) -> None:  # noqa: B027 - only a bare process has to look
        """A network of its own holds nobody else's sockets."""

    # -- acting ------------------------------------------------------------------------

    def send_stdin(self, data: bytes) -> None:
        """Pass bytes to the workload's stdin; b"" closes it."""
        self._need_session().send_stdin(data)

    @property
    def stdin_pending(self) -> int:
        """Bytes passed to `send_stdin` that have not left yet."""
        return self._need_session().stdin_pending

    def resize(self, rows: int, columns: int) -> None:
        """Tell the workload's terminal its size."""
        self._need_session().window(rows, columns)

    def signal(self, number: int) -> None:
        """Send a signal to the workload (through the agent)."""
        self._need_session().signal(number)

    def stop(self, grace_s: float = 10.0) -> None:
        """Stop signal, then SIGKILL after the grace; returns at EXITED."""
        self.timeline.mark(Event.STOP_REQUESTED, time.monotonic_ns())
        try:
            self._need_session().stop(self.spec.stop_signal, grace_s)
        except LaunchFailed as failure:
            raise self._explain(failure) from failure
        finally:
            self._note_events()

    def fetch(self, path: str) -> bytes:
        """The bytes of a regular file as seen from inside (untimed trials only)."""
        return self._need_session().fetch(path)

    def execute(self, argv: Sequence[str], timeout_s: float) -> Execution:
        """Run a second command inside, as the workload, for at most so long."""
        try:
            return self._need_session().execute(argv, timeout_s)
        except LaunchFailed as failure:
            raise self._explain(failure) from failure
        finally:
            self._note_events()

    # -- accounting --------------------------------------------------------------------

    def cpu(self) -> CpuUsage | None:
        """CPU time of its cgroup so far (a VM: vCPUs and emulator); None without accounting."""
        return self.cgroup.cpu() if self.cgroup else None

    def memory(self) -> MemoryUsage | None:
        """Memory charged to its cgroup now; None without accounting."""
        return self.cgroup.memory() if self.cgroup else None

    def disk(self) -> DiskUsage | None:
        """What has reached its scratch disk's backing file; an arm that counts says so."""
        return None

    def process_memory(self) -> ProcessMemory | None:
        """PSS and RSS of its host processes (a VM: with guest RAM); None without accounting."""
        return self.cgroup.process_memory() if self.cgroup else None

    def wait_network_released(self, deadline_ns: int) -> bool:
        """Wait until the kernel has dropped its link; marks NETWORK_RELEASED."""
        address = self.spec.address
        if address is not None and self._network is not None:
            if not self._network.wait_link_gone(address.link, deadline_ns):
                return False
            now = time.monotonic_ns()
            self.timeline.mark(Event.NETWORK_RELEASED, now, LINK_RESOLUTION_NS)
        return True


def final_counters(cgroup: Cgroup) -> dict[str, float]:
    """A cgroup's final values: exact, since nothing runs in it any more."""
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
