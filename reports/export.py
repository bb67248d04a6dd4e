"""The numbers behind the pages, for other programs: JSON, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd

from bench.errors import HostCannot
from reports.data import Run
from reports.model import ReportData


def as_json(data: ReportData) -> str:
    """The whole report as JSON; keys in a fixed order, no NaN."""
    return json.dumps(data.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


KEYS = ("metric", "workload", "arm")
OF_TRIAL = ["run", "block", "position", "arm", "accelerator", "workload", "outcome"]
OF_SAMPLE = ["metric", "value", "unit", "counted"]
LINES_AT_ONCE = 100_000
"""Of a CSV file: as objects they take ten times the memory of the frame."""


def samples(runs: Sequence[Run]) -> pd.DataFrame:
    """Every sample with its full set of dimensions, one row each; a series' rows stand together.

    Runs in the order given; within one by metric, workload and arm as its plan lists them,
    then in the order the trials ran. `counted` is false in blocks that the plan's rules leave out.
    """
    columns = [*OF_TRIAL, *OF_SAMPLE]
    table: pd.DataFrame = pd.concat([_samples(run)[columns] for run in runs], ignore_index=True)
    return table


@lru_cache(maxsize=1)
def _samples(run: Run) -> pd.DataFrame:
    """Of one run, with each one's trial; the appendix of a report and its CSV file need them."""
    frame = run.samples.join(_trials(run), on="trial")
    plan = run.record["plan"]
    orders = {
        "metric": list(run.record["metrics"]),
        "workload": [item["name"] for item in plan["workloads"]],
        "arm": list(plan["arms"]),
    }
    for name, order in orders.items():
        known = [*order, *sorted(set(frame[name].unique()) - set(order))]
        frame[name] = pd.Categorical(frame[name].astype("object"), categories=known)
    frame = frame.sort_values([*KEYS, "block", "position"], kind="stable")
    units = {name: about["unit"] for name, about in run.record["metrics"].items()}
    frame["unit"] = frame["metric"].astype("str").map(units).fillna("")
    out = pd.MultiIndex.from_tuples(run.invalid, names=["workload", "block"])
    keys = pd.MultiIndex.from_arrays([frame["workload"].astype("str"), frame["block"]])
    frame["counted"] = ~keys.isin(out) if run.invalid else True
    return frame.astype(dict.fromkeys(KEYS, "str"))


def _trials(run: Run) -> pd.DataFrame:
    """What the samples of a trial have in common."""
    table = run.trials.rename(columns={"kind": "accelerator"})
    return table.assign(run=run.record["id"])[OF_TRIAL]


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Every sample as CSV; numbers so that reading them gives the same numbers."""
    with path.open("w", encoding="utf-8", newline="") as handle:
        handle.write(",".join([*OF_TRIAL, *OF_SAMPLE]) + "\n")
        for run in runs:
            texts, marks = _Fields(), _Fields()  # True and 1 would be one key
            # A trial has dozens of samples, which all begin alike.
            trials = [
                ",".join(map(texts.__getitem__, row))
                for row in _trials(run).itertuples(index=False, name=None)
            ]
            table = _samples(run)
            for start in range(0, len(table), LINES_AT_ONCE):
                part = table.iloc[start : start + LINES_AT_ONCE]
                columns = (
                    map(trials.__getitem__, part["trial"].tolist()),
                    map(texts.__getitem__, part["metric"].tolist()),
                    map(repr, part["value"].tolist()),
                    map(texts.__getitem__, part["unit"].tolist()),
                    map(marks.__getitem__, part["counted"].tolist()),
                )
                handle.write("\n".join(map(",".join, zip(*columns, strict=True))) + "\n")


class _Fields(dict[object, str]):
    """Each value of a column as a CSV file has it: of millions only thousands differ.

    To quote every one of them anew takes twice as long as all the rest of writing.
    """

    def __missing__(self, value: object) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(["", value])  # "" alone would be quoted
        self[value] = line.getvalue()[1:-1]
        return self[value]


def write_parquet(runs: Sequence[Run], path: Path) -> None:
    """Every sample as Parquet.

    Raises:
        HostCannot: no Parquet library is installed.
    """
    try:
        samples(runs).to_parquet(path, index=False)
    except ImportError as error:
        raise HostCannot(
            "Parquet needs pyarrow, which is not installed", "pip install 'hvct[parquet]'"
        ) from error
