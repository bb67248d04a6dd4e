"""The sentences of a report that are not about one comparison: banner, answers, findings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from bench.arms import ARMS
from bench.disturbances import UNMET
from bench.identity import FieldClass
from bench.numbers import format_percent, format_value
from bench.stats.verdict import Verdict
from reports import better, costs, model
from reports.data import Run

FAMILY_TITLES = {
    "start-up": "Start-up and teardown",
    "memory": "Memory",
    "cpu": "CPU efficiency",
    "disk": "Scratch disk",
    "workload": "What the workloads measured",
}
MOST_WARNINGS = 3
THREATS_TITLE = "What could make it wrong"
"""The heading of the section that holds all of them."""

MOST_DECLARED = 6
FIELD_TITLES = {
    "arg": "arguments", "env": "environment", "cwd": "working directory", "group": "groups",
    "release": "kernel", "version": "kernel version", "cmdline": "kernel command line",
    "clocksource": "clock source", "cpu_model": "CPU model", "cpu_flags": "CPU flags",
    "cpus_online": "CPUs online", "cpus_allowed": "CPUs allowed", "mem_total_bytes": "memory seen",
    "mem_available_bytes": "memory available",
    "pid": "process number", "no_new_privs": "no new privileges", "thp": "transparent huge pages",
    "cap_effective": "capabilities, effective", "cap_permitted": "capabilities, permitted",
    "cap_inheritable": "capabilities, inheritable", "cap_bounding": "capabilities, bounding",
    "cap_ambient": "capabilities, ambient", "vulnerability": "mitigations",
    "program_inode": "program, inode", "program_size": "program, size",
    "program_mode": "program, mode", "content": "file contents",
}  # fmt: skip
_READING_UNITS = (("_cpus", "CPUs"), ("_bytes", "bytes"), ("_per_s", "/s"), ("_s", "s"))
_SHARES = ("psi_", "image_resident", "flagged")


def words(name: str) -> str:
    """``page_cache`` → page cache, ``cpu_model`` → CPU model."""
    return re.sub(r"\bcpu(s?)\b", r"CPU\1", name.replace("_", " "))


def field_title(name: str) -> str:
    """What a field of the receipt is called."""
    return FIELD_TITLES.get(name, words(name))


def family_title(name: str) -> str:
    """The heading of a family of metrics."""
    return FAMILY_TITLES.get(name, words(name).capitalize() or "Other")


def reading(name: str) -> tuple[str, str]:
    """Unit and title of a disturbance."""
    if name.startswith(UNMET):
        return "fraction", f"not settled: {words(name.removeprefix(UNMET))}"
    if name.startswith(_SHARES):
        return "fraction", words(name.replace("psi_", "PSI: stalled on "))
    for suffix, unit in _READING_UNITS:
        if name.endswith(suffix):
            return unit, words(name.removesuffix(suffix)) + (" per second" if unit == "/s" else "")
    return "", words(name)


def reading_order(name: str) -> tuple[int, str]:
    """What matters most first."""
    first = ("flagged", "steal_cpus", "other_cpus", "psi_cpu", "psi_memory", "psi_io")
    return (first.index(name) if name in first else len(first), name)


def short(sentence: str) -> str:
    """A sentence without the scope that the headline list states once."""
    sentence = re.sub(r"\(no verdict: descriptive:[^)]*\)", "(described, not judged)", sentence)
    text = re.sub(r"^(Under emulation, )?[Ii]n this run on this host, ", r"\1", sentence)
    return text[:1].upper() + text[1:]


def listing(items: Sequence[str]) -> str:
    """``a, b and c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def gathered(said: Sequence[tuple[str, str, str]], between: str, between_each: str) -> list[str]:
    """What is said of pairs, a line for all arms of which the same is said beside the same one.

    Args:
        said: of each pair: the arm, what it is beside, the text.
        between: stands between the two; `between_each` after several arms.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for arm, base, text in said:
        groups.setdefault((base, text), []).append(arm)
    return [
        f"{listing(arms)} {between if len(arms) == 1 else between_each} {base}: {text}"
        for (base, text), arms in groups.items()
    ]


def count(number: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def workload(item: Mapping[str, Any]) -> model.Workload:
    """One workload as the report lists it."""
    limits = _table(item.get("limits"))
    ready = _table(item.get("ready"))
    argv = item.get("argv")
    command = (
        "the image's own"
        if argv is None
        else (shlex.join(str(word) for word in argv) if isinstance(argv, list) else str(argv))
    )
    parts = []
    if isinstance(limits.get("cpus"), int | float):
        parts.append(count(int(limits["cpus"]), "CPU") if float(limits["cpus"]).is_integer()
                     else f"{limits['cpus']} CPUs")  # fmt: skip
    if isinstance(limits.get("memory_bytes"), int | float):
        basis = limits.get("memory_basis")
        parts.append(
            format_value(float(limits["memory_bytes"]), "bytes")
            + (f" ({basis})" if isinstance(basis, str) else "")
        )
    if isinstance(limits.get("pids"), int):
        parts.append(f"{limits['pids']:,} processes")
    return model.Workload(
        name=item["name"],
        title=item["title"],
        image=str(item.get("image", "")),
        command=command if len(command) <= 300 else command[:300] + "…",
        ready=_readiness(ready),
        until=str(item.get("until", "exit")),
        limits=", ".join(parts),
        network=str(item.get("network", "none")),
    )


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _readiness(ready: Mapping[str, Any]) -> str:
    port = ready.get("port")
    texts = {
        "started": "its program is executed",
        "output": "its first byte of output",
        "line": f"a line of output matches {ready.get('pattern', '')}",
        "tcp": f"port {port} accepts a connection",
        "reply": f"port {port} answers",
        "http": f"port {port} answers HTTP 200 for {ready.get('path', '/')}",
    }
    return texts.get(str(ready.get("kind")), str(ready.get("kind", "")))


def banner(arms: Sequence[model.Arm]) -> tuple[str, str]:
    """Head and text of the accelerator banner, both "" when no arm is a VM."""
    machines = [arm for arm in arms if arm.kind != "none"]
    if not machines:
        return "", ""
    reasons = listing(list(dict.fromkeys(arm.reason for arm in machines if arm.reason)))
    labels = listing([arm.label for arm in machines])
    if any(arm.emulated for arm in machines):
        because = f" The reason: {reasons}." if reasons else ""
        return (
            "TCG, not KVM.",
            f"Figures of {labels} describe an emulator, not virtualisation. They are printed in "
            f"full and judged nowhere.{because}",
        )
    nested = any("nested" in arm.label for arm in machines)
    text = f"Figures of {labels} were taken under KVM" + (
        ", on a host that is itself a virtual machine" if nested else ""
    )
    return "KVM.", f"{text}. {reasons[:1].upper() + reasons[1:] + '.' if reasons else ''}".strip()


def answers(
    run: Run,
    arms: Sequence[model.Arm],
    pairs: Sequence[tuple[str, str, str]],
    comparisons: Sequence[model.Comparison],
    findings: Sequence[Mapping[str, str]],
    counts: Mapping[str, int],
    labels: Mapping[str, str],
    primary: tuple[str, str] | None,
) -> tuple[model.Answer, ...]:
    """The first page's questions."""
    return (
        model.Answer("What was compared?", tuple(_compared(run, arms, counts))),
        model.Answer("Was it the same work?", tuple(_same(run, labels))),
        model.Answer("Which is better?", tuple(_better(run, arms, comparisons))),
        model.Answer(
            "What came out?",
            (*costs.sentences(run.costs), *_came_out(pairs, comparisons, nothing_measured(run))),
        ),
        model.Answer("How sure is that?", tuple(_sure(run, comparisons, labels, primary))),
        model.Answer("What could make it wrong?", tuple(_beware(findings))),
    )


def nothing_measured(run: Run) -> str:
    """Why there is no figure at all in a run; "" where it holds trials, or steps of costs."""
    if len(run.trials) or run.steps:
        return ""
    if run.excluded:
        return (
            f"nothing was measured that counts: the run holds {count(run.excluded, 'trial')}, "
            "none of a block that is complete"
        )
    return "nothing was measured: the run holds no trial"


def _compared(run: Run, arms: Sequence[model.Arm], counts: Mapping[str, int]) -> list[str]:
    plan = run.record["plan"]
    images = [
        f"{name} ({str(image.get('digest', ''))[:19]}…)" if isinstance(image, dict) else name
        for name, image in run.record["images"].items()
    ]
    titles = listing([item["title"] for item in plan["workloads"]])
    same = f"One image, {listing(images)}" if len(images) == 1 else f"Images {listing(images)}"
    return [
        f"{same}, run as {listing([arm.label for arm in arms])}: {titles}.",
        f"{counts['blocks']} of {count(counts['blocks_planned'], 'planned block')}, each with "
        f"one trial of every arm and workload in random order (seed {run.record.get('seed')}): "
        f"{count(counts['trials'], 'trial')}, {counts['ok']:,} ended well"
        + (
            "; "
            + listing(
                [
                    f"{counts[name]} {text}"
                    for name, text in (
                        ("failed", "failed"),
                        ("timeout", "timed out"),
                        ("refused", "refused"),
                    )
                    if counts[name]
                ]
            )
            + "."
            if counts["ok"] != counts["trials"]
            else "."
        ),
    ]


def _same(run: Run, labels: Mapping[str, str]) -> list[str]:
    refused: list[str] = []
    said: list[tuple[str, str, str]] = []
    for item in run.identity:
        name = f"{labels[item.arm]} and {labels[item.baseline]}"
        for workloads, what in ((item.refused, "all figures"), (item.work_refused, "work only")):
            reasons: dict[str, list[str]] = {}
            for workload_name, reason in sorted(workloads.items()):
                reasons.setdefault(reason, []).append(workload_name)
            refused += [
                f"Not the same: {name} are not compared for {listing(names)} ({what}): {reason}."
                for reason, names in reasons.items()
            ]
        pair = (labels[item.arm], labels[item.baseline])
        if not item.pairs:
            said.append((*pair, "no pair of trials to compare."))
            continue
        declared = list(
            dict.fromkeys(
                field_title(d.name).partition(",")[0]
                for d in item.differences.values()
                if d.field_class is FieldClass.DECLARED
            )
        )
        if len(declared) > MOST_DECLARED:
            declared[MOST_DECLARED - 1 :] = [f"{len(declared) - MOST_DECLARED + 1} more"]
        doubted = item.refused or item.work_refused
        same = "identical in what the trials report" if doubted else "identical"
        text = f"{item.identical} of {count(item.pairs, 'pair')} {same}"
        if declared:
            text += f" but for the declared differences ({listing(declared)})"
        said.append((*pair, text + "."))
    return [*refused, *gathered(said, "and", "each beside")] or [
        "Nothing to compare: this run has one arm."
    ]


def _better(
    run: Run, arms: Sequence[model.Arm], comparisons: Sequence[model.Comparison]
) -> list[str]:
    titles = {item["name"]: item["title"] for item in run.record["plan"]["workloads"]}
    return better.lines(arms, comparisons, run.record["metrics"], titles)


def _came_out(
    pairs: Sequence[tuple[str, str, str]], comparisons: Sequence[model.Comparison], nothing: str
) -> list[str]:
    lines = [f"{capitalised(nothing)}."] if nothing else []
    said: list[tuple[str, str, str]] = []
    for arm, baseline, label in pairs:
        names = (label.partition(" ÷ ")[0], label.partition(" ÷ ")[2])
        mine = [c for c in comparisons if (c.arm, c.baseline) == (arm, baseline)]
        family = [c for c in mine if c.primary and c.verdict != Verdict.EMULATED]
        if family:
            tally = [
                f"{sum(c.verdict == verdict for c in family)} {verdict.value}"
                for verdict in Verdict
                if any(c.verdict == verdict for c in family)
            ]
            text = f"of {count(len(family), 'primary comparison')}, {listing(tally)}."
            said.append((*names, text))
        elif mine and all(c.verdict == Verdict.REFUSED for c in mine):
            said.append((*names, "refused, the arms did not do the same work."))
        elif any(c.verdict == Verdict.EMULATED for c in mine):
            text = f"emulated. {count(len(mine), 'figure')} with intervals, none of them judged."
            said.append((*names, text))
        elif mine:
            text = f"{count(len(mine), 'figure')}, described and not judged"
            said.append((*names, f"{text} (outside the plan's primary family)."))
    return [*lines, *gathered(said, "÷", "each ÷")] or ["No comparison was possible."]


def _sure(
    run: Run,
    comparisons: Sequence[model.Comparison],
    labels: Mapping[str, str],
    primary: tuple[str, str] | None,
) -> list[str]:
    alpha = run.record["plan"]["alpha"]
    family = [c for c in comparisons if c.primary and c.verdict != Verdict.EMULATED]
    lines = ["Intervals are 95 %, pointwise, from an exact signed-rank test over paired blocks."]
    if family and primary:
        lines.append(
            f"Verdicts are Holm-corrected over the {len(family)} primary comparisons of "
            f"{labels[primary[0]]} ÷ {labels[primary[1]]}, marked ★: the chance of any false "
            f"“different” among them is at most {format_percent(alpha)}, the same for "
            "“equivalent”. Everything else is described, not judged."
        )
    else:
        lines.append("No comparison was judged in this run.")
    lines.append(
        "One run speaks of this run on this host. A claim about the host needs at least three "
        "runs across reboots."
    )
    return lines


def _beware(findings: Sequence[Mapping[str, str]]) -> list[str]:
    serious = [item for item in findings if item["level"] != "info"]
    if not serious:
        return ["Nothing beyond the limits named under Method."]
    lines = [
        capitalised(item["message"]) + (f": {item['meaning']}" if item["meaning"] else "") + "."
        for item in serious[:MOST_WARNINGS]
    ]
    if len(serious) > MOST_WARNINGS:
        lines.append(f"And {len(serious) - MOST_WARNINGS} more, under “{THREATS_TITLE}”.")
    return lines


def capitalised(text: str) -> str:
    """A sentence's first letter in upper case, unless it is an arm's name."""
    named = re.match(r"[a-z]+", text)
    arm = named is not None and named[0] in {name.partition(":")[0] for name in ARMS}
    return text if arm else text[:1].upper() + text[1:]
