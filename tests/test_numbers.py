"""How numbers are written: three digits alone, as many as the interval supports beside one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.numbers import (
    MINUS,
    format_estimate,
    format_interval,
    format_p,
    format_percent,
    format_value,
    quantity,
)

MIB = float(1 << 20)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0041, "s", "4.1 ms"),
        (1.94, "s", "1.94 s"),
        (250.0, "ms", "250 ms"),
        (0.9997, "s", "1 s"),
        (9.997e-3, "s", "10 ms"),
        (3.2e-5, "s", "32 µs"),
        (0.0, "s", "0 s"),
        (151 * MIB, "bytes", "151 MiB"),
        (0.9 * MIB, "bytes", "0.9 MiB"),
        (4096, "bytes", "4 KiB"),
        (1.5 * 1024 * MIB, "bytes", "1.5 GiB"),
        (0.93, "ratio", "0.93×"),
        (84.2, "ratio", "84.2×"),
        (323.4, "ratio", "323×"),
        (12345.0, "ops/s", "12,345 ops/s"),
        (0.0312, "fraction", "3.12 %"),
        (3.1e-8, "CPU", "3.1e−08 CPU"),
        (-3.0, "CPU", "−3 CPU"),
        (7.0, "", "7"),
        (None, "s", "–"),
        (math.nan, "s", "–"),
        (math.inf, "s", "timeout"),
    ],
)
def test_a_value_alone(value: float | None, unit: str, text: str) -> None:
    """Three significant digits, no trailing zeros, the unit that reads best."""
    assert format_value(value, unit) == text


def test_a_value_that_is_only_bounded() -> None:
    """Below the resolution, beyond the timeout."""
    assert format_value(0.0004, "s", resolution=0.001) == "< 1 ms"
    assert format_value(0.002, "s", resolution=0.001) == "2 ms"
    assert format_value(math.inf, "s", timeout=60.0) == "> 60 s"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((84.2, 79.1, 90.3), "84× [79, 90]"),
        ((1.5, 1.4, 1.6), "1.5× [1.4, 1.6]"),
        ((1.0, 0.99, 1.01), "1.00× [0.99, 1.01]"),
        ((1.46, 1.41, 1.60), "1.46× [1.41, 1.60]"),
        ((323.0, 301.0, 344.0), "323× [301, 344]"),
        ((2.0, 0.0, math.inf), "2.00× (0, ∞)"),
    ],
)
def test_a_ratio_with_its_interval(numbers: tuple[float, float, float], text: str) -> None:
    """The width of the interval decides the decimals of all three numbers."""
    assert format_estimate(*numbers, "ratio") == text


def test_a_difference_with_its_interval() -> None:
    """One unit for all three, after them; a sign where asked."""
    assert (
        format_estimate(118 * MIB, 116 * MIB, 121 * MIB, "bytes", signed=True)
        == "+118 [116, 121] MiB"
    )
    assert format_estimate(0.0, -0.004, 0.004, "s", signed=True) == "0 [−4, 4] ms"
    assert format_estimate(-0.003, -0.004, -0.002, "s") == "−3 [−4, −2] ms"


def test_an_interval_alone_follows_the_estimate_it_stands_beside() -> None:
    """Seconds or milliseconds as the estimate has them."""
    assert format_interval(0.0031, 0.0052, "s", near=0.004) == "[3, 5]"
    assert format_interval(None, 1.0, "s") == ""


def test_p_values_and_shares() -> None:
    """Two digits of p, no false precision at the bottom."""
    assert [format_p(p) for p in (0.0039, 0.00001, 1.0, None)] == ["0.0039", "< 0.0001", "1", "–"]
    assert [format_percent(share) for share in (0.05, 0.025)] == ["5 %", "2.5 %"]
    assert quantity(0.001234, "s", digits=2) == "1.2 ms"


@given(st.floats(1e-9, 1e12), st.sampled_from(["s", "bytes", "ratio", "ops/s"]))
def test_a_number_read_back_is_the_number(value: float, unit: str) -> None:
    """To the three digits shown, in whatever unit was chosen; bytes to the byte."""
    shown, _, label = format_value(value, unit).replace(",", "").replace("×", "").partition(" ")
    factor = {"ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "KiB": 1024.0, "MiB": MIB}.get(label, 1.0)
    factor *= {"GiB": 1024 * MIB, "TiB": MIB * MIB}.get(label, 1.0)
    read = float(shown.replace(MINUS, "-")) * factor
    assert read == pytest.approx(value, rel=0.051 if value < 1e-4 else 0.0051)
