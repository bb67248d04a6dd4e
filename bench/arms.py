"""The arms that can be compared: a backend plus its options, as data."""

# ruff: noqa: E501 - these tables read best with one row a line

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.errors import BadInput


@dataclass(frozen=True)
class Arm:
    """One thing to compare. `options` go to the backend's constructor."""

    name: str
    backend: str
    title: str
    options: dict[str, object] = field(default_factory=dict)


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("vm", "vm", "virtual machine through libvirt"),
        Arm("vm:direct", "vm", "virtual machine, image read past the host's page cache", {"direct": True}),
        Arm("container", "container", "native namespace container"),
        Arm("container:userns", "container", "native namespace container in a user namespace", {"user": True}),
        Arm("process", "process", "bare process: same root file system and cgroup, no other namespaces"),
    )
}  # fmt: skip
DEFAULT_ARMS = ("vm", "container", "process")
BASELINE = "container"


def resolve(names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of these names.

    Raises:
        BadInput: a name is unknown or given twice.
    """
    for name in names:
        if name not in ARMS:
            raise BadInput(f"there is no arm {name!r}", f"choose from {', '.join(ARMS)}")
        if list(names).count(name) > 1:
            raise BadInput(f"arm {name!r} is named twice", "name each arm once")
    return tuple(ARMS[name] for name in names)


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """(arm, baseline) pairs that a report compares: vm ÷ container, container ÷ process."""
    if BASELINE not in names:
        return [(name, names[-1]) for name in names[:-1]]
    return [
        (BASELINE, name) if ARMS[name].backend == "process" else (name, BASELINE)
        for name in names
        if name != BASELINE
    ]
