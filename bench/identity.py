"""Was it the same work? Receipts of two arms compared field by field.

Each field is classed: *must match*, *declared difference* or *informational*. Allowed
differences belong to a pair of arms, in the one closed table below. A must-match field
that differs makes the comparison refused, and the report says why.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class FieldClass(StrEnum):
    """What a difference in a receipt field means."""

    MUST_MATCH = "must match"
    DECLARED = "declared difference"
    INFORMATIONAL = "informational"


FIELDS: dict[str, FieldClass] = {
    # What runs.
    "arg": FieldClass.MUST_MATCH,
    "env": FieldClass.MUST_MATCH,
    "cwd": FieldClass.MUST_MATCH,
    "uid": FieldClass.MUST_MATCH,
    "gid": FieldClass.MUST_MATCH,
    "group": FieldClass.MUST_MATCH,
    "umask": FieldClass.MUST_MATCH,
    "rlimit": FieldClass.MUST_MATCH,
    "program": FieldClass.MUST_MATCH,
    "program_inode": FieldClass.MUST_MATCH,
    "program_size": FieldClass.MUST_MATCH,
    "program_mode": FieldClass.MUST_MATCH,
    "content": FieldClass.MUST_MATCH,
    "image": FieldClass.MUST_MATCH,
    # What it may use.
    "cpus_allowed": FieldClass.MUST_MATCH,
    "writable_bytes": FieldClass.MUST_MATCH,
    "writable_inodes": FieldClass.MUST_MATCH,
    "shm_bytes": FieldClass.MUST_MATCH,
    "thp": FieldClass.MUST_MATCH,
    "securebits": FieldClass.MUST_MATCH,
    "timerslack_ns": FieldClass.MUST_MATCH,
    "hostname": FieldClass.MUST_MATCH,
    "nice": FieldClass.MUST_MATCH,
    "machine": FieldClass.MUST_MATCH,
    "writable_magic": FieldClass.MUST_MATCH,
    "shm_magic": FieldClass.MUST_MATCH,
    "randomize_va_space": FieldClass.MUST_MATCH,
    # Work metrics only; made from the two raw fields below, see `derived`.
    "cpu_instructions": FieldClass.MUST_MATCH,
    "mitigations": FieldClass.MUST_MATCH,
    # Different by nature, and said so.
    "cpu_flags": FieldClass.DECLARED,
    "vulnerability": FieldClass.DECLARED,
    "release": FieldClass.DECLARED,
    "version": FieldClass.DECLARED,
    "clocksource": FieldClass.DECLARED,
    "cpu_model": FieldClass.DECLARED,
    "cpus_online": FieldClass.DECLARED,
    "cpu_vendor": FieldClass.DECLARED,
    "cpu_microcode": FieldClass.DECLARED,
    "cpu_bugs": FieldClass.DECLARED,
    "mem_total_bytes": FieldClass.DECLARED,
    "swap_total_bytes": FieldClass.DECLARED,
    "overcommit_memory": FieldClass.DECLARED,
    "pid": FieldClass.DECLARED,
    "cap_effective": FieldClass.DECLARED,
    "cap_permitted": FieldClass.DECLARED,
    "cap_inheritable": FieldClass.DECLARED,
    "cap_bounding": FieldClass.DECLARED,
    "cap_ambient": FieldClass.DECLARED,
    "no_new_privs": FieldClass.DECLARED,
    "seccomp": FieldClass.DECLARED,
    "cmdline": FieldClass.DECLARED,
}
"""Class of each field between a VM and a container; a field not listed is informational."""

WORK_ONLY = frozenset({"cpu_instructions", "mitigations"})
"""Fields that must match for metrics of work done, and are declared for start-up."""

INSTRUCTIONS = re.compile(
    r"fpu|mmx\w*|3dnow\w*|cmov|cx8|cx16|fxsr|sse\w*|ssse3|pni|misalignsse|popcnt|abm|lzcnt|movbe|"
    r"aes|pclmulqdq|v(?:aes|pclmulqdq)|sha\w*|sm[34]|avx\w*|f16c|fma4?|xop|tbm|bmi[12]|adx|gfni|"
    r"amx_\w+|apx\w*|rdrand|rdseed|rdpid|rdtscp|tsc|erms|fsr[mcs]|fzrm|clflush(?:opt)?|clwb|clzero|"
    r"cldemote|movdiri|movdir64b|xsave(?:opt|c)?|xgetbv1|fsgsbase|lahf_lm|rtm|hle|serialize"
)
"""CPU flags that are instructions for programs. The others are what a kernel can or did do:
no guest has its host's (``hypervisor`` is one), and no two kernels call them all the same."""

SAME_SECURITY = frozenset(
    {"cap_effective", "cap_permitted", "cap_bounding", "no_new_privs", "seccomp"}
)
"""Fields that must match as well under the security profile ``same``."""

ARM_DECLARED: Mapping[str, frozenset[str]] = {
    "process": frozenset({"hostname"}),  # it has the host's, and is not PID 1
    "unshare": frozenset({"hostname"}),  # it cannot set one
    # It unpacks the image into its own storage: the same content (digests must match), other
    # inodes; and its writable layer has no limit.
    "docker": frozenset({"program_inode", "writable_bytes", "writable_inodes"}),
    "podman": frozenset({"rlimit"}),  # it lowers its own, and may not have the right to raise them
}
"""Backend → what it cannot do identically, and that is said so: the only such table."""


@dataclass(frozen=True)
class FieldDifference:
    """One field that differs between two receipts."""

    name: str
    field_class: FieldClass
    first: str
    second: str


@dataclass
class PairIdentity:
    """What comparing the receipts of one pair of arms over a run found."""

    arm: str
    baseline: str
    pairs: int = 0
    identical: int = 0
    missing: int = 0
    differences: dict[str, FieldDifference] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    work_refused: dict[str, str] = field(default_factory=dict)


def class_of(
    name: str, arms: Iterable[str], security: str, *, emulated: bool = False
) -> FieldClass:
    """The class of a field for a pair of arms under a security profile.

    An emulated CPU has its own flags and needs its own mitigations: that is what emulation
    is, and its figures are never judged.
    """
    if emulated and name in WORK_ONLY:
        return FieldClass.DECLARED
    if security == "same" and name in SAME_SECURITY:
        return FieldClass.MUST_MATCH
    backends = {arm.partition(":")[0] for arm in arms}
    if any(name in ARM_DECLARED.get(backend, ()) for backend in backends):
        return FieldClass.DECLARED
    return FIELDS.get(name, FieldClass.INFORMATIONAL)


def differences(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    arms: tuple[str, str],
    security: str,
    *,
    emulated: bool = False,
) -> list[FieldDifference]:
    """Every field in which two receipts differ, with its class.

    Fields that only one of the two holds differ too: an arm cannot pass by being silent.
    """
    found = []
    first, second = derived(first, second), derived(second, first)
    for name in sorted({*first, *second}):
        if _value(first, name) != _value(second, name):
            found.append(
                FieldDifference(
                    name,
                    class_of(name, arms, security, emulated=emulated),
                    shown(first.get(name)),
                    shown(second.get(name)),
                )
            )
    return found


def derived(receipt: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt with what is compared of CPU flags and mitigations in place of their words.

    A mitigation counts by its state (not affected, mitigated, vulnerable), for those that
    both kernels know: a guest's words about one and the same are never its host's.
    """
    made = dict(receipt)
    if "cpu_flags" in receipt:
        flags = str(receipt["cpu_flags"]).split()
        made["cpu_instructions"] = sorted(flag for flag in flags if INSTRUCTIONS.fullmatch(flag))
    if "vulnerability" in receipt:
        own, others = _states(receipt["vulnerability"]), _states(other.get("vulnerability", []))
        common = own.keys() & others.keys()
        made["mitigations"] = [f"{name}: {own[name]}" for name in sorted(common)]
    return made


def _states(lines: Iterable[object]) -> dict[str, str]:
    """Vulnerability → its state; those that are about guests, or that a guest cannot know, not."""
    states = {}
    for name, _, text in (str(line).partition(":") for line in lines):
        if state := re.match(r"\s*(Not affected|Mitigation|Vulnerable)\b", text):
            states[name] = state[1]
    return states


def _value(receipt: Mapping[str, Any], name: str) -> Any:
    """A field's value; vulnerabilities are listed in whatever order the kernel keeps its files."""
    value = receipt.get(name)
    return sorted(map(str, value)) if name == "vulnerability" and value else value


def shown(value: Any) -> str:
    """A receipt value, short enough for a table."""
    if value is None:
        return "(absent)"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    if len(text) > 160:
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        return f"{text[:120]}… ({len(text)} characters, sha256 {digest})"
    return text


def compare(
    trials: Iterable[Mapping[str, Any]],
    untimed: Iterable[Mapping[str, Any]],
    pairs: Iterable[tuple[str, str]],
    security: Mapping[str, str],
) -> list[PairIdentity]:
    """Compare the receipts of every pair of trials of one block and workload.

    Args:
        trials: stored trials, with cheap receipts.
        untimed: ``{"arm", "workload", "receipt"}`` of the untimed digest trials.
        pairs: (arm, baseline) as the report compares them.
        security: workload name → its security profile.
    """
    trials = list(trials)
    emulators = {
        trial["arm"] for trial in trials if trial.get("accelerator", {}).get("kind") == "tcg"
    }
    by_place = {
        (trial["block"], trial["workload"], trial["arm"]): trial["receipt"]
        for trial in trials
        if trial["outcome"] == "ok"
    }
    by_digest = {(item["workload"], item["arm"]): item["receipt"] for item in untimed}
    results = []
    for arm, baseline in pairs:
        result = PairIdentity(arm, baseline)
        emulated = arm in emulators or baseline in emulators
        # Receipts hardly ever change during a run; comparing them again is most of its reading.
        seen: dict[str, tuple[Any, Any, list[FieldDifference]]] = {}
        for (block, workload, name), receipt in by_place.items():
            other = by_place.get((block, workload, baseline))
            if name != arm or other is None:
                continue
            result.pairs += 1
            if not receipt or not other:
                result.missing += 1
                result.refused[workload] = "an arm sent no receipt"
                continue
            known = seen.get(workload)
            if known and known[:2] == (receipt, other):
                found = known[2]
            else:
                found = differences(
                    receipt, other, (arm, baseline), security.get(workload, ""), emulated=emulated
                )
                seen[workload] = (receipt, other, found)
            _note(result, workload, found)
        for (workload, name), receipt in by_digest.items():
            other = by_digest.get((workload, baseline))
            if name == arm and other is not None:
                if not (receipt.get("content") and other.get("content")):
                    result.refused.setdefault(workload, "no proof of what the program consists of")
                    continue
                found = differences(
                    receipt, other, (arm, baseline), security.get(workload, ""), emulated=emulated
                )
                _note(result, workload, found, counted=False)
        results.append(result)
    return results


def _note(
    result: PairIdentity, workload: str, found: list[FieldDifference], *, counted: bool = True
) -> None:
    broken = False
    for difference in found:
        result.differences.setdefault(difference.name, difference)
        if difference.field_class is not FieldClass.MUST_MATCH:
            continue
        text = f"{difference.name}: {difference.first} against {difference.second}"
        if difference.name in WORK_ONLY:
            result.work_refused.setdefault(workload, text)
        else:
            broken = True
            result.refused.setdefault(workload, text)
    if counted and not broken:
        result.identical += 1
