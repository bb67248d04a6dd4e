"""What a confined instance may keep and see: the same for a container and, where asked, a guest.

Stdlib only; the filter of system calls is in `bench.agent.seccomp`.
"""

from __future__ import annotations

CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "NET_RAW": 13,
    "SYS_CHROOT": 18,
    "AUDIT_WRITE": 29,
    "SETFCAP": 31,
}
"""What a confined workload may keep, with the numbers of capability.h: what container engines
leave by default, but not MKNOD. They have a device control group that makes it harmless; without
one a block device made in /dev would open the host's disks."""

CAPABILITY_MASK = sum(1 << number for number in CAPABILITIES.values())

MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
"""Paths of /proc and /sys that are hidden: Docker's, and two more of later versions."""

READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""Paths that can be read only."""
