"""How fast this host's time stamp counter runs: a guest under TCG reads that very counter.

Left to itself the guest's kernel measures it against an emulated timer while it boots. On
a busy host that went wrong by a factor of four, and then its every second is another one:
a `sleep 8` ended after two. So it is told.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import platform
import time
from functools import cache
from pathlib import Path

WINDOW_S = 0.1
LEAST_KHZ, MOST_KHZ = 100_000, 10_000_000
# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"


@cache
def host_tsc_khz() -> int:
    """The counter's frequency in kHz, measured once against CLOCK_MONOTONIC.

    0 where there is none that runs at one speed, or where it cannot be read.
    """
    if platform.machine() != "x86_64" or not _constant():
        return 0
    with (
        contextlib.suppress(OSError),
        mmap.mmap(
            -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        ) as page,
    ):
        page.write(_READ)
        place = ctypes.c_char.from_buffer(page)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))
        try:
            khz = round(_measure(read) * 1e6)
        finally:
            del place  # else the page cannot be given back
        return khz if LEAST_KHZ <= khz <= MOST_KHZ else 0
    return 0


def _measure(read: object) -> float:
    """Counts per nanosecond: both ends are the tightest of several pairs of readings."""
    first = _pair(read)
    time.sleep(WINDOW_S)
    last = _pair(read)
    return (last[1] - first[1]) / (last[0] - first[0])


def _pair(read: object) -> tuple[int, int]:
    assert callable(read)
    best = (1 << 62, 0, 0)
    for _ in range(20):
        before = time.monotonic_ns()
        count = int(read())
        after = time.monotonic_ns()
        best = min(best, (after - before, (before + after) // 2, count))
    return best[1], best[2]


def _constant() -> bool:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return "constant_tsc" in line.split()
    return False
