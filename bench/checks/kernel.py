"""What instances need of the kernel: features, modules, devices."""

from __future__ import annotations

import os
from collections.abc import Callable

from bench.checks.cpu import is_guest
from bench.checks.trap import Trap
from bench.checks.tree import Tree

OLDEST = (5, 11)  # overlayfs in user namespaces; clone3, pidfd and close_range are older
FILE_BACKED_EROFS = (6, 12)
LEAST_ENTROPY = 128
KVM_MODULES = {"vmx": "kvm_intel", "svm": "kvm_amd"}


def has(tree: Tree, name: str) -> bool:
    """True when a kernel feature is built in, loaded, or there as a module."""
    if name in tree.words("/proc/filesystems") or tree.there(f"/sys/module/{name}"):
        return True
    lists = (
        tree.text(f"/lib/modules/{tree.release}/{file}") or ""
        for file in ("modules.builtin", "modules.dep")
    )
    if any(f"/{name}.ko" in text for text in lists):
        return True
    # A kernel without modules lists nothing: its symbols tell.
    symbol = {"bridge": "br_add_bridge", "veth": "veth_newlink"}.get(name)
    return symbol is not None and tree.has("/proc/kallsyms", f" {symbol}")


def lacks(name: str) -> Callable[[Tree], str | None]:
    """A look for a feature that is not there."""

    def look(tree: Tree) -> str | None:
        return None if has(tree, name) else f"this kernel has no {name}"

    return look


def device(name: str) -> Callable[[Tree], str | None]:
    """A look for a device that is not there."""

    def look(tree: Tree) -> str | None:
        return None if tree.there(name) else f"{name} is not there"

    return look


def old(tree: Tree) -> str | None:
    """A kernel from before what the arms use."""
    version = tree.kernel_version
    return f"Linux {tree.release} is old" if (0, 0) < version < OLDEST else None


def no_file_backed_erofs(tree: Tree) -> str | None:
    """Images that need a device."""
    version = tree.kernel_version
    if OLDEST <= version < FILE_BACKED_EROFS:
        return f"Linux {version[0]}.{version[1]} mounts images through a loop device"
    return None


def modules_gone(tree: Tree) -> str | None:
    """An updated kernel whose predecessor still runs."""
    if tree.text("/proc/modules") and not tree.there(f"/lib/modules/{tree.release}"):
        return f"the modules of the running kernel ({tree.release}) are gone"
    return None


def no_virtualisation(tree: Tree) -> str | None:
    """A CPU that offers no hardware virtualisation (to us)."""
    if tree.machine != "x86_64" or not tree.cpu_flags or tree.there("/dev/kvm"):
        return None
    if set(KVM_MODULES) & set(tree.cpu_flags):
        return None
    where = "this guest's CPU" if is_guest(tree) else "this CPU"
    return f"{where} offers no hardware virtualisation (neither vmx nor svm)"


def kvm_not_loaded(tree: Tree) -> str | None:
    """A CPU that could, and no /dev/kvm."""
    wanted = [module for flag, module in KVM_MODULES.items() if flag in tree.cpu_flags]
    if wanted and not tree.there("/dev/kvm"):
        return f"the CPU can virtualise, but {wanted[0]} is not loaded"
    return None


def kvm_forbidden(tree: Tree) -> str | None:
    """/dev/kvm that is not for us."""
    name = "/dev/kvm"
    if tree.there(name) and not os.access(tree.path(name), os.R_OK | os.W_OK, effective_ids=True):
        return "/dev/kvm may not be opened by this user"
    return None


def halt_polling(tree: Tree) -> str | None:
    """A host that spins before it lets an idle guest's CPU sleep."""
    polled = tree.number("/sys/module/kvm/parameters/halt_poll_ns") or 0
    if polled and tree.there("/dev/kvm"):
        return f"KVM polls for up to {polled // 1000} µs when a guest goes idle"
    return None


def entropy(tree: Tree) -> str | None:
    """A kernel that is short of random bits."""
    bits = tree.number("/proc/sys/kernel/random/entropy_avail")
    return f"{bits} bits of entropy" if bits is not None and bits < LEAST_ENTROPY else None


def core_pattern(tree: Tree) -> str | None:
    """A program that the kernel starts for each crash."""
    pattern = tree.text("/proc/sys/kernel/core_pattern") or ""
    if not pattern.startswith("|"):
        return None
    return f"a crash starts {os.path.basename(pattern[1:].split(' ')[0])}"


def untested_machine(tree: Tree) -> str | None:
    """Another architecture than the one hvct is tested on."""
    return f"hvct is not tested on {tree.machine}" if tree.machine != "x86_64" else None


def untested_distribution(tree: Tree) -> str | None:
    """Another distribution than those hvct is tested on."""
    about = tree.fields("/etc/os-release", "=")
    kind, version = about.get("ID", "").strip('"'), about.get("VERSION_ID", "").strip('"')
    if not kind or (kind == "debian" and version in ("12", "13")):
        return None
    return f"hvct is not tested on {about.get('PRETTY_NAME', kind).strip(chr(34))}"


TRAPS = (
    Trap(
        "kernel.old", "problem", old,
        "containers cannot be made as hvct makes them",
        f"Linux {OLDEST[0]}.{OLDEST[1]} or newer",
    ),
    Trap(
        "kernel.modules-gone", "problem", modules_gone,
        "no module can be loaded: what is not loaded yet (erofs, bridge, kvm …) is missing",
        "reboot into the installed kernel",
    ),
    Trap(
        "kernel.erofs", "problem", lacks("erofs"),
        "images cannot be mounted",
        "modprobe erofs, or a distribution kernel with it",
    ),
    Trap(
        "kernel.overlay", "problem", lacks("overlay"),
        "instances have no writable layer",
        "modprobe overlay, or a distribution kernel with it",
    ),
    Trap(
        "kernel.bridge", "problem", lacks("bridge"),
        "there is no network mode `bridge`",
        "modprobe bridge, or a distribution kernel with it",
    ),
    Trap(
        "kernel.veth", "problem", lacks("veth"),
        "containers get no network",
        "modprobe veth, or a distribution kernel with it",
    ),
    Trap(
        "kernel.erofs-file", "info", no_file_backed_erofs,
        "with direct I/O, so that the image is cached once as elsewhere; its pages are read by "
        "the kernel's loop worker, outside the instance's group",
        "Linux 6.12 or newer mounts the file itself",
    ),
    Trap(
        "kernel.entropy", "warning", entropy,
        "whatever wants random bytes first may wait, in containers and in guests",
        "install rng-tools or haveged, or use Linux 5.18 or newer",
    ),
    Trap(
        "kernel.core-pattern", "info", core_pattern,
        "a workload that crashes in a container costs time and memory outside it; a guest has "
        "its own rule",
        "sysctl kernel.core_pattern=core for the time of the run",
    ),
    Trap(
        "device.tun", "warning", device("/dev/net/tun"),
        "virtual machines get no network",
        "modprobe tun",
    ),
    Trap(
        "device.loop", "warning", device("/dev/loop-control"),
        "no scratch disks, and no images where erofs needs a device",
        "modprobe loop",
    ),
    Trap(
        "device.vhost-net", "info", device("/dev/vhost-net"),
        "a guest's packets pass through QEMU itself: its network is slower, and costs more CPU "
        "time, than where the kernel passes them on",
        "modprobe vhost_net",
    ),
    Trap(
        "kvm.no-hardware", "warning", no_virtualisation,
        "virtual machines are emulated (TCG); their figures conclude nothing about "
        "virtualisation",
        "switch it on in the firmware; in a cloud use a metal instance, or one that allows nesting",
    ),
    Trap(
        "kvm.not-loaded", "warning", kvm_not_loaded,
        "virtual machines are emulated (TCG)",
        "modprobe kvm_intel or kvm_amd; the kernel's log says why it refuses",
    ),
    Trap(
        "kvm.forbidden", "warning", kvm_forbidden,
        "virtual machines are emulated (TCG)",
        "run hvct with sudo, or join the group that owns /dev/kvm",
    ),
    Trap(
        "kvm.halt-polling", "info", halt_polling,
        "the host's CPU time of a guest that waits a lot contains this polling, which makes its "
        "wake-ups quicker",
        "echo 0 > /sys/module/kvm/parameters/halt_poll_ns shows what it costs",
    ),
    Trap(
        "host.architecture", "warning", untested_machine,
        "untested there: the machine type and console of virtual machines, the first stage of "
        "the KVM probe (left out), the seccomp filter, the default image",
        "hvct doctor --validate, and report what it prints",
    ),
    Trap(
        "host.distribution", "info", untested_distribution,
        "names of packages, places of kernels and of libvirt's drivers may differ",
        "hvct doctor --validate shows whether everything works",
    ),
)  # fmt: skip
