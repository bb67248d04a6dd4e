"""What confines hvct itself: limits and filters that instances inherit, and guests do not."""

from __future__ import annotations

from pathlib import PurePosixPath

from bench.checks.trap import Trap
from bench.checks.tree import Tree

CGROUPS = "/sys/fs/cgroup"
FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of linux/proc_ns.h


def container(tree: Tree) -> str | None:
    """We are in a container: its mark, and process numbers of our own."""
    if tree.link("/proc/self/ns/pid") in (None, FIRST_PID_NAMESPACE):
        return None  # a machine may be started from a container's image, marks and all
    manager = tree.text("/run/systemd/container")
    for name, kind in (("/.dockerenv", "Docker"), ("/run/.containerenv", "Podman")):
        if tree.there(name):
            manager = manager or kind
    return f"this is a container ({manager})" if manager else None


def own_groups(tree: Tree, controller: str) -> list[str]:
    """Folders of our own control group and those above it, for one controller."""
    groups: list[str] = []
    for line in (tree.text("/proc/self/cgroup") or "").splitlines():
        _, names, path = line.split(":", 2)
        unified = not names and tree.there(f"{CGROUPS}/cgroup.controllers")
        if not unified and controller not in names.split(","):
            continue
        top = CGROUPS if unified else f"{CGROUPS}/{controller}"
        here = PurePosixPath(path)
        groups += [f"{top}/{place}".rstrip("/.") for place in (here, *here.parents)]
    return [group.replace("//", "/") for group in groups]


def cpu_quota(tree: Tree) -> str | None:
    """A limit on our own CPU time."""
    for group in own_groups(tree, "cpu"):
        words = tree.words(f"{group}/cpu.max")
        quota = words[0] if words else tree.text(f"{group}/cpu.cfs_quota_us") or "-1"
        period = words[1] if len(words) > 1 else tree.text(f"{group}/cpu.cfs_period_us")
        if quota.isdigit() and period and period.isdigit() and int(period):
            return f"hvct's own group may use {int(quota) / int(period):.3g} CPUs"
    return None


def memory_limit(tree: Tree) -> str | None:
    """A limit on our own memory."""
    total = tree.memory_bytes("MemTotal")
    for group in own_groups(tree, "memory"):
        for file in ("memory.max", "memory.limit_in_bytes"):
            size = tree.number(f"{group}/{file}")
            if size is not None and 0 < size < total:
                return f"hvct's own group may use {size / (1 << 30):.1f} GiB of memory"
    return None


def swap_accounting(tree: Tree) -> str | None:
    """Version 1 without limits on swap."""
    v1 = tree.there(f"{CGROUPS}/memory/memory.limit_in_bytes")
    if v1 and tree.memory_bytes("SwapTotal"):
        lacking = not tree.there(f"{CGROUPS}/memory/memory.memsw.limit_in_bytes")
        return "control groups do not account swap" if lacking else None
    return None


def user_slice(tree: Tree) -> str | None:
    """A login session's group of systemd, with few controllers for its user."""
    for line in (tree.text("/proc/self/cgroup") or "").splitlines():
        place = line.rpartition(":")[2]
        if line.startswith("0::") and "/user.slice/" in place and "/user@" in place:
            given = tree.words(f"{CGROUPS}{place.partition('.service')[0]}.service"
                               "/cgroup.controllers")  # fmt: skip
            lacking = [name for name in ("cpu", "cpuset", "memory", "pids") if name not in given]
            if lacking:
                return f"systemd gives this user's session no {', '.join(lacking)} controller"
    return None


def seccomp(tree: Tree) -> str | None:
    """A filter of system calls on ourselves."""
    filtered = tree.fields("/proc/self/status").get("Seccomp") == "2"
    return "hvct itself runs under a seccomp filter" if filtered else None


def no_seccomp(tree: Tree) -> str | None:
    """A kernel without filters."""
    known = "Seccomp" in tree.fields("/proc/self/status")
    return None if known else "this kernel has no seccomp filters"


def no_new_privs(tree: Tree) -> str | None:
    """Setuid programs without effect."""
    on = tree.fields("/proc/self/status").get("NoNewPrivs") == "1"
    return "hvct itself runs with no_new_privs" if on else None


def apparmor(tree: Tree) -> str | None:
    """A profile that confines us."""
    for name in ("/proc/self/attr/apparmor/current", "/proc/self/attr/current"):
        label = tree.text(name) or ""
        if tree.text("/sys/module/apparmor/parameters/enabled") == "Y" and label:
            return None if "unconfined" in label else f"AppArmor confines hvct ({label})"
    return None


def selinux(tree: Tree) -> str | None:
    """SELinux that says no."""
    on = tree.number("/sys/fs/selinux/enforce") == 1
    return "SELinux is enforcing" if on else None


def user_namespaces(tree: Tree) -> str | None:
    """User namespaces that may not be made."""
    if tree.number("/proc/sys/user/max_user_namespaces") == 0:
        return "user namespaces are switched off (user.max_user_namespaces = 0)"
    for name, bad in (
        ("kernel.unprivileged_userns_clone", 0),
        ("kernel.apparmor_restrict_unprivileged_userns", 1),
    ):
        if tree.number(f"/proc/sys/{name.replace('.', '/', 1)}") == bad:
            return f"user namespaces are for root alone ({name} = {bad})"
    return None


def pid_limit(tree: Tree) -> str | None:
    """Few processes."""
    for group in own_groups(tree, "pids"):
        most = tree.number(f"{group}/pids.max")
        if most is not None and most < 4096:
            return f"hvct's own group may have {most} processes and threads"
    return None


TRAPS = (
    Trap(
        "host.container", "warning", container,
        "instances are containers inside it and share its limits; what it hides of /proc and "
        "/sys is missing from the record of this host",
        "run hvct on the host itself",
    ),
    Trap(
        "cgroup.cpu-quota", "warning", cpu_quota,
        "everything hvct starts shares that quota with hvct, and is throttled with it",
        "start hvct outside that container or slice",
    ),
    Trap(
        "cgroup.memory-limit", "warning", memory_limit,
        "instances and their page cache share it; a virtual machine may be killed for it",
        "start hvct outside that container or slice",
    ),
    Trap(
        "cgroup.pid-limit", "warning", pid_limit,
        "many instances at once reach it, containers first",
        "systemctl set-property user.slice TasksMax=infinity, or start it outside",
    ),
    Trap(
        "cgroup.swap-accounting", "warning", swap_accounting,
        "an instance that reaches its memory limit swaps instead of failing",
        "swapoff -a, or boot with swapaccount=1",
    ),
    Trap(
        "cgroup.user-slice", "info", user_slice,
        "without root, instances are not limited by it",
        "run hvct with sudo, or let systemd delegate them (Delegate=yes for user@.service)",
    ),
    Trap(
        "security.seccomp", "warning", seccomp,
        "containers and processes inherit it: each of their system calls costs more, some are "
        "refused, while a guest's do not pass through it",
        "run hvct on the host itself, or with seccomp=unconfined",
    ),
    Trap(
        "security.no-seccomp", "problem", no_seccomp,
        "containers cannot be confined as engines confine them",
        "a kernel with CONFIG_SECCOMP_FILTER",
    ),
    Trap(
        "security.no-new-privs", "info", no_new_privs,
        "setuid programs of a workload have no effect in the process arm",
        "start hvct from a shell without it",
    ),
    Trap(
        "security.apparmor", "warning", apparmor,
        "mounts or QEMU may be refused, and each opening of a file is checked against it",
        "start hvct unconfined (aa-exec -p unconfined hvct …)",
    ),
    Trap(
        "security.selinux", "warning", selinux,
        "mounts, QEMU and bridges may be refused, hvct is not tested with it, and every access "
        "is checked",
        "setenforce 0 for the time of the run shows whether it matters",
    ),
    Trap(
        "security.user-namespaces", "info", user_namespaces,
        "the arm container:userns, or containers without root, cannot be had",
        "set that sysctl the other way",
    ),
)  # fmt: skip
