"""One fresh control group per instance: limits, accounting and certain death, on v1 and v2.

The same names mean the same thing on both versions. Resolution: CPU counters of a
*running* task lag by up to one scheduler tick (4 ms at 250 Hz) and are exact once it has
exited; memory counters lag by the kernel's per-CPU batches (64 pages per CPU) for up to
2 s. Counters survive the exit of the processes until `remove`, so final values are read
after the last process was reaped, then the group is removed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bench import cgroup_tree as tree
from bench.cgroup_tree import REMOVE_TIMEOUT_S, remove_all
from bench.cgroupfs import OURS, Layout, layout, read_number, read_text, version, write_text
from bench.errors import HostCannot, HvctError, oserror
from bench.model import CpuUsage, MemoryUsage, ProcessMemory

__all__ = ["Cgroup", "CgroupLimits", "remove_all", "version"]

PERIOD_US = 100_000  # CFS bandwidth period; the kernel's own default

SELF_MOVE = "tasks"
"""The file of a v1 group to which a process of one thread writes ``0`` to join.

A thread that moves itself waits for nobody since Linux 5.5 (commit 9a3284fad42f), 0.1 ms for eight
hierarchies, where ``cgroup.procs``, which moves whole processes, waits 6 to 10 ms for an RCU grace
period after an idle spell. In the unified hierarchy no group but a threaded one takes single
threads; there a child is born in its group (CLONE_INTO_CGROUP) where its parent can ask for that.
"""


def way_in(files: Iterable[str], *, born: bool = False) -> str:
    """How a process gets into its group, in words.

    Args:
        files: those of `Cgroup.join_files` that it writes to.
        born: it is in the `Cgroup.cradle` already.
    """
    names = " and ".join(sorted({os.path.basename(file) for file in files}))
    ways = ["clone3 into the cgroup"] * born + [f"{names} before exec"] * bool(names)
    return ", ".join(ways) or "none"


@dataclass(frozen=True)
class CgroupLimits:
    """What one group may use; None or empty leaves it unlimited.

    Attributes:
        memory_bytes: everything charged to it, page cache and kernel memory included.
        swap_bytes: swap beyond that; 0 switches swap off.
        cpu_set: host CPUs it may run on; empty means all of its parent's.
        cpu_quota: CPUs' worth of time per period, e.g. 0.5.
        pids: most processes and threads.
    """

    memory_bytes: int | None = None
    swap_bytes: int = 0
    cpu_set: tuple[int, ...] = ()
    cpu_quota: float | None = None
    pids: int | None = None


@dataclass
class Cgroup:
    """One group ``hvct/<tag>/<name>`` in every hierarchy needed; make it with `create`."""

    tag: str
    name: str
    limits: CgroupLimits
    where: Layout
    _fds: dict[str, int] = field(default_factory=dict)
    _removed: bool = False

    @classmethod
    def create(cls, tag: str, name: str, limits: CgroupLimits | None = None) -> Cgroup:
        """Make the group and set its limits, ready to be joined.

        Raises:
            HostCannot: groups cannot be made here, or a limit has no controller.
            HvctError: the kernel refused a limit; nothing is left then.
        """
        group = cls(tag, name, limits or CgroupLimits(), layout())
        tree.prepare(group.where, tag)
        made: list[str] = []
        try:
            for directory in group._places.values():
                tree.mkdir(directory, group.where, tag)
                made.append(directory)
            for path, value in group._settings():
                write_text(path, value)
        except BaseException:
            for directory in made:  # and no other: the name may be somebody else's
                os.rmdir(directory)
            raise
        return group

    @cached_property
    def _places(self) -> dict[Path, str]:
        """Mount of a hierarchy → its directory there, as text: a Path is slow to make."""
        below = f"/{OURS}/{self.tag}/{self.name}"
        return {mount: f"{mount}{below}" for mount in self.where.mounts}

    @property
    def directories(self) -> tuple[Path, ...]:
        """Its directory in every hierarchy."""
        return tuple(map(Path, self._places.values()))

    def directory(self, controller: str) -> Path:
        """Its directory in the hierarchy of one controller.

        Raises:
            HostCannot: the host does not offer that controller.
        """
        return Path(self._at(controller))

    def _at(self, controller: str) -> str:
        if controller not in self.where.controllers:
            raise HostCannot(f"this kernel offers no {controller} cgroup controller")
        return self._places[self.where.controllers[controller]]

    def _settings(self) -> Iterator[tuple[str, str]]:
        """The writes that put the limits in force, in an order the kernel accepts."""
        limits, two = self.limits, self.where.version == 2
        if "cpuset" in self.where.controllers:
            if limits.cpu_set:
                yield f"{self._at('cpuset')}/cpuset.cpus", ",".join(map(str, limits.cpu_set))
        elif limits.cpu_set:
            self._at("cpuset")
        if limits.cpu_quota is not None:
            cpu, quota_us = self._at("cpu"), max(1000, round(limits.cpu_quota * PERIOD_US))
            if two:
                yield f"{cpu}/cpu.max", f"{quota_us} {PERIOD_US}"
            else:
                yield f"{cpu}/cpu.cfs_quota_us", str(quota_us)
        if limits.pids is not None:
            yield f"{self._at('pids')}/pids.max", str(limits.pids)
        memory = self._at("memory")
        if two:
            if limits.memory_bytes is not None:
                yield f"{memory}/memory.max", str(limits.memory_bytes)
            if os.path.exists(swap := f"{memory}/memory.swap.max"):
                yield swap, str(limits.swap_bytes)
        else:
            if limits.swap_bytes == 0:
                yield f"{memory}/memory.swappiness", "0"
            if limits.memory_bytes is not None:
                # The sum may never be below the limit, so the limit goes first.
                yield f"{memory}/memory.limit_in_bytes", str(limits.memory_bytes)
                if os.path.exists(both := f"{memory}/memory.memsw.limit_in_bytes"):
                    yield both, str(limits.memory_bytes + limits.swap_bytes)

    # -- joining ---------------------------------------------------------------------

    @property
    def cradle(self) -> str | None:
        """Its directory in the unified hierarchy, for CLONE_INTO_CGROUP; None without one."""
        two = self.where.version == 2
        mount = self.where.mounts[0] if two else self.where.unified
        return self._places[mount] if mount else None

    def join_files(self, *, born: bool = False) -> tuple[str, ...]:
        """Where a process that has one thread writes ``0`` in order to join.

        Args:
            born: it is in the `cradle` already.
        """
        cradle = self.cradle
        moves = tuple(f"{at}/{SELF_MOVE}" for at in self._places.values() if at != cradle)
        return moves if born or cradle is None else (*moves, f"{cradle}/cgroup.procs")

    def join(self, pid: int = 0) -> None:
        """Move a process (0: the caller, with all its threads) into the group."""
        for directory in self.directories:
            write_text(directory / "cgroup.procs", str(pid))

    def _read(self, path: str) -> bytes:
        """Read through a descriptor kept until `remove`: 1 µs instead of 17 for opening it anew."""
        if path not in self._fds:
            try:
                self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise oserror("open", path, error) from error
        try:
            return os.pread(self._fds[path], 16384, 0)
        except OSError as error:
            raise oserror("read", path, error) from error

    def _read_pairs(self, path: str) -> dict[str, int]:
        pairs = {}
        for line in self._read(path).decode().splitlines():
            key, _, value = line.partition(" ")
            pairs[key] = int(value)
        return pairs

    # -- accounting ------------------------------------------------------------------

    def cpu(self) -> CpuUsage:
        """CPU time of everything that ever ran in it.

        On v1 the total is cpuacct.usage; the split into user and system comes from the
        cgroup2 twin where there is one (µs), else from cpuacct.stat (10 ms).
        """
        if self.where.version == 2:
            stat = self._read_pairs(f"{self._at('cpuacct')}/cpu.stat")
            return CpuUsage(
                stat["usage_usec"] / 1e6,
                stat["user_usec"] / 1e6,
                stat["system_usec"] / 1e6,
                stat.get("throttled_usec", 0) / 1e6,
                stat.get("nr_throttled", 0),
            )
        total_s = int(self._read(f"{self._at('cpuacct')}/cpuacct.usage")) / 1e9
        if self.where.unified is not None:
            stat = self._read_pairs(f"{self._places[self.where.unified]}/cpu.stat")
            user, system = stat["user_usec"], stat["system_usec"]
        else:
            stat = self._read_pairs(f"{self._at('cpuacct')}/cpuacct.stat")
            user, system = stat["user"], stat["system"]
        # Both sources estimate the split by ticks; scaled so that the parts add up.
        system_s = total_s * system / (user + system) if user + system else 0.0
        throttled_s, periods = 0.0, 0
        if self.limits.cpu_quota is not None:
            stat = self._read_pairs(f"{self._at('cpu')}/cpu.stat")
            throttled_s, periods = stat["throttled_time"] / 1e9, stat["nr_throttled"]
        return CpuUsage(total_s, total_s - system_s, system_s, throttled_s, periods)

    def memory(self) -> MemoryUsage:
        """Memory charged to it now, by the definitions of `MemoryUsage`."""
        memory = self._at("memory")
        stat = self._read_pairs(f"{memory}/memory.stat")
        if self.where.version == 2:
            shmem = stat.get("shmem", 0)
            kernel = stat.get("kernel")
            if kernel is None:  # before Linux 5.18 only its parts are given
                kernel = sum(stat.get(k, 0) for k in ("kernel_stack", "pagetables", "slab", "sock"))
            return MemoryUsage(
                read_number(f"{memory}/memory.current"),
                read_number(f"{memory}/memory.peak"),
                stat.get("anon"),
                shmem,
                max(0, stat.get("file", 0) - shmem),
                kernel,
            )
        shmem = stat.get("total_shmem", 0)
        return MemoryUsage(
            read_number(f"{memory}/memory.usage_in_bytes"),
            read_number(f"{memory}/memory.max_usage_in_bytes"),
            stat.get("total_rss"),
            shmem,
            max(0, stat.get("total_cache", 0) - shmem),  # v1 counts shmem as cache
            read_number(f"{memory}/memory.kmem.usage_in_bytes"),
        )

    def process_memory(self) -> ProcessMemory:
        """Sum of smaps_rollup over its processes (takes each one's mmap lock: not while timing)."""
        sums: dict[str, int] = {}
        for pid in self.pids():
            with contextlib.suppress(HvctError):  # it may end while we look
                for line in read_text(f"/proc/{pid}/smaps_rollup").splitlines()[1:]:
                    key, _, rest = line.partition(":")
                    sums[key] = sums.get(key, 0) + int(rest.split()[0]) * 1024
        return ProcessMemory(
            sums.get("Pss", 0),
            sums.get("Rss", 0),
            sums.get("Private_Clean", 0) + sums.get("Private_Dirty", 0),
            sums.get("Pss_Anon", 0),
            sums.get("Pss_File", 0),
            sums.get("Pss_Shmem", 0),
        )

    def pids(self) -> tuple[int, ...]:
        """Host process ids of all its processes, those in child groups included."""
        return tuple(sorted(tree.pids_in(self.directory("memory"))))

    def oom_kills(self) -> int:
        """Processes the kernel killed in it for lack of memory."""
        file = "memory.events" if self.where.version == 2 else "memory.oom_control"
        return self._read_pairs(f"{self._at('memory')}/{file}").get("oom_kill", 0)

    def pressure(self) -> dict[str, float]:
        """Seconds its tasks have stalled, by resource (``cpu``, ``memory``, ``io``): PSI."""
        home = self.where.unified if self.where.version == 1 else self.where.mounts[0]
        stalled: dict[str, float] = {}
        if home is not None:
            for resource in ("cpu", "memory", "io"):
                with contextlib.suppress(HvctError, ValueError, IndexError):  # PSI may be off
                    text = read_text(f"{self._places[home]}/{resource}.pressure")
                    stalled[resource] = int(text.split("total=")[1].split()[0]) / 1e6
        return stalled

    # -- ending ----------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL everything in it; a fork bomb cannot outrun this.

        By the list of one hierarchy: it is part of a bare process's teardown. Who left that
        one is killed by `remove`.
        """
        settings = (("pids", "pids.max", "0"), ("cpu", "cpu.cfs_quota_us", "-1"))
        for controller, file, value in settings:
            if self.where.version == 1 and controller in self.where.controllers:
                with contextlib.suppress(HvctError):  # no more forks; a throttled task dies late
                    write_text(self.directory(controller) / file, value)
        tree.kill(self.directory("memory"))

    def remove(self, timeout_s: float = REMOVE_TIMEOUT_S) -> None:
        """Kill what is left and remove it; does nothing the second time.

        Raises:
            HvctError: a process in it did not die within `timeout_s`.
        """
        if self._removed:
            return
        for descriptor in self._fds.values():
            os.close(descriptor)
        self._fds.clear()
        for directory in self.directories:
            tree.remove_tree(directory, time.monotonic() + timeout_s)
        self._removed = True
