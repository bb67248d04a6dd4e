"""The plan: the validated description of an experiment before it runs.

All validation happens here, before anything on the host is touched. A plan comes from
the built-in quick suite or from a TOML file; ``docs/plan.md`` documents the file.
"""

from __future__ import annotations

import dataclasses
import random
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bench import arms as arms_module
from bench.errors import BadInput
from bench.metrics import table
from bench.model import (
    Better,
    Limits,
    MemoryBasis,
    MetricRule,
    NetworkMode,
    Readiness,
    ReadyKind,
    Scale,
    Security,
    Workload,
)

MAX_PLAN_BYTES = 1 << 20
MAX_PRIMARY = 8
QUICK_BLOCKS = 10
DEFAULT_BLOCKS = 12
ALPHA = 0.05

FAIRNESS = {
    "cpu": "the whole instance, VMM threads included, is pinned to the same host CPUs in every arm",
    "memory": "basis 'usable' for work (the guest gets its measured reserve on top), swap off",
    "page_cache": "warm: the image is fully resident on the host before each trial",
    "network": "layer 2 bridge, no address translation, permanent neighbour entries",
    "writable_layer": "tmpfs of the same size and number of inodes in every arm",
    "security": "container-native: the container's confinement is a declared difference",
    "output": "standard output is kept inside and shipped after the measured window",
    "readiness": "a fresh connection every 1 ms from started, from the host, in every arm",
    "join": "the cgroup is joined at launch in every arm; nothing is pre-provisioned",
    "order": "Williams-balanced positions and predecessors in random complete blocks",
    "gap": "250 ms after network_released, then until the host is quiet, at most 2 s",
    "kernel": "the guest runs its own kernel, mitigations at their defaults on both sides",
}
"""The rules of DESIGN's "fair by rule" in force; changing one makes another arm."""


@dataclass(frozen=True)
class Plan:
    """What is varied, how often, and what will be judged. Frozen once the run begins.

    Attributes:
        primary: (metric, workload) pairs whose verdicts share one error rate (Holm).
        margins: overrides of a metric's margin, by metric name.
        blocks: number of complete blocks; fixed, more blocks means a new run.
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

    def workload(self, name: str) -> Workload:
        """The workload of this name."""
        return next(workload for workload in self.workloads if workload.name == name)


_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30,
          "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}  # fmt: skip


def parse_size(value: Any) -> int:
    """``"256 MiB"``, ``"1G"`` or a number of bytes → bytes.

    Raises:
        ValueError: it is no size, or not positive.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (
        match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    ):
        factor = _UNITS.get(match[2].upper())
        if factor is None:
            raise ValueError(f"{match[2]!r} is no unit of size; use MiB or GiB")
        size = int(float(match[1]) * factor)
    else:
        raise ValueError(f'{value!r} is no size; write it as "256 MiB"')
    if size <= 0:
        raise ValueError("a size must be positive")
    return size


Size = Annotated[int, BeforeValidator(parse_size)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False, frozen=True)


class _Limits(_Strict):
    cpus: float = Field(1.0, gt=0, le=1024)
    memory: Size = 512 << 20
    memory_basis: MemoryBasis = MemoryBasis.USABLE
    pids: int = Field(1024, ge=8, le=4_000_000)
    writable: Size = 256 << 20
    shm: Size = 64 << 20


class _Ready(_Strict):
    kind: ReadyKind
    port: int = Field(0, ge=0, le=65535)
    path: str = "/"
    send: str = ""
    expect: str = ""
    pattern: str = ""


class _Metric(_Strict):
    name: Name
    unit: str
    scale: Scale = Scale.RATIO
    better: Better = Better.HIGHER
    source: Literal["stdout", "stderr"] = "stdout"
    regex: str = ""
    pointer: str = ""
    margin: float | None = Field(None, gt=0)


class _Workload(_Strict):
    name: Name
    title: str = ""
    image: str = "default"
    argv: list[str] | None = Field(None, min_length=1)
    env: dict[str, str] = {}
    user: str | None = None
    workdir: str | None = None
    until: Literal["exit", "ready"] = "exit"
    ready: _Ready | None = None
    hold_s: float = Field(0.0, ge=0, le=3600)
    timeout_s: float = Field(60.0, gt=0, le=86400)
    expect_status: int = Field(0, ge=0, le=255)
    network: Literal["none", "bridge"] = "none"
    security: Security = Security.CONTAINER_NATIVE
    limits: _Limits = _Limits()  # type: ignore[call-arg]
    metric: list[_Metric] = []
    work_units: float = Field(0.0, ge=0)
    work_unit_name: str = "work"


class _Primary(_Strict):
    metric: str
    workload: str


class _PlanFile(_Strict):
    name: Name = "plan"
    arms: list[str] = list(arms_module.DEFAULT_ARMS)
    blocks: int = Field(DEFAULT_BLOCKS, ge=2, le=1000)
    seed: int | None = Field(None, ge=0)
    workload: list[_Workload] = Field(min_length=1)
    primary: list[_Primary] = Field([], max_length=MAX_PRIMARY)
    margins: dict[str, Annotated[float, Field(gt=0)]] = {}


def from_toml(path: Path, *, seed: int | None = None) -> Plan:
    """Read a plan file.

    Raises:
        BadInput: it cannot be read or says something that is not allowed; the message
            names the place, the hint what is allowed.
    """
    hint = "docs/plan.md describes every key; hvct compare --dry-run checks a plan"
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise BadInput(f"{path} is larger than 1 MiB", "a plan is a short file; " + hint)
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}", hint) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{path} is not valid TOML: {error}", hint) from error
    try:
        parsed = _PlanFile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the plan"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BadInput(f"{path}: {place}: {first['msg']}{more}", hint) from error
    workloads = tuple(_workload(item) for item in parsed.workload)
    rule_margins = {
        rule.name: rule.margin for item in parsed.workload for rule in item.metric if rule.margin
    }
    return check(
        Plan(
            name=parsed.name,
            arms=tuple(parsed.arms),
            workloads=workloads,
            blocks=parsed.blocks,
            seed=new_seed() if seed is None and parsed.seed is None else (seed or parsed.seed or 0),
            primary=tuple((item.metric, item.workload) for item in parsed.primary)
            or default_primary(workloads),
            margins={**rule_margins, **parsed.margins},
        )
    )


def _workload(item: _Workload) -> Workload:
    ready = Readiness()
    if item.ready is not None:
        fields = item.ready.model_dump()
        ready = Readiness(
            **{**fields, "send": item.ready.send.encode(), "expect": item.ready.expect.encode()}
        )
    limits = Limits(
        cpus=item.limits.cpus,
        memory_bytes=item.limits.memory,
        memory_basis=item.limits.memory_basis,
        pids=item.limits.pids,
        writable_bytes=item.limits.writable,
        shm_bytes=item.limits.shm,
    )
    return Workload(
        name=item.name,
        title=item.title or item.name,
        image=item.image,
        argv=None if item.argv is None else tuple(item.argv),
        env=tuple(item.env.items()),
        user=item.user,
        workdir=item.workdir,
        ready=ready,
        until=item.until,
        hold_s=item.hold_s,
        timeout_s=item.timeout_s,
        expect_status=item.expect_status,
        limits=limits,
        network=NetworkMode(item.network),
        security=item.security,
        metrics=tuple(MetricRule(**rule.model_dump(exclude={"margin"})) for rule in item.metric),
        work_units=item.work_units,
        work_unit_name=item.work_unit_name,
    )


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
        if workload.until == "ready":
            chosen += [("startup_ready", workload.name), ("memory_current", workload.name)]
        elif workload.work_units:
            chosen.append(("work_per_cpu_second", workload.name))
        else:
            chosen += [("startup_started", workload.name), ("teardown", workload.name)]
        chosen += [(rule.name, workload.name) for rule in workload.metrics]
    return tuple(chosen[:MAX_PRIMARY])


def check(plan: Plan) -> Plan:
    """Everything about a plan that its types cannot say.

    Raises:
        BadInput: with the place and what is allowed there.
    """
    arms_module.resolve(plan.arms)
    if len(plan.arms) < 2:
        raise BadInput("a comparison needs at least two arms", "for one instance use: hvct run")
    names = [workload.name for workload in plan.workloads]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"workload {name!r} is there twice", "give each workload its own name")
    for workload in plan.workloads:
        _check_workload(workload)
    known = table(plan.workloads)
    for metric in (*plan.margins, *(metric for metric, _ in plan.primary)):
        if metric not in known:
            raise BadInput(f"there is no metric {metric!r}", f"choose from {', '.join(known)}")
    for _, name in plan.primary:
        if name not in names:
            raise BadInput(
                f"the primary family names an unknown workload {name!r}",
                f"this plan has {', '.join(names)}",
            )
    return plan


def _check_workload(workload: Workload) -> None:
    where = f"workload {workload.name!r}"
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
    if ready.kind is ReadyKind.REPLY and not ready.expect:
        raise BadInput(f"{where}: readiness by reply needs what to expect", "set ready.expect")
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
    for key, value in (*workload.env, *(("argv", word) for word in workload.argv or ())):
        if "\0" in key or "\0" in value or ("=" in key):
            raise BadInput(f"{where}: {key!r} holds a NUL byte or '='", "remove it")


def check_against_host(plan: Plan, *, cpus: int, memory_bytes: int) -> None:
    """What only this host decides.

    Raises:
        BadInput: a workload wants more than the host has.
    """
    for workload in plan.workloads:
        if workload.limits.cpus > cpus:
            raise BadInput(
                f"workload {workload.name!r} wants {workload.limits.cpus:g} CPUs, this host has {cpus}",
                f"set limits.cpus to at most {cpus}",
            )
        if workload.limits.memory_bytes and workload.limits.memory_bytes > memory_bytes:
            raise BadInput(
                f"workload {workload.name!r} wants {workload.limits.memory_bytes >> 20} MiB,"
                f" this host has {memory_bytes >> 20} MiB",
                "set a smaller limits.memory",
            )


def from_run(document: dict[str, Any]) -> Plan:
    """The plan as stored in ``run.json``, for resuming.

    Raises:
        BadInput: the stored plan was damaged.
    """
    try:
        workloads = tuple(_stored_workload(item) for item in document["workloads"])
        return check(
            Plan(
                name=document["name"],
                arms=tuple(document["arms"]),
                workloads=workloads,
                blocks=int(document["blocks"]),
                seed=int(document["seed"]),
                primary=tuple((metric, name) for metric, name in document["primary"]),
                margins=dict(document["margins"]),
                alpha=float(document["alpha"]),
                judge_emulated=bool(document.get("judge_emulated", False)),
            )
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"the stored plan is damaged: {error!r}", "start a new run") from error


def _stored_workload(item: dict[str, Any]) -> Workload:
    ready = dict(item["ready"])
    ready["kind"] = ReadyKind(ready["kind"])
    for key in ("send", "expect"):
        ready[key] = ready[key].encode()
    limits = {**item["limits"], "memory_basis": MemoryBasis(item["limits"]["memory_basis"])}
    rules = tuple(
        MetricRule(**{**rule, "scale": Scale(rule["scale"]), "better": Better(rule["better"])})
        for rule in item["metrics"]
    )
    plain = {
        field.name: item[field.name] for field in dataclasses.fields(Workload) if field.name in item
    }
    return Workload(
        **{
            **plain,
            "argv": None if item["argv"] is None else tuple(item["argv"]),
            "env": tuple((key, value) for key, value in item["env"]),
            "ready": Readiness(**ready),
            "limits": Limits(**limits),
            "network": NetworkMode(item["network"]),
            "security": Security(item["security"]),
            "metrics": rules,
        }
    )
