"""Records: ``key=value`` strings, each ended by NUL; what both C programs read and write.

Keys may repeat (lists, in order). A value may hold any byte but NUL.
"""

from __future__ import annotations

from collections.abc import Iterable

from bench.errors import HvctError


def encode(pairs: Iterable[tuple[str, str | int | bytes]]) -> bytes:
    """Turn pairs into a record.

    Raises:
        HvctError: a key or value cannot be represented.
    """
    parts = []
    for key, value in pairs:
        raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        if "=" in key or "\0" in key or b"\0" in raw:
            raise HvctError(f"a NUL byte in {key} cannot be passed to a program")
        parts.append(key.encode() + b"=" + raw + b"\0")
    return b"".join(parts)


def decode(data: bytes) -> list[tuple[str, str]]:
    """Turn a record into pairs, in order.

    Raises:
        HvctError: it is not a record.
    """
    if not data:
        return []
    if not data.endswith(b"\0"):
        raise HvctError("a record from a child program is cut off")
    pairs = []
    for part in data[:-1].split(b"\0"):
        key, equals, value = part.partition(b"=")
        if not equals:
            raise HvctError("a record from a child program is malformed")
        pairs.append((key.decode("utf-8", "replace"), value.decode("utf-8", "surrogateescape")))
    return pairs
