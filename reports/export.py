"""The numbers behind the pages, for other programs: JSON, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
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


def samples(runs: Sequence[Run]) -> pd.DataFrame:
    """Every sample with its full set of dimensions, one row each; a series' rows stand together.

    Runs in the order given; within one by metric, workload and arm as its plan lists them,
    then in the order the trials ran. `counted` is false in blocks that the plan's rules leave out.
    """
    columns = [*OF_TRIAL, *OF_SAMPLE]
    table: pd.DataFrame = pd.concat([_samples(run)[columns] for run in runs], ignore_index=True)
    return table


def _samples(run: Run) -> pd.DataFrame:
    """Of one run, each with all that is known of its trial."""
    frame = _ordered(run)[["trial", "metric", "value", "counted"]].astype({"metric": "str"})
    frame["unit"] = frame["metric"].map(units(run)).fillna("")
    return frame.join(_trials(run), on="trial").astype(dict.fromkeys(KEYS, "str"))


def each_series(run: Run) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Metric, workload and arm of every series in that order, with its rows.

    The rows: `trial`, `value`, `counted`; numbered as the samples of the run are.
    """
    for key, part in _ordered(run).groupby(list(KEYS), observed=True, sort=False):
        metric, workload, arm = map(str, key)
        yield metric, workload, arm, part


@lru_cache(maxsize=1)
def _ordered(run: Run) -> pd.DataFrame:
    """The samples of one run; the appendix of a report and its CSV file need them.

    Names stay categories: as texts millions of rows take seconds.
    """
    trials = run.trials[["workload", "arm"]]
    ran = zip(run.trials["workload"], run.trials["block"], strict=True)
    trials = trials.assign(counted=[key not in run.invalid for key in ran])
    frame = run.samples.join(trials, on="trial")
    plan = run.record["plan"]
    orders = {
        "metric": list(run.record["metrics"]),
        "workload": [item["name"] for item in plan["workloads"]],
        "arm": list(plan["arms"]),
    }
    for name, order in orders.items():
        column = frame[name].cat
        known = [*order, *sorted(set(column.categories) - set(order))]
        frame[name] = column.set_categories(known)
    # Stable, and so still in the order the trials ran.
    return frame.sort_values(list(KEYS), kind="stable", ignore_index=True)


def units(run: Run) -> dict[str, str]:
    """The unit of each metric."""
    return {name: about["unit"] for name, about in run.record["metrics"].items()}


def _trials(run: Run) -> pd.DataFrame:
    """What the samples of a trial have in common."""
    table = run.trials.rename(columns={"kind": "accelerator"})
    return table.assign(run=run.record["id"])[OF_TRIAL]


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Every sample as CSV; numbers so that reading them gives the same numbers."""
    with path.open("w", encoding="utf-8", newline="") as handle:
        handle.write(",".join([*OF_TRIAL, *OF_SAMPLE]) + "\n")
        for run in runs:
            texts, unit_of = _Fields(), units(run)
            # A trial has dozens of samples, which all begin alike.
            trials = [
                ",".join(map(texts.__getitem__, row))
                for row in _trials(run).itertuples(index=False, name=None)
            ]
            for name, _, _, part in each_series(run):
                metric, unit = texts[name], texts[unit_of.get(name, "")]
                ends = {counted: f"{unit},{counted}\n" for counted in (False, True)}
                columns = (part[column].tolist() for column in ("trial", "value", "counted"))
                lines = [
                    f"{trials[trial]},{metric},{value!r},{ends[counted]}"
                    for trial, value, counted in zip(*columns, strict=True)
                ]
                handle.write("".join(lines))


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
