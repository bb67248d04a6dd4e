"""Durations in the JSON that ``pytest-benchmark compare`` reads, one benchmark a series.

A series is one metric of one workload in one arm; its rounds are the blocks. Only metrics in
seconds go in: that format knows nothing else. Trials without a value are absent, as there.
Quartiles follow that project's definition (pytest_benchmark/stats.py: of the two halves for an
even number of rounds, interpolated for an odd one), so that both show the same figures.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from bench.version import VERSION
from reports.data import Run
from reports.export import samples

VERSION_OF_FORMAT = "5.0.0"
"""The release of pytest-benchmark whose layout this is."""

_OPTIONS = {
    "disable_gc": False,
    "timer": "perf_counter",
    "min_rounds": 1,
    "max_time": 0.0,
    "min_time": 0.0,
    "warmup": False,
}


def text(runs: Sequence[Run]) -> str:
    """The whole file."""
    first = runs[0].record
    host = first["host"]
    table = samples(runs)
    table = table[(table["unit"] == "s") & (table["outcome"] == "ok")]
    keys = ["run", "metric", "workload", "arm", "accelerator"]
    several = len(runs) > 1
    made = []
    for key, part in table.groupby(keys, observed=True, sort=False):
        run, metric, workload, arm, accelerator = map(str, key)
        # A virtual machine's figure carries its accelerator wherever it goes.
        label = arm if accelerator == "none" else f"{arm} ({accelerator.upper()})"
        name = f"{metric}[{workload}-{label}]"
        made.append(
            {
                "group": f"{metric}: {workload}",
                "name": f"{run}: {name}" if several else name,
                "fullname": f"{run}::{name}",
                "params": {"workload": workload, "arm": label},
                "param": f"{workload}-{label}",
                "extra_info": {"run": run, "metric": metric, "workload": workload, "arm": arm},
                "options": _OPTIONS,
                "stats": stats(rounds(part["value"].tolist(), part["block"].tolist())),
            }
        )
    cpu = host.get("cpu") if isinstance(host.get("cpu"), dict) else {}
    document = {
        "machine_info": {
            "node": "",
            "machine": str(cpu.get("architecture", "")),
            "system": "Linux",
            "release": str((host.get("kernel") or {}).get("release", "")),
            "python_version": str(host.get("python", "")),
            "cpu": {"brand_raw": str(cpu.get("model", "")), "count": cpu.get("count")},
        },
        "commit_info": {"id": f"hvct-{VERSION}", "dirty": False},
        "benchmarks": made,
        "datetime": str(first["created"]),
        "version": VERSION_OF_FORMAT,
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def rounds(values: Sequence[float], blocks: Sequence[int]) -> list[float]:
    """One value a block: iterations inside an instance are their median."""
    by_block: dict[int, list[float]] = {}
    for value, block in zip(values, blocks, strict=True):
        by_block.setdefault(block, []).append(value)
    return [statistics.median(own) for own in by_block.values()]


def stats(values: Sequence[float]) -> dict[str, Any]:
    """What pytest-benchmark stores about rounds, which must not be none."""
    ordered = sorted(values)
    n, total = len(ordered), sum(ordered)
    mean = statistics.mean(ordered)
    spread = statistics.stdev(ordered) if n > 1 else 0.0
    low, high = _quartiles(ordered)
    fence_low, fence_high = low - 1.5 * (high - low), high + 1.5 * (high - low)
    odd = sum(not fence_low <= value <= fence_high for value in ordered)
    far = sum(not mean - spread <= value <= mean + spread for value in ordered)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": spread,
        "rounds": n,
        "median": statistics.median(ordered),
        "iqr": high - low,
        "q1": low,
        "q3": high,
        "iqr_outliers": odd,
        "stddev_outliers": far,
        "outliers": f"{far};{odd}",
        "ld15iqr": next((v for v in ordered if v >= fence_low), ordered[0]),
        "hd15iqr": next((v for v in reversed(ordered) if v <= fence_high), ordered[-1]),
        "ops": n / total if total else 0.0,
        "total": total,
        "data": list(values),
        "iterations": 1,
    }


def _quartiles(ordered: Sequence[float]) -> tuple[float, float]:
    n = len(ordered)
    if n == 1:
        return ordered[0], ordered[0]
    if n % 2 == 0:
        return statistics.median(ordered[: n // 2]), statistics.median(ordered[n // 2 :])
    k = n // 4
    if n % 4 == 1:
        return (0.25 * ordered[k - 1] + 0.75 * ordered[k],
                0.75 * ordered[3 * k] + 0.25 * ordered[3 * k + 1])  # fmt: skip
    return (0.75 * ordered[k] + 0.25 * ordered[k + 1],
            0.25 * ordered[3 * k + 1] + 0.75 * ordered[3 * k + 2])  # fmt: skip
