"""Metrics out of output: a missing number is a failure, never a zero."""

from __future__ import annotations

import pytest

from bench.errors import HvctError
from bench.model import MetricRule
from bench.output_metrics import MOST_REPEATS, extract, of_trial

JSON = b'{"jobs": [{"read": {"iops": 1234.5}}], "a/b": {"~": 7}, "yes": true}'


def numbers(rule: MetricRule, stdout: bytes, stderr: bytes = b"") -> list[float]:
    """What is read, in order."""
    return [sample.value for sample in extract(rule, stdout, stderr)]


@pytest.mark.parametrize(("pointer", "value"), [("/jobs/0/read/iops", 1234.5), ("/a~1b/~0", 7.0)])
def test_a_json_pointer_finds_its_number(pointer: str, value: float) -> None:
    """RFC 6901, escapes included."""
    assert numbers(MetricRule("m", "x", pointer=pointer), JSON) == [value]


def test_a_regex_finds_its_group() -> None:
    """In the stream the rule names."""
    rule = MetricRule("m", "x", regex=r"^rate: ([\d.]+)$", source="stderr")
    assert numbers(rule, b"rate: 1", b"noise\nrate: 2.5\n") == [2.5]


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
    assert numbers(MetricRule("m", "x", regex=r"n=(\d+)"), b"\xff\x00n=5\xfe") == [5]


ARRAY = b'{"rates": [4, 1, 9.5], "none": [], "mixed": [1, "x"]}'


def test_iterations_inside_an_instance_are_all_kept_and_stand_as_their_median() -> None:
    """Every match, or every number of an array; the trial has one number of them."""
    by_line = MetricRule("m", "x", regex=r"^n=(\d+)$")
    assert numbers(by_line, b"n=7\nn=1\nn=2\n") == [7, 1, 2]
    assert numbers(MetricRule("m", "x", pointer="/rates"), ARRAY) == [4, 1, 9.5]
    stored = [{"metric": "m", "value": v} for v in (7, 1, 2)] + [{"metric": "o", "value": 3}]
    assert of_trial(stored) == {"m": 2, "o": 3}


def test_a_plan_may_take_the_first_alone() -> None:
    """As plans did that were stored before there was a choice."""
    first = MetricRule("m", "x", regex=r"n=(\d+)", repeats="first")
    assert numbers(first, b"n=7\nn=1\n") == [7]
    assert numbers(MetricRule("m", "x", pointer="/rates", repeats="first"), ARRAY) == [4]


@pytest.mark.parametrize("pointer", ["/none", "/mixed"])
def test_one_iteration_without_a_number_fails_the_trial(pointer: str) -> None:
    """None is left out silently."""
    with pytest.raises(HvctError, match="metric m"):
        numbers(MetricRule("m", "x", pointer=pointer), ARRAY)


def test_more_than_can_be_kept_is_an_error() -> None:
    """With what to do about it; the first alone is no problem."""
    text = b"n=1\n" * (MOST_REPEATS + 1)
    with pytest.raises(HvctError, match="more than 10,000") as caught:
        numbers(MetricRule("m", "x", regex=r"n=(\d+)"), text)
    assert 'repeats = "first"' in caught.value.hint
    assert numbers(MetricRule("m", "x", regex=r"n=(\d+)", repeats="first"), text) == [1]
