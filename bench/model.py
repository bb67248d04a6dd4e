"""The vocabulary as data: frozen dataclasses and enums, nothing that acts.

Every word here is used with the same meaning in the code, the command line and
the reports; ``docs/architecture.md`` has the table. Stdlib only. More than 400
lines on purpose: one place to look up what a word means.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

FORMAT = 1  # of run.json and trials.jsonl; its history is in bench/store.py


class Outcome(StrEnum):
    """How a trial ended. Everything but ``ok`` is data too, never a zero."""

    OK = "ok"
    FAILED = "failed"
    TIMEOUT = "timeout"
    REFUSED = "refused"


class Event(StrEnum):
    """The named marks of one launch, in order, all on the host's CLOCK_MONOTONIC."""

    REQUESTED = "requested"  # launch() called
    ACCEPTED = "accepted"  # our launcher or worker has taken the request
    SPAWNED = "spawned"  # the container process or the VMM exists
    KERNEL = "kernel"  # guest kernel entered (VM only; absent for a restore)
    INIT = "init"  # our agent runs as PID 1
    STARTED = "started"  # the workload's exec
    LISTENING = "listening"  # the workload's port is open, as seen from inside
    READY = "ready"  # first useful reply, as the workload defines it
    STOP_REQUESTED = "stop_requested"
    ENDED = "ended"  # news of EXITED, sent before output is shipped; never on a timeline
    EXITED = "exited"  # the workload ended
    RELEASE_REQUESTED = "release_requested"  # release() called: teardown begins
    RELEASED = "released"  # processes reaped, mounts gone, cgroup removed
    NETWORK_RELEASED = "network_released"  # the kernel has dropped namespace and link


class Scale(StrEnum):
    """How two values of a metric are compared."""

    RATIO = "ratio"  # times and rates
    DIFFERENCE = "difference"  # memory, idle CPU, teardown


class Better(StrEnum):
    """Which direction of a metric a user wants."""

    LOWER = "lower"
    HIGHER = "higher"


class NetworkMode(StrEnum):
    """How an instance reaches the outside."""

    NONE = "none"  # loopback only
    BRIDGE = "bridge"  # the run's bridge, layer 2 only
    HOST = "host"  # the host's own namespace (a VM refuses it)


class Security(StrEnum):
    """Which confinement the workload runs under."""

    CONTAINER_NATIVE = "container-native"  # a VM's isolation is the VM
    SAME = "same"  # capabilities, no_new_privs and seccomp in every arm, by the agent


class MemoryBasis(StrEnum):
    """What ``memory_bytes`` means for a VM."""

    USABLE = "usable"  # guest RAM = limit + the guest's measured reserve
    NOMINAL = "nominal"  # guest RAM = limit


class PageCache(StrEnum):
    """What of an image the host has in memory when an instance is requested."""

    WARM = "warm"  # all that the arm reads of it
    COLD = "cold"  # nothing: as on a host that has the image, and has not read it


class Gap(StrEnum):
    """What is waited for between two trials."""

    QUIET = "quiet"  # a fixed pause, then until the host is quiet, for a bounded time
    NONE = "none"  # nothing: for a run whose subject is no figure


class ReadyKind(StrEnum):
    """When an instance counts as ready."""

    STARTED = "started"  # at the workload's exec
    OUTPUT = "output"  # at the first byte of stdout
    LINE = "line"  # at the first stdout line matching `pattern`
    TCP = "tcp"  # at the first accepted connection
    REPLY = "reply"  # when `expect` comes back after sending `send`
    HTTP = "http"  # at the first HTTP 200 for `path`
    HEALTH = "health"  # when a check run inside first ends with status 0


class OutputMode(StrEnum):
    """Where stdout and stderr go while the workload runs."""

    SPOOL = "spool"  # to a file in memory inside, shipped after the exit
    STREAM = "stream"  # to the host at once (readiness by line, interactive use)


class ReceiptLevel(StrEnum):
    """What the agent proves about what ran."""

    CHEAP = "cheap"  # in every trial, before exec
    DIGEST = "digest"  # cheap + content digests, in one untimed trial


@dataclass(frozen=True)
class Ids:
    """Identity of the workload, resolved once from the image's own passwd.

    Attributes:
        groups: supplementary groups.
        home: the account's home directory, "" where the uid has no account.
    """

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = ""


@dataclass(frozen=True)
class Healthcheck:
    """How an image says that one finds out whether it serves (Docker's HEALTHCHECK).

    Attributes:
        command: argv, run inside as the workload's own user; status 0 means healthy.
        interval_s: from one check to the next.
        timeout_s: a check that takes longer has failed.
        start_interval_s: the interval until it is healthy, 0 where none is declared.
    """

    command: tuple[str, ...]
    interval_s: float = 30.0
    timeout_s: float = 30.0
    start_interval_s: float = 0.0


@dataclass(frozen=True)
class ImageConfig:
    """What the image says about running it (OCI image configuration)."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    ids: Ids = Ids()
    workdir: str = "/"
    stop_signal: str = "SIGTERM"
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    healthcheck: Healthcheck | None = None


@dataclass(frozen=True)
class Image:
    """An OCI image as one read-only root file system file that every arm mounts.

    Attributes:
        name: what the user calls it (``default``, ``busybox``, ``my/app:1``).
        digest: ``sha256:…`` of the ``.erofs`` file; the identity both arms share.
        path: the ``.erofs`` file in the cache.
        uuid: the volume UUID inside it, fixed by its content.
        architecture: OCI name (``amd64``, ``arm64``).
        source: where it came from, for the report.
        packages: package list with versions, for images built from packages.
        newest_mtime: seconds since the epoch, newest file in it.
    """

    name: str
    digest: str
    path: Path
    size_bytes: int
    uuid: str
    architecture: str
    config: ImageConfig
    source: str
    packages: tuple[str, ...] = ()
    newest_mtime: int = 0


@dataclass(frozen=True)
class Readiness:
    """When the workload counts as ready; only the fields of its kind are used.

    For a health check, an empty `command` means the image's own, 0 its interval and timeout.
    """

    kind: ReadyKind = ReadyKind.STARTED
    port: int = 0
    path: str = "/"
    send: bytes = b""
    expect: bytes = b""
    pattern: str = ""
    command: tuple[str, ...] = ()
    interval_s: float = 0.0
    timeout_s: float = 0.0


@dataclass(frozen=True)
class MetricRule:
    """How a number is read from a workload's output: a regex group or a JSON pointer.

    ``repeats`` says what the output holds when the regex matches more than once, or an array
    is at the pointer: iterations inside one instance, which are all kept and stand as their
    ``median``, or only the ``first`` counts.
    """

    name: str
    unit: str
    scale: Scale = Scale.RATIO
    better: Better = Better.HIGHER
    source: str = "stdout"
    regex: str = ""
    pointer: str = ""
    repeats: str = "median"


@dataclass(frozen=True)
class Limits:
    """Resource limits of one instance, the same object for every backend.

    Attributes:
        cpus: number of CPUs; whole ones pin, a fraction adds a quota to all arms.
        memory_bytes: None for no limit (a VM then gets its default RAM).
        swap_bytes: swap the instance may use; 0 switches it off.
        pids: most processes and threads.
        writable_bytes, writable_inodes: the tmpfs above the read-only root.
        shm_bytes: /dev/shm.
        scratch_bytes: a scratch disk of this size at /scratch, 0 for none.
    """

    cpus: float = 1.0
    memory_bytes: int | None = 512 << 20
    memory_basis: MemoryBasis = MemoryBasis.USABLE
    swap_bytes: int = 0
    pids: int = 1024
    writable_bytes: int = 256 << 20
    writable_inodes: int = 65536
    shm_bytes: int = 64 << 20
    scratch_bytes: int = 0


@dataclass(frozen=True)
class Workload:
    """Image + argv + environment + when it is ready + how its output becomes metrics.

    ``argv=None`` means the image's entrypoint and cmd. ``until`` is ``exit`` for a
    workload that ends by itself and ``ready`` for a server, which is held for
    ``hold_s`` seconds after it became ready (its idle memory is read at the end of
    that) and then stopped. ``work_units`` is the fixed amount of work done, for
    work per host CPU second; 0 when the workload is not about work. ``exchanges`` is how
    often the host, once a server is ready by reply, repeats that exchange to time it.
    ``together`` instances of it are launched at once in one trial.
    ``elastic``: it held more before it was ready, and what it still holds at the end of its
    hold is set against what it held at `started`.
    """

    name: str
    title: str
    image: str
    argv: tuple[str, ...] | None = None
    env: tuple[tuple[str, str], ...] = ()
    user: str | None = None
    workdir: str | None = None
    ready: Readiness = Readiness()
    until: str = "exit"
    hold_s: float = 0.0
    timeout_s: float = 60.0
    expect_status: int = 0
    limits: Limits = Limits()
    network: NetworkMode = NetworkMode.NONE
    security: Security = Security.CONTAINER_NATIVE
    metrics: tuple[MetricRule, ...] = ()
    work_units: float = 0.0
    work_unit_name: str = "work"
    exchanges: int = 0
    together: int = 1
    elastic: bool = False


@dataclass(frozen=True)
class Address:
    """One instance's place on the run's bridge."""

    bridge: str
    ip: str  # 10.x.y.z, without prefix
    prefix: int
    mac: str
    host_ip: str
    host_mac: str
    link: str  # host-side link name, at most 15 characters


@dataclass(frozen=True)
class InstanceSpec:
    """One workload with its limits, resolved: the same object goes to every backend.

    Attributes:
        id: unique in the run, e.g. ``r3f9a-0012``; names of cgroup, link, domain and
            runtime files derive from it.
        argv, env, ids, workdir: final values, image and workload merged.
        cpu_set: host CPUs the whole instance is pinned to.
        cpu_quota: CPUs' worth of quota, None when ``cpus`` is whole.
        address: None unless ``network`` is ``bridge``.
    """

    id: str
    image: Image
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    ids: Ids = Ids()
    workdir: str = "/"
    hostname: str = "hvct"
    limits: Limits = Limits()
    cpu_set: tuple[int, ...] = (0,)
    cpu_quota: float | None = None
    network: NetworkMode = NetworkMode.NONE
    address: Address | None = None
    output: OutputMode = OutputMode.SPOOL
    output_limit_bytes: int = 256 << 20
    stdin: bool = False
    tty: bool = False
    security: Security = Security.CONTAINER_NATIVE
    receipt: ReceiptLevel = ReceiptLevel.CHEAP
    listen_port: int = 0  # > 0: the agent reports LISTENING for it
    health: Healthcheck | None = None  # where readiness is by health check
    stop_signal: int = 15
    accounting: bool = True  # False: no cgroup (for measuring what accounting costs)
    extra_modules: tuple[str, ...] = ()

    @property
    def machine_id(self) -> str:
        """/etc/machine-id, its own for every instance and the same in every arm."""
        return sha256(self.id.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Execution:
    """How a second command ended that was run beside a workload.

    Attributes:
        code: its exit status, None where a signal ended it or it could not be started.
        said: what it printed, cut short, or why it could not be started.
        ended_ns: the host's CLOCK_MONOTONIC when that was known here.
    """

    code: int | None
    said: str
    ended_ns: int


@dataclass(frozen=True)
class Accelerator:
    """How a VM's instructions are executed, and how we know. ``none`` for other arms."""

    kind: str = "none"  # kvm, tcg, none
    reason: str = ""
    nested: bool = False

    @property
    def label(self) -> str:
        """``KVM``, ``KVM, nested``, ``TCG`` or "": what every VM figure carries."""
        if self.kind == "none":
            return ""
        return self.kind.upper() + (", nested" if self.nested else "")

    @property
    def emulated(self) -> bool:
        """True where figures describe an emulator, not virtualisation."""
        return self.kind == "tcg"


@dataclass(frozen=True)
class Capability:
    """What a backend's probe found: usable or not, why, and what to do about it."""

    backend: str
    usable: bool
    reason: str = ""
    remedy: str = ""
    version: str = ""
    accelerator: Accelerator = Accelerator()
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeStage:
    """One step on the way to knowing how guests are executed; `passed` is None when not tried."""

    name: str
    passed: bool | None
    said: str
    seconds: float


@dataclass
class Timeline:
    """Events of one launch in nanoseconds of the host's CLOCK_MONOTONIC.

    ``resolution_ns`` holds, per event, the error of its stamp where that is not
    negligible (a guest stamp mapped to the host clock, a polled condition).
    """

    marks_ns: dict[Event, int] = field(default_factory=dict)
    resolution_ns: dict[Event, int] = field(default_factory=dict)

    def mark(self, event: Event, stamp_ns: int, resolution_ns: int = 0) -> None:
        """Record an event; the first stamp of an event stands."""
        if event not in self.marks_ns:
            self.marks_ns[event] = stamp_ns
            if resolution_ns:
                self.resolution_ns[event] = resolution_ns

    def seconds(self) -> dict[str, float]:
        """All events in seconds since ``requested``, in time order."""
        if Event.REQUESTED not in self.marks_ns:
            return {}
        zero = self.marks_ns[Event.REQUESTED]
        ordered = sorted(self.marks_ns.items(), key=lambda item: item[1])
        return {event.value: round((stamp - zero) / 1e9, 9) for event, stamp in ordered}

    def between(self, first: Event, last: Event) -> float | None:
        """Seconds from one event to another, None when either is missing."""
        if first not in self.marks_ns or last not in self.marks_ns:
            return None
        return (self.marks_ns[last] - self.marks_ns[first]) / 1e9


@dataclass(frozen=True)
class CpuUsage:
    """CPU time of an instance's cgroup, from outside, in seconds."""

    total_s: float
    user_s: float
    system_s: float
    throttled_s: float = 0.0
    throttled_periods: int = 0


@dataclass(frozen=True)
class DiskUsage:
    """What has reached the backing file of an instance's scratch disk, from outside.

    Since the disk was attached; ``flushes`` are the requests to make what was written
    durable, of which an fsync needs one or more.
    """

    flushes: int
    written_bytes: int
    read_bytes: int


@dataclass(frozen=True)
class MemoryUsage:
    """Memory of an instance's cgroup by named definition, in bytes; None is unknown.

    ``anon`` private pages; ``shmem`` tmpfs and shared memory; ``file`` page cache
    charged to it (without shmem); ``kernel`` slab, stacks, page tables; ``current``
    all that is charged; ``peak`` its highest value.
    """

    current_bytes: int | None = None
    peak_bytes: int | None = None
    anon_bytes: int | None = None
    shmem_bytes: int | None = None
    file_bytes: int | None = None
    kernel_bytes: int | None = None


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of an instance's processes on the host (smaps_rollup), in bytes."""

    pss_bytes: int
    rss_bytes: int
    private_bytes: int
    pss_anon_bytes: int = 0
    pss_file_bytes: int = 0
    pss_shmem_bytes: int = 0


@dataclass(frozen=True)
class ExitStatus:
    """How the workload ended, as its parent saw it (wait4 inside the instance).

    Exactly one of ``code`` and ``signal`` is set. Times are the workload's own rusage
    in seconds; ``max_rss_bytes`` its largest resident set.
    """

    code: int | None
    signal: int | None
    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0

    def describe(self) -> str:
        """``exit status 3`` or ``signal 9``."""
        return f"exit status {self.code}" if self.signal is None else f"signal {self.signal}"


@dataclass(frozen=True)
class Sample:
    """One number with unit and provenance."""

    metric: str
    value: float
    unit: str


@dataclass(frozen=True)
class Finding:
    """A warning as data: code, what was seen, what it means, what to do."""

    code: str
    level: str  # "info", "warning", "problem"
    message: str
    meaning: str = ""
    remedy: str = ""


@dataclass
class Trial:
    """One instance of one arm, measured: one line of ``trials.jsonl``."""

    block: int
    position: int
    arm: str
    workload: str
    outcome: Outcome
    error: str | None = None
    timeline: dict[str, float] = field(default_factory=dict)
    resolution: dict[str, float] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    usage: dict[str, dict[str, float | int | None]] = field(default_factory=dict)
    receipt: dict[str, object] = field(default_factory=dict)
    disturbances: dict[str, float] = field(default_factory=dict)
    accelerator: Accelerator = Accelerator()
    logs: str | None = None
    wall_time: str = ""
    registration: str = ""  # beginning of the digest of what was settled beforehand
    attempt: int = 1  # of its block: a block cut short is rerun whole, with the next number
