"""A run directory as tidy frames, checked: what every later step may rely on.

A run directory comes from outside (another host, an editor, a disk that was full), so
everything that is used is checked here and nothing is checked again later.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import archive, findings
from bench import arms as bench_arms
from bench.errors import BadInput, oserror
from bench.identity import PairIdentity, compare
from bench.ledger import CostModel, cost_model
from bench.model import Finding, Outcome
from bench.steps import STEPS_FILE, Step, read_steps
from bench.store import RUN_FILE, TRIALS_FILE, load

HINT = "the file was changed by hand or damaged; restore it from a copy"
OUTCOMES = frozenset(outcome.value for outcome in Outcome)
LARGEST = 1e100  # of any number: sums and squares of them must stay finite
TEXT_LIMIT = 2000
"""Characters of one stored text (an error, a reason) that a report repeats."""


@dataclass(frozen=True, eq=False)  # frames have no equality; a run is itself
class Run:
    """One run as read back.

    Attributes:
        record: the contents of ``run.json``.
        trials: one row per trial: ``block``, ``position``, ``arm``, ``workload``,
            ``outcome``, ``error``, ``kind``, ``reason``, ``nested``, ``wall_time``,
            in the order they ran.
        samples: one row per number: ``trial`` (row of `trials`), ``metric``, ``value``.
        marks: one row per event: ``trial``, ``event``, ``at_s`` since requested.
        disturbances: one row per reading: ``trial``, ``name``, ``value``.
        resolution_s: per event, the largest error of its stamp.
        error_s: per (workload, arm, event), the median error of its stamp.
        attributed: per (workload, arm), the median part of the host's CPU time in the work's
            window that was the instance's; absent for short windows.
        findings: what the run's own data warn of.
        pairs: (arm, baseline) as they are compared.
        invalid: (workload, block) → why it does not count, by the plan's rules.
        identity: what comparing the receipts of each pair found.
        excluded: trials of blocks that were cut short.
        damaged_lines: lines of the trials file that could not be read.
        costs: what instances that stood idle cost, where there were any.
        steps: what was read while they stood, in the order they did.
        digests: SHA-256 of the files everything here was read from.
    """

    record: dict[str, Any]
    trials: pd.DataFrame
    samples: pd.DataFrame
    marks: pd.DataFrame
    disturbances: pd.DataFrame
    resolution_s: dict[str, float]
    error_s: dict[tuple[str, str, str], float]
    attributed: dict[tuple[str, str], float]
    findings: list[Finding]
    pairs: list[tuple[str, str]]
    invalid: dict[tuple[str, int], tuple[str, ...]]
    identity: list[PairIdentity]
    excluded: int
    damaged_lines: int
    costs: CostModel | None
    steps: list[Step]
    digests: dict[str, str]


def read(path: Path) -> Run:
    """Read and check one run.

    Args:
        path: its directory, or an archive that holds it.

    Raises:
        BadInput: there is no run, or something in it cannot be what hvct wrote.
    """
    with archive.opened(path) as directory:
        try:
            return _read(directory, path)
        except BadInput as error:  # where an archive was unpacked is nobody's concern
            error.message = error.message.replace(str(directory), str(path))
            raise


def _read(directory: Path, path: Path) -> Run:
    stored = load(directory)
    try:
        record = _checked_record(stored.run)
        frames = _frames(record, stored.trials)
        pairs, identity = _identity(record, stored.trials)
        invalid = findings.invalid_blocks(stored.trials, record["plan"]["invalidation"] or {})
        warnings = [
            *findings.deviating(stored.run, stored.trials),  # as stored: a digest is of bytes
            *findings.from_run(record, stored.trials),
        ]
    except _Wrong as wrong:
        raise BadInput(f"{path}: {wrong}", HINT) from wrong
    return Run(
        record=record,
        **frames,
        findings=warnings,
        pairs=pairs,
        invalid=invalid,
        identity=identity,
        excluded=len(stored.excluded),
        damaged_lines=stored.damaged_lines,
        costs=cost_model(directory, stored.run, stored.trials),
        steps=read_steps(directory),
        digests={
            name: _digest(directory / name)
            for name in (RUN_FILE, TRIALS_FILE, STEPS_FILE)
            if name != STEPS_FILE or (directory / name).exists()
        },
    )


class _Wrong(Exception):
    """Where a run directory is not what it should be."""


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return "sha256:" + hashlib.file_digest(handle, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise BadInput(oserror("read", path, error).message, "check its permissions") from error


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def _clean(value: Any) -> Any:
    """Texts without what neither HTML nor SVG may hold; everything else as it is."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


_TYPES: dict[type, str] = {dict: "a table", list: "a list", str: "a text", float: "a number"}


def _is(value: Any, kind: type, where: str) -> Any:
    good = isinstance(value, kind)
    if kind is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        good = good and -LARGEST <= value <= LARGEST  # false of NaN too
    if not good:
        shown = repr(value)
        raise _Wrong(f"{where} is {shown[:60]}, not {_TYPES[kind]}")
    return value


def _texts(value: Any, where: str) -> list[str]:
    return [_is(item, str, f"{where}[{n}]") for n, item in enumerate(_is(value, list, where))]


def _checked_record(run: Mapping[str, Any]) -> dict[str, Any]:
    """run.json with every part a report reads present and of the right type."""
    record: dict[str, Any] = _clean(dict(run))
    plan: dict[str, Any] = dict(_is(record["plan"], dict, "run.json: plan"))
    record["plan"] = plan
    for name, empty in (
        ("metrics", {}),
        ("images", {}),
        ("host", {}),
        ("identity", {}),
        ("descriptions", {}),
        ("calibration", {}),
        ("capabilities", []),
        ("findings", []),
        ("receipts", []),
    ):
        value = record.get(name)
        record[name] = _is(empty if value is None else value, type(empty), f"run.json: {name}")
    for name in ("id", "created", "ended", "command", "hvct_version"):
        value = record.get(name)
        record[name] = "" if value is None else str(value)
    arms = _texts(plan["arms"], "run.json: plan.arms")
    if not arms:
        raise _Wrong("run.json: plan.arms is empty")
    workloads = []
    for n, item in enumerate(plan["workloads"]):
        item = _is(item, dict, f"run.json: plan.workloads[{n}]")
        name = _is(item.get("name"), str, f"run.json: plan.workloads[{n}].name")
        ready = _is(item.get("ready") or {}, dict, f"run.json: plan.workloads[{n}].ready")
        _is(ready.get("kind") or "", str, f"run.json: plan.workloads[{n}].ready.kind")
        workloads.append({**item, "name": name, "title": str(item.get("title") or name)})
    plan["workloads"] = workloads
    plan["blocks"] = int(_is(plan.get("blocks", 0), float, "run.json: plan.blocks"))
    plan["alpha"] = _is(plan.get("alpha", 0.05), float, "run.json: plan.alpha")
    if not 0 < plan["alpha"] < 1:
        raise _Wrong(f"run.json: plan.alpha is {plan['alpha']}, not between 0 and 1")
    plan["margins"] = _is(plan.get("margins") or {}, dict, "run.json: plan.margins")
    for name, value in plan["margins"].items():
        _is(value, float, f"run.json: plan.margins.{name}")
    rules = plan.get("invalidation")  # None: of a version that left no block out
    for name, value in _is(rules or {}, dict, "run.json: plan.invalidation").items():
        _is(value, float, f"run.json: plan.invalidation.{name}")
    plan["invalidation"] = rules
    plan["fairness"] = _is(plan.get("fairness") or {}, dict, "run.json: plan.fairness")
    primary = _is(plan.get("primary") or [], list, "run.json: plan.primary")
    for n, entry in enumerate(primary):
        if len(_texts(entry, f"run.json: plan.primary[{n}]")) != 2:
            raise _Wrong(f"run.json: plan.primary[{n}] is no pair of metric and workload")
    plan["primary"] = primary
    for name, metric in record["metrics"].items():
        where = f"run.json: metrics.{name}"
        _is(metric, dict, where)
        _is(metric.get("family") or "", str, f"{where}.family")
        for key in ("unit", "scale", "better"):
            _is(metric.get(key), str, f"{where}.{key}")
        for key in ("margin", "resolution"):
            if metric.get(key) is not None:
                _is(metric[key], float, f"{where}.{key}")
        if metric["scale"] not in {"ratio", "difference"}:
            raise _Wrong(f"{where}.scale is {metric['scale']!r}")
    for n, row in enumerate(_is(record["calibration"].get("floors") or [], list, "floors")):
        where = f"run.json: calibration.floors[{n}]"
        for key, kind in (("metric", str), ("workload", str), ("arm", str), ("floor", float)):
            _is(_is(row, dict, where).get(key), kind, f"{where}.{key}")
    for n, finding in enumerate(record["findings"]):
        _is(finding, dict, f"run.json: findings[{n}]")
    for n, capability in enumerate(record["capabilities"]):
        _is(capability, dict, f"run.json: capabilities[{n}]")
    return record


def _identity(
    record: Mapping[str, Any], trials: Sequence[dict[str, Any]]
) -> tuple[list[tuple[str, str]], list[PairIdentity]]:
    """Compare the stored receipts again: the verdict on identity is never taken on trust."""
    names = record["plan"]["arms"]
    try:
        pairs = bench_arms.pairs(names)
    except KeyError as error:
        raise _Wrong(f"run.json: plan.arms names an arm this version has not: {error}") from error
    for n, item in enumerate(record["receipts"]):
        _is(item, dict, f"run.json: receipts[{n}]")
        for key, kind in (("arm", str), ("workload", str), ("receipt", dict)):
            _is(item.get(key), kind, f"run.json: receipts[{n}].{key}")
    security = {item["name"]: str(item.get("security")) for item in record["plan"]["workloads"]}
    for trial in trials:
        _is(trial.get("accelerator", {}), dict, f"{_where(trial)}: accelerator")
        trial["receipt"] = _is(trial.get("receipt") or {}, dict, f"{_where(trial)}: receipt")
    return pairs, compare(trials, record["receipts"], pairs, security)


def _frames(record: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The trials as columns: a list per column, one frame at the end (fast for 100,000)."""
    arms = set(record["plan"]["arms"])
    workloads = {item["name"] for item in record["plan"]["workloads"]}
    heads: list[tuple[Any, ...]] = []
    samples, marks, readings = _Column("samples"), _Column("timeline"), _Column("disturbances")
    resolution: dict[str, float] = {}
    errors: dict[tuple[str, str, str], list[float]] = {}
    attributed: dict[tuple[str, str], list[float]] = {}
    ordered = sorted(trials, key=lambda item: (item["block"], _position(item)))
    for number, trial in enumerate(ordered):
        where = _where(trial)
        if trial["arm"] not in arms:
            raise _Wrong(f"{where}: the plan has no such arm")
        if trial["workload"] not in workloads:
            raise _Wrong(f"{where}: the plan has no such workload")
        if trial["outcome"] not in OUTCOMES:
            raise _Wrong(f"{where}: {trial['outcome']!r:.40} is no outcome")
        accelerator = _is(trial.get("accelerator") or {}, dict, f"{where}: accelerator")
        heads.append(
            (
                int(trial["block"]),
                _position(trial),
                trial["arm"],
                trial["workload"],
                trial["outcome"],
                _clean(str(trial.get("error") or "")[:TEXT_LIMIT]),
                _clean(str(accelerator.get("kind") or "none")),
                _clean(str(accelerator.get("reason") or "")[:TEXT_LIMIT]),
                bool(accelerator.get("nested")),
                str(trial.get("wall_time") or ""),
            )
        )
        listed = _is(trial.get("samples") or [], list, f"{where}: samples")
        try:
            pairs = [(sample["metric"], sample["value"]) for sample in listed]
        except (KeyError, TypeError) as error:
            raise _Wrong(f"{where}: a sample has no {error}") from error
        samples.add(number, pairs)
        for column, key in ((marks, "timeline"), (readings, "disturbances")):
            column.add(number, _is(trial.get(key) or {}, dict, f"{where}: {key}").items())
        for event, error_s in _is(trial.get("resolution") or {}, dict, where).items():
            error_s = _is(error_s, float, f"{where}: resolution.{event}")
            resolution[event] = max(resolution.get(event, 0.0), error_s)
            errors.setdefault((trial["workload"], trial["arm"], event), []).append(error_s)
        usage = _is(trial.get("usage") or {}, dict, f"{where}: usage")
        part = (_is(usage.get("cpu") or {}, dict, f"{where}: usage.cpu")).get("attributed")
        if part is not None:
            part = _is(part, float, f"{where}: usage.cpu.attributed")
            attributed.setdefault((trial["workload"], trial["arm"]), []).append(part)
    columns = ["block", "position", "arm", "workload", "outcome", "error", "kind", "reason",
               "nested", "wall_time"]  # fmt: skip
    table = pd.DataFrame(heads, columns=columns)
    for name in ("arm", "workload", "outcome", "kind", "reason"):
        table[name] = table[name].astype("category")
    return {
        "trials": table,
        "samples": samples.frame(ordered, ("trial", "metric", "value")),
        "marks": marks.frame(ordered, ("trial", "event", "at_s")),
        "disturbances": readings.frame(ordered, ("trial", "name", "value")),
        "resolution_s": resolution,
        "error_s": {key: float(np.median(values)) for key, values in errors.items()},
        "attributed": {key: float(np.median(values)) for key, values in attributed.items()},
    }


class _Column:
    """Named numbers of all trials, checked together at the end: millions of them."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.numbers: list[int] = []
        self.names: list[Any] = []
        self.values: list[Any] = []

    def add(self, number: int, pairs: Collection[tuple[Any, Any]]) -> None:
        """The pairs of one trial."""
        self.numbers += [number] * len(pairs)
        self.names += [name for name, _ in pairs]
        self.values += [value for _, value in pairs]

    def frame(
        self, trials: Sequence[Mapping[str, Any]], columns: tuple[str, str, str]
    ) -> pd.DataFrame:
        """As a frame, every name a text and every value a finite number."""
        good = {type(name) for name in self.names} <= {str} and {
            type(value) for value in self.values
        } <= {float, int}
        if good:
            try:
                values = np.array(self.values, dtype=np.float64)
                good = bool((np.abs(values) <= LARGEST).all())
            except OverflowError:
                good = False
        if not good:
            for number, name, value in zip(self.numbers, self.names, self.values, strict=True):
                where = f"{_where(trials[number])}: {self.title}"
                _is(name, str, f"{where}: a name")
                _is(value, float, f"{where}: {name}")
        return pd.DataFrame(
            {
                columns[0]: np.array(self.numbers, dtype=np.int64),
                columns[1]: _named(self.names),
                columns[2]: values,
            }
        )


def _named(names: list[str]) -> pd.Series[Any]:
    # Before it is a column: half a character cannot be in one.
    cleaned = {name: _clean(name) for name in set(names)}
    if any(name != clean for name, clean in cleaned.items()):
        names = [cleaned[name] for name in names]
    return pd.Series(names, dtype="str").astype("category")


def _where(trial: Mapping[str, Any]) -> str:
    return f"trials.jsonl: block {trial['block']}, {trial['arm']!s:.40}, {trial['workload']!s:.40}"


def _position(trial: Mapping[str, Any]) -> int:
    value = trial.get("position", 0)
    return value if isinstance(value, int) else 0
