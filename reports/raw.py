"""The way back from a figure to the samples it came from."""

from __future__ import annotations

from bench.numbers import format_series
from reports.data import Run
from reports.export import each_series, units
from reports.model import Series

MOST_PRINTED = 30
"""Values of a series above which the appendix names their lines only."""


def series(run: Run, first_line: int) -> list[Series]:
    """Every series of a run.

    Args:
        first_line: of samples.csv that holds a sample of this run.
    """
    unit_of = units(run)
    work = {item["name"]: item.get("work_unit_name") or "work"
            for item in run.record["plan"]["workloads"]}  # fmt: skip
    found = []
    for metric, workload, arm, part in each_series(run):
        unit = unit_of.get(metric, "")
        if unit == "work/s":
            unit = f"{work[workload]}/s"
        few = len(part) <= MOST_PRINTED
        values, label = format_series(part["value"].tolist() if few else [], unit)
        if values and not part["counted"].all():
            shown = zip(values.split(), part["counted"], strict=True)
            values = " ".join(text if counts else f"({text})" for text, counts in shown)
        found.append(
            Series(
                metric, workload, arm, len(part), label, values,
                first_line + int(part.index[0]), first_line + int(part.index[-1]),
            )
        )  # fmt: skip
    return found
