"""The plan: the validated description of an experiment before it runs.

All validation happens here, before anything on the host is touched. A plan comes from
the built-in quick suite, or from a file through `bench.plan_file`.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bench import arms as arms_module
from bench.errors import BadInput
from bench.exchanges import MOST_EXCHANGES
from bench.findings import DISTURBED_LIMITS
from bench.metrics import METRICS, table
from bench.model import (
    Gap,
    MemoryBasis,
    MetricRule,
    NetworkMode,
    PageCache,
    ReadyKind,
    Security,
    Workload,
)
from bench.readiness import OUTPUT_KINDS
from bench.schedule import AGAINST_ITSELF
from bench.stats.planning import ALPHA, MOST_PRIMARY, QUICK_BLOCKS

FAIRNESS = {
    "cpu": "the whole instance, VMM threads included, is pinned to the same host CPUs in every "
    "arm; harness, launcher, libvirt and probes run elsewhere where the host has CPUs to spare",
    "memory": "basis 'usable' (the guest gets its measured reserve on top), no swap",
    "page_cache": "warm on the host before each trial, checked by residency: a VM's image file, "
    "kernel and QEMU; the others' program, loader and libraries. A guest's own cache starts empty",
    "network": "layer 2 bridge, no address translation, permanent neighbour entries; a bare "
    "process has the host's own network",
    "writable_layer": "tmpfs of the same size and number of inodes in every arm",
    "security": "container-native: the container's confinement is a declared difference",
    "output": "kept inside in memory, shipped after the work's counters were read; streamed only "
    "where a line of it means ready",
    "readiness": "from started, from the host, by one rule in every arm: a fresh connection every "
    "1 ms, later every 0.5 % of the time since the request, at most every 20 ms; a health check "
    "is run inside by the agent at its interval, at most 1 s, and its CPU time is the instance's",
    "join": "the cgroup is made and joined at launch in every arm; launcher, libvirt's worker, "
    "mounted image and unpacked guest kernel are there before",
    "order": "Williams-balanced positions and predecessors in random complete blocks",
    "gap": "250 ms after network_released, then until the host is quiet, at most 2 s",
    "kernel": "the guest runs its own kernel with a command line for a short boot (shown with the "
    "receipts), mitigations at their defaults on both sides",
}
"""The rules of DESIGN's "fair by rule" by default; changing one makes another arm."""

COLD_RULE = (
    "cold: before each trial the arm's mount of the image is made anew and the image's file is "
    "dropped from the host's memory (posix_fadvise), checked by residency (mincore); where pages "
    "stay the trial is refused. Kernel, QEMU and what else is the host's own stay warm"
)
"""In place of the rule for the page cache, where the plan says ``page_cache = "cold"``."""

NO_GAP_RULE = (
    "none: a trial begins when the one before is gone, on a host that may not have settled, and "
    "next to what that one left to the kernel"
)
"""In place of the rule for the gap, where the plan says ``gap = "none"``."""

SCRATCH_RULE = (
    "the same fully written file with ext4 and sectors of 4096 bytes in every arm, made afresh for "
    "each trial, past the host's page cache: a loop device with direct I/O, or virtio-blk with "
    "cache=none; the flushes that reach it are counted"
)
"""Where a workload has a scratch disk."""

INVALIDATION: dict[str, float] = dict(DISTURBED_LIMITS)
"""What takes a block out, fixed before the first trial: the host swapped, was throttled or robbed.

Readings of the host alone (`bench.disturbances`), never of the measured values: a rule that
looked at results would be the deleting of outliers.
"""

MOST_TOGETHER = 200
"""Instances launched at once: the run's subnet has 253 addresses, the harness 1024 descriptors."""

MOST_BLOCKS = 100_000
"""A night of the shortest trials has fewer; whoever asks for more slipped on the keyboard."""

LEAST_CPUS = 0.01
"""The kernel takes no smaller quota: 1 ms of every 100 ms."""


@dataclass(frozen=True)
class Plan:
    """What is varied, how often, and what will be judged. Frozen once the run begins.

    Attributes:
        primary: (metric, workload) pairs whose verdicts share one error rate (Holm).
        margins: overrides of a metric's margin, by metric name.
        blocks: number of complete blocks; fixed, more blocks means a new run.
        invalidation: readings above which a workload's block does not count (`INVALIDATION`).
        page_cache: what the host has of the image in memory before each trial.
        gap: what is waited for between two trials.
    """

    name: str
    arms: tuple[str, ...]
    workloads: tuple[Workload, ...]
    blocks: int
    seed: int
    primary: tuple[tuple[str, str], ...]
    margins: dict[str, float]
    alpha: float = ALPHA
    judge_emulated: bool = False
    experiment: str = "startup, work"
    invalidation: dict[str, float] = field(default_factory=lambda: dict(INVALIDATION))
    page_cache: PageCache = PageCache.WARM
    gap: Gap = Gap.QUIET

    def workload(self, name: str) -> Workload:
        """The workload of this name."""
        return next(workload for workload in self.workloads if workload.name == name)

    def fairness(self) -> dict[str, str]:
        """The rules in force: the defaults, and what this plan has instead."""
        rules = dict(FAIRNESS)
        if self.page_cache is PageCache.COLD:
            rules["page_cache"] = COLD_RULE
        if self.gap is Gap.NONE:
            rules["gap"] = NO_GAP_RULE
        nominal = _named(w for w in self.workloads if w.limits.memory_basis is MemoryBasis.NOMINAL)
        same = _named(w for w in self.workloads if w.security is Security.SAME)
        if nominal:
            rules["memory"] += f"; for {nominal} 'nominal': guest RAM is the limit itself"
        if same:
            rules["security"] += f"; for {same} 'same': one confinement, by the agent, in every arm"
        if any(workload.limits.scratch_bytes for workload in self.workloads):
            rules["scratch_disk"] = SCRATCH_RULE
        if many := _named(w for w in self.workloads if w.together > 1):
            rules["cpu"] += f"; those launched at once ({many}) are all pinned to the CPUs of one"
        for arm, rule, text in arms_module.OWN_RULES:
            if arm in self.arms:
                rules[rule] += f"; {arm} {text}"
        return rules


def _named(workloads: Iterable[Workload]) -> str:
    return ", ".join(workload.name for workload in workloads)


def quick(
    workloads: Sequence[Workload],
    *,
    arms: Sequence[str] = arms_module.DEFAULT_ARMS,
    blocks: int = QUICK_BLOCKS,
    seed: int | None = None,
    name: str = "quick",
) -> Plan:
    """The plan of ``hvct compare`` without a file."""
    return check(
        Plan(
            name=name,
            arms=tuple(arms),
            workloads=tuple(workloads),
            blocks=blocks,
            seed=new_seed() if seed is None else seed,
            primary=default_primary(workloads),
            margins={},
        )
    )


def new_seed() -> int:
    """A seed that a person can read out."""
    return random.SystemRandom().randrange(1000, 10000)


def default_primary(workloads: Sequence[Workload]) -> tuple[tuple[str, str], ...]:
    """The metrics judged together when the plan names none: the most telling of each workload."""
    chosen: list[tuple[str, str]] = []
    for workload in workloads:
        if workload.together > 1:
            chosen.append(("together_started", workload.name))
        elif workload.until == "ready":
            health = workload.ready.kind is ReadyKind.HEALTH
            if health or workload.network is not NetworkMode.NONE:
                chosen.append(("startup_ready", workload.name))
            chosen.append(("memory_current", workload.name))
        elif workload.work_units:
            chosen.append(("work_per_cpu_second", workload.name))
        else:
            chosen += [("startup_started", workload.name), ("teardown", workload.name)]
        chosen += [(rule.name, workload.name) for rule in workload.metrics]
    return tuple(chosen[:MOST_PRIMARY])


def check(plan: Plan) -> Plan:
    """Everything about a plan that its types cannot say.

    Raises:
        BadInput: with the place and what is allowed there.
    """
    arms_module.resolve(plan.arms)
    if len(plan.arms) < 2 and plan.experiment != AGAINST_ITSELF:
        raise BadInput("a comparison needs at least two arms", "for one instance use: hvct run")
    if not 0 < plan.blocks <= MOST_BLOCKS:
        raise BadInput(f"{plan.blocks} is no number of blocks", f"it is 1 to {MOST_BLOCKS}")
    if plan.page_cache is PageCache.COLD:
        for arm in plan.arms:
            if arm in arms_module.NEVER_COLD:
                raise BadInput(
                    f"{arm} cannot start from a cold page cache: {arms_module.NEVER_COLD[arm]}",
                    'leave it out, or use page_cache = "warm"',
                )
        if plan.experiment != Plan.experiment:
            raise BadInput(
                f"a plan of {plan.experiment} is about instances on a warm host",
                'use page_cache = "warm"',
            )
    if plan.seed < 0:  # Python's generator takes it for its positive twin
        raise BadInput(f"{plan.seed} is no seed", "it is 0 or more")
    names = [workload.name for workload in plan.workloads]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"workload {name!r} is there twice", "give each workload its own name")
    for workload in plan.workloads:
        check_workload(workload)
    _check_metrics(plan.workloads)
    for reading in plan.invalidation:
        if reading not in INVALIDATION:
            raise BadInput(
                f"no block can be invalidated by {reading!r}",
                f"choose from {', '.join(INVALIDATION)}",
            )
    known = table(plan.workloads)
    for metric in (*plan.margins, *(metric for metric, _ in plan.primary)):
        if metric not in known:
            raise BadInput(f"there is no metric {metric!r}", f"choose from {', '.join(known)}")
    for metric, name in plan.primary:
        if plan.primary.count((metric, name)) > 1:
            raise BadInput(
                f"the primary family names {metric} of {name!r} twice", "name each metric once"
            )
        if name not in names:
            raise BadInput(
                f"the primary family names an unknown workload {name!r}",
                f"this plan has {', '.join(names)}",
            )
    return plan


def _check_metrics(workloads: Sequence[Workload]) -> None:
    """A metric's name means one thing in a run."""
    seen: dict[str, MetricRule] = {}
    for workload in workloads:
        own = [rule.name for rule in workload.metrics]
        for rule in workload.metrics:
            where = f"workload {workload.name!r}: metric {rule.name}"
            first = seen.setdefault(rule.name, rule)
            if rule.name in METRICS or own.count(rule.name) > 1:
                raise BadInput(f"{where} is there already", "give it a name of its own")
            if (rule.unit, rule.scale, rule.better) != (first.unit, first.scale, first.better):
                raise BadInput(
                    f"{where} has another unit, scale or direction than elsewhere in the plan",
                    "give it a name of its own",
                )


def check_workload(workload: Workload) -> None:
    """What the types of a workload cannot say.

    Raises:
        BadInput: with the place and what is allowed there.
    """
    where = f"workload {workload.name!r}"
    if workload.together != 1:
        _check_together(workload, where)
    if not math.isfinite(workload.limits.cpus) or workload.limits.cpus < LEAST_CPUS:
        raise BadInput(
            f"{where}: {workload.limits.cpus:g} is no number of CPUs",
            f"it is at least {LEAST_CPUS:g}",
        )
    if workload.workdir is not None and not workload.workdir.startswith("/"):
        raise BadInput(f"{where}: its workdir {workload.workdir!r} is relative", "begin it with /")
    if workload.argv is not None and not (workload.argv and workload.argv[0]):
        raise BadInput(f"{where}: its argv names no program", 'e.g. argv = ["sh", "-c", "true"]')
    ready = workload.ready
    if workload.until == "ready" and ready.kind is ReadyKind.STARTED:
        raise BadInput(
            f"{where} runs until ready but says not when that is", "give it a [workload.ready]"
        )
    if ready.kind in (ReadyKind.TCP, ReadyKind.REPLY, ReadyKind.HTTP):
        if not ready.port:
            raise BadInput(f"{where}: readiness by {ready.kind} needs a port", "set ready.port")
        if workload.network is NetworkMode.NONE:
            raise BadInput(
                f"{where}: nothing can be reached without a network", 'set network = "bridge"'
            )
    if ready.kind is ReadyKind.HEALTH:
        if ready.command and not ready.command[0]:
            raise BadInput(f"{where}: ready.command names no program", 'e.g. ["pg_isready"]')
        if not (0 <= ready.interval_s < 3600 and 0 <= ready.timeout_s < 3600):
            raise BadInput(f"{where}: a health check's times are 0 to 3600 s", "change them")
    if ready.kind is ReadyKind.REPLY and not ready.expect:
        raise BadInput(f"{where}: readiness by reply needs what to expect", "set ready.expect")
    if not 0 <= workload.exchanges <= MOST_EXCHANGES:
        raise BadInput(f"{where}: exchanges are 0 to {MOST_EXCHANGES:,}", "change their number")
    if workload.exchanges and (ready.kind is not ReadyKind.REPLY or not ready.send):
        raise BadInput(
            f"{where}: exchanges repeat what a server is ready by",
            "give it readiness by reply, with send and expect",
        )
    if ready.kind is ReadyKind.HTTP and not re.fullmatch(r"/[!-~]*", ready.path):
        raise BadInput(f"{where}: {ready.path!r} is no HTTP path", "write it as /health")
    patterns = [("ready.pattern", ready.pattern)] if ready.kind is ReadyKind.LINE else []
    for rule in workload.metrics:
        if bool(rule.regex) == bool(rule.pointer):
            raise BadInput(
                f"{where}: metric {rule.name} needs a regex or a pointer",
                "give exactly one of them",
            )
        if rule.pointer and not rule.pointer.startswith("/"):
            raise BadInput(
                f"{where}: metric {rule.name}: {rule.pointer!r} is no JSON pointer",
                "it begins with /",
            )
        if rule.regex:
            patterns.append((f"metric {rule.name}", rule.regex))
    for place, pattern in patterns:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise BadInput(
                f"{where}: {place}: {pattern!r} is no regular expression: {error}",
                "see Python's re",
            ) from error
        if place.startswith("metric") and groups != 1:
            raise BadInput(
                f"{where}: {place}: the regex needs exactly one group, the number",
                r"e.g. rate: ([\d.]+)",
            )
    if workload.ready.kind is ReadyKind.LINE and not workload.ready.pattern:
        raise BadInput(f"{where}: readiness by line needs a pattern", "set ready.pattern")
    for key, value in (
        *workload.env,
        *(("argv", word) for word in (*(workload.argv or ()), *ready.command)),
    ):
        if "\0" in key or "\0" in value or ("=" in key):
            raise BadInput(f"{where}: {key!r} holds a NUL byte or '='", "remove it")


def _check_together(workload: Workload, where: str) -> None:
    """What is measured of one instance is not measured of many."""
    if not 1 <= workload.together <= MOST_TOGETHER:
        raise BadInput(
            f"{where}: {workload.together} instances at once", f"it is 1 to {MOST_TOGETHER}"
        )
    at_once = f"{where}: {workload.together} at once"
    if workload.ready.kind not in (ReadyKind.STARTED, *OUTPUT_KINDS):
        raise BadInput(
            f"{at_once} cannot be ready by {workload.ready.kind}: probing them would disturb them",
            "use started, output or line, e.g. hvct compare hello --together 8",
        )
    if workload.hold_s or workload.work_units or workload.metrics:
        raise BadInput(
            f"{at_once} are launched, and neither held nor is their work measured",
            "leave out hold_s, work_units and metrics, e.g. hvct compare hello --together 8",
        )


def check_against_host(plan: Plan, *, cpus: int, memory_bytes: int) -> None:
    """What only this host decides.

    Raises:
        BadInput: a workload wants more than the host has.
    """
    for workload in plan.workloads:
        if workload.limits.cpus > cpus:
            raise BadInput(
                f"workload {workload.name!r} wants {workload.limits.cpus:g} CPUs,"
                f" this host has {cpus}",
                f"set limits.cpus to at most {cpus}",
            )
        if workload.limits.memory_bytes and workload.limits.memory_bytes > memory_bytes:
            raise BadInput(
                f"workload {workload.name!r} wants {workload.limits.memory_bytes >> 20} MiB,"
                f" this host has {memory_bytes >> 20} MiB",
                "set a smaller limits.memory",
            )
        if (workload.limits.memory_bytes or 0) * workload.together > memory_bytes:
            raise BadInput(
                f"{workload.together} instances of {workload.name!r} at once may use "
                f"{(workload.limits.memory_bytes or 0) >> 20} MiB each,"
                f" this host has {memory_bytes >> 20} MiB",
                "launch fewer at once, or set a smaller limits.memory",
            )
