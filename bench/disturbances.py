"""What else went on on the host during a trial, as rates; and waiting until it is quiet.

Measured outside the instance's own group. A snapshot reads five kernel files (well below
a millisecond) and judges nothing: rules about what invalidates a block are the plan's.
CPU times of the kernel have a resolution of 10 ms, so rates over short windows are rough.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from bench import cgroupfs
from bench.cgroup import Cgroup
from bench.cgroupfs import read_text
from bench.errors import HvctError

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
UNMET = "settle_unmet_"
GAP_S = 0.25  # fixed pause after a trial, before anybody looks
WINDOW_S = 0.1  # over which quiet is judged
QUIET_TIMEOUT_S = 2.0
LIMITS: dict[str, tuple[float, bool]] = {  # up to this counts as quiet; True: per host CPU
    "other_cpus": (0.15, True),  # CPUs' worth of foreign work
    "steal_cpus": (0.05, True),  # the same for time the hypervisor took away
    "psi_io_full": (0.10, False),  # part of the time in which everything waited for a disk
    "psi_cpu": (0.25, False),  # part of the time in which some task waited for a CPU
    "psi_memory": (0.05, False),  # the same for memory that had to be reclaimed
    "procs_running": (1.0, True),  # run queue at this moment, who reads it among them
    "writeback_bytes": (8 << 20, False),  # on its way to a disk at this moment
    "dirty_bytes": (256 << 20, False),  # waiting for that: it may begin at any moment
}
SAID = {
    "other_cpus": "other programs use {} CPUs",
    "steal_cpus": "the machine below takes {} CPUs away",
    "psi_io_full": "everything waits for a disk {} of the time",
    "psi_cpu": "tasks wait for a CPU {} of the time",
    "psi_memory": "tasks wait for memory {} of the time",
    "procs_running": "{} tasks run",
    "writeback_bytes": "{} are on their way to a disk",
    "dirty_bytes": "{} wait to be written to a disk",
}
"""What is said of a condition that is not met."""
LOAD = ("other_cpus", "procs_running")  # of which some may be meant to be there


@dataclass(frozen=True)
class Snapshot:
    """Counters of one moment; only the difference of two means anything.

    Attributes:
        stamp_ns: CLOCK_MONOTONIC.
        cpu_s: seconds of all CPUs by kind (user, system, irq, softirq, steal, iowait …).
        charged_s: CPU seconds of the instances under test so far.
        harness_s: CPU seconds of this process and its ended children so far.
        stalled_s: seconds in which some task waited, by resource (PSI), ``_full`` for all.
        counts: context switches, forks, pages swapped, periods in which we were throttled.
        levels: what is true right now: running tasks, dirty and writeback bytes.
    """

    stamp_ns: int
    cpu_s: dict[str, float]
    charged_s: float
    harness_s: float
    stalled_s: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)

    @classmethod
    def take(
        cls,
        cgroup: Cgroup | None = None,
        charged_s: float = 0.0,
        helpers: Iterable[int] = (),
    ) -> Snapshot:
        """Read the counters.

        Args:
            cgroup: the instance under test; its CPU time does not count as foreign.
            charged_s: more such CPU time, of instances whose group is gone already.
            helpers: process ids of launcher and worker; their time is the harness's.
        """
        stamp = time.monotonic_ns()
        cpu_s, counts, levels = _stat(read_text("/proc/stat"))
        for line in read_text("/proc/vmstat").splitlines():
            key, _, value = line.partition(" ")
            if key in ("pswpin", "pswpout"):
                counts[key] = int(value)
            elif key in ("nr_dirty", "nr_writeback"):
                levels[f"{key[3:]}_bytes"] = float(int(value) * PAGE_BYTES)
        ended = os.times()
        return cls(
            stamp_ns=stamp,
            cpu_s=cpu_s,
            charged_s=charged_s + (cgroup.cpu().total_s if cgroup else 0.0),
            harness_s=time.process_time()
            + ended.children_user
            + ended.children_system
            + sum(run_time_s(pid) for pid in helpers),
            stalled_s=_pressure(),
            counts={**counts, **_throttled()},
            levels=levels,
        )


def run_time_s(pid: int) -> float:
    """CPU seconds of a process, all threads, those that ended too (libvirt works in threads)."""
    clock = ~pid << 3 | 2  # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of linux/posix-timers.h
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0


@cache
def _throttle_files() -> dict[str, Path]:
    """Where it is counted that the harness's own group, or a hot CPU, was slowed down."""
    files = {}
    try:
        layout = cgroupfs.layout()
        for line in read_text("/proc/self/cgroup").splitlines():
            _, names, path = line.split(":", 2)
            if "cpu" in names.split(",") or (layout.version == 2 and not names):
                files["throttled_periods"] = layout.controllers["cpu"] / path[1:] / "cpu.stat"
    except (HvctError, KeyError):
        pass
    files["thermal_throttles"] = Path(
        "/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    )
    return {name: path for name, path in files.items() if path.exists()}


def _throttled() -> dict[str, int]:
    counts = {}
    for name, path in _throttle_files().items():
        if name == "thermal_throttles":
            counts[name] = cgroupfs.read_number(path) or 0
        else:
            counts[name] = cgroupfs.read_pairs(path).get("nr_throttled", 0)
    return counts


KINDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def _stat(text: str) -> tuple[dict[str, float], dict[str, int], dict[str, float]]:
    cpu_s: dict[str, float] = {}
    counts, levels = {}, {}
    for line in text.splitlines():
        key, _, rest = line.partition(" ")
        if key == "cpu":
            ticks = [int(word) * TICK_S for word in rest.split()]
            cpu_s = dict(zip(KINDS, ticks, strict=False))
        elif key == "ctxt":
            counts["context_switches"] = int(rest)
        elif key == "processes":
            counts["forks"] = int(rest)
        elif key in ("procs_running", "procs_blocked"):
            levels[key] = float(rest)
    return cpu_s, counts, levels


def _pressure() -> dict[str, float]:
    stalled = {}
    for resource in ("cpu", "memory", "io"):
        try:
            lines = read_text(f"/proc/pressure/{resource}").splitlines()
        except HvctError:
            continue  # a kernel without PSI, or with psi=0
        for line in lines:
            kind, _, rest = line.partition(" ")
            name = resource if kind == "some" else f"{resource}_full"
            stalled[name] = int(rest.rpartition("total=")[2]) / 1e6
    return stalled


def between(a: Snapshot, b: Snapshot) -> dict[str, float]:
    """What went on between two snapshots.

    ``*_cpus`` are CPUs' worth of time (1.5 = one and a half CPUs busy all the time),
    ``psi_*`` parts of the time from 0 to 1, ``*_per_s`` rates, the rest levels at the
    end. ``other_cpus`` is all work but that of the instances and of the harness; work in
    interrupts that an instance caused is in it.
    """
    window_s = max(1e-9, (b.stamp_ns - a.stamp_ns) / 1e9)
    spent = {kind: (b.cpu_s[kind] - a.cpu_s.get(kind, 0.0)) / window_s for kind in b.cpu_s}
    busy = sum(spent.get(k, 0.0) for k in ("user", "nice", "system", "irq", "softirq"))
    charged = (b.charged_s - a.charged_s) / window_s
    harness = (b.harness_s - a.harness_s) / window_s
    found = {
        "window_s": window_s,
        "busy_cpus": busy,
        "instance_cpus": charged,
        "harness_cpus": harness,
        "other_cpus": max(0.0, busy - charged - harness),
        "interrupt_cpus": spent.get("irq", 0.0) + spent.get("softirq", 0.0),
        "iowait_cpus": max(0.0, spent.get("iowait", 0.0)),  # the kernel lets it run backwards
        "steal_cpus": spent.get("steal", 0.0),
    }
    for name in b.stalled_s.keys() & a.stalled_s.keys():
        found[f"psi_{name}"] = (b.stalled_s[name] - a.stalled_s[name]) / window_s
    for name in b.counts.keys() & a.counts.keys():
        found[f"{name}_per_s"] = (b.counts[name] - a.counts[name]) / window_s
    return {**dict(sorted(found.items())), **b.levels}


def wait_quiet(
    deadline_ns: int | None = None, *, gap_s: float = GAP_S, expected_cpus: float = 0.0
) -> dict[str, float]:
    """Settle between trials: a fixed gap, then until the host is quiet, at most to the deadline.

    Args:
        deadline_ns: CLOCK_MONOTONIC; 2 s after the gap by default. The gap and one
            window are always waited for.
        expected_cpus: load that is meant to be there (loud neighbours under test).

    Returns:
        ``settle_s`` (how long it took), ``settle_flagged`` (1.0 when the host was still
        not quiet, so that the trial is to be marked), ``settle_unmet_<name>`` (1.0 for each
        condition that was not met then), and what the last window showed.
    """
    start_ns = time.monotonic_ns()
    if deadline_ns is None:
        deadline_ns = start_ns + round((gap_s + QUIET_TIMEOUT_S) * 1e9)
    time.sleep(gap_s)
    before = Snapshot.take()
    while True:
        time.sleep(WINDOW_S)
        after = Snapshot.take()
        seen = between(before, after)
        restless = unmet(seen, expected_cpus)
        if not restless or time.monotonic_ns() + WINDOW_S * 1e9 > deadline_ns:
            return {
                "settle_s": (time.monotonic_ns() - start_ns) / 1e9,
                "settle_flagged": float(bool(restless)),
                **{f"{UNMET}{name}": float(name in restless) for name in LIMITS if name in seen},
                **{f"settle_{name}": seen[name] for name in LIMITS if name in seen},
            }
        before = after


def unmet(seen: dict[str, float], expected_cpus: float = 0.0) -> dict[str, float]:
    """The conditions of quiet that a window does not meet, with what each allows."""
    count = os.cpu_count() or 1
    found = {}
    for name, (limit, per_cpu) in LIMITS.items():
        allowed = limit * (count if per_cpu else 1)
        allowed += expected_cpus if name in LOAD else 0.0
        if seen.get(name, 0.0) > allowed:
            found[name] = allowed
    return found


def unrest(seen: dict[str, float], expected_cpus: float = 0.0) -> list[str]:
    """Why a window does not count as quiet; empty when it does."""
    return [
        f"{SAID[name].format(_amount(name, seen[name]))} (quiet: up to {_amount(name, allowed)})"
        for name, allowed in unmet(seen, expected_cpus).items()
    ]


def _amount(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / (1 << 20):.0f} MiB"
    return f"{value:.0%}" if name.startswith("psi") else f"{value:.2g}"
