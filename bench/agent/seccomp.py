"""The system-call filter as BPF: as strict as container engines' default profile.

A deny list over the calls it was written against, and ENOSYS for every later one: a call
that nobody has judged is not let through, and a libc falls back from it. A test compares
it call by call with the profile that a Docker engine really loads. A container has it
loaded by the launcher; under ``security = "same"`` every arm has it loaded by the agent.
"""

from __future__ import annotations

import errno
import platform
import struct
import sys
import tempfile
from functools import cache

from bench.errors import HostCannot

# fmt: off
DENIED = (
    "acct", "add_key", "afs_syscall", "bpf", "clock_adjtime", "clock_settime", "create_module",
    "delete_module", "fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick",
    "get_kernel_syms", "get_mempolicy", "getpmsg", "init_module", "io_uring_enter",
    "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load",
    "kexec_load", "keyctl", "lookup_dcookie", "mbind", "migrate_pages", "mount",
    "mount_setattr", "move_mount", "move_pages", "name_to_handle_at", "nfsservctl",
    "open_by_handle_at", "open_tree", "perf_event_open", "pidfd_getfd", "pivot_root",
    "process_madvise", "process_vm_readv", "process_vm_writev", "putpmsg", "query_module",
    "quotactl", "quotactl_fd", "reboot", "request_key", "security", "set_mempolicy",
    "setdomainname", "sethostname", "setns", "settimeofday", "stime", "swapoff", "swapon",
    "_sysctl", "sysfs", "syslog", "tuxcall", "umount", "umount2", "unshare", "uselib",
    "userfaultfd", "ustat", "vhangup", "vm86", "vm86old", "vserver",
)
# fmt: on

NEWEST = 449
"""futex_waitv: the last call that `DENIED` was written against. libseccomp need not know a
later one for it to be refused."""

COMMON = 424
"""pidfd_send_signal: from here on every architecture has the same numbers."""

LAST_OLD = {"x86_64": 334, "aarch64": 294}
"""Each architecture's last call below them; of the gap between only kernels of tomorrow know."""

NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}: what clone must not ask for."""

AF_VSOCK = 40  # reaches the host of a virtual machine past every network namespace

PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux, 32 bits, their uname of 2.6, and the question which: none of them unsafe, where others
switch off what protects a program's memory."""


@cache
def seccomp_program() -> bytes:
    """The filter as BPF, built once (25 ms).

    Raises:
        HostCannot: libseccomp is missing.
    """
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise HostCannot(
            f"the seccomp filter cannot be built: {error}", "install libseccomp2 and pyseccomp"
        ) from error
    filter_ = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    filter_.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ERRNO(errno.ENOSYS))
    # A balanced tree: each call of the workload, and the kernel's own walk over all calls
    # while loading, passes 8 comparisons and not 70.
    filter_.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)
    for name in DENIED:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        if number >= 0:  # negative: this architecture has no such call
            filter_.add_rule(pyseccomp.ERRNO(errno.EPERM), number)
    # One rule per flag: the flags word is denied when any of them is set. The first
    # argument of clone on every architecture but s390.
    for bit in range(32):
        if NAMESPACE_FLAGS >> bit & 1:
            flag = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, 1 << bit, 1 << bit)
            filter_.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", flag)
    # Its flags are in memory, where a filter cannot look; libcs then fall back to clone.
    clone3 = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "clone3")
    filter_.add_rule(pyseccomp.ERRNO(errno.ENOSYS), clone3 if clone3 >= 0 else 435)
    vsock = pyseccomp.Arg(0, pyseccomp.EQ, AF_VSOCK)
    filter_.add_rule(pyseccomp.ERRNO(errno.EAFNOSUPPORT), "socket", vsock)
    personality = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "personality")
    with tempfile.TemporaryFile() as file:
        filter_.export_bpf(file)
        file.seek(0)
        return _first_checks(personality) + file.read()


def _first_checks(personality: int) -> bytes:
    """What goes before libseccomp's program, since its rules cannot say it.

    Calls that nobody has judged, in the gap or later than `NEWEST`, and with them the x32
    ABI, whose numbers begin at 2**30; and personalities that are none of `PERSONALITIES`.
    """
    # linux/bpf_common.h, linux/seccomp.h: load a word of seccomp_data, compare, leave.
    load, greater, equal, leave, error = 0x20, 0x25, 0x15, 0x06, 0x00050000
    first_argument = 16 if sys.byteorder == "little" else 20
    left = len(PERSONALITIES) + 2
    instructions = [
        (load, 0, 0, 0),
        (greater, 2, 0, NEWEST),
        (greater, 2, 0, COMMON - 1),
        (greater, 0, 1, LAST_OLD.get(platform.machine(), COMMON - 1)),
        (leave, 0, 0, error | errno.ENOSYS),
        (equal, 0, left, personality),
        (load, 0, 0, first_argument),
        *((equal, left - 2 - at, 0, known) for at, known in enumerate(PERSONALITIES)),
        (leave, 0, 0, error | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *one) for one in instructions)
