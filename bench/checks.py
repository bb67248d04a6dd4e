"""Checks of this host: each finds one thing that would stop a run or distort its figures.

Those that judge stored facts are pure functions of a fingerprint (`bench.host`), so a
report can apply them to a run of another host; the others look at this host by doing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import cgroupfs, disturbances, host
from bench.cgroup import Cgroup, CgroupLimits, remove_all
from bench.errors import HvctError
from bench.model import Capability, Finding

GIB = 1 << 30
DISK_BYTES = 3 * GIB  # default image, kernels, agent, and room to build them
OPEN_FILES = 4096
CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18}
PACKAGES = {  # program → Debian package, for the remedy
    "mkfs.erofs": "erofs-utils",
    f"qemu-system-{platform.machine()}": "qemu-system-x86",
    "skopeo": "skopeo",
    "umoci": "umoci",
    "mmdebstrap": "mmdebstrap",
    "musl-gcc": "musl-tools",
    "ip": "iproute2",
    "mount": "mount",
    "modprobe": "kmod",
}


# -- from facts ----------------------------------------------------------------------


def memory_policy(facts: host.Facts) -> Iterator[Finding]:
    """Swap, same-page merging and huge pages change what memory figures mean."""
    memory = _section(facts, "memory")
    if memory.get("swap_bytes"):
        yield Finding(
            "memory.swap",
            "warning",
            f"this host has {_gib(memory['swap_bytes'])} of swap",
            "instances cannot swap (their groups forbid it), but the host can: pages that leave "
            "memory make idle instances look small",
            "swapoff -a for the time of the run",
        )
    if memory.get("ksm"):
        yield Finding(
            "memory.ksm",
            "warning",
            "same-page merging (KSM) is on",
            "pages that several virtual machines share are counted once; the host's memory "
            "figures depend on what else runs",
            "echo 2 > /sys/kernel/mm/ksm/run",
        )
    if memory.get("thp") == "always":
        yield Finding(
            "memory.thp",
            "info",
            "transparent huge pages are always on",
            "a small process may be charged 2 MiB at a touch, in every arm; with `madvise` "
            "memory figures are finer and QEMU still gets them",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )


def cpu_policy(facts: host.Facts) -> Iterator[Finding]:
    """Frequency, siblings, number of CPUs, and what lies below this host."""
    cpu, kernel = _section(facts, "cpu"), _section(facts, "kernel")
    governor = cpu.get("governor")
    if isinstance(governor, str) and governor != "performance":
        yield Finding(
            "cpu.governor",
            "warning",
            f"the CPU frequency governor is {governor}",
            "short trials run before the frequency has risen; start-up times spread more",
            "cpupower frequency-set -g performance",
        )
    if cpu.get("turbo"):
        yield Finding(
            "cpu.turbo",
            "info",
            "the CPUs may run above their nominal frequency (turbo)",
            "speed depends on temperature and on how many CPUs are busy; blocks balance it",
            "echo 1 > /sys/devices/system/cpu/intel_pstate/no_turbo, or "
            "echo 0 > /sys/devices/system/cpu/cpufreq/boost",
        )
    count = cpu.get("count")
    if isinstance(count, int) and count < 3:
        yield Finding(
            "cpu.few",
            "info",
            f"this host has {count} CPU{'' if count == 1 else 's'}",
            "the harness and its probes share CPUs with the instance; the sharing is reported",
            "a host with four or more CPUs keeps them apart",
        )
    if cpu.get("hypervisor"):
        yield Finding(
            "cpu.guest",
            "warning",
            f"this host is itself a guest (of {cpu['hypervisor']})",
            "a virtual machine on it is nested; stolen time is recorded with every trial, "
            "frequency and neighbours of the machine below are unknown",
            "run on bare metal to judge virtualisation itself",
        )
    clock = kernel.get("clocksource")
    if isinstance(clock, str) and clock not in ("tsc", "kvm-clock", "arch_sys_counter"):
        yield Finding(
            "cpu.clocksource",
            "warning",
            f"the kernel's clock source is {clock}",
            "reading the time takes microseconds instead of nanoseconds, in every arm",
            "look in the kernel's log for why tsc was found unstable",
        )


def programs(facts: host.Facts) -> Iterator[Finding]:
    """What ./hvct installs and is not there."""
    del facts  # asked directly: a remedy is only for this host
    for program, package in PACKAGES.items():
        if not shutil.which(program) and not Path("/usr/sbin", program).exists():
            yield Finding(
                f"program.{program}",
                "problem",
                f"{program} is not installed",
                "what needs it fails",
                f"apt-get install {package}",
            )
    if importlib.util.find_spec("libvirt") is None:
        yield Finding(
            "program.libvirt",
            "problem",
            "the libvirt binding for Python is not installed",
            "there is no arm `vm`",
            "./hvct sets it up; by hand: apt-get install libvirt-dev, then pip install "
            "libvirt-python",
        )


# -- from this host, by doing ------------------------------------------------------------


def rights() -> Iterator[Finding]:
    """Root, its capabilities, and limits on open files."""
    if os.geteuid() != 0:
        yield Finding(
            "rights.root",
            "problem",
            "hvct does not run as root",
            "control groups, namespaces, mounts and bridges cannot be made",
            "run it with sudo",
        )
        return
    held = int(_line("/proc/self/status", "CapEff:") or "0", 16)
    lacking = [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]
    if lacking:
        yield Finding(
            "rights.capabilities",
            "problem",
            f"root has no {', '.join(lacking)}",
            "this is a container; instances cannot be made in it",
            "run hvct on the host itself, or give the container these capabilities",
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        yield Finding(
            "rights.open-files",
            "info",
            f"at most {soft} open files",
            "enough for single instances; hundreds at once need more",
            f"ulimit -n {OPEN_FILES}",
        )


def control_groups() -> Iterator[Finding]:
    """Version, and whether a group with limits can really be made."""
    try:
        layout = cgroupfs.layout()
    except HvctError as error:
        yield Finding("cgroup.missing", "problem", error.message, "nothing is limited or accounted",
                      error.hint)  # fmt: skip
        return
    if layout.version == 1:
        kind = "hybrid: v1 controllers beside a cgroup2 mount" if layout.unified else "v1"
        yield Finding(
            "cgroup.v1",
            "info",
            f"control groups are {kind}",
            "joining one costs 6 to 10 ms after an idle spell; every arm pays it alike, so "
            "start-up ratios are nearer to 1 than on cgroup v2",
            "boot with systemd.unified_cgroup_hierarchy=1 for v2",
        )
    if layout.version == 1 and layout.unified is None:
        yield Finding(
            "cgroup.no-unified",
            "info",
            "no cgroup2 mount beside the v1 hierarchies",
            "user and system time of an instance are split in steps of 10 ms",
        )
    tag = "doctor"
    try:
        if os.geteuid() == 0:
            limits = CgroupLimits(memory_bytes=64 << 20, cpu_set=(0,), cpu_quota=0.5, pids=8)
            Cgroup.create(tag, f"probe-{os.getpid()}", limits).remove()
    except HvctError as error:
        yield Finding(
            "cgroup.refused",
            "problem",
            f"a control group with limits cannot be made: {error.message}",
            "instances would be neither limited nor accounted",
            error.hint or "run hvct outside any container",
        )
    finally:
        if os.geteuid() == 0:
            remove_all(tag)


def devices() -> Iterator[Finding]:
    """File systems and devices that instances are built on."""
    for name, use in (("erofs", "images cannot be mounted"), ("overlay", "no writable layer"),
                      ("bridge", "no network mode `bridge`")):  # fmt: skip
        if not kernel_has(name):
            yield Finding(
                f"kernel.{name}",
                "problem",
                f"this kernel has no {name}",
                use,
                f"modprobe {name}, or a distribution kernel with it",
            )
    for path, use in (
        ("/dev/net/tun", "virtual machines get no network"),
        ("/dev/loop-control", "no scratch disks, and no images where erofs needs a device"),
    ):
        try:
            there = stat.S_ISCHR(os.stat(path).st_mode)
        except OSError:
            there = False
        if not there:
            module = "tun" if path.endswith("tun") else "loop"
            yield Finding(f"device.{module}", "warning", f"{path} is not there", use,
                          f"modprobe {module}")  # fmt: skip


def kernel_has(name: str) -> bool:
    """True when a kernel feature is built in, loaded, or there as a module."""
    words = (host.text("/proc/filesystems") or "").split()
    if name in words or Path("/sys/module", name).exists():
        return True
    folder = Path("/lib/modules", platform.release())
    lists = [host.text(folder / file) or "" for file in ("modules.builtin", "modules.dep")]
    if any(f"/{name}.ko" in text for text in lists):
        return True
    # A kernel without modules lists nothing: its symbols tell.
    return name == "bridge" and " br_add_bridge" in (host.text("/proc/kallsyms") or "")


def network() -> Iterator[Finding]:
    """A firewall between the ports of our bridge."""
    from bench.network import netfilter_finding

    found = netfilter_finding()
    if found:
        yield found


def load(window_s: float = 0.3) -> Iterator[Finding]:
    """What else runs right now."""
    before = disturbances.Snapshot.take()
    time.sleep(window_s)
    seen = disturbances.between(before, disturbances.Snapshot.take())
    reasons = disturbances.unrest(seen)
    if reasons:
        yield Finding(
            "load.other",
            "warning",
            f"this host is busy: {'; '.join(reasons)}",
            "trials wait up to 2 s for quiet and are flagged when it does not come",
            "end other work for the time of the run",
        )
    if "psi_cpu" not in seen:
        yield Finding(
            "load.psi",
            "info",
            "the kernel reports no pressure (PSI)",
            "stalls for lack of CPU, memory or disk are not recorded with the trials",
            "boot with psi=1",
        )


def disk() -> Iterator[Finding]:
    """Room for images, and where the cache lies."""
    facts = host.cache_facts()
    free = facts["free_bytes"]
    if free is None:
        yield Finding("disk.cache", "problem", "the cache cannot be written", "no images",
                      "set XDG_CACHE_HOME to a folder you can write")  # fmt: skip
    elif isinstance(free, int) and free < DISK_BYTES:
        yield Finding(
            "disk.space",
            "warning",
            f"the cache has {_gib(free)} left",
            f"the default image and the guest kernel need up to {_gib(DISK_BYTES)} to be built",
            "make room, or set XDG_CACHE_HOME to another disk",
        )
    if facts["file_system"] in ("tmpfs", "overlay", "nfs", "nfs4", "fuse"):
        yield Finding(
            "disk.file-system",
            "warning",
            f"the cache lies on {facts['file_system']}",
            "direct I/O does not work there, so disk figures and page cache states are not "
            "comparable",
            "set XDG_CACHE_HOME to a folder on ext4, xfs or btrfs",
        )


def accelerator(capabilities: Sequence[Capability]) -> Iterator[Finding]:
    """What each backend's probe found, and whether /dev/kvm is there *and* runs a guest."""
    for found in capabilities:
        if not found.usable:
            yield Finding(
                f"backend.{found.backend}",
                "problem" if found.backend in ("vm", "container", "process") else "info",
                f"{found.backend} does not work here: {found.reason}",
                "a comparison with it does not begin: leave it out with --arms",
                found.remedy,
            )
        elif found.accelerator.emulated:
            there = os.path.exists("/dev/kvm")
            yield Finding(
                "kvm.unproven" if there else "kvm.absent",
                "warning",
                f"{found.backend} runs under TCG, not KVM: {found.accelerator.reason}",
                "figures of virtual machines describe an emulator and conclude nothing about "
                "virtualisation",
                "a host with hardware virtualisation, switched on in its firmware (a cloud "
                "instance: one that allows nesting)"
                if there
                else "modprobe kvm_intel or kvm_amd",
            )
        elif found.accelerator.nested:
            yield Finding(
                "kvm.nested",
                "warning",
                f"{found.backend} runs under KVM inside a guest",
                "every exit of the virtual machine is handled by two hypervisors",
                "run on bare metal",
            )


def _section(facts: host.Facts, name: str) -> dict[str, object]:
    section = facts.get(name)
    return section if isinstance(section, dict) else {}


def _line(path: str, key: str) -> str | None:
    for line in (host.text(path) or "").splitlines():
        if line.startswith(key):
            return line.removeprefix(key).strip()
    return None


def _gib(size: object) -> str:
    return f"{size / GIB:.1f} GiB" if isinstance(size, int) else "unknown"
