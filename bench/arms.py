"""The arms that can be compared: a backend plus its options, as data."""

# ruff: noqa: E501 - these tables read best with one row a line

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.errors import BadInput, no_such


@dataclass(frozen=True)
class Arm:
    """One thing to compare.

    Attributes:
        options: go to the backend's constructor.
        peer: somebody else's launcher: optional, and only there to be compared with.
    """

    name: str
    backend: str
    title: str
    options: dict[str, object] = field(default_factory=dict)
    peer: bool = False

    @property
    def guest(self) -> bool:
        """Whether it has a kernel of its own: a virtual machine, however it is started."""
        return self.backend in ("vm", "qemu")


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("vm", "vm", "virtual machine through libvirt"),
        Arm("vm:direct", "vm", "virtual machine, image read past the host's page cache", {"direct": True}),
        Arm("vm:stock", "vm", "virtual machine, libvirt untrimmed and the kernel as a bzImage", {"stock": True}),
        Arm("vm:daemon", "vm", "virtual machine through a libvirtd of its own", {"daemon": True}),
        Arm("vm:hostkernel", "vm", "virtual machine with the kernel this host runs", {"host_kernel": True}),
        Arm("vm:distro", "vm", "virtual machine booted by firmware, GRUB and systemd, as a distribution does", {"distro": True}),
        Arm("vm:restore", "vm", "virtual machine restored from one that was saved before its workload", {"restore": True}),
        Arm("vm:balloon", "vm", "virtual machine whose balloon is inflated once a peak is freed", {"balloon": "inflated"}),
        Arm("vm:freepage", "vm", "virtual machine that reports its free pages to the host (virtio balloon)", {"balloon": "reporting"}),
        Arm("vm:balloon-freepage", "vm", "virtual machine with both: a balloon inflated after a peak, free pages reported", {"balloon": "both"}),
        Arm("container", "container", "native namespace container"),
        Arm("container:userns", "container", "native namespace container in a user namespace", {"user": True}),
        Arm("container:slot", "container", "native namespace container, born in a control group that waits for it", {"slot": True}),
        Arm("container:pooled", "container", "native namespace container, in a network namespace that waits for it", {"pooled": True}),
        Arm("container:rootless", "container", "namespace container of a user without root, reduced", {"rootless": True}),
        Arm("process", "process", "bare process: same root file system and cgroup, no other namespaces"),
        Arm("qemu", "qemu", "virtual machine by QEMU alone, without libvirt", peer=True),
        Arm("runc", "runc", "the OCI reference runtime, runc run", peer=True),
        Arm("crun", "crun", "the OCI runtime in C, crun run", peer=True),
        Arm("bwrap", "bwrap", "bubblewrap, given the same namespaces, capabilities and filter", peer=True),
        Arm("docker", "docker", "Docker, a private engine through its SDK", peer=True),
        Arm("podman", "podman", "podman run, with runc and cgroupfs", peer=True),
        Arm("nspawn", "nspawn", "systemd-nspawn, without machined and without a network", peer=True),
        Arm("unshare", "unshare", "unshare of util-linux: namespaces and a root, no confinement", peer=True),
    )
}  # fmt: skip
DEFAULT_ARMS = ("vm", "container", "process")
BASELINE = "container"
ALL = "all"
"""What a user names for every arm that works on the host."""
PEERS = tuple(name for name, arm in ARMS.items() if arm.peer)
OPTIONAL = tuple(name for name in ARMS if name not in (*DEFAULT_ARMS, *PEERS))
"""Arms of ours that nobody gets unasked: whether they work decides nothing either."""


def resolve(names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of these names.

    Raises:
        BadInput: a name is unknown or given twice.
    """
    for name in names:
        if name not in ARMS:
            raise no_such("arm", name, ARMS)
        if list(names).count(name) > 1:
            raise BadInput(f"arm {name!r} is named twice", "name each arm once")
    return tuple(ARMS[name] for name in names)


_MOUNTED_ONCE = "its worker mounts the image once, for the whole run"
_IN_MEMORY = "its engine keeps the image in a storage of its own, in memory"
_MADE_BEFORE = "what waits for a start was made by a launcher that has the image mounted"
NEVER_COLD = {
    "vm:restore": "a restored guest has in its memory what was read before it was saved",
    "container:slot": _MADE_BEFORE,
    "container:pooled": _MADE_BEFORE,
    "docker": _IN_MEMORY,
    "podman": _IN_MEMORY,
    **dict.fromkeys(("runc", "crun", "bwrap", "nspawn", "unshare"), _MOUNTED_ONCE),
}
"""Arms for which the image's pages cannot be dropped before each start, and why."""


OWN_RULES = (
    ("container:slot", "join", "is born in a group that was made before the request, and on cgroup v1 joined by a helper that clones it"),
    ("container:pooled", "join", "enters a network namespace made before the request"),
    ("vm:restore", "kernel", "has one that was booted once, saved before its workload and is restored for each trial"),
    ("vm:distro", "kernel", "boots by firmware, GRUB and its distribution's initramfs; its agent is started by systemd, whose services stay beside the workload"),
    ("vm:distro", "page_cache", "reads its system disk through the host's cache, where that stays warm"),
    ("vm:direct", "page_cache", "reads its image past the host's cache"),
)  # fmt: skip
"""(arm, rule, what it does otherwise): said in the report with the rule, where the arm is compared."""

VARIANTS = dict.fromkeys(("vm:freepage", "vm:balloon", "vm:balloon-freepage", "vm:distro"), "vm")
"""Arms that are there to be set beside another than the baseline, where that one is present."""


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """(arm, baseline) pairs that a report compares: vm ÷ container, container ÷ process.

    Each arm once against the baseline, in the order of the names; then a variant against the
    arm it varies, which is what says what the variation does.
    """
    if BASELINE in names:
        first = [
            (BASELINE, name) if ARMS[name].backend == "process" else (name, BASELINE)
            for name in names
            if name != BASELINE
        ]
    else:
        first = [(name, names[-1]) for name in names[:-1]]
    varied = [(name, VARIANTS[name]) for name in names if VARIANTS.get(name) in names]
    return first + [pair for pair in varied if pair not in first and pair[::-1] not in first]
