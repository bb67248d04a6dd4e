"""Sizes as people write them. Stdlib only."""

from __future__ import annotations

import re
from typing import Any

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30,
          "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}  # fmt: skip


LARGEST = 2.0**63


def parse_size(value: Any) -> int:
    """``"256 MiB"``, ``"1G"`` or a number of bytes → bytes.

    Raises:
        ValueError: it is no size, or not positive.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (
        match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    ):
        factor = _UNITS.get(match[2].upper())
        if factor is None:
            raise ValueError(f"{match[2]!r} is no unit of size; use MiB or GiB")
        number = float(match[1])
        if not number < LARGEST:  # digits without end are infinite
            raise ValueError(f"{value[:20]}… is no size of this world")
        size = int(number * factor)
    else:
        raise ValueError(f'{value!r} is no size; write it as "256 MiB"')
    if size <= 0:
        raise ValueError("a size must be positive")
    return size
