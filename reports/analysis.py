"""A run, checked and read, becomes a RunReport: every number and every sentence of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench import arms as bench_arms
from bench import host as bench_host
from bench import registration
from bench.model import Accelerator
from bench.numbers import format_p, format_percent, format_value
from bench.stats.family import compare_family, order_findings
from bench.stats.pairs import PairedSeries
from bench.stats.sentences import effect_text, sentence
from bench.stats.verdict import Comparison as Compared
from bench.stats.verdict import Verdict
from reports import (
    definitions,
    measured,
    model,
    notes,
    raw,
    robustness,
    threats,
    wording,
)
from reports.data import Run
from reports.series import Group, Values, effect, other_scale, paired, summary

TOLD_FIRST = frozenset({"startup_ready", "memory_current", "work_per_cpu_second"})
MOST_OTHERS = 3
"""Sentences about pairs that are not judged: the page says the rest in its tables."""

ARM_ORDER = {"process": 0, "container": 1, "qemu": 3, "vm": 3}
ARM_STYLES = {"vm": 0, "container": 1, "process": 2}


def analyse(run: Run, first_line: int = 2) -> model.RunReport:
    """Everything a report says about one run.

    Args:
        first_line: of samples.csv that holds a sample of this run.
    """
    plan = run.record["plan"]
    judge_emulated = bool(plan.get("judge_emulated"))
    arms = arms_of(run)
    values = Values(run, arms)
    labels = {arm.name: arm.label for arm in arms}
    pairs = _pairs(run, arms)
    primary = primary_pair(run, arms, judge_emulated=judge_emulated)
    rows = list(paired(values, primary, judge_emulated=judge_emulated))
    series = [one for _, one, _ in rows]
    compared = compare_family(series, plan["alpha"])
    comparisons = tuple(
        _comparison(run, values, *one, result) for one, result in zip(rows, compared, strict=True)
    )
    counts = measured.counts(run)
    ways = robustness.both_ways(values, primary, compared, judge_emulated=judge_emulated)
    moved = robustness.moved(values, rows)
    findings = notes.findings(
        run,
        counts,
        [
            *order_findings([one for one in series if one.primary]),
            *robustness.findings(ways, moved),
        ],
    )
    headlines = _headlines(run, comparisons, compared)
    summaries = tuple(
        summary(values, group, arm.name)
        for group in values.groups
        for arm in arms
        if values.applies(group, arm.name)
    )
    defined = definitions.defined(run, arms)
    banner_head, banner = wording.banner(arms)
    return model.RunReport(
        id=run.record["id"],
        created=run.record["created"],
        ended=run.record["ended"],
        seed=str(run.record.get("seed", plan.get("seed", ""))),
        version=run.record["hvct_version"],
        command=run.record["command"],
        digests=run.digests,
        plan={
            "name": str(plan.get("name", "")),
            "experiment": str(plan.get("experiment", "")),
            "blocks": plan["blocks"],
            "alpha": plan["alpha"],
            "primary": plan["primary"],
            "margins": plan["margins"],
            "primary_pair": [labels[name] for name in primary or ()],
        },
        host=run.record["host"],
        host_line=_host_line(run.record["host"]),
        images=run.record["images"],
        arms=arms,
        pairs=pairs,
        workloads=tuple(wording.workload(item) for item in plan["workloads"]),
        metrics=_metrics(values),
        families=_families(values),
        banner_head=banner_head,
        banner=banner,
        judged_emulation=judge_emulated and any(arm.emulated for arm in arms),
        family_size=max((one.family_size for one in compared), default=0),
        answers=wording.answers(run, arms, pairs, comparisons, findings, counts, labels, primary),
        headlines=headlines,
        comparisons=comparisons,
        summaries=summaries,
        distributions=tuple(measured.distributions(values)),
        phases=tuple(measured.phases(run, arms)),
        counts=counts,
        outcomes=measured.outcomes(run, arms),
        failures=measured.failures(run, labels),
        disturbances=tuple(measured.readings(run, arms)),
        identity=notes.identity(run, labels),
        fairness=tuple((wording.words(k), str(v)) for k, v in plan["fairness"].items()),
        findings=findings,
        robustness={"both_ways": ways, "moved": moved},
        registration={
            "digest": registration.mark(run.record),
            "deviations": [f["message"] for f in findings if f["code"] == "plan-deviates"],
        },
        descriptions=run.record["descriptions"],
        resolution_s=dict(sorted(run.resolution_s.items())),
        series=tuple(raw.series(run, first_line)),
        definitions=definitions.definitions(),
        defined=defined,
        published=definitions.published(run, arms, defined),
        threats=threats.threats(run, arms, comparisons, findings, counts),
        gaps=threats.gaps(run, arms, comparisons, summaries, counts),
        costs=run.costs,
        steps=tuple(run.steps),
    )


def arms_of(run: Run) -> tuple[model.Arm, ...]:
    """The arms in the order of the tables: bare process first, virtual machines last."""
    versions: dict[str, str] = {}
    probed: dict[str, Mapping[str, Any]] = {}
    for capability in run.record["capabilities"]:
        versions[str(capability.get("backend"))] = str(capability.get("version") or "")
        accelerator = capability.get("accelerator")
        if isinstance(accelerator, dict):
            probed[str(capability.get("backend"))] = accelerator
    names = run.record["plan"]["arms"]
    arms = []
    taken: set[int] = set()
    for name in names:
        known = bench_arms.ARMS.get(name)
        backend = known.backend if known else name.partition(":")[0]
        seen = run.trials[run.trials["arm"] == name][["kind", "reason", "nested"]]
        kinds = {
            Accelerator(row.kind, row.reason, bool(row.nested))
            for row in seen.drop_duplicates().itertuples()
            if row.kind != "none"
        }
        if not kinds and (about := probed.get(backend)) and about.get("kind") in {"kvm", "tcg"}:
            kinds = {
                Accelerator(
                    str(about["kind"]), str(about.get("reason") or ""), bool(about.get("nested"))
                )
            }
        labels = sorted({accelerator.label for accelerator in kinds})
        reasons = sorted({accelerator.reason for accelerator in kinds if accelerator.reason})
        place = ARM_STYLES.get(name, -1)
        if place < 0:
            place = next(n for n in range(3, 64) if n not in taken)
        taken.add(place)
        arms.append(
            model.Arm(
                name=name,
                label=f"{name} ({' and '.join(labels)})" if labels else name,
                title=known.title if known else name,
                kind=" and ".join(sorted({a.kind for a in kinds})) or "none",
                reason="; ".join(reasons),
                emulated=any(accelerator.emulated for accelerator in kinds),
                version=versions.get(backend, ""),
                style=place,
            )
        )
    return tuple(sorted(arms, key=lambda arm: ARM_ORDER.get(arm.name.partition(":")[0], 2)))


def _pairs(run: Run, arms: Sequence[model.Arm]) -> tuple[tuple[str, str, str], ...]:
    """(arm, baseline, label) in the order of the tables' columns."""
    labels = {arm.name: arm.label for arm in arms}
    order = [arm.name for arm in arms]
    pairs = sorted(run.pairs, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))
    return tuple((arm, base, f"{labels[arm]} ÷ {labels[base]}") for arm, base in pairs)


def primary_pair(
    run: Run, arms: Sequence[model.Arm], *, judge_emulated: bool
) -> tuple[str, str] | None:
    """vm ÷ container; where the VM is emulated, container ÷ process; else what there is."""
    emulated = {arm.name for arm in arms if arm.emulated and not judge_emulated}
    fit = [pair for pair in run.pairs if not emulated & set(pair)]

    def rank(pair: tuple[str, str]) -> int:
        if bench_arms.VARIANTS.get(pair[0]) == pair[1]:
            return 4
        if pair == ("vm", "container"):
            return 0
        if pair[0].startswith("vm"):
            return 1
        return 2 if pair[1] == "process" else 3

    return min(fit, key=rank, default=None)


def _comparison(
    run: Run,
    values: Values,
    group: Group,
    series: PairedSeries,
    names: tuple[str, str],
    result: Compared,
) -> model.Comparison:
    title = f"{series.title}, {_workload_title(run, group.workload)}"
    described = result.verdict is Verdict.NO_VERDICT and result.reason.startswith("descriptive")
    size = None
    if result.estimate is not None:
        size = effect(series.scale, result.estimate, result.low, result.high, effect_text(result))
    ratio = series.scale.value == "ratio"
    return model.Comparison(
        id=f"{group.metric}/{group.workload}/{names[0]}/{names[1]}",
        metric=group.metric,
        workload=group.workload,
        arm=names[0],
        baseline=names[1],
        title=title,
        pair=f"{series.arm} ÷ {series.baseline}",
        family=str(values.definition(group.metric).get("family", "")),
        effect=size,
        other=other_scale(series),
        margin_text=format_percent(series.margin)
        if ratio
        else format_value(series.margin, series.unit),
        verdict=result.verdict.value,
        verdict_text="described" if described else result.verdict.value,
        reason=_reason(result, described=described),
        n=result.n_pairs,
        planned=max(run.record["plan"]["blocks"], result.n_blocks),
        needed=result.needed_n,
        failed=result.n_failed_arm + result.n_failed_baseline,
        timeouts=result.n_timeouts,
        p=result.p_value,
        p_adjusted=result.p_adjusted,
        p_text="" if result.p_adjusted is None else format_p(result.p_adjusted),
        failure_p=result.failure_p,
        primary=series.primary,
        judged=result.verdict.judged,
        sentence=_sentence(result),
    )


def _reason(result: Compared, *, described: bool) -> str:
    """Why this verdict, where its own word does not say it already."""
    if result.estimate is None and result.n_below:
        return "below the resolution"
    if described or result.verdict in {Verdict.DIFFERENT, Verdict.EQUIVALENT, Verdict.EMULATED}:
        return ""
    return result.reason


def _sentence(result: Compared) -> str:
    """The sentence about a comparison, capitalised and ended."""
    text = sentence(result).replace(" as as a ", " as a ")
    return f"{text[:1].upper()}{text[1:]}."


def _workload_title(run: Run, name: str) -> str:
    for item in run.record["plan"]["workloads"]:
        if item["name"] == name:
            return str(item["title"])
    return name


def _headlines(
    run: Run, comparisons: Sequence[model.Comparison], compared: Sequence[Compared]
) -> tuple[model.Headline, ...]:
    """Sentences about the primary family, then a few about the other pairs."""
    order = {tuple(entry): n for n, entry in enumerate(run.record["plan"]["primary"])}
    family = [row for row in comparisons if row.primary]
    family.sort(key=lambda row: order[(row.metric, row.workload)])
    others: dict[tuple[str, str], model.Comparison] = {}
    for row in comparisons:
        told = row.effect is not None and row.verdict != Verdict.REFUSED  # said once elsewhere
        if not row.primary and (row.metric, row.workload) in order and told:
            key = (row.metric, row.pair)
            if (
                key not in others
                or order[(row.metric, row.workload)]
                < order[(others[key].metric, others[key].workload)]
            ):
                others[key] = row
    rest = sorted(
        others.values(),
        key=lambda row: (row.metric not in TOLD_FIRST, order[(row.metric, row.workload)]),
    )[:MOST_OTHERS]
    return tuple(
        model.Headline(row.id, row.verdict, row.primary, wording.short(row.sentence))
        for row in (*family, *rest)
    )


def _metrics(values: Values) -> tuple[model.Metric, ...]:
    used = {group.metric for group in values.groups}
    made = []
    for name, about in values.run.record["metrics"].items():
        if name not in used:
            continue
        ratio = about["scale"] == "ratio"
        margin = values.margin(name)
        resolution = float(about.get("resolution") or 0.0)
        made.append(
            model.Metric(
                name=name,
                title=str(about.get("title") or name),
                unit=about["unit"],
                scale=about["scale"],
                better=about["better"],
                family=str(about.get("family") or "other"),
                definition=str(about.get("definition") or ""),
                margin=margin,
                margin_text=format_percent(margin)
                if ratio
                else format_value(margin, about["unit"]),
                resolution_text=format_value(resolution, about["unit"]) if resolution else "",
            )
        )
    return tuple(made)


def _families(values: Values) -> tuple[tuple[str, str], ...]:
    names = dict.fromkeys(metric.family for metric in _metrics(values))
    return tuple((name, wording.family_title(name)) for name in names)


def _host_line(host: Mapping[str, Any]) -> str:
    if not host:
        return "unknown host"
    return bench_host.summary_line(dict(host))
