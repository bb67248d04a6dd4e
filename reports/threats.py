"""What could make a report's conclusions wrong, and what it does not show: both from its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.numbers import format_percent
from bench.stats.verdict import Verdict
from reports import model
from reports.data import Run
from reports.refusal import LEAST_ATTRIBUTED
from reports.wording import capitalised, count, listing

KINDS = {
    "construct": "Does a figure mean what it says?",
    "internal": "Could something else have caused a difference?",
    "statistical": "Could chance have made it, or hidden it?",
    "external": "Does it hold elsewhere?",
}
"""Kinds of validity, each as the question that a reader asks."""

_CODES = {
    "construct": ("kvm", "image-cached", "event-before", "memory-basis", "harness-shares"),
    "statistical": ("run-incomplete", "trials-failed", "damaged", "block-cut", "lag", "order",
                    "position", "predecessor", "autocorrelation", "drift"),
    "external": ("cpu.guest", "cpu.microcode", "kernel.mitigations"),
}  # fmt: skip
"""Beginnings of the codes of findings; what is in none of them is internal."""

TAIL_N = 300
"""Values below which a 99th percentile has no interval (0.99ⁿ > 0.05)."""

LONG_WINDOW_S = 2.0
"""Shorter windows cannot bound the host's CPU time that is nobody's."""


def kind_of(code: str) -> str:
    """Which kind of validity a finding threatens."""
    return next(
        (kind for kind, beginnings in _CODES.items() if code.startswith(beginnings)), "internal"
    )


def threats(
    run: Run,
    arms: Sequence[model.Arm],
    comparisons: Sequence[model.Comparison],
    findings: Sequence[Mapping[str, str]],
    counts: Mapping[str, int],
) -> tuple[model.Threat, ...]:
    """Every finding under the question it raises, and what follows from the numbers themselves."""
    made = [
        model.Threat(
            kind_of(item["code"]),
            capitalised(item["message"]) + (f": {item['meaning']}." if item["meaning"] else "."),
            item["code"],
        )
        for item in findings
    ]
    family = [c for c in comparisons if c.primary and c.verdict != Verdict.EMULATED]
    if family:
        made.append(
            model.Threat(
                "statistical",
                f"{count(counts['blocks'], 'block')}; {count(len(family), 'comparison')} share "
                f"one chance of {format_percent(run.record['plan']['alpha'])} of a false "
                "“different”. Intervals are pointwise: of twenty, one may miss.",
                "",
            )
        )
    made.append(
        model.Threat(
            "construct",
            "Memory has several definitions that differ by what they count; an instance holds "
            "all of them at once. Readiness is what each workload defines it to be.",
            "",
        )
    )
    workloads = run.record["plan"]["workloads"]
    made.append(
        model.Threat(
            "external",
            f"One run of {count(len(workloads), 'workload')} on one host: another host, kernel, "
            "load or version of a program may give other figures. Ratios travel better than "
            "times, and not always.",
            "",
        )
    )
    return tuple(sorted(made, key=lambda item: list(KINDS).index(item.kind)))


def gaps(
    run: Run,
    arms: Sequence[model.Arm],
    comparisons: Sequence[model.Comparison],
    summaries: Sequence[model.Summary],
    counts: Mapping[str, int],
) -> tuple[str, ...]:
    """What a reader may look for here and not find."""
    plan = run.record["plan"]
    found = []
    emulated = [arm.label for arm in arms if arm.emulated]
    if emulated:
        found.append(
            f"What virtualisation costs: {listing(emulated)} was emulated. It takes a host on "
            "which KVM runs."
        )
    undecided = [c for c in comparisons if c.verdict == Verdict.UNDECIDED and c.primary]
    for row in undecided:
        needed = f": about {row.needed:,} blocks would tell" if row.needed else ""
        found.append(f"Whether {row.title} differs between {row.pair.replace(' ÷ ', ' and ')}"
                     f" by more than {row.margin_text}{needed}.")  # fmt: skip
    measured = {(s.metric, s.workload) for s in summaries if s.n}
    missing = [f"{metric} of {workload}" for metric, workload in plan["primary"]
               if (metric, workload) not in measured]  # fmt: skip
    if missing:
        found.append(f"Primary metrics without any value: {listing(missing)}.")
    refused = sorted({c.pair for c in comparisons if c.verdict == Verdict.REFUSED})
    if refused:
        found.append(f"Comparisons that were refused, each with its reason: {listing(refused)}.")
    unbound = _unbound(run)
    if unbound:
        found.append(
            f"Kernel work outside the instance's own account for {listing(unbound)}: it is bounded "
            f"(to {format_percent(1 - LEAST_ATTRIBUTED)}) only for work that lasts "
            f"{LONG_WINDOW_S:g} s or more."
        )
    if counts["blocks"] < TAIL_N:
        found.append(
            f"Rare slow starts: a 99th percentile takes {TAIL_N} blocks, this run has "
            f"{counts['blocks']}. The distributions show every value there is."
        )
    if run.costs is not None:
        found.append(
            "What instances cost that work at the same time: those of the cost model stood idle."
        )
    else:
        found.append(
            "Many instances at once: how many fit, what the next one costs, how neighbours disturb "
            "each other. Instances ran one at a time; so a ledger of memory cannot be closed: "
            "hvct costs does that."
        )
    found.append(
        "Whether the host would say the same tomorrow: that takes three runs across reboots."
    )
    found.append("What isolation is worth: a virtual machine's stronger walls have no figure here.")
    return tuple(found)


def _unbound(run: Run) -> list[str]:
    """Workloads with a fixed amount of work whose window was too short to attribute."""
    known = {workload for workload, _ in run.attributed}
    return [
        item["title"]
        for item in run.record["plan"]["workloads"]
        if item.get("work_units") and item["name"] not in known
    ]
