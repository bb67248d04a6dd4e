"""Several runs in one table: every question that two of them were asked, with the host as a factor.

Run by run, side by side; nothing is pooled here.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.numbers import RATIO_UNIT, format_value
from bench.stats.verdict import Verdict
from reports.model import Comparison, JointCell, JointRow, RunReport
from reports.wording import count, listing

_JUDGED = (Verdict.DIFFERENT, Verdict.EQUIVALENT, Verdict.DETECTABLE_INSIDE_MARGIN)


def rows(runs: Sequence[RunReport]) -> tuple[JointRow, ...]:
    """The plans' primary metrics in every pair of arms that at least two runs have."""
    if len(runs) < 2:
        return ()
    wanted = {tuple(entry) for run in runs for entry in run.plan["primary"]}
    found: dict[tuple[str, str, str, str], dict[int, Comparison]] = {}
    for place, run in enumerate(runs):
        for row in run.comparisons:
            if (row.metric, row.workload) in wanted:
                key = (row.metric, row.workload, row.arm, row.baseline)
                found.setdefault(key, {})[place] = row
    made = []
    for (metric, workload, arm, baseline), mine in found.items():
        if len(mine) < 2:
            continue
        first = next(iter(mine.values()))
        made.append(
            JointRow(
                metric, workload, arm, baseline, first.title,
                next((row.effect.scale for row in mine.values() if row.effect), "ratio"),
                tuple(_cell(run, mine.get(place)) for place, run in enumerate(runs)),
                _summary(list(mine.values())),
            )
        )  # fmt: skip
    return tuple(sorted(made, key=lambda row: (row.arm, row.baseline)))


def agreement(rows: Sequence[JointRow], runs: int) -> str:
    """One sentence about all rows: how many were judged in every run, and with one verdict."""
    if runs < 2:
        return ""
    if not rows:
        return "They have no primary question in common."
    judged = [
        row
        for row in rows
        if all(cell.verdict in _JUDGED for cell in row.cells) and "contradict" not in row.summary
    ]
    alike = [row for row in judged if len({cell.verdict for cell in row.cells}) == 1]
    against = [row.title for row in rows if "contradict" in row.summary]
    text = (
        f"Of {count(len(rows), 'question')} that they share, {len(judged)} got a verdict in every "
        f"run, {len(alike)} the same one."
    )
    return text + (f" They contradict each other about {listing(against)}." if against else "")


def _cell(run: RunReport, row: Comparison | None) -> JointCell:
    if row is None:
        return JointCell(run.id, "", "", None, None, None, "")
    effect = row.effect
    return JointCell(
        run.id,
        row.id,
        effect.text if effect else "no figure",
        effect.estimate if effect else None,
        effect.low if effect else None,
        effect.high if effect else None,
        row.verdict_text,
    )


def _summary(mine: Sequence[Comparison]) -> str:
    """Whether the runs agree, in words."""
    estimates = [row.effect.estimate for row in mine if row.effect and row.effect.estimate]
    spread = ""
    if len(estimates) == len(mine) and mine[0].effect and mine[0].effect.scale == "ratio":
        low, high = min(estimates), max(estimates)
        spread = f"; from {format_value(low, RATIO_UNIT)} to {format_value(high, RATIO_UNIT)}"
    verdicts = [row.verdict for row in mine]
    if Verdict.EMULATED in verdicts:
        return f"not judged where emulated{spread}"
    if not all(row.primary for row in mine):
        return f"described{spread}"
    if len(set(verdicts)) > 1:
        tally = [f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)]
        return f"they differ: {listing(tally)}{spread}"
    sides = {
        row.effect.estimate > (1.0 if row.effect.scale == "ratio" else 0.0)
        for row in mine
        if row.effect and row.effect.estimate is not None
    }
    if verdicts[0] == Verdict.DIFFERENT and len(sides) > 1:
        return f"they contradict each other{spread}"
    return f"all {verdicts[0]}{spread}"


def likeness(runs: Sequence[RunReport]) -> tuple[str, ...]:
    """What the runs do not have in common, one line each: figures differ for these reasons too."""
    if len(runs) < 2:
        return ()
    facts = {
        "host": [run.host_line for run in runs],
        "kernel": [str((run.host.get("kernel") or {}).get("release", "")) for run in runs],
        "accelerator": [listing([arm.label for arm in run.arms]) for run in runs],
        "images": [_images(run) for run in runs],
        "workloads": [listing([item.name for item in run.workloads]) for run in runs],
        "blocks": [str(run.counts["blocks"]) for run in runs],
        "hvct": [run.version for run in runs],
    }  # fmt: skip
    return tuple(
        f"{name}: " + "; ".join(f"{run.id}: {value or 'unknown'}"
                                for run, value in zip(runs, values, strict=True))
        for name, values in facts.items() if len(set(values)) > 1
    )  # fmt: skip


def _images(run: RunReport) -> str:
    digests = (image.get("digest", "") for image in run.images.values() if isinstance(image, dict))
    return listing(sorted(str(digest)[:19] for digest in digests))
