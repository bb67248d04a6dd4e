"""Which arm is better, for whom: sentences that follow from the verdicts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.stats.verdict import Verdict
from reports.model import Arm, Comparison

NAMES = {"vm": "virtual machine", "container": "container", "process": "bare process"}
EITHER = (Verdict.EQUIVALENT, Verdict.DETECTABLE_INSIDE_MARGIN)
"""Verdicts after which the choice does not matter, by the plan's own margin."""


def lines(
    arms: Sequence[Arm],
    comparisons: Sequence[Comparison],
    metrics: Mapping[str, Mapping[str, Any]],
    workloads: Mapping[str, str],
) -> list[str]:
    """What a reader who has to choose may conclude, and may not.

    Args:
        metrics: name → at least ``title`` and ``better``.
        workloads: name → title.
    """
    judged = [c for c in comparisons if c.primary and c.verdict != Verdict.EMULATED]
    made = []
    emulated = {arm.name for arm in arms if arm.emulated}
    if emulated & {c.arm for c in comparisons if c.verdict == Verdict.EMULATED}:
        made.append(
            "Virtual machine or container: this run cannot say. The virtual machine was emulated, "
            "which nobody would deploy; run it again where KVM works."
        )
    for arm, baseline in dict.fromkeys((c.arm, c.baseline) for c in judged):
        mine = [c for c in judged if (c.arm, c.baseline) == (arm, baseline)]
        for name in (arm, baseline):
            won = [c for c in mine if _winner(c, metrics) == name]
            if won:
                made.append(
                    f"The {_name(name)} is better in {_some(won, metrics, workloads)}; each figure "
                    f"is {_name(arm)} ÷ {_name(baseline)}, or minus."
                )
        either = [c for c in mine if c.verdict in EITHER]
        if either:
            made.append(
                f"{_name(arm).capitalize()} or {_name(baseline)} makes no difference that matters, "
                f"by the plan's margins, in {_some(either, metrics, workloads)}."
            )
        rest = [c for c in mine if c.verdict == Verdict.UNDECIDED]
        if rest:
            made.append(f"Undecided between them: {_some(rest, metrics, workloads)}.")
    return made or ["This run judged nothing, so it favours nothing."]


def _winner(row: Comparison, metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The arm with the better figure where the verdict is `different`, else ""."""
    if row.verdict != Verdict.DIFFERENT or row.effect is None or row.effect.estimate is None:
        return ""
    more = row.effect.estimate > (1.0 if row.effect.scale == "ratio" else 0.0)
    return row.arm if more == (metrics[row.metric]["better"] == "higher") else row.baseline


def _name(arm: str) -> str:
    return NAMES.get(arm, arm)


def _some(
    rows: Sequence[Comparison],
    metrics: Mapping[str, Mapping[str, Any]],
    workloads: Mapping[str, str],
) -> str:
    """``start-up to ready (redis to PING 84× [79, 90]); memory charged (…)``."""
    found: dict[str, list[str]] = {}
    for row in rows:
        text = workloads.get(row.workload, row.workload)
        if row.verdict == Verdict.DIFFERENT and row.effect:
            text += f" {row.effect.text}"
        found.setdefault(str(metrics[row.metric].get("title") or row.metric), []).append(text)
    return "; ".join(f"{title} ({', '.join(texts)})" for title, texts in found.items())
