"""The metrics of one trial: what each is called, its unit, scale, margin and definition.

A margin is the smallest difference worth acting on: relative for ratios, in the
metric's unit for differences. Margins come from the plan and are never moved by data.
"""

# ruff: noqa: E501 - these tables read best with one row a line

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.model import Better, Event, Sample, Scale, Timeline, Workload

MIB = float(1 << 20)
MEMORY_RESOLUTION = 64 * 4096.0
"""A CPU takes 64 pages from a cgroup's account at a time (MEMCG_CHARGE_BATCH, mm/memcontrol.c)."""


@dataclass(frozen=True)
class Metric:
    """What a number means. `resolution` is the smallest difference it can show, in `unit`."""

    name: str
    title: str
    unit: str
    scale: Scale
    better: Better
    margin: float
    family: str
    definition: str
    resolution: float = 0.0


def _time(name: str, title: str, definition: str, margin: float = 0.10) -> Metric:
    return Metric(name, title, "s", Scale.RATIO, Better.LOWER, margin, "start-up", definition, 1e-6)


def _memory(name: str, title: str, definition: str, margin_mib: float = 2.0) -> Metric:
    return Metric(
        name,
        title,
        "bytes",
        Scale.DIFFERENCE,
        Better.LOWER,
        margin_mib * MIB,
        "memory",
        definition,
        MEMORY_RESOLUTION,
    )


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _time("startup_accepted", "request to accepted", "requested → accepted: our launcher or worker has taken the request"),
        _time("startup_spawned", "request to process", "requested → spawned: the container process or the VMM exists (a VMM: it has opened its channel)"),
        _time("startup_kernel", "request to guest kernel", "requested → kernel: boot time 0 of the guest kernel, mapped to the host clock (VM only)"),
        _time("startup_init", "request to init", "requested → init: the agent runs as PID 1"),
        _time("startup_started", "request to started", "requested → started: the workload's execve"),
        _time("startup_ready", "start-up to ready", "requested → ready: the first useful reply, as the workload defines it"),
        _time("startup_workload", "workload's own start", "started → ready: from its execve to its first useful reply, without what launching the instance took"),
        _time("run_wall", "run time", "started → exited, for workloads that end by themselves"),
        _time("together_started", "all started", "first requested → last started, of the instances launched at once"),
        _time("together_each", "each one started", "requested → started, each from its own request: the median of the instances launched at once"),
        _time("together_ready", "all ready", "first requested → last ready, of the instances launched at once"),
        Metric("together_rate", "launches per second", "1/s", Scale.RATIO, Better.HIGHER, 0.10, "start-up",
               "instances launched at once ÷ together_started", 0.0),
        Metric("launches_queued", "launches waiting for our helper", "1", Scale.DIFFERENCE, Better.LOWER, 0.05, "start-up",
               "part of the time from each request to its start that it waited to be taken: requested → accepted ÷ requested → started, sums over the instances launched at once", 1e-3),
        Metric("worker_busy", "our helper while launching", "CPU", Scale.DIFFERENCE, Better.LOWER, 0.05, "cpu",
               "CPU time of the busiest of the arm's helper processes per second, from the first request until the last start was noticed", 1e-3),
        Metric("harness_busy", "the harness while launching", "CPU", Scale.DIFFERENCE, Better.LOWER, 0.05, "cpu",
               "the harness's own CPU time per second, from the first request until the last start was noticed", 1e-3),
        Metric("instances_busy", "the instances while launching", "CPU", Scale.DIFFERENCE, Better.LOWER, 0.05, "cpu",
               "CPU time of the instances' cgroups per second, from the first request until the last start was noticed", 1e-3),
        Metric("agent_overhead", "agent's own cost", "s", Scale.DIFFERENCE, Better.LOWER, 0.005, "start-up",
               "init → started: mounting what is left to mount, reading limits, fork; the same program in every arm", 1e-6),
        Metric("teardown", "teardown", "s", Scale.DIFFERENCE, Better.LOWER, 0.010, "start-up",
               "release_requested → released: what is left is killed and reaped, mounts gone, cgroup removed (a VM: QEMU killed and reaped); the workload itself has ended before", 1e-6),
        Metric("network_teardown", "network teardown", "s", Scale.DIFFERENCE, Better.LOWER, 0.020, "start-up",
               "released → network_released: the kernel has dropped link and namespace (asynchronous)", 1e-3),
        _memory("memory_current", "memory charged", "cgroup: everything charged to the instance (anon + file + shmem + kernel)"),
        _memory("memory_anon", "anonymous memory", "cgroup: private pages"),
        _memory("memory_shmem", "shared memory and tmpfs", "cgroup: tmpfs and shared-memory pages"),
        _memory("memory_file", "page cache newly charged", "cgroup: file pages first touched by this instance, without shmem"),
        _memory("memory_kernel", "kernel memory", "cgroup: slab, stacks, page tables"),
        _memory("memory_peak", "peak memory", "cgroup: highest charge over the whole life"),
        _memory("memory_pss", "memory, proportional (PSS)", "sum over the instance's host processes of the proportional set size, shared pages divided among their users"),
        _memory("memory_rss", "memory, resident (RSS)", "sum over the instance's host processes of the resident set size, shared pages counted in each"),
        _memory("memory_host_delta", "memory missing on the host", "fall of the host's MemAvailable (with what the CPUs keep free to themselves) from just before the launch; includes whatever else the host did", 8.0),
        _memory("memory_kept", "memory kept after a peak", "cgroup: charged at the end of the hold (10 s in the workload elastic) after a peak was freed, above what was charged at started, before it; of a container little but the program itself"),
        Metric("cpu_window", "host CPU for the work", "s", Scale.RATIO, Better.LOWER, 0.05, "cpu",
               "host CPU time of the instance's cgroup between started and the workload's exit", 1e-3),
        Metric("cpu_life", "host CPU for the whole life", "s", Scale.RATIO, Better.LOWER, 0.10, "cpu",
               "host CPU time of the instance's cgroup from launch to end, boot included", 1e-3),
        Metric("cpu_idle", "host CPU when idle", "CPU", Scale.DIFFERENCE, Better.LOWER, 0.01, "cpu",
               "host CPU time of the instance's cgroup per second of the hold after ready", 1e-3),
        Metric("disk_flushes", "flushes of the scratch disk", "flushes", Scale.DIFFERENCE, Better.LOWER, 1.0, "disk",
               "requests to make written data durable that reached the backing file, from attaching the disk to the workload's end"),
        Metric("disk_written", "written to the scratch disk", "bytes", Scale.DIFFERENCE, Better.LOWER, 65536.0, "disk",
               "bytes written to the backing file, metadata and journal with them, from attaching the disk to the workload's end", 4096.0),
        Metric("network_round_trip", "round trip over the network", "s", Scale.RATIO, Better.LOWER, 0.10, "network",
               "median of the exchanges of a request and its reply between host and server once it is ready, over one connection and the instance's own link", 1e-6),
        Metric("work_per_cpu_second", "work per host CPU second", "work/s", Scale.RATIO, Better.HIGHER, 0.05, "cpu",
               "fixed work of the workload ÷ cpu_window", 0.0),
    )
}  # fmt: skip

_INTERVALS = (
    ("startup_accepted", Event.REQUESTED, Event.ACCEPTED),
    ("startup_spawned", Event.REQUESTED, Event.SPAWNED),
    ("startup_kernel", Event.REQUESTED, Event.KERNEL),
    ("startup_init", Event.REQUESTED, Event.INIT),
    ("startup_started", Event.REQUESTED, Event.STARTED),
    ("startup_ready", Event.REQUESTED, Event.READY),
    ("startup_workload", Event.STARTED, Event.READY),
    ("agent_overhead", Event.INIT, Event.STARTED),
    ("network_teardown", Event.RELEASED, Event.NETWORK_RELEASED),
    ("teardown", Event.RELEASE_REQUESTED, Event.RELEASED),
)


def from_timeline(timeline: Timeline, workload: Workload) -> Iterator[Sample]:
    """Every interval of the timeline that both its ends were stamped for."""
    for name, first, last in _INTERVALS:
        value = timeline.between(first, last)
        if value is not None:
            yield Sample(name, value, "s")
    if workload.until == "exit":
        value = timeline.between(Event.STARTED, Event.EXITED)
        if value is not None:
            yield Sample("run_wall", value, "s")


def table(workloads: tuple[Workload, ...]) -> dict[str, Metric]:
    """All metrics a run of these workloads can show: ours, and those the plan defines."""
    metrics = dict(METRICS)
    for workload in workloads:
        for rule in workload.metrics:
            metrics[rule.name] = Metric(
                rule.name, rule.name.replace("_", " "), rule.unit, rule.scale, rule.better,
                0.05, "workload", f"read from the {rule.source} of {workload.name}"
                + (", the median of its repeats" if rule.repeats == "median" else ""),
            )  # fmt: skip
    return metrics
