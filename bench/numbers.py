"""How numbers are written: one way for the terminal, the HTML and the PDF. Stdlib only.

An interval decides its own precision: as many decimals as its width supports, so that
``84× [79, 90]`` and ``1.00× [0.99, 1.01]`` each show what is known and no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

TIMES = "×"
MINUS = "−"
NOTHING = "–"
INFINITY = "∞"
_MICRO = "µs"

RATIO_UNIT = "ratio"
"""The unit of arm / baseline, written as a multiplication sign."""

_Steps = tuple[tuple[float, str], ...]

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_TIME_STEPS: _Steps = ((1.0, "s"), (1e-3, "ms"), (1e-6, _MICRO), (1e-9, "ns"))
_BYTES = frozenset({"B", "byte", "bytes"})
_BYTE_STEPS: _Steps = (
    (2.0**40, "TiB"),
    (2.0**30, "GiB"),
    (2.0**20, "MiB"),
    (2.0**10, "KiB"),
    (1.0, "B"),
)
_MEBIBYTE = 2.0**20
_FRACTIONS = frozenset({"fraction", "share"})
_MOST_DECIMALS = 6


def format_value(
    value: float | None,
    unit: str,
    *,
    resolution: float = 0.0,
    timeout: float | None = None,
    signed: bool = False,
) -> str:
    """One value with its unit: ``4.1 ms``, ``151 MiB``, ``0.93×``, ``< 1 ms``, ``> 60 s``.

    Args:
        value: in `unit`; None is nothing, +inf a timeout.
        unit: ``s``, ``ms``, ``us``, ``ns``, ``bytes``, ``ratio``, ``fraction``, ``%``, or
            any other text, which is appended.
        resolution: values up to this are written as below it.
        timeout: what an infinite value is known to exceed.
        signed: write a plus sign, for differences.
    """
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        if value > 0 and timeout is not None:
            return f"> {format_value(timeout, unit)}"
        return "timeout" if value > 0 else f"{MINUS}{INFINITY}"
    if resolution > 0.0 and 0.0 <= value <= resolution:
        return f"< {format_value(resolution, unit)}"
    return quantity(value, unit, signed=signed)


def quantity(value: float, unit: str, *, digits: int = 3, signed: bool = False) -> str:
    """A finite value to so many significant digits, without trailing zeros: ``1.94 s``."""
    scale, label = _choose(abs(value), unit)
    shown = value / scale
    if shown != 0.0 and abs(shown) < 10.0 ** (1 - _MOST_DECIMALS):
        return _join(f"{shown:.2g}".replace("-", MINUS), label)
    number = _digits(shown, _decimals_for(shown, digits), signed)
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return _join(number, label)


def format_interval(low: float | None, high: float | None, unit: str, *, near: float = 0.0) -> str:
    """An interval in brackets, without its unit: ``[79, 90]``.

    `near` is the estimate it stands beside: it decides between ms and s, KiB and MiB.
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    scale, _ = _choose(_magnitude(near, low, high), unit)
    return _bracket(low / scale, high / scale, unit)


def format_estimate(
    estimate: float | None,
    low: float | None,
    high: float | None,
    unit: str,
    *,
    bound: float | None = None,
    signed: bool = False,
) -> str:
    """An estimate with its interval: ``84× [79, 90]``, ``+118 [116, 121] MiB``, ``> 60×``.

    `bound` replaces an estimate that is only known to lie beyond it.
    """
    if estimate is None or math.isnan(estimate):
        return NOTHING
    if bound is not None:
        sign = ">" if estimate > bound else "<"
        return f"{sign} {format_value(bound, unit, signed=signed)}"
    if math.isinf(estimate):
        return f"> every finite value ({INFINITY})" if estimate > 0 else f"{MINUS}{INFINITY}"
    if low is None or high is None:
        return format_value(estimate, unit, signed=signed)
    scale, label = _choose(_magnitude(estimate, low, high), unit)
    low, high = low / scale, high / scale
    number = _digits(estimate / scale, _decimals(low, high, estimate / scale), signed)
    bracket = _bracket(low, high, unit)
    if unit == RATIO_UNIT:
        return f"{number}{TIMES} {bracket}"
    return _join(f"{number} {bracket}", label)


def format_series(values: Sequence[float], unit: str, *, digits: int = 4) -> tuple[str, str]:
    """Many values in the one unit that suits their median, and that unit: ``12.1 9.87``, ``ms``."""
    if not values:
        return "", unit
    scale, label = _choose(abs(sorted(values)[len(values) // 2]), unit)
    shown = (_digits(v / scale, _decimals_for(v / scale, digits)) for v in values)
    return " ".join(text.rstrip("0").rstrip(".") if "." in text else text for text in shown), label


def format_percent(share: float) -> str:
    """A share as per cent: ``5 %``, ``2.5 %``."""
    return f"{share * 100.0:.3g} %"


def format_p(p_value: float | None) -> str:
    """A p-value: ``0.0039``, ``< 0.0001``."""
    if p_value is None:
        return NOTHING
    return "< 0.0001" if p_value < 0.0001 else f"{p_value:.2g}"


def _magnitude(estimate: float, low: float, high: float) -> float:
    """What picks the unit: the estimate, or the interval's larger end beside a tiny estimate."""
    largest = max((abs(end) for end in (low, high) if math.isfinite(end)), default=0.0)
    size = abs(estimate) if math.isfinite(estimate) else 0.0
    return size if size * 10.0 > largest else largest


def _choose(size: float, unit: str) -> tuple[float, str]:
    """The divisor and label under which a size of this unit reads best."""
    if unit == RATIO_UNIT:
        return 1.0, TIMES
    if unit in _FRACTIONS:
        return 0.01, "%"
    if unit in _SECONDS:
        base, steps = _SECONDS[unit], _TIME_STEPS
    elif unit in _BYTES:
        base, steps = 1.0, _BYTE_STEPS
    else:
        return 1.0, unit
    if size == 0.0:
        return 1.0, _MICRO if unit == "us" else ("B" if unit in _BYTES else unit)
    for step, label in steps:
        # 0.9996 s must not print as 1000 ms; instances are small against a MiB, yet all
        # their memory figures should be comparable at a glance.
        least = 0.1 if unit in _BYTES and step == _MEBIBYTE else 0.9995
        if size * base >= step * least:
            return step / base, label
    return steps[-1][0] / base, steps[-1][1]


def _decimals_for(value: float, digits: int = 3) -> int:
    """Decimals that give a lone value so many significant digits."""
    if value == 0.0:
        return 0
    exponent = math.floor(math.log10(abs(value)) + 1e-3)  # 9.995 becomes 10.0
    return min(_MOST_DECIMALS, max(0, digits - 1 - exponent))


def _decimals(low: float, high: float, estimate: float) -> int:
    """Decimals that the interval's width supports: one digit of it, two if it begins with 1."""
    width = high - low
    if not math.isfinite(width) or width <= 0.0:
        return _decimals_for(estimate)
    exponent = math.floor(math.log10(width) + 1e-9)
    leading = width / 10.0**exponent
    return min(_MOST_DECIMALS, max(0, -exponent + (1 if leading < 1.95 else 0)))


def _bracket(low: float, high: float, unit: str) -> str:
    finite = [end for end in (low, high) if math.isfinite(end)]
    decimals = _decimals(low, high, finite[0] if finite else 0.0)
    left = f"[{_digits(low, decimals)}" if math.isfinite(low) else f"({MINUS}{INFINITY}"
    if low == math.inf:
        left = f"({INFINITY}"
    if unit == RATIO_UNIT and low == 0.0:
        left = "(0"
    right = f"{_digits(high, decimals)}]" if math.isfinite(high) else f"{INFINITY})"
    if high == -math.inf:
        right = f"{MINUS}{INFINITY})"
    return f"{left}, {right}"


def _digits(value: float, decimals: int, signed: bool = False) -> str:
    text = f"{abs(value):,.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        return text
    return f"{MINUS}{text}" if value < 0 else (f"+{text}" if signed else text)


def _join(number: str, label: str) -> str:
    if label in ("", TIMES):
        return f"{number}{label}"
    return f"{number} {label}"
