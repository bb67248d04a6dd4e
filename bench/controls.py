"""Controls with a known answer, as data: what is injected, how, and what must be found.

Each control is a pair of workloads that differ in one effect (`bench.spikein` runs them);
the workloads also serve alone, since a sleep of 1.5 s, 64 MiB touched and one second of
CPU time must simply read so.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from bench.control_workloads import (
    MIB,
    ROUND_TRIP,
    answerer,
    burner,
    counter,
    echoer,
    holder,
    sleeper,
    syncer,
    toucher,
)
from bench.metrics import METRICS
from bench.model import Scale, Workload
from bench.numbers import RATIO_UNIT


@dataclass(frozen=True)
class Injection:
    """What is known beforehand about one metric: the effect lies in [low, high].

    A difference is in the metric's unit, a ratio is spiked / base. The range is what the
    injecting code itself leaves open (a sleep ends late by the kernel's timer slack).
    `sharp`: the control has blocks enough to tell the truth from "nothing" and from "twice".
    `step`: nothing smaller exists (of a counter), however narrow an interval is.
    """

    metric: str
    scale: Scale
    low: float
    high: float
    sharp: bool = True
    own_unit: str = ""  # of a metric that the workload itself prints
    step: float = 0.0

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


# Both sleep, so that what makes a sleep late (the timer's slack, waking up from an idle CPU) is
# in both, and neither line comes while the harness still deals with the news of the start: that
# would make the shorter one late. What is left is that an idle CPU sleeps deeper with time.
_PLUS_5_MS = (4.9e-3, 5.2e-3)
_BASE_S = 0.010
START = Control(
    "start",
    "+5 ms until ready",
    sleeper("start", _BASE_S),
    sleeper("start-spiked", _BASE_S + 0.005),
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
    sleeper("start-30-spiked", _BASE_S + 0.030),
    (Injection("startup_ready", Scale.DIFFERENCE, 29.9e-3, 30.2e-3),),
)

# 64 KiB: an allocator may keep a few pages more; counters are flushed 64 pages at a time.
_PLUS_16_MIB = (16.0 * MIB - 0x10000, 16.0 * MIB + 0x10000)
# Page tables, the pipes' own tables and what indexes a file's pages add to what is asked for.
_KERNEL = 0.5 * MIB
_ALL = (32.0 * MIB - 0x40000, 32.0 * MIB + _KERNEL + 0x40000)
# A file's pages can be dropped: to the host they are available memory still.
_MISSING = (28.0 * MIB - 0x40000, 28.0 * MIB + _KERNEL + 0x40000)
MEMORY = Control(
    "memory",
    "+16 MiB private, +8 MiB in /dev/shm, +4 MiB in pipes, +4 MiB in a file",
    holder("memory", 64 * MIB, 4 * MIB, 1 * MIB, 1 * MIB),
    holder("memory-spiked", 80 * MIB, 12 * MIB, 5 * MIB, 5 * MIB),
    (
        *(
            Injection(metric, Scale.DIFFERENCE, *_PLUS_16_MIB)
            # What is in /dev/shm is no process's own; what is in pipes is nobody's.
            for metric in ("memory_anon", "memory_rss", "memory_pss")
        ),
        Injection("memory_shmem", Scale.DIFFERENCE, 8.0 * MIB - 0x40000, 8.0 * MIB + 0x40000),
        Injection("memory_file", Scale.DIFFERENCE, 4.0 * MIB - 0x40000, 4.0 * MIB + 0x40000),
        Injection("memory_kernel", Scale.DIFFERENCE, 4.0 * MIB - 0x40000, 4.0 * MIB + _KERNEL),
        Injection("memory_current", Scale.DIFFERENCE, *_ALL),
        Injection("memory_peak", Scale.DIFFERENCE, *_ALL),
        # Whatever else the host does in the meantime is in it.
        Injection("memory_host_delta", Scale.DIFFERENCE, *_MISSING, sharp=False),
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

# The asking CPU has nothing to do for 0.2 ms, sleeps, and wakes up 10 to 25 µs late.
NETWORK = Control(
    "network",
    "+0.2 ms on each reply over the bridge",
    answerer("network", 0.0),
    answerer("network-spiked", 0.0002),
    (Injection("network_round_trip", Scale.DIFFERENCE, 0.198e-3, 0.230e-3),),
    blocks=8,
)

# The counter is exact, so a single one is seen; six pairs are the fewest with an interval.
DISK = Control(
    "disk",
    "+1 flush of the scratch disk",
    syncer("disk", 20),
    syncer("disk-spiked", 21),
    (Injection("disk_flushes", Scale.DIFFERENCE, 1.0, 1.0, step=1.0),),
    blocks=6,
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
        # The same work in a life of which booting is most.
        Injection("cpu_life", Scale.RATIO, 1.005, 1.10, sharp=False),
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
    injections=(
        *(
            Injection(metric, Scale.DIFFERENCE, 15.5 * MIB, 16.5 * MIB)
            for metric in ("memory_anon", "memory_current", "memory_rss", "memory_pss")
        ),
        # What booting touches and gives back to nobody is in it.
        Injection("memory_peak", Scale.DIFFERENCE, 15.5 * MIB, 16.5 * MIB, sharp=False),
    ),
    blocks=6,
)

# Round trips to an emulated VM spread over milliseconds.
VM_NETWORK = Control(
    "vm-network",
    "+10 ms on each reply of a VM over the bridge",
    dataclasses.replace(answerer("vm-network", 0.0), exchanges=100),
    dataclasses.replace(answerer("vm-network-spiked", 0.010), exchanges=100),
    (Injection("network_round_trip", Scale.DIFFERENCE, 9.9e-3, 12.0e-3),),
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
    (
        Injection("cpu_window", Scale.RATIO, 1.085, 1.101),
        # Booting takes some tens of ms more or less each time.
        Injection("cpu_life", Scale.DIFFERENCE, 0.078, 0.088, sharp=False),
    ),
)

# A guest's exits and wake-ups come on top of the 0.2 ms, and spread by some of it.
KVM_NETWORK = Control(
    "kvm-network",
    "+0.2 ms on each reply of a VM over the bridge",
    NETWORK.base,
    NETWORK.spiked,
    (Injection("network_round_trip", Scale.DIFFERENCE, 0.198e-3, 0.260e-3),),
)

NATIVE = (START, MEMORY, CPU, LATENCY, NETWORK, DISK)
EMULATED = (VM_START_CPU, VM_MEMORY, VM_NETWORK, DISK)
KVM = (KVM_START, VM_MEMORY, KVM_CPU, LATENCY, KVM_NETWORK, DISK)
