"""How long a run will take: from the trials this host has run before, else a first guess.

Only ever shown as an estimate; no result depends on it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Sequence

from bench.cache import cache_dir
from bench.campaign import Durations
from bench.errors import HvctError
from bench.plan import Plan
from bench.schedule import Slot, build

FIRST_GUESS_S = {"vm": 4.5, "qemu": 4.5, "container": 1.2, "process": 1.2}
"""Seconds of one trial, gap included, before this host has run any (emulated VM, 2 CPUs)."""

OURS = "hvct"
"""The arm's name under which what is done once per run is kept."""

_ONCE_GUESS_S = {"prepare": 5.0, "report": 5.0}
_BUILD_GUESS_S = {"default": 40.0, "busybox": 1.0}

_FILE = "durations.json"


def load() -> Durations:
    """What earlier runs on this host took."""
    try:
        stored = json.loads((cache_dir() / _FILE).read_bytes())
        return Durations({str(key): float(value) for key, value in stored.items()})
    except (OSError, HvctError, ValueError, AttributeError, TypeError):
        return Durations()


def save(durations: Durations) -> None:
    """Keep the estimate for the next run; losing it loses nothing."""
    with contextlib.suppress(OSError, HvctError):
        path = cache_dir() / _FILE
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(durations.seconds, indent=1, sort_keys=True))
        temporary.replace(path)


def run_seconds(
    plan: Plan,
    durations: Durations | None = None,
    slots: Sequence[Slot] | None = None,
    missing_images: Collection[str] = (),
) -> float:
    """Estimated seconds for these slots (the whole plan by default), from start to report.

    Args:
        missing_images: those that are built first.
    """
    known = load() if durations is None else durations
    names = [workload.name for workload in plan.workloads]
    if slots is None:
        slots = build(plan.arms, names, plan.blocks, plan.seed)
    receipts = [(arm, name) for arm in plan.arms for name in names] if slots else []
    wanted = [*((slot.arm, slot.workload) for slot in slots), *receipts]
    once = sum(known.seconds.get(f"{OURS}/{name}", s) for name, s in _ONCE_GUESS_S.items())
    builds = sum(_BUILD_GUESS_S.get(name, 0.0) for name in missing_images)
    held_s = {workload.name: workload.hold_s for workload in plan.workloads}
    return once + builds + sum(_one(known, arm, name, held_s[name]) for arm, name in wanted)


def _one(known: Durations, arm: str, workload: str, hold_s: float) -> float:
    guess = FIRST_GUESS_S.get(arm.partition(":")[0], 2.0) + hold_s
    return known.seconds.get(f"{arm}/{workload}", guess)


def phrase(seconds: float) -> str:
    """``about 4 min 40 s``."""
    minutes, rest = divmod(round(seconds / 10) * 10 if seconds > 60 else max(1, round(seconds)), 60)
    return f"about {minutes:.0f} min {rest:.0f} s" if minutes else f"about {rest:.0f} s"
