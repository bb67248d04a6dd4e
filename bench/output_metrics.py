"""Numbers out of a workload's output: a regex group or a JSON pointer, as the plan says.

A workload that repeats its work inside one instance prints a number for each iteration:
all are kept, as samples of one trial, which stands as their median (`of_trial`).
"""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from bench.errors import HvctError
from bench.model import MetricRule, Sample

MOST_REPEATS = 10_000
"""Of one metric in one trial: each is a number in the run's files for good."""

SEE_LOG = "look at the trial's log, then correct the plan"


def extract(rule: MetricRule, stdout: bytes, stderr: bytes) -> list[Sample]:
    """Read one metric: a sample for each iteration, in the order of the output.

    Raises:
        HvctError: the output does not hold it; a missing number is a failed trial, not a zero.
    """
    text = (stderr if rule.source == "stderr" else stdout).decode("utf-8", "replace")
    if rule.regex:
        matches = re.finditer(rule.regex, text, re.MULTILINE)
        found: list[Any] = [match[1] for match in itertools.islice(matches, MOST_REPEATS + 1)]
        if not found:
            raise HvctError(
                f"metric {rule.name}: {rule.regex!r} matches nothing in {rule.source}", SEE_LOG
            )
    else:
        value = _resolve(rule, text)
        found = value if isinstance(value, list) else [value]
        if not found:
            raise HvctError(f"metric {rule.name}: nothing in the array at {rule.pointer}", SEE_LOG)
    if rule.repeats == "first":
        found = found[:1]
    if len(found) > MOST_REPEATS:
        raise HvctError(
            f"metric {rule.name}: more than {MOST_REPEATS:,} numbers",
            'print fewer, or take only one: repeats = "first"',
        )
    return [Sample(rule.name, _number(rule, item), rule.unit) for item in found]


def of_trial(samples: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Each metric's number in one stored trial; iterations inside it are their median."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        values.setdefault(str(sample["metric"]), []).append(float(sample["value"]))
    return {metric: statistics.median(own) for metric, own in values.items()}


def _number(rule: MetricRule, found: Any) -> float:
    try:
        value = float(found)
    except (TypeError, ValueError) as error:
        raise HvctError(f"metric {rule.name}: {found!r} is no number") from error
    if not math.isfinite(value) or isinstance(found, bool):
        raise HvctError(f"metric {rule.name}: {found!r} is no number")
    return value


def _resolve(rule: MetricRule, text: str) -> Any:
    """Follow a JSON pointer (RFC 6901)."""
    try:
        value = json.loads(text)
        for token in rule.pointer[1:].split("/"):
            key = token.replace("~1", "/").replace("~0", "~")
            value = value[int(key)] if isinstance(value, list) else value[key]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise HvctError(
            f"metric {rule.name}: nothing at {rule.pointer} in {rule.source}", SEE_LOG
        ) from error
    return value
