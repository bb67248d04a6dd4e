"""What changed between two runs: the same rules as inside one, on trials that nothing pairs.

Block 3 of one run has nothing in common with block 3 of another: no moment, no state of the
host. So each arm's trials of the one run stand against its trials of the other as two
groups (`bench.stats.two_sample`). What the host did to all arms alike is in such a
difference; beside it therefore stands the change of the arm's effect against its baseline
arm, in which that cancels, as a description.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import host as bench_host
from bench.errors import BadInput
from bench.model import Better, Outcome, Scale
from bench.numbers import format_value
from bench.registration import digest
from bench.stats.family import compare_family
from bench.stats.pairs import ABSENT, Design, Pair, PairedSeries
from bench.stats.sentences import effect_text, level_text
from bench.stats.verdict import Comparison, Verdict
from reports.analysis import arms_of
from reports.data import Run
from reports.series import DEFAULT_MARGIN, Group, Values

FORMAT = 1
"""Of the JSON; 1: first version."""


@dataclass(frozen=True)
class Change:
    """One arm, workload and metric in two runs.

    Attributes:
        comparison: the second run against the first.
        relative: the same of the effect against `baseline`, described; None where the arm
            has no baseline in both runs.
        worse: what changed is not what a user wants; None where nothing is different.
    """

    comparison: Comparison
    baseline: str
    relative: Comparison | None
    before: str
    after: str
    effect: str
    relative_effect: str
    worse: bool | None


@dataclass(frozen=True)
class Difference:
    """Two runs compared.

    Attributes:
        unlike: why they should not be (only ever with `anyway`); notes: what to know.
        changes: the judged ones first.
    """

    before: str
    after: str
    unlike: tuple[str, ...]
    notes: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def judged(self) -> tuple[Change, ...]:
        """Those with a place in the family of tests."""
        return tuple(one for one in self.changes if one.comparison.claims is not None)

    @property
    def different(self) -> tuple[Change, ...]:
        """Those that differ by more than their margin."""
        return tuple(o for o in self.changes if o.comparison.verdict is Verdict.DIFFERENT)

    def as_json(self) -> dict[str, Any]:
        """As JSON values; `format` first."""
        return {
            "format": FORMAT,
            "before": self.before,
            "after": self.after,
            "unlike": list(self.unlike),
            "notes": list(self.notes),
            "changes": [
                {
                    **one.comparison.plain(),
                    "worse": one.worse,
                    "before_text": one.before,
                    "after_text": one.after,
                    "effect_text": one.effect,
                    "relative_to": one.baseline,
                    "relative": None if one.relative is None else one.relative.plain(),
                    "relative_text": one.relative_effect,
                }
                for one in self.changes
            ],
        }


def compare_runs(
    before: Run, after: Run, *, anyway: bool = False, judge_emulated: bool = False
) -> Difference:
    """What changed from one run to the other.

    Args:
        anyway: compare what they have in common although they are unlike; the reasons stay.
        judge_emulated: treat emulated arms like any other.

    Raises:
        BadInput: they are unlike, or have nothing in common.
    """
    if before.digests == after.digests:
        raise BadInput("both are one and the same run", "name two runs")
    unlike = unlikeness(before, after)
    if unlike and not anyway:
        raise BadInput(
            f"these runs are not alike: {'; '.join(unlike[:4])}"
            + (f"; and {len(unlike) - 4} more" if len(unlike) > 4 else ""),
            "compare like with like, or use --anyway: the reasons then stand with the result",
        )
    old, new = (Values(run, arms_of(run)) for run in (before, after))
    rows = list(_series(old, new, judge_emulated=judge_emulated))
    if not rows:
        raise BadInput("these runs have no arm, workload and metric in common", "name others")
    compared = compare_family([row.level for row in rows], before.record["plan"]["alpha"])
    relative = compare_family([row.relative for row in rows if row.relative is not None])
    left = iter(relative)
    changes = [
        _change(row, result, next(left) if row.relative is not None else None)
        for row, result in zip(rows, compared, strict=True)
    ]
    return Difference(
        before=before.record["id"],
        after=after.record["id"],
        unlike=tuple(unlike),
        notes=tuple(_notes(before, after)),
        changes=tuple(sorted(changes, key=lambda one: one.comparison.claims is None)),
    )


def host_unlikeness(before: Run, after: Run) -> list[str]:
    """How two runs' hosts differ, one clause each."""
    return bench_host.same_host(before.record["host"], after.record["host"])


def unlikeness(before: Run, after: Run, *, host: bool = True) -> list[str]:
    """Why two runs are not of the same thing (on the same host), one clause each."""
    found = []
    for name in sorted({*before.record["images"], *after.record["images"]}):
        one, other = (_image(run, name) for run in (before, after))
        if one != other:
            found.append(f"image {name} is {other[:19] or 'missing'}, was {one[:19] or 'missing'}")
    old, new = (_workloads(run) for run in (before, after))
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            place = "second" if name in new else "first"
            found.append(f"workload {name} is only in the {place} run")
        elif old[name] != new[name]:
            found.append(f"workload {name} is another one")
    arms, arms_after = (run.record["plan"]["arms"] for run in (before, after))
    if set(arms) != set(arms_after):
        found.append(f"the arms were {', '.join(arms)}, are {', '.join(arms_after)}")
    for rule, default in (("page_cache", "warm"), ("gap", "quiet")):
        kept = [run.record["plan"].get(rule, default) for run in (before, after)]
        if kept[0] != kept[1]:
            found.append(f"the {rule.replace('_', ' ')} was {kept[0]}, is {kept[1]}")
    kinds = {arm.name: arm.kind for arm in arms_of(before)}
    for arm in arms_of(after):
        if arm.name in kinds and kinds[arm.name] != arm.kind:
            found.append(f"{arm.name} ran by {kinds[arm.name]}, and by {arm.kind}")
    if host:
        found += host_unlikeness(before, after)
    for name, about in before.record["metrics"].items():
        now = after.record["metrics"].get(name, about)
        if any(about.get(key) != now.get(key) for key in ("unit", "scale", "definition")):
            found.append(f"metric {name} means something else")
    return found


def _image(run: Run, name: str) -> str:
    about = run.record["images"].get(name)
    return str(about.get("digest") or "") if isinstance(about, dict) else ""


def _workloads(run: Run) -> dict[str, str]:
    return {item["name"]: digest(_work(item)) for item in run.record["plan"]["workloads"]}


def _work(item: Mapping[str, Any]) -> dict[str, Any]:
    """What a workload does; keys that older runs have not stand as those meant it."""
    kept = {"exchanges": 0, "together": 1, "elastic": False, **item}
    kept["metrics"] = [{"repeats": "first", **rule} for rule in item.get("metrics", ())]
    return {key: value for key, value in kept.items() if key != "title"}


def _notes(before: Run, after: Run) -> Iterator[str]:
    boots = [run.record["host"].get("boot_id") for run in (before, after)]
    yield (
        "the same boot of the host: nothing here speaks of what a reboot changes"
        if boots[0] and boots[0] == boots[1]
        else "two boots of the host: what a reboot alone changes is part of every difference"
    )
    versions = [run.record["hvct_version"] for run in (before, after)]
    if versions[0] != versions[1]:
        yield f"measured by hvct {versions[0]} and {versions[1]}"
    if _margins(before) != _margins(after):
        yield "the plans' margins differ; the first run's are used"
    for which, run in (("the first", before), ("the second", after)):
        changed = [one.message for one in run.findings if one.code == "plan-deviates"]
        if changed:
            yield f"{which} run, {run.record['id']}, is not as it was registered: {changed[0]}" + (
                f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            )
        planned = run.record["plan"]["blocks"]
        measured = int(run.trials["block"].nunique())
        if measured < planned:
            yield f"{run.record['id']} has {measured} of {planned} planned blocks"
        if run.invalid:
            count = len({block for _, block in run.invalid})
            yield f"{run.record['id']}: {count} blocks left out in part, by its plan's rules"


def _margins(run: Run) -> str:
    return json.dumps(run.record["plan"]["margins"], sort_keys=True)


@dataclass(frozen=True)
class _Row:
    level: PairedSeries
    baseline: str
    relative: PairedSeries | None


def _series(old: Values, new: Values, *, judge_emulated: bool) -> Iterator[_Row]:
    groups = {(group.metric, group.workload): group for group in new.groups}
    primary = {tuple(entry) for entry in old.run.record["plan"]["primary"]}
    labels = {arm.name: arm.label for arm in old.arms}
    emulated = {arm.name for arm in (*old.arms, *new.arms) if arm.emulated and not judge_emulated}
    baselines = dict(reversed(old.run.pairs))  # of several, an arm's first
    for group in old.groups:
        other = groups.get((group.metric, group.workload))
        if other is None:
            continue
        about = old.definition(group.metric)
        for arm in (arm.name for arm in old.arms):
            if not (old.applies(group, arm) and arm in {a.name for a in new.arms}):
                continue
            if not new.applies(other, arm):
                continue
            common: dict[str, Any] = {
                "metric": group.metric,
                "workload": group.workload,
                "arm": labels[arm],
                "unit": old.unit(group),
                "scale": Scale(about["scale"]),
                "better": Better(about["better"]),
                "margin": old.margin(group.metric) or DEFAULT_MARGIN,
                "resolution": float(about.get("resolution") or 0.0),
                "floor": max(v.floor(group, (arm, arm)) for v in (old, new)),
                "emulated": arm in emulated,
                "title": str(about.get("title") or group.metric),
                "design": Design.UNPAIRED,
            }
            level = PairedSeries(
                **common,
                baseline="before",
                values=_side_by_side(_trials(new, other, arm), _trials(old, group, arm)),
                primary=(group.metric, group.workload) in primary,
                errors=(new.error(other, arm), old.error(group, arm)),
                elapsed=old.waits(group.metric),
                timeout=old.timeout_s(group.workload),
            )
            base = baselines.get(arm, "")
            relative = None
            if base and base in {a.name for a in new.arms}:
                effects = [_effects(v, g, (arm, base)) for v, g in ((new, other), (old, group))]
                if all(effects):
                    relative = PairedSeries(
                        **common, baseline="before", values=_side_by_side(*effects),
                    )  # fmt: skip
            yield _Row(level, labels.get(base, base), relative)


_Trials = Sequence[tuple[str, float | None]]


def _side_by_side(arm: _Trials, baseline: _Trials) -> list[Pair]:
    """Two groups as rows; what the shorter lacks is absent."""
    nothing = (ABSENT, None)
    rows = max(len(arm), len(baseline))
    return [
        Pair(
            n,
            *(arm[n] if n < len(arm) else nothing),
            *(baseline[n] if n < len(baseline) else nothing),
        )
        for n in range(rows)
    ]


def _trials(values: Values, group: Group, arm: str) -> _Trials:
    ended = values.outcomes.get((group.workload, arm), {})
    got = group.values.get(arm, {})
    return [
        (outcome, got.get(block))
        for block, outcome in sorted(ended.items())
        if (group.workload, block) not in values.run.invalid
    ]


def _effects(values: Values, group: Group, names: tuple[str, str]) -> _Trials:
    """Each block's effect as a value of its own: a ratio, or a difference in the unit."""
    ratio = values.definition(group.metric)["scale"] == Scale.RATIO
    first, second = (group.values.get(name, {}) for name in names)
    found = []
    for block in sorted(first.keys() & second.keys()):
        if (group.workload, block) in values.run.invalid:
            continue
        a, b = first[block], second[block]
        if not ratio:
            found.append((Outcome.OK.value, a - b))
        elif a > 0.0 and b > 0.0:
            found.append((Outcome.OK.value, a / b))
    return found


def _change(row: _Row, result: Comparison, relative: Comparison | None) -> Change:
    worse = None
    if result.verdict is Verdict.DIFFERENT and result.estimate is not None:
        still = 1.0 if result.scale is Scale.RATIO else 0.0
        worse = (result.estimate > still) is not result.higher_is_better
    return Change(
        comparison=result,
        baseline=row.baseline,
        relative=relative,
        before=level_text(result, result.baseline_level),
        after=level_text(result, result.arm_level),
        effect=_effect(result),
        relative_effect="" if relative is None else _effect(relative),
        worse=worse,
    )


def _effect(result: Comparison) -> str:
    if result.estimate is None or math.isnan(result.estimate):
        return "no figure"
    return effect_text(result)


def margin_of(result: Comparison) -> str:
    """The margin as the plan has it."""
    if result.scale is Scale.RATIO:
        return f"{100 * result.margin:g} %"
    return format_value(result.margin, result.unit)


def summary(found: Difference) -> Mapping[str, int]:
    """How many judged comparisons ended how."""
    counts: dict[str, int] = {}
    for one in found.judged:
        counts[one.comparison.verdict.value] = counts.get(one.comparison.verdict.value, 0) + 1
    return counts
