"""Where this host keeps its control groups: version, mounts, and raw reads and writes."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from bench.errors import HostCannot, HvctError, oserror

ROOT = Path("/sys/fs/cgroup")
CGROUP2_MAGIC = 0x63677270
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids")
V2_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
OURS = "hvct"  # every group we make lies below a directory of this name


@dataclass(frozen=True)
class Layout:
    """The hierarchies an instance's group needs.

    Attributes:
        version: 2 for the unified hierarchy, 1 for one mount per controller.
        controllers: mount point per controller; co-mounted ones share a path.
        unified: a cgroup2 mount beside v1 hierarchies (it has PSI and exact user and
            system times, but no controllers), None on version 2 or where there is none.
    """

    version: int
    controllers: dict[str, Path]
    unified: Path | None = None

    @cached_property
    def mounts(self) -> tuple[Path, ...]:
        """Every hierarchy in which a group is made, each once."""
        paths = [*self.controllers.values(), *([self.unified] if self.unified else [])]
        return tuple(dict.fromkeys(paths))


def statfs_type(path: Path) -> int:
    """The file system magic of a mounted path (0 when it cannot be asked)."""
    buffer = (ctypes.c_long * 32)()  # struct statfs: f_type is its first word on Linux
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        return 0
    return int(buffer[0])


def parse_mountinfo(text: str) -> tuple[dict[str, Path], Path | None]:
    """Find the mount point of each v1 controller, and of a cgroup2 mount, in mountinfo.

    Mount points hold octal escapes for blanks; the first mount of a controller wins.
    """
    controllers: dict[str, Path] = {}
    unified: Path | None = None
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) < 5 or len(tail) < 3:
            continue
        point = Path(fields[4].encode().decode("unicode_escape"))
        if tail[0] == "cgroup2" and unified is None:
            unified = point
        elif tail[0] == "cgroup":
            for option in tail[2].split(","):
                if option in CONTROLLERS:
                    controllers.setdefault(option, point)
    return controllers, unified


@cache
def layout() -> Layout:
    """The host's hierarchies, looked up once per process.

    Raises:
        HostCannot: the controllers that accounting needs are not there.
    """
    if statfs_type(ROOT) == CGROUP2_MAGIC:
        offered = read_text(ROOT / "cgroup.controllers").split()
        found = {name: ROOT for name in V2_CONTROLLERS if name in offered}
        made = Layout(2, {**found, "cpuacct": ROOT})
    else:
        controllers, unified = parse_mountinfo(read_text(Path("/proc/self/mountinfo")))
        # A cgroup2 mount of another program may be anywhere; ours is the hybrid one.
        hybrid = unified if unified is not None and unified.is_relative_to(ROOT) else None
        made = Layout(1, {name: controllers[name] for name in CONTROLLERS if name in controllers},
                      hybrid)  # fmt: skip
    missing = [name for name in ("memory", "cpuacct") if name not in made.controllers]
    if missing:
        raise HostCannot(
            f"this kernel offers no {' and no '.join(missing)} cgroup controller",
            "mount the cgroup hierarchies (cgroup_enable=memory on the kernel command line)",
        )
    return made


def version() -> int:
    """2 where /sys/fs/cgroup is cgroup2, else 1 (a `unified` mount beside v1 does not count)."""
    return layout().version


def read_text(path: Path | str) -> str:
    """A small kernel file as text.

    Raises:
        HvctError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise oserror("open", path, error) from error
    try:
        parts = []
        while part := os.read(descriptor, 65536):
            parts.append(part)
        return b"".join(parts).decode("utf-8", "replace")
    except OSError as error:
        raise oserror("read", path, error) from error
    finally:
        os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """Write a value to a kernel file in one write.

    Raises:
        HvctError: the kernel refused it.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise oserror("open", path, error) from error
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise HvctError(f"{oserror('write', path, error).message} (writing {text!r})") from error
    finally:
        os.close(descriptor)


def read_pairs(path: Path | str) -> dict[str, int]:
    """A flat ``key value`` file (memory.stat, cpu.stat, memory.events …)."""
    pairs = {}
    for line in read_text(path).splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            pairs[key] = int(value)
    return pairs


def read_number(path: Path | str) -> int | None:
    """A file with one number; None when this kernel does not have it."""
    try:
        return int(read_text(path))
    except (HvctError, ValueError):
        return None
