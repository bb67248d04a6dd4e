"""A plan as the TOML that `bench.plan_file` reads: what a dry run prints, for ``--plan``.

Keys that have their default are left out, but for those that say what the plan is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from bench.model import Limits, MetricRule, Readiness, ReadyKind, Workload
from bench.plan import INVALIDATION, Plan

DEFAULTS = Workload("", "", "default")


def toml(plan: Plan, notes: Mapping[str, str] | None = None) -> str:
    """The plan file that says the same.

    Args:
        notes: what stands above each workload as a comment, by its name.
    """
    lines = [
        f"name = {_value(plan.name)}",
        f"arms = {_value(plan.arms)}",
        f"blocks = {plan.blocks}",
        f"seed = {plan.seed}",
        *([f"page_cache = {_value(plan.page_cache)}"] if plan.page_cache != "warm" else []),
        *([f"gap = {_value(plan.gap)}"] if plan.gap != "quiet" else []),
        # Both are tables: written in one line, they come before [[workload]].
        *([f"margins = {_value(plan.margins)}"] if plan.margins else []),
        *(
            [f"invalidation = {_value(plan.invalidation)}"]
            if plan.invalidation != INVALIDATION
            else []
        ),
    ]
    for workload in plan.workloads:
        lines.append("")
        if notes:
            lines.append(f"# {printable(notes[workload.name])}")
        lines += ["[[workload]]", *_workload(workload)]
        for rule in workload.metrics:
            lines += ["", "[[workload.metric]]", *_metric(rule)]
    for metric, name in plan.primary:
        lines += ["", "[[primary]]", f"metric = {_value(metric)}", f"workload = {_value(name)}"]
    return "\n".join([*lines, ""])


def printable(text: str) -> str:
    """A text as a comment may hold it: in one line, without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _workload(workload: Workload) -> Iterator[str]:
    yield f"name = {_value(workload.name)}"
    if workload.title != workload.name:
        yield f"title = {_value(workload.title)}"
    yield f"image = {_value(workload.image)}"
    if workload.argv is not None:
        yield f"argv = {_value(workload.argv)}"
    if workload.env:
        yield f"env = {_value(dict(workload.env))}"
    plain = (
        *("user", "workdir", "until", "hold_s", "timeout_s", "expect_status", "network"),
        *("security", "work_units", "work_unit_name", "exchanges", "together", "elastic"),
    )
    for name in plain:
        value = getattr(workload, name)
        if value != getattr(DEFAULTS, name):
            yield f"{name} = {_value(value)}"
    if workload.ready.kind is not ReadyKind.STARTED:
        yield f"ready = {_value(_changed(workload.ready, Readiness()))}"
    if limits := _changed(workload.limits, Limits()):
        yield f"limits = {_value({LIMITS.get(name, name): limits[name] for name in limits})}"


def _metric(rule: MetricRule) -> Iterator[str]:
    yield f"name = {_value(rule.name)}"
    yield f"unit = {_value(rule.unit)}"
    for name, value in _changed(rule, MetricRule(rule.name, rule.unit)).items():
        yield f"{name} = {_value(value)}"


LIMITS = {
    "memory_bytes": "memory",
    "writable_bytes": "writable",
    "shm_bytes": "shm",
    "scratch_bytes": "scratch",
}
"""Field of `Limits` → key, where the file's has no unit in its name."""


def _changed(made: object, default: object) -> dict[str, Any]:
    """The fields that are not as by default."""
    fields = vars(made)
    return {name: value for name, value in fields.items() if value != vars(default)[name]}


def _value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # A JSON string is one of TOML's, but for DEL; surrogate pairs are none of TOML's.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        pairs = (f"{_key(name)} = {_value(item)}" for name, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(value)


def _key(name: str) -> str:
    return name if name.replace("_", "").isalnum() and name.isascii() else _value(name)
