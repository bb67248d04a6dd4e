"""When memory is taken from a guest, and how much: the host's policy of a balloon. Pure.

The rule: once the workload's peak has been freed, the guest is left what it uses, and a
margin of `MARGIN_BYTES` for what it wants next. What it uses is what it has less what its
kernel calls available (MemAvailable, as the balloon's driver tells it). The balloon is
inflated once; it is deflated by the host for a next peak that is announced (`whole`), and by
the guest itself, page by page, before it would kill for lack of memory (``autodeflate``).
"""

from __future__ import annotations

MARGIN_BYTES = 64 << 20
"""What stays available to the guest: enough to run on, little beside a peak worth taking back."""


def keep_bytes(has_bytes: int, available_bytes: int) -> int:
    """What a guest keeps of the RAM that it has, in whole KiB; never more than it has.

    Args:
        has_bytes: its RAM less what the balloon already holds.
        available_bytes: what of that it calls available.
    """
    taken = max(0, available_bytes - MARGIN_BYTES)
    return (has_bytes - taken) // 1024 * 1024
