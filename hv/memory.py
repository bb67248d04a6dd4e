"""How much RAM a guest gets, so that a limit means the same inside a VM as in a container.

Of its RAM a guest keeps some for its kernel, page tables and reserves. For the basis
``usable`` that reserve is measured by booting once for each kernel, size and device set,
and kept; the formula is only the first guess (a second boot follows where it was off).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from bench.cache import cache_dir, lock, workspace
from bench.errors import Refused
from bench.model import InstanceSpec, MemoryBasis
from bench.numbers import quantity
from hv.domain import DEFAULT_RAM_BYTES

MIB = 1 << 20
GOOD_ENOUGH = 0.005  # of the limit; agreement is promised within 2 %
_PROPORTIONAL_RESERVE = 0.04  # page structures
# For huge pages the kernel keeps a twentieth of its memory free, up to 44 MiB, and half
# as much again before it counts memory as available.
_WATERMARK_SHARE = 0.075
_WATERMARK_MOST_BYTES = 66 * MIB


@dataclass(frozen=True)
class Needs:
    """What a guest of one kind needs, whatever its limit.

    Attributes:
        least_ram_bytes: it boots with this.
        fixed_bytes: taken by the kernel itself, its tables and all that runs beside the
            workload; a guess, which is measured.
    """

    least_ram_bytes: int
    fixed_bytes: int


DIRECT = Needs(80 * MIB, 50 * MIB)
"""The distribution's kernel with our initramfs; it does not boot in 64 MiB."""


@dataclass(frozen=True)
class Size:
    """A guest's RAM, and what was seen available in it at `started` (None: not measured)."""

    ram_bytes: int
    available_bytes: int | None = None


def guess(limit_bytes: int, needs: Needs = DIRECT) -> int:
    """RAM that will leave about `limit_bytes` available."""
    plain = needs.fixed_bytes + limit_bytes
    shared = plain / (1 - _PROPORTIONAL_RESERVE - _WATERMARK_SHARE)
    capped = (plain + _WATERMARK_MOST_BYTES) / (1 - _PROPORTIONAL_RESERVE)
    return _whole(min(shared, capped))


def least_limit(basis: MemoryBasis, needs: Needs = DIRECT) -> int:
    """The smallest memory limit with which a guest boots."""
    if basis is MemoryBasis.NOMINAL:
        return needs.least_ram_bytes
    share = 1 - _PROPORTIONAL_RESERVE - _WATERMARK_SHARE
    return _whole(needs.least_ram_bytes * share - needs.fixed_bytes)


def check(spec: InstanceSpec, needs: Needs = DIRECT) -> None:
    """Decline a limit that no guest boots with, or no host has, before anything is started.

    Raises:
        Refused: with the smallest that would do, or the largest.
    """
    limit = spec.limits.memory_bytes
    if limit is None:
        return
    least = least_limit(spec.limits.memory_basis, needs)
    if limit < least:
        raise Refused(
            f"a VM does not boot with {quantity(limit, 'bytes')} of memory",
            f"give it at least {-(-least // MIB)} MiB",
        )
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if limit > host:
        raise Refused(
            f"a VM of {limit // MIB} MiB does not fit into this host's {host // MIB} MiB",
            f"give it less than {host // MIB} MiB",
        )


def guest_size(
    spec: InstanceSpec,
    key: str,
    measure: Callable[[int], int | None],
    needs: Needs = DIRECT,
) -> Size:
    """The RAM for an instance.

    Args:
        key: everything besides the limit that decides the reserve.
        measure: boots a guest with this much RAM and returns what is available in it at
            `started`, None when it got no further.
    """
    limit = spec.limits.memory_bytes
    if limit is None:
        return Size(DEFAULT_RAM_BYTES)
    if spec.limits.memory_basis is MemoryBasis.NOMINAL:
        return Size(_whole(limit))
    name = sha256(f"{key}\0{limit}".encode()).hexdigest()[:32]
    path = cache_dir("vm", "memory") / f"{name}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        return Size(kept["ram_bytes"], kept["available_bytes"])
    with lock("vm-memory"):
        size = _measured(limit, measure, needs)
        if size.available_bytes is not None:
            with workspace("memory") as folder:
                made = folder / "size"
                made.write_text(json.dumps(vars(size)))
                os.replace(made, path)
    return size


def _measured(limit: int, measure: Callable[[int], int | None], needs: Needs) -> Size:
    size = Size(max(guess(limit, needs), needs.least_ram_bytes))
    for _ in range(3):
        available = measure(size.ram_bytes)
        if available is None:
            return size
        size = Size(size.ram_bytes, available)
        missing = limit - available
        if abs(missing) <= max(limit * GOOD_ENOUGH, MIB / 2):
            break
        larger = _whole(size.ram_bytes + missing * (1 + _PROPORTIONAL_RESERVE))
        if larger == size.ram_bytes:
            break
        size = Size(max(larger, needs.least_ram_bytes))
    return size


def _whole(size: float) -> int:
    """Rounded to a MiB, the unit in which libvirt gives a guest its RAM."""
    return max(MIB, round(size / MIB) * MIB)
