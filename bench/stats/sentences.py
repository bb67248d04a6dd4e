"""A comparison as one sentence, bounded to what one run on one host can say."""

from __future__ import annotations

from bench.model import Scale
from bench.numbers import (
    RATIO_UNIT,
    format_estimate,
    format_p,
    format_percent,
    format_value,
)
from bench.stats.pairs import TIME_UNITS
from bench.stats.verdict import ArmLevel, Comparison, Verdict

SCOPE = "in this run on this host"

_AS_ARM = {"vm": "as a VM", "container": "in a container", "process": "as a bare process"}
_AFTER_AS = {"vm": "a VM", "container": "in a container", "process": "a bare process"}
_AFTER_FROM = {"vm": "a VM", "container": "a container", "process": "a bare process"}
_BYTES = frozenset({"B", "byte", "bytes"})


def sentence(comparison: Comparison) -> str:
    """What the comparison says, with scope, interval and verdict, without a final stop.

    Under emulation it begins so and concludes nothing about virtualisation.
    """
    c = comparison
    subject = f"{_place(c.arm, _AS_ARM)} {c.workload}"
    if c.verdict is Verdict.REFUSED:
        return f"{SCOPE}, {_name(c)} of {c.workload} is not compared: {c.reason}"
    if c.estimate is None:
        return f"{SCOPE}, {_name(c)} of {c.workload} has no figure: {c.reason}"
    effect = _effect(c)
    other = _place(c.baseline, _AFTER_FROM if effect.endswith(" from") else _AFTER_AS)
    said = f"{subject} {effect} {other}"
    if c.verdict is Verdict.EMULATED:
        return f"under emulation, {SCOPE}, {said}: this describes an emulator, no verdict"
    return f"{SCOPE}, {said}{_ending(c)}"


def effect_text(comparison: Comparison) -> str:
    """The effect with its interval, for a table: ``84× [79, 90]``, ``+118 [116, 121] MiB``."""
    c = comparison
    ratio = c.scale is Scale.RATIO
    unit = RATIO_UNIT if ratio else c.unit
    return format_estimate(c.estimate, c.low, c.high, unit, bound=c.bound, signed=not ratio)


def level_text(comparison: Comparison, level: ArmLevel) -> str:
    """One arm's own figure, for a table: ``4.1 ms``, ``< 1 ms``, ``> 60 s``."""
    return format_value(
        level.value,
        comparison.unit,
        resolution=comparison.resolution,
        timeout=comparison.timeout,
    )


def margin_text(comparison: Comparison) -> str:
    """The margin as planned: ``5 %`` or ``2 MiB``."""
    if comparison.scale is Scale.RATIO:
        return format_percent(comparison.margin)
    return format_value(comparison.margin, comparison.unit)


def verdict_text(comparison: Comparison) -> str:
    """Verdict, reason and what to do, for a table's note or a tooltip."""
    c = comparison
    text = f"{c.verdict.value}: {c.reason} (margin {margin_text(c)}, n = {c.n_pairs}"
    if c.p_adjusted is not None:
        text += f", p = {format_p(c.p_adjusted)} after Holm over {c.family_size}"
    text += ")"
    if c.needed_n is not None:
        text += f"; about {c.needed_n} blocks would be needed"
    return text


def _place(arm: str, words: dict[str, str]) -> str:
    """``vm`` → as a VM; ``vm (TCG)`` → as a VM (TCG); another arm by its name."""
    name, space, accelerator = arm.partition(" ")
    if name in words:
        return f"{words[name]}{space}{accelerator}"
    return arm if words is _AFTER_FROM else f"under {arm}"


def _name(c: Comparison) -> str:
    return c.title or c.metric


def _effect(c: Comparison) -> str:
    if c.scale is Scale.RATIO:
        effect = effect_text(c)
        if c.higher_is_better:
            return f"does {effect} as much {c.phrase or _name(c)} as"
        if c.unit in TIME_UNITS:
            return f"takes {effect} as long {c.phrase or f'({_name(c)})'} as"
        return f"needs {effect} as much {c.phrase or _name(c)} as"
    verb = "holds" if c.unit in _BYTES else "shows"
    what = f"({_name(c)})" if not c.phrase else c.phrase
    if c.estimate is not None and c.low is not None and c.high is not None and c.bound is None:
        if c.low >= 0.0:
            amount = format_estimate(c.estimate, c.low, c.high, c.unit)
            return f"{verb} {amount} more {what} than"
        if c.high <= 0.0:
            amount = format_estimate(-c.estimate, -c.high, -c.low, c.unit)
            return f"{verb} {amount} less {what} than"
    return f"differs by {effect_text(c)} {what} from"


def _ending(c: Comparison) -> str:
    margin = margin_text(c)
    if c.verdict is Verdict.DIFFERENT:
        return f" (different by more than {margin})"
    if c.verdict is Verdict.EQUIVALENT:
        return f" (equivalent within {margin})"
    if c.verdict is Verdict.DETECTABLE_INSIDE_MARGIN:
        return f" (detectable, but within {margin})"
    if c.verdict is Verdict.UNDECIDED:
        need = f"; about {c.needed_n} blocks would be needed" if c.needed_n else ""
        return f" (undecided for {margin}: {c.reason}{need})"
    return f" (no verdict: {c.reason})"
