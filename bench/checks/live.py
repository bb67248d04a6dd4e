"""Checks that only this host can answer: by trying, or over a moment of time."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench import cgroupfs, disturbances, host
from bench.cache import cache_dir
from bench.cgroup import Cgroup, CgroupLimits, remove_all
from bench.checks.cpu import is_guest
from bench.checks.trap import GIB, gib
from bench.checks.tree import Tree
from bench.context import runtime_root
from bench.errors import HvctError
from bench.model import Capability, Finding

DISK_BYTES = 3 * GIB  # default image, kernels, agent, and room to build them
OPEN_FILES = 4096
PROCESSES = 4096
STOLEN_CPUS = 0.05
STEP_S = 0.05  # of a clock between two readings
SLEW = 0.001  # twice what NTP may do; short windows are no sharper
RUNTIME_BYTES = 64 << 20
LEAST_INODES = 10_000
CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18}


def rights() -> Iterator[Finding]:
    """Root, its capabilities, and limits on open files."""
    if os.geteuid() != 0:
        yield Finding(
            "rights.root",
            "problem",
            "hvct does not run as root",
            "nothing can be compared: that needs control groups, mounts and a bridge; hvct run, "
            "images, plans, lists and reports work",
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
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and soft < PROCESSES:
        yield Finding(
            "rights.processes",
            "info",
            f"at most {soft} processes and threads",
            "workloads with other users than root may not be started, hundreds at once surely not",
            f"ulimit -u {PROCESSES}",
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    if soft != 0:
        yield Finding(
            "rights.core-files",
            "info",
            "core files are written",
            "a workload that crashes in a container or process writes its memory to disk first",
            "ulimit -c 0",
        )


def control_groups() -> Iterator[Finding]:
    """Version, and whether a group with limits can really be made."""
    try:
        layout = cgroupfs.layout()
    except HvctError as error:
        yield Finding("cgroup.missing", "problem", error.message, "nothing is limited or accounted",
                      error.hint)  # fmt: skip
        return
    yield from versions(layout)
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


def versions(layout: cgroupfs.Layout) -> Iterator[Finding]:
    """What the version of control groups means for figures."""
    if layout.version == 1:
        kind = "hybrid: v1 controllers beside a cgroup2 mount" if layout.unified else "v1"
        yield Finding(
            "cgroup.v1",
            "info",
            f"control groups are {kind}",
            "container engines wait 6 to 10 ms to join one after an idle spell, hvct's own "
            "containers do not",
            "boot with systemd.unified_cgroup_hierarchy=1 for v2",
        )
    if layout.version == 1 and layout.unified is None:
        yield Finding(
            "cgroup.no-unified",
            "info",
            "no cgroup2 mount beside the v1 hierarchies",
            "user and system time of an instance are split in steps of 10 ms",
        )


def network() -> Iterator[Finding]:
    """A firewall between the ports of our bridge."""
    from bench.network import netfilter_finding

    found = netfilter_finding()
    if found:
        yield found


def window(window_s: float = 0.3) -> Iterator[Finding]:
    """What else runs right now, and whether the clocks agree, over one short window."""
    clocks, before = Clocks.read(), disturbances.Snapshot.take()
    time.sleep(window_s)
    seen = disturbances.between(before, disturbances.Snapshot.take())
    yield from load(seen)
    yield from clock_steps(clocks, Clocks.read())


def load(seen: dict[str, float]) -> Iterator[Finding]:
    """What others did in a window (`bench.disturbances.between`)."""
    reasons = disturbances.unrest(seen)
    if seen.get("steal_cpus", 0.0) > STOLEN_CPUS:
        yield Finding(
            "load.steal",
            "warning",
            f"the machine below takes {seen['steal_cpus']:.2f} CPUs' worth of time away",
            "trials are slower by what is taken, unevenly; it is recorded with each",
            "a machine with CPUs of its own, or another hour",
        )
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


@dataclass(frozen=True)
class Clocks:
    """Readings of the host's clocks at one moment, in nanoseconds."""

    wall: int
    monotonic: int
    raw: int
    boot: int

    @classmethod
    def read(cls) -> Self:
        """Now."""
        names = (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_MONOTONIC_RAW,
                 time.CLOCK_BOOTTIME)  # fmt: skip
        return cls(*map(time.clock_gettime_ns, names))


def clock_steps(first: Clocks, last: Clocks) -> Iterator[Finding]:
    """Clocks that were set, run fast or slow, or stood still."""
    lasted = last.monotonic - first.monotonic
    step = (last.wall - first.wall - lasted) / 1e9
    if abs(step) > STEP_S:
        yield Finding(
            "clock.step",
            "warning",
            f"the time of day jumped by {step:+.3f} s while it was looked at",
            "hvct measures by a clock that does not jump, but workloads may use the time of day",
            "let it be set gradually (chrony, systemd-timesyncd), or wait until it is right",
        )
    slew = lasted / max(1, last.raw - first.raw) - 1.0
    if abs(slew) > SLEW:
        yield Finding(
            "clock.slew",
            "warning",
            f"the clock runs {slew * 100:+.2f} % off the hardware, to correct the time of day",
            "every duration is wrong by as much, in every arm alike",
            "wait until the time of day is right (chronyc tracking, timedatectl)",
        )
    slept = (last.boot - last.monotonic) / 1e9
    if slept > STEP_S:
        yield Finding(
            "clock.suspended",
            "info",
            f"this host was suspended for {slept:.0f} s since it booted",
            "if it sleeps during a run, that trial's time stands still; guests notice later",
            "systemd-inhibit hvct compare …",
        )


def disk(facts: host.Facts | None = None, tree: Tree | None = None) -> Iterator[Finding]:
    """Room for images, and where the cache lies; of this host by default."""
    facts = host.cache_facts() if facts is None else facts
    free = facts["free_bytes"]
    if free is None:
        yield Finding("disk.cache", "problem", "the cache cannot be written", "no images",
                      "set XDG_CACHE_HOME to a folder you can write")  # fmt: skip
    elif isinstance(free, int) and free < DISK_BYTES:
        yield Finding(
            "disk.space",
            "warning",
            f"the cache has {gib(free)} left",
            f"the default image and the guest kernel need up to {gib(DISK_BYTES)} to be built",
            "make room, or set XDG_CACHE_HOME to another disk",
        )
    for name, room in (("cache", cache_dir), ("runtime", runtime_root)):
        yield from _room(name, room)
    if facts["rotational"] and not is_guest(
        tree or Tree()
    ):  # most virtual disks say that they turn
        yield Finding(
            "disk.rotational",
            "warning",
            "the cache lies on a disk that turns",
            "cold starts and disk figures depend on where its head happens to be",
            "set XDG_CACHE_HOME to a folder on flash",
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


def _room(name: str, folder: Callable[[], Path]) -> Iterator[Finding]:
    """Inodes, and bytes where little is needed, of a file system."""
    with contextlib.suppress(OSError, HvctError):
        place = folder()
        while not place.exists():
            place = place.parent
        room = os.statvfs(place)
        bytes_free = room.f_bavail * room.f_frsize
        if name == "runtime" and bytes_free < RUNTIME_BYTES:
            yield Finding(
                "disk.runtime",
                "problem",
                f"the folder for live runs has {bytes_free >> 20} MiB left",
                "journals and sockets cannot be written",
                f"make room in {place}",
            )
        if room.f_files and room.f_favail < LEAST_INODES:
            yield Finding(
                f"disk.{name}-inodes",
                "warning",
                f"the {name} folder's file system has {room.f_favail} inodes left",
                "images with many files cannot be unpacked, runs cannot be journaled",
                "remove files there",
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
            continue
        if found.details.get("kernel", "").startswith("this host's own kernel"):
            yield Finding(
                "kernel.guest-is-host",
                "info",
                f"guests of {found.backend} run {found.details['kernel']}",
                "it has more built in than a cloud kernel, so guests start later and need more "
                "memory; in return both arms have one kernel",
                "a cloud kernel by --kernel FILE, its modules beside it",
            )
        if found.accelerator.emulated:
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


def _line(path: str, key: str) -> str | None:
    for line in (host.text(path) or "").splitlines():
        if line.startswith(key):
            return line.removeprefix(key).strip()
    return None
