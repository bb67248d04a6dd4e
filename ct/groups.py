"""The control group of one instance, by its specification."""

from __future__ import annotations

from bench.cgroup import Cgroup, CgroupLimits
from bench.errors import HostCannot, HvctError, LaunchFailed
from bench.model import InstanceSpec
from ct import steps
from ct.steps import Steps


def limits_of(spec: InstanceSpec) -> CgroupLimits:
    """What an instance's control group allows."""
    return CgroupLimits(
        memory_bytes=spec.limits.memory_bytes,
        swap_bytes=spec.limits.swap_bytes,
        cpu_set=spec.cpu_set,
        cpu_quota=spec.cpu_quota,
        pids=spec.limits.pids,
    )


def new_cgroup(tag: str, name: str, limits: CgroupLimits) -> Cgroup:
    """Make a group for one instance.

    Raises:
        LaunchFailed: the kernel refused it; nothing is left.
    """
    try:
        return Cgroup.create(tag, name, limits)
    except HostCannot:
        raise
    except HvctError as error:
        raise LaunchFailed(error.message, error.hint) from error


def join_steps(cgroup: Cgroup, *, born: bool = False) -> Steps:
    """What a process enters a group by.

    Args:
        born: it is in the group's cradle already.
    """
    return Steps(steps.join(file) for file in cgroup.join_files(born=born))
