"""How a container is confined: Docker's defaults where they mean something here.

Two deliberate differences, both in the direction of less: CAP_MKNOD is dropped (see
`bench.agent.confinement`), and no_new_privs is set, because the filter is loaded after
CAP_SYS_ADMIN is gone. What that is worth beside Docker's is in docs/security.md.
"""

from __future__ import annotations

import os
from functools import cache

from bench.agent.confinement import CAPABILITY_MASK, MASKED, READ_ONLY
from bench.agent.seccomp import seccomp_program
from ct import steps
from ct.steps import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT, Steps


@cache
def mask_steps() -> Steps:
    """Hide and protect paths of /proc and /sys; those that this kernel has."""
    plan = []
    for path in MASKED:
        if os.path.isdir(path):
            flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
            plan.append(steps.mount("tmpfs", path, "tmpfs", flags, "size=4k,nr_inodes=2"))
        elif os.path.exists(path):
            plan.append(steps.mount("/dev/null", path, "", MS_BIND))
    for path in READ_ONLY:
        if os.path.exists(path):
            flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
            plan += [steps.mount(path, path, "", MS_BIND), steps.mount("", path, "", flags)]
    return Steps(plan)


@cache
def confine_steps() -> Steps:
    """The last acts before the program runs: capabilities, no_new_privs, the filter."""
    return Steps(
        (
            steps.capabilities(CAPABILITY_MASK),
            steps.no_new_privs(),
            steps.seccomp(seccomp_program()),
        )
    )
