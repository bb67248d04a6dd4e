"""Would the answer be another one? Blocks left out by rule, both ways; drifts in run order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.model import Finding, Scale
from bench.numbers import RATIO_UNIT, format_p, format_value
from bench.stats import drift
from bench.stats.family import compare_family
from bench.stats.holm import holm
from bench.stats.pairs import PairedSeries
from bench.stats.planning import ALPHA
from bench.stats.sentences import effect_text
from bench.stats.verdict import Comparison
from reports.data import Run
from reports.series import Group, Values, paired

Rows = Sequence[tuple[Group, PairedSeries, tuple[str, str]]]


def both_ways(
    values: Values,
    primary: tuple[str, str] | None,
    compared: Sequence[Comparison],
    *,
    judge_emulated: bool,
) -> list[dict[str, Any]]:
    """Each primary comparison with and without the blocks that the plan's rules leave out.

    Empty where no block is left out.
    """
    run = values.run
    if not run.invalid:
        return []
    rows = paired(values, primary, judge_emulated=judge_emulated, all_blocks=True)
    everything = compare_family([series for _, series, _ in rows], run.record["plan"]["alpha"])
    by_key = {_key(one): one for one in everything}
    found = []
    for counted in compared:
        other = by_key.get(_key(counted))
        if counted.family_size == 0 or counted.claims is None or other is None:
            continue
        found.append(
            {
                "metric": counted.metric,
                "workload": counted.workload,
                "title": f"{counted.title or counted.metric} of {counted.workload}",
                "pair": f"{counted.arm} ÷ {counted.baseline}",
                "n": counted.n_pairs,
                "text": effect_text(counted),
                "verdict": counted.verdict.value,
                "n_all": other.n_pairs,
                "text_all": effect_text(other),
                "verdict_all": other.verdict.value,
                "same": counted.verdict is other.verdict,
            }
        )
    return found


def _key(one: Comparison) -> tuple[str, str, str, str]:
    return (one.metric, one.workload, one.arm, one.baseline)


@dataclass(frozen=True)
class _Looked:
    """One series in run order, and what was asked of it."""

    metric: str
    workload: str
    title: str
    of: str
    effect: bool
    ratio: bool
    unit: str
    blocks: tuple[int, ...]
    values: tuple[float, ...]
    trend_p: float
    change: drift.Change


def moved(values: Values, rows: Rows) -> list[dict[str, Any]]:
    """Every series of the judged pair that was looked at for drift, with what was found.

    Both questions of all series are corrected together (Holm): a run without a drift shows
    one in at most 5 % of reports.
    """
    looked = [one for row in rows if row[1].primary for one in _look(values, *row)]
    adjusted = holm([p for one in looked for p in (one.trend_p, one.change.p_value)])
    found = []
    for one, trend, split in zip(looked, adjusted[::2], adjusted[1::2], strict=True):
        changes = (
            drift.changes(one.values, max(one.change.p_value, 0.005)) if split <= ALPHA else []
        )
        found.append(
            {
                "metric": one.metric,
                "workload": one.workload,
                "title": one.title,
                "of": one.of,
                "effect": one.effect,
                "n": len(one.values),
                "trend_p": format_p(trend),
                "change_p": format_p(split),
                "drifts": bool(changes) or trend <= ALPHA,
                "changes": [
                    {
                        "block": one.blocks[change.at],
                        "at": _wall_time(values.run, one.blocks[change.at]),
                        "text": f"{_shown(one, change.before)} → {_shown(one, change.after)}",
                    }
                    for change in changes
                ],
            }
        )
    return found


def _look(
    values: Values, group: Group, series: PairedSeries, names: tuple[str, str]
) -> Iterator[_Looked]:
    title = f"{series.title or series.metric} of {series.workload}"
    ratio = series.scale is Scale.RATIO
    pairs = series.effects
    known = [
        (block, value)
        for block, value in zip(pairs.blocks, pairs.low.tolist(), strict=True)
        if math.isfinite(value)
    ]
    wanted: list[tuple[str, bool, list[tuple[int, float]]]] = [
        (f"{series.arm} ÷ {series.baseline}", True, known)
    ]
    labels = {arm.name: arm.label for arm in values.arms}
    for name in names:
        own = values.by_block(group, name)
        wanted.append((labels[name], False, list(own.items())))
    for of, effect, points in wanted:
        blocks, numbers = tuple(b for b, _ in points), tuple(v for _, v in points)
        change = drift.change(numbers)
        if change is not None:
            yield _Looked(
                series.metric, series.workload, title, of, effect, ratio, series.unit, blocks,
                numbers,
                drift.trend_p(numbers), change,
            )  # fmt: skip


def _shown(one: _Looked, value: float) -> str:
    if one.effect and one.ratio:
        return format_value(math.exp(value), RATIO_UNIT)
    return format_value(value, one.unit, signed=one.effect)


def _wall_time(run: Run, block: int) -> str:
    times = run.trials.loc[run.trials["block"] == block, "wall_time"]
    return min((str(time) for time in times if time), default="")[:19].replace("T", " ")


def findings(
    ways: Sequence[Mapping[str, Any]], series: Sequence[Mapping[str, Any]]
) -> list[Finding]:
    """What of this a reader must know."""
    found = [
        Finding(
            "verdict-depends-on-blocks",
            "warning",
            f"{way['title']}, {way['pair']}: {way['verdict']} without the blocks that the plan's "
            f"rules leave out, {way['verdict_all']} with them",
            "the verdict rests on the rule; it was fixed before the run, which is why it stands",
            "run again on a quieter host",
        )
        for way in ways
        if not way["same"]
    ]
    for one in series:
        if not one["drifts"]:
            continue
        how = "; ".join(
            f"from block {change['block']} on {change['text']}" for change in one["changes"]
        )
        found.append(
            Finding(
                "drift",
                "warning" if one["effect"] else "info",
                f"{one['title']}, {one['of']}: moved during the run "
                f"({how or 'a trend over the whole run'})",
                "what is compared was not the same at the end as at the beginning: the interval "
                "covers a mixture"
                if one["effect"]
                else "every block holds all arms, so what they share cancels in each comparison",
                "find what changed on the host, and run again" if one["effect"] else "",
            )
        )
    return found
