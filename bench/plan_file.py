"""Plans from files: the user's TOML (``docs/plan.md`` documents every key), and a stored run's."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from bench import arms as arms_module
from bench.errors import BadInput
from bench.exchanges import MOST_EXCHANGES
from bench.model import (
    Better,
    Gap,
    Limits,
    MemoryBasis,
    MetricRule,
    NetworkMode,
    PageCache,
    Readiness,
    ReadyKind,
    Scale,
    Security,
    Workload,
)
from bench.plan import (
    INVALIDATION,
    LEAST_CPUS,
    MOST_TOGETHER,
    Plan,
    check,
    check_workload,
    default_primary,
    new_seed,
)
from bench.sizes import parse_size
from bench.stats.planning import DEFAULT_BLOCKS, MOST_PRIMARY

MAX_PLAN_BYTES = 1 << 20
KEY_PARTS = 100  # separated by points; ours have three

Size = Annotated[int, BeforeValidator(parse_size)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]


# Numbers are strict: neither "12" nor true is one.
Count = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]


class _Strict(BaseModel):
    # Not strict as a whole: an enum's value comes as a string.
    model_config = ConfigDict(extra="forbid", strict=False, frozen=True, allow_inf_nan=False)


class _Limits(_Strict):
    cpus: Number = Field(1.0, ge=LEAST_CPUS, le=1024)
    memory: Size = 512 << 20
    memory_basis: MemoryBasis = MemoryBasis.USABLE
    pids: Count = Field(1024, ge=8, le=4_000_000)
    writable: Size = 256 << 20
    shm: Size = 64 << 20
    scratch: Size = 0


class _Ready(_Strict):
    kind: ReadyKind
    port: Count = Field(0, ge=0, le=65535)
    path: str = "/"
    send: str = ""
    expect: str = ""
    pattern: str = ""
    command: list[str] = []
    interval_s: Number = Field(0.0, ge=0, lt=3600)
    timeout_s: Number = Field(0.0, ge=0, lt=3600)


class _Metric(_Strict):
    name: Name
    unit: str
    scale: Scale = Scale.RATIO
    better: Better = Better.HIGHER
    source: Literal["stdout", "stderr"] = "stdout"
    regex: str = ""
    pointer: str = ""
    repeats: Literal["median", "first"] = "median"
    margin: Number | None = Field(None, gt=0)


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
    hold_s: Number = Field(0.0, ge=0, le=3600)
    timeout_s: Number = Field(60.0, gt=0, le=86400)
    expect_status: Count = Field(0, ge=0, le=255)
    network: Literal["none", "bridge"] = "none"
    security: Security = Security.CONTAINER_NATIVE
    limits: _Limits = _Limits()
    metric: list[_Metric] = []
    work_units: Number = Field(0.0, ge=0)
    work_unit_name: str = "work"
    exchanges: Count = Field(0, ge=0, le=MOST_EXCHANGES)
    together: Count = Field(1, ge=1, le=MOST_TOGETHER)
    elastic: Annotated[bool, Field(strict=True)] = False


class _Primary(_Strict):
    metric: str
    workload: str


class _PlanFile(_Strict):
    name: Name = "plan"
    arms: list[str] = list(arms_module.DEFAULT_ARMS)
    blocks: Count = Field(DEFAULT_BLOCKS, ge=2, le=1000)
    seed: Count | None = Field(None, ge=0)
    page_cache: PageCache = PageCache.WARM
    gap: Gap = Gap.QUIET
    workload: list[_Workload] = Field(min_length=1, max_length=256)
    primary: list[_Primary] = Field([], max_length=MOST_PRIMARY)
    margins: dict[str, Annotated[Number, Field(gt=0)]] = {}
    invalidation: dict[str, Annotated[Number, Field(ge=0)]] = INVALIDATION


def from_toml(path: Path, *, seed: int | None = None) -> Plan:
    """Read a plan file.

    Raises:
        BadInput: it cannot be read or says something that is not allowed; the message
            names the place, the hint what is allowed.
    """
    hint = "docs/plan.md describes every key; hvct compare --dry-run checks a plan"
    try:
        with path.open("rb") as file:  # a device may be endless
            text = file.read(MAX_PLAN_BYTES + 1)
        if len(text) > MAX_PLAN_BYTES:
            raise BadInput(f"{path} is larger than 1 MiB", "a plan is a short file; " + hint)
        _check_keys(text)
        document = tomllib.loads(text.decode("utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}", hint) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is one too
        raise BadInput(f"{path} is not valid TOML: {error}", hint) from error
    try:
        parsed = _PlanFile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part)[:60] for part in first["loc"]) or "the plan"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BadInput(f"{path}: {place}: {_said(first)}{more}", hint) from error
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
            seed=next(given for given in (seed, parsed.seed, new_seed()) if given is not None),
            primary=tuple((item.metric, item.workload) for item in parsed.primary)
            or default_primary(workloads),
            margins={**rule_margins, **parsed.margins},
            invalidation=dict(parsed.invalidation),
            page_cache=parsed.page_cache,
            gap=parsed.gap,
        )
    )


def workload(table: Mapping[str, Any]) -> Workload:
    """One workload from the keys of a plan's ``[[workload]]``; its name may be left out.

    Raises:
        BadInput: a key or a value is not allowed; the message names it.
    """
    try:
        made = _workload(_Workload.model_validate({"name": "workload", **table}))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        hint = "docs/plan.md describes every key of a workload"
        raise BadInput(f"{place}: {_said(first)}", hint) from error
    check_workload(made)
    return made


def _check_keys(text: bytes) -> None:
    """Refuse keys of hundreds of parts, for which tomllib needs quadratic time.

    Raises:
        ValueError: there is one.
    """
    for token in re.split(rb"[^\w.-]+", text.translate(None, b" \t")):
        if token.count(b".") > KEY_PARTS:
            raise ValueError(f"a key of more than {KEY_PARTS} parts")


def _said(error: ErrorDetails) -> str:
    """Pydantic's words, but for those that speak of Python."""
    if error["type"] == "extra_forbidden":
        models = (_PlanFile, _Workload, _Limits, _Ready, _Metric, _Primary)
        known = [name for model in models for name in model.model_fields]
        near = get_close_matches(str(error["loc"][-1]), known, 1)
        return "there is no such key" + (f"; did you mean {near[0]}?" if near else "")
    return error["msg"].removeprefix("Value error, ")


def _workload(item: _Workload) -> Workload:
    ready = Readiness()
    if item.ready is not None:
        fields = item.ready.model_dump()
        ready = Readiness(
            **{
                **fields,
                "send": item.ready.send.encode(),
                "expect": item.ready.expect.encode(),
                "command": tuple(item.ready.command),
            }
        )
    limits = Limits(
        cpus=item.limits.cpus,
        memory_bytes=item.limits.memory,
        memory_basis=item.limits.memory_basis,
        pids=item.limits.pids,
        writable_bytes=item.limits.writable,
        shm_bytes=item.limits.shm,
        scratch_bytes=item.limits.scratch,
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
        exchanges=item.exchanges,
        together=item.together,
        elastic=item.elastic,
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
                experiment=str(document.get("experiment", Plan.experiment)),
                invalidation={
                    str(name): float(limit)
                    for name, limit in document.get("invalidation", {}).items()
                },
                page_cache=PageCache(document.get("page_cache", PageCache.WARM)),
                gap=Gap(document.get("gap", Gap.QUIET)),
            )
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"the stored plan is damaged: {error!r}", "start a new run") from error


def _stored_workload(item: dict[str, Any]) -> Workload:
    ready = dict(item["ready"])
    ready["kind"] = ReadyKind(ready["kind"])
    for key in ("send", "expect"):
        ready[key] = ready[key].encode()
    ready["command"] = tuple(ready.get("command", ()))
    limits = {**item["limits"], "memory_basis": MemoryBasis(item["limits"]["memory_basis"])}
    rules = tuple(
        MetricRule(
            **{
                "repeats": "first",  # what plans meant that were stored without it
                **rule,
                "scale": Scale(rule["scale"]),
                "better": Better(rule["better"]),
            }
        )
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
