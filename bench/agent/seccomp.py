"""The system-call filter as BPF: what container engines deny by default, as a deny list.

A container has it loaded by the launcher; under ``security = "same"`` every arm has it
loaded by the agent.
"""

from __future__ import annotations

import errno
import tempfile
from functools import cache

from bench.errors import HostCannot

# fmt: off
DENIED = (
    "acct", "add_key", "bpf", "clock_adjtime", "clock_settime", "create_module",
    "delete_module", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick",
    "get_kernel_syms", "init_module", "io_uring_enter", "io_uring_register",
    "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load",
    "keyctl", "lookup_dcookie", "mbind", "migrate_pages", "mount", "mount_setattr",
    "move_mount", "move_pages", "name_to_handle_at", "nfsservctl",
    "open_by_handle_at", "open_tree", "perf_event_open", "pivot_root",
    "process_vm_readv", "process_vm_writev", "query_module", "quotactl",
    "quotactl_fd", "reboot", "request_key", "set_mempolicy", "setns", "settimeofday",
    "stime", "swapoff", "swapon", "_sysctl", "sysfs", "umount", "umount2", "unshare", "uselib",
    "userfaultfd", "ustat", "vhangup", "vm86", "vm86old",
)
# fmt: on

NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}: what clone must not ask for."""


@cache
def seccomp_program() -> bytes:
    """The filter as BPF, built once (25 ms): everything allowed but `DENIED` and namespaces.

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
    with tempfile.TemporaryFile() as file:
        filter_.export_bpf(file)
        file.seek(0)
        return file.read()
