"""What a run's own data warn of: pure functions of ``run.json`` and the trials."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.arms import ARMS, pairs
from bench.disturbances import UNMET
from bench.launch_limit import parallel_launch
from bench.model import Finding, Gap, MemoryBasis, PageCache
from bench.receipt_findings import kernels, sizes_seen
from bench.registration import deviations

FLUSHES_APART = 8  # two kernels mount, and commit their journals, at other times
FLUSHES_PART = 0.10
USABLE_TOLERANCE = 0.02  # of the limit: what a guest has available at `started`
BUSY_SHARE = 0.10  # of an arm's trials that may have begun on a restless host
CONDITIONS = {
    "other_cpus": "other programs",
    "steal_cpus": "stolen CPU time",
    "psi_cpu": "tasks waiting for a CPU",
    "psi_memory": "memory being reclaimed",
    "psi_io_full": "waiting for a disk",
    "procs_running": "run queue",
    "writeback_bytes": "writing back to disk",
    "dirty_bytes": "much to be written back",
}
"""What `bench.disturbances.LIMITS` are called in a finding."""
DISTURBED: dict[str, tuple[float, str]] = {
    "steal_cpus": (0.05, "CPU time was stolen by the machine below"),
    "pswpin_per_s": (0.0, "the host swapped"),
    "pswpout_per_s": (0.0, "the host swapped"),
    "throttled_periods_per_s": (0.0, "the harness's own group was throttled"),
    "thermal_throttles_per_s": (0.0, "a CPU was too hot"),
}
"""Readings of a trial above which its block is called disturbed, and what they say."""
DISTURBED_LIMITS = {name: limit for name, (limit, _) in DISTURBED.items()}


def from_run(run: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Every finding, in the order of what it may spoil."""
    return [
        *tuned(run),
        *kernels(run),
        *usable_memory(run),
        *sizes_seen(run),
        *double_cache(run),
        *scratch_disks(run, trials),
        *cold_files(run, trials),
        *unsettled(run),
        *restless(trials),
        *disturbed(trials, run["plan"].get("invalidation")),
        *shared_cpus(trials),
        *noise_floor(run),
        *beyond_detection(run),
        *parallel_launch(run, trials),
    ]


def tuned(run: Mapping[str, Any]) -> Iterator[Finding]:
    """Settings of the host that were changed for the run, or before it."""
    kept = run.get("tuning")
    if not isinstance(kept, Mapping):
        return
    names = ", ".join(map(str, kept.get("settings") or ()))
    cpus = ", ".join(map(str, kept.get("measured_cpus") or ()))
    when = "for the time of this run" if kept.get("for_this_run") else "before this run"
    yield Finding(
        "host-tuned",
        "info",
        f"hvct changed settings of the host {when}: {names} (CPUs of instances: {cpus})",
        "every arm had them; on a host as it comes figures spread more, and may be others",
        "without --tune, and after hvct tune reset, it is as it comes",
    )


def deviating(run: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """What is not as it was registered before the first trial."""
    for text in deviations(run, trials):
        yield Finding(
            "plan-deviates",
            "problem",
            text,
            "it was changed after the run began, so verdicts are not those that were planned",
            "restore run.json from a copy, or make a new run with the other setting",
        )


def usable_memory(run: Mapping[str, Any]) -> Iterator[Finding]:
    """With basis ``usable`` what a guest has available must be the limit, within 2 %."""
    limits = {item["name"]: item.get("limits") for item in run["plan"]["workloads"]}
    for item in run["receipts"]:
        limit = limits.get(item["workload"])
        if not isinstance(limit, dict):
            continue
        size, available = limit.get("memory_bytes"), item["receipt"].get("mem_available_bytes")
        known = ARMS.get(item["arm"])
        guest = known is not None and known.guest
        if not guest or limit.get("memory_basis") != MemoryBasis.USABLE:
            continue
        if not isinstance(size, int) or size <= 0:
            continue
        if not re.fullmatch(r"\d+", str(available)):
            continue
        off = int(available) / size - 1.0
        if abs(off) > USABLE_TOLERANCE:
            yield Finding(
                "memory-basis-off",
                "warning",
                f"{item['arm']} had {off:+.1%} of its limit available when {item['workload']} "
                "started",
                "its workload had more or less memory than in the other arms",
                "remove the folder vm/memory of hvct's cache: the reserve is then measured anew",
            )


def scratch_disks(run: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """The same work on a scratch disk must ask the backing file to be durable as often."""
    counted: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        for sample in trial.get("samples", ()):
            if sample["metric"] == "disk_flushes":
                counted.setdefault((trial["workload"], trial["arm"]), []).append(sample["value"])
    typical = {key: statistics.median(values) for key, values in counted.items()}
    for arm, baseline in pairs(run["plan"]["arms"]):
        for workload in dict.fromkeys(name for name, _ in typical):
            own, other = typical.get((workload, arm)), typical.get((workload, baseline))
            if own is None or other is None:
                continue
            seen = f"{own:g} flushes reached its file in {arm}, {other:g} in {baseline}"
            if flushes_apart(own, other):
                yield Finding(
                    "flushes-differ",
                    "problem",
                    f"scratch disk of {workload}: {seen}",
                    "one made less durable, or committed its journal less often (a file's time "
                    "changes once a clock tick, which a fast fsync loop stays within): figures "
                    "of its disk work are refused",
                    "have the workload use fdatasync, and give both the same kernel",
                )
            elif ARMS[arm].guest != ARMS[baseline].guest:
                yield Finding(
                    "scratch-disks-declared",
                    "info",
                    f"scratch disk of {workload}: {seen}",
                    "the same file, file system and sector size, past the page cache in both; a "
                    "virtio-blk disk in the guest, a loop device outside",
                )


def flushes_apart(own: float, other: float) -> bool:
    """Whether two arms' flushes are so unequal that their disk work does not compare."""
    return abs(own - other) > max(FLUSHES_APART, FLUSHES_PART * max(own, other))


def double_cache(run: Mapping[str, Any]) -> Iterator[Finding]:
    """An image that is read through two page caches."""
    for arm in doubly_cached(run):
        yield Finding(
            "image-cached-twice",
            "problem",
            f"{arm}: the image is mounted without direct I/O",
            "the host's page cache holds it twice, so memory figures of this arm are refused",
            "put hvct's cache on a file system that can do direct I/O (XDG_CACHE_HOME)",
        )


def doubly_cached(run: Mapping[str, Any]) -> list[str]:
    """Arms whose memory figures must not be believed."""
    return [
        arm
        for arm, about in run["descriptions"].items()
        if isinstance(about, Mapping) and about.get("image_direct_io") is False
    ]


def cold_files(run: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Trials that began with part of what they read not in memory, where all was to be."""
    trials = [] if run["plan"].get("page_cache") == PageCache.COLD else trials
    for arm, (cold, count) in _share(trials, "image_resident", lambda part: part < 1.0).items():
        if cold:
            yield Finding(
                "page-cache-cold",
                "warning",
                f"{arm}: in {cold} of {count} trials part of what it reads was not in memory",
                "those starts waited for a disk; the rule for this run is `warm`",
                "free memory on the host",
            )


def unsettled(run: Mapping[str, Any]) -> Iterator[Finding]:
    """A run that waited for nothing between its trials."""
    if run["plan"].get("gap", Gap.QUIET) == Gap.NONE:
        yield Finding(
            "no-gap",
            "warning",
            "the plan has no gap: trials were not separated by a settled host",
            "a trial may have been measured beside what the one before it, or others, left going; "
            "nobody looked, so no trial is marked",
            'leave gap = "none" out of a plan whose figures matter',
        )


def restless(trials: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Trials that began although the host had not become quiet in time."""
    for arm, (flagged, count) in _share(trials, "settle_flagged", bool).items():
        if flagged > BUSY_SHARE * count:
            yield Finding(
                "host-not-quiet",
                "warning",
                f"{arm}: {flagged} of {count} trials began on a host that was not quiet"
                f"{_unmet(trials, arm)}",
                "others used CPU or disk: times are longer and spread more, in every arm",
                "end other work on the host; the section on disturbances shows what it was",
            )


def _unmet(trials: Sequence[Mapping[str, Any]], arm: str) -> str:
    """Which conditions kept an arm's trials from settling, the commonest first."""
    counts = Counter(
        CONDITIONS.get(name.removeprefix(UNMET), name.removeprefix(UNMET))
        for trial in trials
        if trial["arm"] == arm
        for name, unmet in (trial.get("disturbances") or {}).items()
        if name.startswith(UNMET) and unmet
    )
    told = ", ".join(f"{name} {count}×" for name, count in counts.most_common(3))
    return f" ({told})" if told else ""


def disturbed(
    trials: Sequence[Mapping[str, Any]], rules: Mapping[str, float] | None = None
) -> Iterator[Finding]:
    """Blocks in which something happened that no settling waits for.

    Args:
        rules: the plan's, by which such blocks were left out; None: they only warn.
    """
    invalid = invalid_blocks(trials, DISTURBED_LIMITS if rules is None else rules)
    blocks: dict[str, set[int]] = {}
    for (_, block), reasons in invalid.items():
        for text in reasons:
            blocks.setdefault(text, set()).add(block)
    total = len({trial.get("block") for trial in trials})
    done = (
        "no block was left out for it"
        if rules is None
        else "by the plan's rule they do not count; results with them stand beside"
    )
    for text, hit in blocks.items():
        yield Finding(
            "blocks-disturbed",
            "warning",
            f"in {len(hit)} of {total} blocks {text}",
            f"arms of one block may not have had the same host; {done}",
            "run again on a host of which you have all",
        )


def invalid_blocks(
    trials: Sequence[Mapping[str, Any]], rules: Mapping[str, float]
) -> dict[tuple[str, int], tuple[str, ...]]:
    """(workload, block) → why all its arms do not count, by rules fixed beforehand.

    The other workloads of the block ran at other moments and are not concerned.
    """
    found: dict[tuple[str, int], dict[str, None]] = {}
    for trial in trials:
        readings = trial.get("disturbances") or {}
        for name, limit in rules.items():
            value = readings.get(name)
            if isinstance(value, int | float) and value > limit:
                text = DISTURBED.get(name, (limit, f"{name} was above {limit:g}"))[1]
                key = (str(trial["workload"]), int(trial["block"]))
                found.setdefault(key, {})[text] = None
    return {key: tuple(reasons) for key, reasons in found.items()}


def shared_cpus(trials: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Trials whose CPUs the harness and its probes could use as well."""
    both = [sum(pair) for pair in zip(*_share(trials, "harness_shares_cpu", bool).values(),
                                      strict=True)]  # fmt: skip
    if both and both[0]:
        yield Finding(
            "harness-shares-cpus",
            "warning",
            f"in {both[0]} of {both[1]} trials harness and probes shared the instance's CPUs",
            "probing takes time from what is probed, most from the arm that is slow to start",
            "give instances fewer CPUs than the host has",
        )


def noise_floor(run: Mapping[str, Any]) -> Iterator[Finding]:
    """What an A/A calibration of this host says about the judged metrics, or that there is none."""
    kept = run.get("calibration")
    if not isinstance(kept, Mapping) or "floors" not in kept:
        return  # of a version without calibration
    judged = [tuple(entry) for entry in run["plan"].get("primary") or ()]
    rows = [row for row in kept["floors"] if (row["metric"], row["workload"]) in judged]
    if judged and not rows:
        expired = "; ".join(map(str, kept.get("expired") or ()))
        yield Finding(
            "not-calibrated",
            "info",
            "the host's noise floor is not known for what is judged"
            + (f": the calibration expired ({expired})" if expired else ""),
            "no difference is held against what an arm shows against itself on this host",
            "hvct calibrate measures it; it counts from the next run on",
        )
    margins = run["plan"].get("margins") or {}
    for row in rows:
        margin = margins.get(row["metric"], run["metrics"].get(row["metric"], {}).get("margin"))
        if isinstance(margin, int | float) and row["floor"] > margin:
            yield Finding(
                "floor-above-margin",
                "warning",
                f"{row['arm']}, {row['metric']} of {row['workload']}: against itself it shows "
                f"differences of {row['floor'] / margin:.1f} times the margin",
                "nothing smaller than that can be called different, and nothing equivalent",
                "make the host quieter and calibrate again, with more blocks",
            )


def beyond_detection(run: Mapping[str, Any]) -> Iterator[Finding]:
    """Judged metrics in which so many blocks could not show a difference as large as the margin.

    By the calibration of this host: what the next smaller number of blocks it looked at
    detects in 80 % of runs, in the worse of the arms.
    """
    plan, kept = run["plan"], run.get("calibration") or {}
    margins, metrics = plan.get("margins") or {}, run.get("metrics") or {}
    for metric, workload in plan.get("primary") or ():
        margin = margins.get(metric, metrics.get(metric, {}).get("margin"))
        sizes = [
            _detectable(row.get("detectable"), plan["blocks"])
            for row in kept.get("floors") or ()
            if (row["metric"], row["workload"]) == (metric, workload)
        ]
        worst = max((size for size in sizes if size is not None), default=None)
        if worst is None or not isinstance(margin, int | float) or worst <= margin:
            continue
        yield Finding(
            "plan-too-small",
            "warning",
            f"{plan['blocks']} blocks show a difference in {metric} of {workload} from "
            f"{worst / margin:.1f} times the margin on, as this host was calibrated",
            "a difference as large as the margin would mostly stay undecided",
            "plan more blocks, a wider margin, or make the host quieter and calibrate again",
        )


def _detectable(sizes: object, blocks: int) -> float | None:
    """Of a calibration's sizes that for the most blocks that are not more than these."""
    if not isinstance(sizes, Mapping):
        return None
    fits = {int(n): size for n, size in sizes.items() if str(n).isdigit() and int(n) <= blocks}
    found = fits[max(fits)] if fits else None
    return float(found) if isinstance(found, int | float) else None


def _share(trials: Sequence[Mapping[str, Any]], name: str, bad: Any) -> dict[str, tuple[int, int]]:
    """Arm → how many of its trials have a bad reading, and how many have one at all."""
    found: dict[str, tuple[int, int]] = {}
    for trial in trials:
        value = (trial.get("disturbances") or {}).get(name)
        if isinstance(value, int | float):
            hits, count = found.get(trial["arm"], (0, 0))
            found[trial["arm"]] = hits + bool(bad(value)), count + 1
    return found
