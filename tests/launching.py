"""What tests that launch instances share: their specifications, and waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from bench.cgroup import Cgroup
from bench.context import RunContext
from bench.model import Image, InstanceSpec, NetworkMode

ENV = (("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"),)
NUMBERS = count(1)


def make(context: RunContext, image: Image, /, *argv: str, **changes: object) -> InstanceSpec:
    """A specification of its own number; `bridge=True` gives it an address."""
    number = next(NUMBERS)
    if changes.pop("bridge", False):
        assert context.network is not None
        changes |= {"network": NetworkMode.BRIDGE, "address": context.network.address(number)}
    changes = {"env": ENV, "image": image} | changes
    return InstanceSpec(context.instance(number), argv=argv, **changes)  # type: ignore[arg-type]


def enter(group: Cgroup) -> None:
    """Have this process join a group; it must have one thread, as after a fork."""
    for file in group.join_files():
        Path(file).write_text("0")


def soon(seconds: float = 10.0) -> int:
    """A deadline, in ns of CLOCK_MONOTONIC."""
    return time.monotonic_ns() + int(seconds * 1e9)


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait until something is so; whether it came about in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def settled_neighbour(address: str) -> bool:
    """Whether the host knows an address for good (ATF_PERM): a lost ARP request costs a second."""
    lines = [line.split() for line in Path("/proc/net/arp").read_text().splitlines()[1:]]
    return any(line[0] == address and int(line[2], 16) & 0x4 for line in lines)
