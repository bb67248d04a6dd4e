"""Numbers out of a workload's output: a regex group or a JSON pointer, as the plan says."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from bench.errors import HvctError
from bench.model import MetricRule, Sample


def extract(rule: MetricRule, stdout: bytes, stderr: bytes) -> Sample:
    """Read one metric.

    Raises:
        HvctError: the output does not hold it; a missing number is a failed trial, not a zero.
    """
    text = (stderr if rule.source == "stderr" else stdout).decode("utf-8", "replace")
    if rule.regex:
        match = re.search(rule.regex, text, re.MULTILINE)
        if match is None:
            raise HvctError(
                f"metric {rule.name}: {rule.regex!r} matches nothing in {rule.source}",
                "look at the trial's log, then correct the plan",
            )
        found: Any = match[1]
    else:
        found = _resolve(rule, text)
    try:
        value = float(found)
    except (TypeError, ValueError) as error:
        raise HvctError(f"metric {rule.name}: {found!r} is no number") from error
    if not math.isfinite(value) or isinstance(found, bool):
        raise HvctError(f"metric {rule.name}: {found!r} is no number")
    return Sample(rule.name, value, rule.unit)


def _resolve(rule: MetricRule, text: str) -> Any:
    """Follow a JSON pointer (RFC 6901)."""
    try:
        value = json.loads(text)
        for token in rule.pointer[1:].split("/"):
            key = token.replace("~1", "/").replace("~0", "~")
            value = value[int(key)] if isinstance(value, list) else value[key]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise HvctError(
            f"metric {rule.name}: nothing at {rule.pointer} in {rule.source}",
            "look at the trial's log, then correct the plan",
        ) from error
    return value
