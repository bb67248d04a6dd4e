"""What this host is: the facts that figures depend on, and whether two hosts are one.

Facts only, no judgement (that is `bench.checks`). A fact that this kernel does not offer
is None. The fingerprint holds no host name, address, serial number or user name, and of
the kernel command line only what concerns measuring: run directories are published.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from bench import cgroupfs

Facts = dict[str, object]

KEPT_SHARE, KEPT_BYTES = 0.10, 512 << 20  # of the host's memory, whichever is more, stays free
TUNING = re.compile(
    r"^(mitigations|isolcpus|nohz|nohz_full|rcu_nocbs|intel_pstate|amd_pstate|idle|psi|tsc|nosmt|"
    r"transparent_hugepage|hugepages\w*|default_hugepagesz|clocksource|numa_balancing|kpti|nopti|"
    r"cgroup\w*|systemd\.unified_cgroup_hierarchy|swapaccount|maxcpus|nr_cpus|mem|preempt|skew_tick|"
    r"processor\.\w+|intel_idle\.\w+|cpuidle[\w.]*|cpufreq\.\w+|kvm[\w.-]*|spec\w*|nospectre\w*|"
    r"spectre_\w+|l1tf|mds|retbleed|tsx\w*|iommu|intel_iommu|amd_iommu|init_on_\w+)(=|$)"
)
PROGRAMS: dict[str, tuple[str, ...]] = {
    "qemu": (f"qemu-system-{platform.machine()}", "--version"),
    "libvirt": ("libvirtd", "--version"),
    "mkfs.erofs": ("mkfs.erofs", "-V"),
    "skopeo": ("skopeo", "--version"),
    "umoci": ("umoci", "--version"),
    "mmdebstrap": ("mmdebstrap", "--version"),
    "musl-gcc": ("musl-gcc", "--version"),
    "runc": ("runc", "--version"),
    "bwrap": ("bwrap", "--version"),
}
IDENTITY = (  # runs that differ in one of these are not from one host
    "cpu.model", "cpu.count", "cpu.microarchitecture", "cpu.microcode", "cpu.governor",
    "cpu.turbo", "cpu.smt", "cpu.numa_nodes", "cpu.hypervisor", "memory.total_bytes",
    "memory.swap_bytes", "memory.thp", "memory.ksm", "kernel.release", "kernel.command_line",
    "kernel.mitigations", "kernel.clocksource", "kernel.aslr",
    "cgroup.version", "cgroup.unified", "distribution", "programs.qemu", "programs.libvirt",
    "cache.file_system",
)  # fmt: skip


def fingerprint() -> Facts:
    """All facts, as nested dictionaries that JSON can hold. Takes about 0.2 s once."""
    return {
        "cpu": cpu_facts(),
        "memory": memory_facts(),
        "kernel": kernel_facts(),
        "cgroup": cgroup_facts(),
        "distribution": distribution(),
        "programs": program_versions(),
        "cache": cache_facts(),
        "python": platform.python_version(),
        "boot_id": text("/proc/sys/kernel/random/boot_id"),
    }


def forget() -> None:
    """Look facts up again that settings change (`bench.tuning`): they are read once otherwise."""
    cpu_facts.cache_clear()
    memory_facts.cache_clear()


def text(path: str | Path) -> str | None:
    """A one-line kernel file without its newline, None where there is none."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def number(path: str | Path) -> int | None:
    """A kernel file with one number, None where there is none."""
    try:
        return int(text(path) or "")
    except ValueError:
        return None


def chosen(path: str | Path) -> str | None:
    """The bracketed word of a file such as ``always [madvise] never``."""
    found = re.search(r"\[(\S+)\]", text(path) or "")
    return found[1] if found else None


@cache
def cpu_facts() -> Facts:
    """Model, counts, microarchitecture, frequency policy, and the hypervisor below us."""
    info = _first_cpu()
    cpus = Path("/sys/devices/system/cpu")
    governors = {text(path) for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    no_turbo, boost = number(cpus / "intel_pstate/no_turbo"), number(cpus / "cpufreq/boost")
    turbo = not no_turbo if no_turbo is not None else None if boost is None else bool(boost)
    return {
        "model": _model(info),
        "architecture": platform.machine(),
        "microarchitecture": _microarchitecture(),
        "count": os.cpu_count(),
        "usable": len(os.sched_getaffinity(0)),
        "sockets": _distinct("physical_package_id"),
        "smt": None if (smt := number(cpus / "smt/active")) is None else bool(smt),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
        "microcode": info.get("microcode"),
        "driver": text(cpus / "cpu0/cpufreq/scaling_driver"),
        "governor": ", ".join(sorted(g for g in governors if g)) or None,
        "turbo": turbo,
        "idle_driver": text(cpus / "cpuidle/current_driver"),
        "isolated": text(cpus / "isolated") or None,
        "hypervisor": hypervisor(),
        "virtualisation": next((f for f in ("vmx", "svm") if f in info.get("flags", "").split()),
                               None),
    }  # fmt: skip


def _first_cpu() -> dict[str, str]:
    pairs = {}
    for line in (text("/proc/cpuinfo") or "").split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        pairs[key.strip()] = value.strip()
    return pairs


def _model(info: dict[str, str]) -> str:
    name = info.get("model name") or info.get("Processor") or platform.machine()
    return re.sub(r"\s+", " ", re.sub(r"\((R|TM|r|tm)\)|@.*$", "", name)).strip()


def _microarchitecture() -> str | None:
    with contextlib.suppress(Exception):  # it raises whatever it likes for a CPU it lacks
        import archspec.cpu

        return str(archspec.cpu.host().name)
    return None


def _distinct(topology_file: str) -> int:
    found = Path("/sys/devices/system/cpu").glob(f"cpu[0-9]*/topology/{topology_file}")
    return len({text(path) for path in found}) or 1


@cache
def hypervisor() -> str | None:
    """The hypervisor this host runs under (``KVM``, ``Xen`` …), None on bare metal."""
    if "hypervisor" not in _first_cpu().get("flags", "").split():
        kind = text("/sys/hypervisor/type")  # Xen guests, and architectures without the flag
        return kind.capitalize() if kind and kind != "none" else None
    with contextlib.suppress(OSError):
        said = subprocess.run(["lscpu"], capture_output=True, env={"LC_ALL": "C"}, check=False)
        for line in said.stdout.decode("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key == "Hypervisor vendor":
                return value.strip()
    return "unknown"


@cache
def memory_facts() -> Facts:
    """Sizes and policies; how much is free belongs to a trial and is not in here."""
    amounts = meminfo()
    mm = Path("/sys/kernel/mm")
    return {
        "total_bytes": amounts.get("MemTotal"),
        "swap_bytes": amounts.get("SwapTotal"),
        "swappiness": number("/proc/sys/vm/swappiness"),
        "overcommit": number("/proc/sys/vm/overcommit_memory"),
        "page_bytes": os.sysconf("SC_PAGE_SIZE"),
        "thp": chosen(mm / "transparent_hugepage/enabled"),
        "thp_defrag": chosen(mm / "transparent_hugepage/defrag"),
        "thp_shmem": chosen(mm / "transparent_hugepage/shmem_enabled"),
        "ksm": number(mm / "ksm/run"),
        "numa_balancing": number("/proc/sys/kernel/numa_balancing"),
    }


def meminfo() -> dict[str, int]:
    """The lines of /proc/meminfo, in bytes."""
    amounts = {}
    for line in (text("/proc/meminfo") or "").splitlines():
        key, _, rest = line.partition(":")
        amounts[key] = int(rest.split()[0]) * 1024
    return amounts


def room_bytes() -> float:
    """What instances may take of the host's memory, so that it neither swaps nor kills."""
    facts = meminfo()
    return facts["MemAvailable"] - max(KEPT_BYTES, KEPT_SHARE * facts["MemTotal"])


def mem_available_bytes() -> int:
    """What new programs can still get without swapping: MemAvailable, and the per-CPU free lists.

    A freed page first goes to a list of its CPU, which MemFree and so MemAvailable do not
    count. Since Linux 6.7 these lists grow to hundreds of MiB by themselves (``high_max`` in
    /proc/zoneinfo, proc(5)): what an instance takes can come from them, and then
    MemAvailable alone does not fall at all.
    """
    return meminfo()["MemAvailable"] + per_cpu_free_bytes(text("/proc/zoneinfo") or "")


def per_cpu_free_bytes(zoneinfo: str) -> int:
    """Bytes on the per-CPU free lists of all zones, from the text of /proc/zoneinfo."""
    pages = re.findall(r"^ +count: +(\d+)$", zoneinfo, re.MULTILINE)
    return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE")


@cache
def kernel_facts() -> Facts:
    """Release, tuning words of the command line, mitigations, clock source."""
    line = text("/proc/cmdline") or ""
    clock = "/sys/devices/system/clocksource/clocksource0"
    holes = Path("/sys/devices/system/cpu/vulnerabilities")
    return {
        "release": platform.release(),
        "version": platform.version(),
        "command_line": " ".join(word for word in line.split() if TUNING.match(word)),
        "command_line_digest": hashlib.sha256(line.encode()).hexdigest()[:12],
        "mitigations": {path.name: text(path) for path in sorted(holes.glob("*"))},
        "clocksource": text(f"{clock}/current_clocksource"),
        "clocksources": text(f"{clock}/available_clocksource"),
        "aslr": number("/proc/sys/kernel/randomize_va_space"),
        "scheduler_autogroup": number("/proc/sys/kernel/sched_autogroup_enabled"),
        "file_systems": [
            name
            for name in ("erofs", "overlay", "squashfs", "btrfs", "ext4", "xfs")
            if re.search(rf"\b{name}$", text("/proc/filesystems") or "", re.MULTILINE)
        ],
    }


def cgroup_facts() -> Facts:
    """Version and where the controllers are; None for both where there are none."""
    try:
        layout = cgroupfs.layout()
    except Exception:
        return {"version": None, "controllers": [], "unified": False}
    return {
        "version": layout.version,
        "controllers": sorted(layout.controllers),
        "unified": layout.unified is not None,
    }


@cache
def distribution() -> str:
    """The distribution's own name for itself."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown"


@cache
def program_versions() -> dict[str, str | None]:
    """Versions of the programs we start, None for those that are not installed."""
    return {name: _version(argv) for name, argv in PROGRAMS.items()}


def _version(argv: Sequence[str]) -> str | None:
    if not shutil.which(argv[0]):
        return None
    try:
        done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.search(rb"\d+(\.\d+)+[\w.+~-]*", done.stdout + done.stderr)
    return found[0].decode() if found else "unknown"


def cache_facts() -> Facts:
    """The file system that images are read from."""
    from bench.cache import cache_dir
    from bench.errors import HvctError

    try:
        place = cache_dir()
    except HvctError:
        return {"file_system": None, "free_bytes": None, "rotational": None}
    device = os.stat(place).st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    spins = number(block / "queue/rotational")
    if spins is None:
        spins = number(block.resolve().parent / "queue/rotational")  # of a partition's disk
    return {
        "file_system": file_system(place),
        "free_bytes": shutil.disk_usage(place).free,
        "rotational": None if spins is None else bool(spins),
    }


def file_system(path: Path) -> str | None:
    """The type of the file system that holds a path."""
    best, kind = -1, None
    for line in (text("/proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split(" ")[4].encode().decode("unicode_escape"))
        # Of two mounts on one point the later hides the earlier.
        if path.resolve().is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split(" ")[0]
    return kind


def same_host(first: Facts, second: Facts) -> list[str]:
    """How two fingerprints differ where it matters, one line each; empty means one host.

    The boot is not compared: the same host after a reboot is the same host.
    """
    return [
        f"{key}: {_shown(one)} against {_shown(other)}"
        for key in IDENTITY
        if not _same(one := _dig(first, key), other := _dig(second, key))
    ]


def _same(one: object, other: object) -> bool:
    if isinstance(one, int) and isinstance(other, int) and max(one, other) > 1 << 20:
        return abs(one - other) <= max(one, other) / 100  # MemTotal moves a little per boot
    return one == other


def _dig(facts: Facts, key: str) -> object:
    value: object = facts
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return hashlib.sha256(repr(sorted(value.items())).encode()).hexdigest()[:8]
    return "unknown" if value is None else str(value)


def summary_line(facts: Facts | None = None) -> str:
    """``AMD EPYC · 2 CPUs · 23.5 GiB · Linux 6.18 · cgroup v1``, of this host or a stored one."""
    if facts is None:
        facts = {"cpu": cpu_facts(), "memory": memory_facts(), "kernel": kernel_facts(),
                 "cgroup": cgroup_facts()}  # fmt: skip
    count, total = _dig(facts, "cpu.count"), _dig(facts, "memory.total_bytes")
    release = re.match(r"\d+\.\d+", str(_dig(facts, "kernel.release") or ""))
    parts: Iterable[str | None] = (
        str(_dig(facts, "cpu.model") or "unknown CPU"),
        f"{count} CPU{'' if count == 1 else 's'}",
        f"{total / (1 << 30):.1f} GiB" if isinstance(total, int) else None,
        f"Linux {release[0]}" if release else None,
        f"cgroup v{version}" if (version := _dig(facts, "cgroup.version")) else "no cgroups",
        f"itself a guest of {below}" if (below := _dig(facts, "cpu.hypervisor")) else None,
    )
    return " · ".join(part for part in parts if part)
