"""What was settled before the first trial, hashed into the run: margins, judged metrics, n, rules.

A verdict is worth what was fixed before anybody saw data. ``run.json`` holds these settings
with their digest, and every line of ``trials.jsonl`` carries the digest's beginning, so a
margin that was moved afterwards stands in the report as a deviation, and so does a
registration that was rewritten to match. (Nothing here stops who rewrites every line.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MARK_LENGTH = 16
"""Hexadecimal digits of the digest that each trial carries."""

FROM_PLAN = (
    "arms", "blocks", "seed", "alpha", "primary", "judge_emulated", "invalidation", "experiment",
    "page_cache", "gap",
)  # fmt: skip


def settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """What verdicts depend on, from a run's description, as plain JSON values."""
    plan = run["plan"]
    judged: dict[str, dict[str, Any]] = {}
    for metric, _ in plan.get("primary") or ():
        about = (run.get("metrics") or {}).get(metric, {})
        margin = (plan.get("margins") or {}).get(metric, about.get("margin"))
        judged[metric] = {
            "margin": margin,
            "unit": about.get("unit"),
            "scale": about.get("scale"),
            "resolution": about.get("resolution"),
        }
    found = {
        **{name: plan[name] for name in FROM_PLAN if name in plan},
        "judged": judged,
        "workloads": {item["name"]: digest(item) for item in plan.get("workloads", ())},
        "calibration": digest(run["calibration"]) if run.get("calibration") else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def register(run: Mapping[str, Any]) -> dict[str, Any]:
    """What ``run.json`` keeps as ``registration``."""
    fixed = settings(run)
    return {"digest": digest(fixed), "settings": fixed}


def mark(run: Mapping[str, Any]) -> str:
    """What each of the run's trials carries ("" for a run that registered nothing)."""
    kept = run.get("registration")
    return str(kept.get("digest", ""))[:MARK_LENGTH] if isinstance(kept, Mapping) else ""


def deviations(run: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is not as it was registered, one clause each; empty also where nothing was."""
    kept = run.get("registration")
    if not isinstance(kept, Mapping) or not isinstance(kept.get("settings"), Mapping):
        return []
    found = list(_changed(kept["settings"], settings(run)))
    if digest(kept["settings"]) != kept.get("digest"):
        found.append("the registered settings do not have the registered digest")
    own = mark(run)
    other = sum(trial.get("registration", own) != own for trial in trials)
    if other:
        found.append(f"{other} of {len(trials)} trials were measured under another registration")
    return found


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        name = f"{where}{key}".replace("_", " ")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changed(old, new, f"{key}: " if not where else f"{where}{key}: ")
        elif old != new:
            yield f"{name} was {_shown(old)}, is {_shown(new)}"


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def digest(value: object) -> str:
    """SHA-256 of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
