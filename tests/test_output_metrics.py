"""Metrics out of output: a missing number is a failure, never a zero."""

from __future__ import annotations

import pytest

from bench.errors import HvctError
from bench.model import MetricRule
from bench.output_metrics import extract

JSON = b'{"jobs": [{"read": {"iops": 1234.5}}], "a/b": {"~": 7}, "yes": true}'


@pytest.mark.parametrize(("pointer", "value"), [("/jobs/0/read/iops", 1234.5), ("/a~1b/~0", 7.0)])
def test_a_json_pointer_finds_its_number(pointer: str, value: float) -> None:
    """RFC 6901, escapes included."""
    assert extract(MetricRule("m", "x", pointer=pointer), JSON, b"").value == value


def test_a_regex_finds_its_group() -> None:
    """In the stream the rule names."""
    rule = MetricRule("m", "x", regex=r"^rate: ([\d.]+)$", source="stderr")
    assert extract(rule, b"rate: 1", b"noise\nrate: 2.5\n").value == 2.5


@pytest.mark.parametrize(
    "rule",
    [
        MetricRule("m", "x", regex="(nothing)"),
        MetricRule("m", "x", regex='("jobs")'),
        MetricRule("m", "x", pointer="/jobs/9"),
        MetricRule("m", "x", pointer="/jobs/x"),
        MetricRule("m", "x", pointer="/yes"),
        MetricRule("m", "x", pointer="/jobs"),
    ],
)
def test_what_is_not_there_is_an_error(rule: MetricRule) -> None:
    """The trial fails and says which metric was missing."""
    with pytest.raises(HvctError, match="metric m"):
        extract(rule, JSON, b"")


def test_binary_output_is_no_obstacle() -> None:
    """Bytes that are no UTF-8 around the number do no harm."""
    assert extract(MetricRule("m", "x", regex=r"n=(\d+)"), b"\xff\x00n=5\xfe", b"").value == 5
