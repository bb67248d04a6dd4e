"""Controls with a known answer, as data: what is injected, how, and what must be found.

Each control is a pair of workloads that differ in one effect (`bench.spikein` runs them);
the workloads also serve alone, since a sleep of 1.5 s, 64 MiB touched and one second of
CPU time must simply read so.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from bench.metrics import METRICS
from bench.model import Better, MetricRule, Readiness, ReadyKind, Scale, Workload
from bench.numbers import RATIO_UNIT

MIB = 1 << 20
PYTHON = ("python3", "-I", "-S", "-c")
ROUND_TRIPS = 400
ROUND_TRIP = "round_trip"
_F_SETPIPE_SZ = 1031  # linux/fcntl.h; Python's fcntl module names it from 3.10 on, where built


@dataclass(frozen=True)
class Injection:
    """What is known beforehand about one metric: the effect lies in [low, high].

    A difference is in the metric's unit, a ratio is spiked / base. The range is what the
    injecting code itself leaves open (a sleep ends late by the kernel's timer slack).
    `sharp`: the control has blocks enough to tell the truth from "nothing" and from "twice".
    """

    metric: str
    scale: Scale
    low: float
    high: float
    sharp: bool = True
    own_unit: str = ""  # of a metric that the workload itself prints

    @property
    def unit(self) -> str:
        """Of the effect."""
        if self.scale is Scale.RATIO:
            return RATIO_UNIT
        return METRICS[self.metric].unit if self.metric in METRICS else self.own_unit

    @property
    def nothing(self) -> tuple[float, float]:
        """What would be true without an injection."""
        return (1.0, 1.0) if self.scale is Scale.RATIO else (0.0, 0.0)

    @property
    def twice(self) -> tuple[float, float]:
        """What would be true of two injections, one upon the other."""
        if self.scale is Scale.RATIO:
            return self.low**2, self.high**2
        return 2.0 * self.low, 2.0 * self.high


@dataclass(frozen=True)
class Control:
    """A pair of workloads that differ in what is injected, and the blocks it takes to see it."""

    name: str
    title: str
    base: Workload
    spiked: Workload
    injections: tuple[Injection, ...]
    blocks: int = 12

    @property
    def workloads(self) -> tuple[Workload, Workload]:
        """Both."""
        return self.base, self.spiked


# -- the workloads -------------------------------------------------------------------------


def sleeper(name: str, sleep_s: float) -> Workload:
    """Prints a line, which makes it ready, after sleeping; both variants run the same programs."""
    argv = ("sh", "-c", f"usleep {round(sleep_s * 1e6)}; echo up")
    title = f"ready after {sleep_s:g} s"
    return Workload(name, title, "busybox", argv, ready=Readiness(ReadyKind.OUTPUT))


def toucher(name: str, touched_bytes: int) -> Workload:
    """Touches so much private memory and stays."""
    code = (
        f"import signal; block = bytearray({touched_bytes}); "
        f"block[::4096] = b'x' * {touched_bytes // 4096}; "
        "print('touched', flush=True); signal.pause()"
    )
    return Workload(
        name,
        f"{touched_bytes >> 20} MiB touched",
        "default",
        (*PYTHON, code),
        ready=Readiness(ReadyKind.LINE, pattern="^touched$"),
        until="ready",
        hold_s=0.1,
    )


def holder(name: str, anon_bytes: int, shmem_bytes: int, pipe_bytes: int) -> Workload:
    """Holds so much of three kinds of memory at once: private, in /dev/shm, in pipes (kernel)."""
    code = (
        "import fcntl, os, signal; chunk = b'x' * 65536; "
        f"block = bytearray({anon_bytes}); "
        f"block[::4096] = b'x' * {anon_bytes // 4096}; "
        "file = open('/dev/shm/held', 'wb', 0); "
        f"[file.write(chunk) for _ in range({shmem_bytes // 65536})]; "
        f"pipes = [os.pipe() for _ in range({pipe_bytes >> 20})]; "
        f"[fcntl.fcntl(w, {_F_SETPIPE_SZ}, 1 << 20) for _, w in pipes]; "
        "[os.write(w, chunk) for _, w in pipes for _ in range(16)]; "
        "print('touched', flush=True); signal.pause()"
    )
    title = f"{anon_bytes >> 20} MiB private, {shmem_bytes >> 20} shared, {pipe_bytes >> 20} kernel"
    return dataclasses.replace(toucher(name, 0), title=title, argv=(*PYTHON, code))


def echoer(name: str, late_s: float) -> Workload:
    """Two processes exchange messages over loopback TCP; each reply comes so much late.

    The delay is spent looking at the clock: a sleep would be late by the timer's slack.
    """
    code = (
        "import os, socket, time; now = time.perf_counter\n"
        "listener = socket.create_server(('127.0.0.1', 0)); address = listener.getsockname()\n"
        "if os.fork() == 0:\n"
        " peer = listener.accept()[0]\n"
        " while peer.recv(1):\n"
        "  began = now()\n"
        f"  while now() - began < {late_s}: pass\n"
        "  peer.send(b'x')\n"
        " os._exit(0)\n"
        "own = socket.create_connection(address)\n"
        "own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); times = []\n"
        f"for _ in range({ROUND_TRIPS}):\n"
        " began = now(); own.send(b'x'); own.recv(1); times.append(now() - began)\n"
        f"print('round_trip', sorted(times)[{ROUND_TRIPS // 2}]); own.close(); os.wait()"
    )
    rule = MetricRule(
        ROUND_TRIP, "s", Scale.DIFFERENCE, Better.LOWER, regex=r"round_trip ([\d.e-]+)"
    )
    return Workload(
        name, f"replies {late_s * 1e3:g} ms late", "default", (*PYTHON[:1], "-c", code),
        metrics=(rule,),
    )  # fmt: skip


def burner(name: str, cpu_s: float) -> Workload:
    """Uses so much CPU time, by its own process clock, and ends.

    It sleeps first, so that on a single CPU the news of its start is out before the work.
    """
    code = f"import time\nwhile time.process_time() < {cpu_s}: pass"
    argv = ("sh", "-c", 'sleep 0.05; exec "$@"', "sh", *PYTHON, code)
    return Workload(name, f"{cpu_s:g} CPU seconds", "default", argv)


def counter(name: str, before_s: float, after_s: float, rounds: int) -> Workload:
    """Sleeps, prints a line, sleeps, and counts: fixed work, whatever the guest's clocks say."""
    argv = (
        *("sh", "-c"),
        f"usleep {round(before_s * 1e6)}; echo up; usleep {round(after_s * 1e6)}; "
        f"i=0; while [ $i -lt {rounds} ]; do i=$((i+1)); done",
    )
    ready = Readiness(ReadyKind.OUTPUT)
    return Workload(
        name, f"ready after {before_s:g} s, {rounds} rounds", "busybox", argv, ready=ready
    )


# -- the controls --------------------------------------------------------------------------

# A timer slack of 50 µs, and waking up from an idle CPU, make a sleep that much longer.
_PLUS_5_MS = (5.0e-3, 5.3e-3)
START = Control(
    "start",
    "+5 ms until ready",
    sleeper("start", 0.0),
    sleeper("start-spiked", 0.005),
    (
        Injection("startup_workload", Scale.DIFFERENCE, *_PLUS_5_MS),
        Injection("run_wall", Scale.DIFFERENCE, *_PLUS_5_MS),
        # Joining a v1 cgroup takes 6 to 25 ms from one launch to the next: 12 blocks cannot
        # tell 5 ms from nothing (40 can, on a quiet host).
        Injection("startup_ready", Scale.DIFFERENCE, *_PLUS_5_MS, sharp=False),
    ),
)
START_30 = Control(
    "start-30",
    "+30 ms until ready: more than joining a cgroup spreads",
    START.base,
    sleeper("start-30-spiked", 0.030),
    (Injection("startup_ready", Scale.DIFFERENCE, 30.0e-3, 30.3e-3),),
)

# 64 KiB: an allocator may keep a few pages more; counters are flushed 64 pages at a time.
_PLUS_16_MIB = (16.0 * MIB - 0x10000, 16.0 * MIB + 0x10000)
# Page tables, the pipes' own tables and what indexes a file's pages add to what is asked for.
_KERNEL = 0.375 * MIB
_ALL = (28.0 * MIB - 0x40000, 28.0 * MIB + _KERNEL + 0x40000)
MEMORY = Control(
    "memory",
    "+16 MiB private, +8 MiB in /dev/shm, +4 MiB in pipes",
    holder("memory", 64 * MIB, 4 * MIB, 1 * MIB),
    holder("memory-spiked", 80 * MIB, 12 * MIB, 5 * MIB),
    (
        *(
            Injection(metric, Scale.DIFFERENCE, *_PLUS_16_MIB)
            # What is in /dev/shm is no process's own; what is in pipes is nobody's.
            for metric in ("memory_anon", "memory_rss", "memory_pss")
        ),
        Injection("memory_shmem", Scale.DIFFERENCE, 8.0 * MIB - 0x40000, 8.0 * MIB + 0x40000),
        Injection("memory_kernel", Scale.DIFFERENCE, 4.0 * MIB - 0x40000, 4.0 * MIB + _KERNEL),
        Injection("memory_current", Scale.DIFFERENCE, *_ALL),
        Injection("memory_peak", Scale.DIFFERENCE, *_ALL),
        # Whatever else the host does in the meantime is in it.
        Injection("memory_host_delta", Scale.DIFFERENCE, *_ALL, sharp=False),
    ),
)

# What begins and ends the process, some ms in both variants, takes a little off the 10 %.
CPU = Control(
    "cpu",
    "+10 % of CPU time",
    burner("cpu", 0.40),
    burner("cpu-spiked", 0.44),
    (
        Injection("cpu_window", Scale.RATIO, 1.097, 1.101),
        # Over the whole life the same 40 ms: what starting and ending take cancels.
        Injection("cpu_life", Scale.DIFFERENCE, 0.0395, 0.0405),
    ),
)

LATENCY = Control(
    "latency",
    "+0.2 ms on each reply",
    echoer("latency", 0.0),
    echoer("latency-spiked", 0.0002),
    (Injection(ROUND_TRIP, Scale.DIFFERENCE, 0.198e-3, 0.215e-3, own_unit="s"),),
    blocks=10,
)

# Start-up of an emulated VM spreads over 100 ms and more: so much must be injected to be
# seen at all. Both variants sleep equally long in all. The CPU time of starting a shell
# and of idling under emulation, some 0.08 s of 0.65, takes its part off the 10 %.
VM_START_CPU = Control(
    "vm-start-cpu",
    "+500 ms until ready and +10 % of CPU time in a VM",
    counter("vm-start-cpu", 0.05, 1.0, 30_000),
    counter("vm-start-cpu-spiked", 0.55, 0.5, 33_000),
    (
        Injection("startup_workload", Scale.DIFFERENCE, 0.5, 0.51),
        Injection("startup_ready", Scale.DIFFERENCE, 0.5, 0.51, sharp=False),
        Injection("cpu_window", Scale.RATIO, 1.08, 1.10, sharp=False),
    ),
    blocks=8,
)

# The guest's kernel takes pages in batches and gives back none; where the host backs guest
# memory with huge pages its charge comes in steps of 2 MiB.
VM_MEMORY = Control(
    "vm-memory",
    "+16 MiB of private memory in a VM",
    toucher("memory", 64 * MIB),
    toucher("memory-spiked", 80 * MIB),
    injections=tuple(
        Injection(metric, Scale.DIFFERENCE, 15.5 * MIB, 16.5 * MIB)
        for metric in ("memory_anon", "memory_current")
    ),
    blocks=6,
)

# Under KVM a guest's clocks can be believed and its starts spread by milliseconds, so less
# is injected; QEMU's own work around the window takes a little off the 10 %.
KVM_START = Control(
    "kvm-start",
    "+100 ms until ready in a VM",
    sleeper("kvm-start", 0.020),
    sleeper("kvm-start-spiked", 0.120),
    (
        Injection("startup_workload", Scale.DIFFERENCE, 0.100, 0.102),
        Injection("startup_ready", Scale.DIFFERENCE, 0.100, 0.102, sharp=False),
    ),
)
KVM_CPU = Control(
    "kvm-cpu",
    "+10 % of CPU time in a VM",
    burner("kvm-cpu", 0.80),
    burner("kvm-cpu-spiked", 0.88),
    (Injection("cpu_window", Scale.RATIO, 1.085, 1.101),),
)

NATIVE = (START, MEMORY, CPU, LATENCY)
EMULATED = (VM_START_CPU, VM_MEMORY)
KVM = (KVM_START, VM_MEMORY, KVM_CPU)
