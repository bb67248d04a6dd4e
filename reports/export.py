"""The numbers behind the pages, for other programs: JSON, CSV and Parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.errors import HostCannot
from reports.data import Run
from reports.model import ReportData


def as_json(data: ReportData) -> str:
    """The whole report as JSON; keys in a fixed order, no NaN."""
    return json.dumps(data.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def samples(runs: Sequence[Run]) -> pd.DataFrame:
    """Every sample with its full set of dimensions, one row each."""
    frames = []
    for run in runs:
        trials = run.trials[["block", "position", "arm", "workload", "outcome", "kind"]]
        frame = run.samples.join(trials, on="trial").rename(columns={"kind": "accelerator"})
        units = {name: about["unit"] for name, about in run.record["metrics"].items()}
        frame["unit"] = frame["metric"].astype("str").map(units).fillna("")
        frame.insert(0, "run", run.record["id"])
        frames.append(frame)
    table: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return table[
        ["run", "block", "position", "arm", "accelerator", "workload", "outcome", "metric",
         "value", "unit"]
    ]  # fmt: skip


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Every sample as CSV; numbers so that reading them gives the same numbers."""
    samples(runs).to_csv(path, index=False, lineterminator="\n")


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
