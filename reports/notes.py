"""What to beware of, and whether it was the same work: findings and receipts as the page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.identity import FieldClass
from bench.model import Finding
from reports.data import TEXT_LIMIT, Run
from reports.wording import count, field_title

LEVELS = {"problem": 0, "warning": 1, "info": 2}


def findings(
    run: Run, counts: Mapping[str, int], order: Sequence[Finding]
) -> tuple[dict[str, str], ...]:
    """Stored findings and those that follow from the data, the serious ones first."""
    made = [
        {
            key: str(item.get(key) or "").rstrip(".")[:TEXT_LIMIT]
            for key in ("code", "level", "message", "meaning", "remedy")
        }
        for item in run.record["findings"]
    ]
    own = [*run.findings, *order]
    if counts["blocks"] < counts["blocks_planned"]:
        own.append(
            Finding(
                "run-incomplete", "problem",
                f"{counts['blocks']} of {counts['blocks_planned']} planned blocks are complete",
                "intervals are wider than planned, and stopping early can favour a result",
                "hvct resume goes on at the next block",
            )
        )  # fmt: skip
    if counts["excluded"]:
        own.append(
            Finding(
                "block-cut-short", "info",
                f"{count(counts['excluded'], 'trial')} of blocks that were cut short are left out",
                "such a block is kept in trials.jsonl and run again as a whole",
            )
        )  # fmt: skip
    if counts["damaged_lines"]:
        own.append(
            Finding(
                "damaged-lines", "warning",
                f"{count(counts['damaged_lines'], 'line')} of trials.jsonl could not be read",
                "a run killed while it wrote leaves one such line; more mean damage",
                "compare the file's digest with a copy",
            )
        )  # fmt: skip
    bad = counts["failed"] + counts["timeout"] + counts["refused"]
    if bad:
        own.append(
            Finding(
                "trials-failed", "warning",
                f"{bad} of {count(counts['trials'], 'trial')} did not end well",
                "a failed trial takes its pair out, one that timed out counts as longer than any "
                "other; above 10 % in an arm there is no verdict",
                "see the section on failed trials, and the logs in the run directory",
            )
        )  # fmt: skip
    if counts["out_of_order"]:
        own.append(
            Finding(
                "event-before-request", "problem",
                f"{count(counts['out_of_order'], 'trial')} with an event before the request",
                "the stamps of a guest's clock could not be mapped to the host's, so start-up "
                "figures of those trials are wrong",
                "report it with the run directory; end other load on the host and run again",
            )
        )  # fmt: skip
    made += [
        {"code": f.code, "level": f.level, "message": f.message, "meaning": f.meaning,
         "remedy": f.remedy}
        for f in own
    ]  # fmt: skip
    # Runs of earlier versions hold the same finding once for each arm of a backend.
    once = {tuple(item.values()): item for item in made}.values()
    return tuple(sorted(once, key=lambda item: LEVELS.get(item["level"], 3)))


def identity(run: Run, labels: Mapping[str, str]) -> dict[str, Any]:
    """Receipts compared, pair by pair, as the report shows them."""
    classes = list(FieldClass)
    return {
        "text": [
            "Inside every instance the agent reports what really ran: program, arguments, "
            "environment, identity, limits, CPU flags, mitigations, kernel. A field that must "
            "match and does not makes the comparison refused; a declared difference is one that "
            "is in the nature of the arms; the rest is information.",
            "Contents (program, loader, libraries) were hashed from inside, in one untimed trial "
            "per arm and workload.",
        ],
        "pairs": [
            {
                "arm": item.arm,
                "baseline": item.baseline,
                "label": f"{labels[item.arm]} and {labels[item.baseline]}",
                "first": labels[item.arm],
                "second": labels[item.baseline],
                "compared": item.pairs,
                "identical": item.identical,
                "missing": item.missing,
                "line": f"{item.identical} of {count(item.pairs, 'pair')} of trials identical in "
                "every field that must match"
                + (f"; {count(item.missing, 'pair')} without a receipt." if item.missing else "."),
                "refused": [
                    [name, reason]
                    for name, reason in sorted(
                        [
                            *item.refused.items(),
                            *(
                                (name, f"(work metrics only) {reason}")
                                for name, reason in item.work_refused.items()
                            ),
                        ]
                    )
                ],
                "differences": [
                    {
                        "name": field_title(d.name),
                        "field_class": d.field_class.value,
                        "first": d.first,
                        "second": d.second,
                    }
                    for d in sorted(
                        item.differences.values(),
                        key=lambda d: (classes.index(d.field_class), d.name),
                    )
                ],
            }
            for item in run.identity
        ],
    }
