"""What a backend and an instance are, as protocols: hv, ct, process and every peer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from bench.model import (
    Accelerator,
    Capability,
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


class Instance(Protocol):
    """One running launch. Leaving the context releases everything, whatever happened.

    All deadlines are CLOCK_MONOTONIC nanoseconds (``time.monotonic_ns``).
    """

    spec: InstanceSpec
    timeline: Timeline
    accelerator: Accelerator
    connect_host: str  # address at which the host reaches it

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def wait(self, event: Event, deadline_ns: int) -> bool:
        """Handle what arrives until `event` (STARTED, LISTENING, ENDED or EXITED) or the deadline.

        Returns True when the event has happened. Raises LaunchFailed when it can no
        longer happen (exec failed, the VMM died, the channel closed).
        """
        ...

    def pump(self, timeout_s: float) -> None:
        """Handle whatever has arrived, waiting at most `timeout_s` for something."""
        ...

    @property
    def exit(self) -> ExitStatus | None:
        """How the workload ended, None while it runs."""
        ...

    @property
    def stdout(self) -> bytes:
        """What arrived so far (all of it after EXITED)."""
        ...

    @property
    def stderr(self) -> bytes:
        """The same for stderr."""
        ...

    @property
    def receipt(self) -> dict[str, object]:
        """What the agent reported about what really runs."""
        ...

    def watch_output(
        self, callback: Callable[[str, bytes, int], None], *, keep: bool = True
    ) -> None:
        """Have `callback(stream, data, host stamp)` called for output as it arrives.

        Without `keep` the output is not collected besides (it may be endless).
        """
        ...

    def fileno(self) -> int:
        """What to poll, together with other descriptors, for `pump` to have work; after STARTED."""
        ...

    def check_listener(self, port: int) -> None:
        """Make sure that what listens on `port` is this instance's; raises Refused."""
        ...

    def console(self) -> bytes:
        """The guest kernel's console for a VM, where one was kept; else empty."""
        ...

    def send_stdin(self, data: bytes) -> None:
        """Pass bytes to the workload's stdin; b"" closes it."""
        ...

    @property
    def stdin_pending(self) -> int:
        """Bytes passed to `send_stdin` that have not left yet: while many, feed no more."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Tell the workload's terminal its size."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to the workload (through the agent)."""
        ...

    def stop(self, grace_s: float = 10.0) -> None:
        """Stop signal, then SIGKILL after the grace; marks STOP_REQUESTED; returns at EXITED."""
        ...

    def synchronise(self) -> None:
        """Map the instance's own stamps to the host clock (ping-pong; free where shared)."""
        ...

    def fetch(self, path: str) -> bytes:
        """The bytes of a regular file as seen from inside (untimed trials only)."""
        ...

    def cpu(self) -> CpuUsage | None:
        """CPU time of the whole instance so far, from its cgroup; None without accounting."""
        ...

    def memory(self) -> MemoryUsage | None:
        """Memory charged to the instance's cgroup now; None without accounting."""
        ...

    def disk(self) -> DiskUsage | None:
        """What has reached its scratch disk's backing file; None without one, or uncounted."""
        ...

    def process_memory(self) -> ProcessMemory | None:
        """PSS and RSS of its host processes now (for a VM: the VMM with its guest RAM)."""
        ...

    def oom_kills(self) -> int:
        """Processes the kernel killed in it for lack of memory."""
        ...

    def describe(self) -> dict[str, object]:
        """What was really set up (mount path taken, domain XML, join path …), for the run."""
        ...

    def release(self) -> dict[str, float]:
        """End it if it runs, reap, unmount, remove the cgroup; idempotent.

        Marks RELEASED. Returns the final counters: ``rusage_user_s``, ``rusage_system_s``
        (wait4 of the instance's host process), ``cgroup_cpu_s``, ``peak_bytes`` …
        """
        ...

    def wait_network_released(self, deadline_ns: int) -> bool:
        """Wait until the kernel has dropped its link; marks NETWORK_RELEASED."""
        ...


@runtime_checkable
class Executes(Protocol):
    """An instance in which a second command can be run: readiness by health check."""

    def execute(self, argv: Sequence[str], timeout_s: float) -> Execution:
        """Run a command as the workload runs (user, environment, limits); killed when too long."""
        ...


@runtime_checkable
class HasGuest(Protocol):
    """An instance with a kernel of its own, in RAM that the host gave it."""

    def guest_memory_bytes(self) -> int | None:
        """Host memory behind the guest's RAM now; None where it cannot be told."""
        ...


@runtime_checkable
class Mounts(Protocol):
    """A backend that keeps an image mounted between its instances."""

    def unmount(self) -> None:
        """Let go of every image, so that what was read of it leaves the host's memory.

        The next `Backend.prepare` mounts it anew. Between instances only.
        """
        ...


@runtime_checkable
class GivesBack(Protocol):
    """An instance whose host may take memory back that lies idle in it."""

    def give_back(self) -> Mapping[str, float]:
        """Take it, by the arm's rule; what was done (``…_bytes``, ``took_s``), {} for nothing.

        Raises:
            LaunchFailed: the arm has such a rule, and it could not be followed.
        """
        ...


class Backend(Protocol):
    """Launches an InstanceSpec. A context manager: leaving it ends its helper process."""

    name: str

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def probe(self) -> Capability:
        """Find out, by doing it where that is the only proof, whether this backend works."""
        ...

    def helpers(self) -> tuple[int, ...]:
        """Process ids of what works for it beside the harness: launcher or worker, if any."""
        ...

    def prepare(self, spec: InstanceSpec) -> None:
        """Do what is done once per image and run, never inside a trial (mounts, kernel)."""
        ...

    def launch(self, spec: InstanceSpec) -> Instance:
        """Start an instance and return without waiting for it to be up.

        ``requested`` is stamped first thing. Raises Refused for a specification this arm
        cannot honour, LaunchFailed when the launch itself failed (nothing is left then).
        """
        ...


class PendingLaunch(Protocol):
    """A launch that was asked for; leaving the context without `complete` undoes it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def complete(self) -> Instance:
        """The instance; raises LaunchFailed when there is none, and then nothing is left."""
        ...


@runtime_checkable
class Begins(Protocol):
    """A backend whose `launch` waits for an answer, and that can be asked without waiting."""

    def begin(self, spec: InstanceSpec) -> PendingLaunch:
        """Ask for an instance; those asked for are completed in the same order."""
        ...


@runtime_checkable
class Makes(Protocol):
    """A backend that needs something whose making takes minutes, once: no probe does that."""

    def make(self, told: Callable[[str, float | None], None]) -> Capability:
        """Make it where it is not there, and say whether the backend works then.

        Args:
            told: called with what is being done and how much of it is (0 to 1, None: unknown).
        """
        ...


@runtime_checkable
class Reserves(Protocol):
    """A backend that has something ready before an instance is requested."""

    def reserve(self, specs: Sequence[InstanceSpec]) -> None:
        """Have it ready for each of these at once."""
        ...
