"""Steps: what the launcher is to do, as values; ``ct/launcher`` executes them in order.

Before `pivot` relative paths are below the run's directory. After it absolute paths are
the instance's and relative ones the host's, until `detach`.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain

from bench.model import Address
from bench.record import encode

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_NOATIME, MS_BIND, MS_REC, MS_PRIVATE = 32, 1024, 4096, 16384, 1 << 18


@dataclass(frozen=True)
class Step:
    """One act of the launcher: its name there and its arguments."""

    do: str
    arguments: tuple[str, ...] = ()

    @cached_property
    def encoded(self) -> bytes:
        """Its part of the request's record."""
        return encode([("do", self.do), *(("arg", argument) for argument in self.arguments)])

    def describe(self) -> str:
        """The step on one line, for error texts."""
        shown = (word if len(word) <= 60 else word[:57] + "…" for word in self.arguments)
        return " ".join((self.do, *(word.replace("\n", "⏎") for word in shown if word)))


class Steps(tuple[Step, ...]):
    """Steps that stand together; those that are the same in every launch are made once."""

    @cached_property
    def encoded(self) -> bytes:
        """Their part of the request's record."""
        return b"".join(step.encoded for step in self)


NOTHING = Steps()


def flat(parts: Iterable[Steps]) -> tuple[Step, ...]:
    """One after the other, as the launcher counts them."""
    return tuple(chain.from_iterable(parts))


@dataclass(frozen=True)
class Plan:
    """What one launch does, as values: see `ct.wire.LaunchRequest`."""

    flags: int
    parts: tuple[Steps, ...]
    user_map: str = ""

    @property
    def steps(self) -> tuple[Step, ...]:
        """One after the other."""
        return flat(self.parts)


def join(file: str) -> Step:
    """Enter a control group by one of its `Cgroup.join_files`."""
    return Step("join", (file,))


def unshare(flags: int) -> Step:
    """Enter new namespaces of the calling process."""
    return Step("unshare", (str(flags),))


def enter(descriptor_index: int, flags: int) -> Step:
    """Enter the namespace that was passed at this index; `flags` says of which kind it is."""
    return Step("enter", (str(descriptor_index), str(flags)))


def keep_netns() -> Step:
    """Hand the present network namespace over with the reply."""
    return Step("keep_netns")


@cache
def affinity(cpus: tuple[int, ...]) -> Steps:
    """Run on these CPUs only (where there is no control group to say so)."""
    return Steps([Step("affinity", (",".join(map(str, cpus)),))])


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> Step:
    """Mount a file system; `kind` "" for a bind."""
    return Step("mount", (source, target, kind, str(flags), data))


def loop_mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> Step:
    """Mount a file through a loop device with direct I/O that goes when the mount goes."""
    return Step("loop_mount", (source, target, kind, str(flags), data))


def mkdir(path: str, mode: int = 0o755) -> Step:
    """Make a folder; it is no error when it exists."""
    return Step("mkdir", (path, str(mode)))


def mknod(path: str, major: int, minor: int, mode: int = 0o666) -> Step:
    """A character device."""
    return Step("mknod", (path, str(stat.S_IFCHR | mode), str(major), str(minor)))


def symlink(target: str, path: str) -> Step:
    """Make a symbolic link."""
    return Step("symlink", (target, path))


def write(path: str, text: str) -> Step:
    """Replace a file's content."""
    return Step("write", (path, text))


def pivot(root: str) -> Step:
    """Make `root` the root directory; the host's stays reachable by relative paths."""
    return Step("pivot", (root,))


def detach() -> Step:
    """Let go of the host's root."""
    return Step("detach")


@cache
def hostname(name: str) -> Steps:
    """Name the host, as seen inside."""
    return Steps([Step("hostname", (name,))])


def link(message: bytes) -> Step:
    """Send one rtnetlink message on the host's side."""
    return Step("link", (message.hex(),))


def loopback() -> Step:
    """Bring ``lo`` up."""
    return Step("interface", ("lo",))


def interface(name: str, address: Address) -> Step:
    """Give an interface its address and bring it up."""
    mask = (0xFFFFFFFF << (32 - address.prefix)) & 0xFFFFFFFF
    dotted = ".".join(str(mask >> shift & 255) for shift in (24, 16, 8, 0))
    return Step("interface", (name, address.ip, dotted))


def neighbour(name: str, address: Address) -> Step:
    """A permanent entry for the host, so that no answer waits for address resolution."""
    return Step("neighbour", (name, address.host_ip, address.host_mac.replace(":", "").lower()))


def capabilities(mask: int) -> Step:
    """Keep these capabilities at most, in every set, the bounding set included."""
    return Step("capabilities", (hex(mask),))


def no_new_privs() -> Step:
    """No program may gain privileges by being executed."""
    return Step("no_new_privs")


def seccomp(program: bytes) -> Step:
    """Load a BPF filter."""
    return Step("seccomp", (program.hex(),))
