"""Containers of a user who is not root: a reduced mode, and labelled as one.

The launcher itself runs in a user namespace in which this user is root, and everything the
container arm does happens inside that. What such a root cannot do is left out, and said:
no control group (no limits, no accounting), no bridge, no other user inside, and the image
as a folder of the cache instead of a mounted volume. Not for measuring: `hvct compare`
needs root.
"""

from __future__ import annotations

import dataclasses
import os
import platform

from bench.command import run
from bench.context import RunContext
from bench.errors import HvctError, Refused
from bench.image.unpacked import unpacked
from bench.model import Capability, Ids, Image, InstanceSpec, NetworkMode
from ct import rootfs, steps
from ct.backend import ContainerBackend
from ct.instance import LauncherInstance
from ct.rootfs import Lower
from ct.steps import MS_BIND, Plan, Steps

ENTER = ("unshare", "--user", "--map-root-user")
REDUCED = (
    "no limits and no accounting (no control group), no network but its own loopback, "
    "no user but root inside, the image as an unpacked folder"
)
NO_NAMESPACES = (
    "allow them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns), or use sudo"
)


class RootlessBackend(ContainerBackend):
    """Containers without root."""

    enter = ENTER

    def __init__(self, context: RunContext) -> None:
        # The launcher cannot leave its namespace: what is left the next command cleans.
        super().__init__(dataclasses.replace(context, cleanup=()))

    @property
    def binds_devices(self) -> bool:
        """Nobody makes device nodes in a user namespace."""
        return True

    def probe(self) -> Capability:
        """Enter a user namespace, and start the launcher in it."""
        if os.geteuid() == 0:
            return Capability(
                self.name, False, "it is for users who are not root", "use container:userns"
            )
        try:
            run([*ENTER, "true"], hint="install util-linux")
        except HvctError as error:
            reason = f"user namespaces are not allowed here: {error.message}"
            return Capability(self.name, False, reason, NO_NAMESPACES)
        try:
            worker = self.worker
        except HvctError as error:
            return Capability(self.name, False, error.message, error.hint)
        return Capability(
            self.name,
            True,
            version=f"Linux {platform.release()}",
            details={"reduced": REDUCED, "launcher": str(worker.pid)},
        )

    def check(self, spec: InstanceSpec) -> None:
        """Decline what needs a right on the host.

        Raises:
            Refused: with what it needs.
        """
        super().check(spec)
        if spec.network is not NetworkMode.NONE:
            raise Refused(
                f"without root a container has no {spec.network.value} network",
                "leave out --network, or use sudo",
            )
        if (spec.ids.uid, spec.ids.gid) != (0, 0):
            raise Refused(
                f"without root there is no user {spec.ids.uid}:{spec.ids.gid} in a container",
                "run it as root inside with -u 0, or use sudo",
            )

    def launch(self, spec: InstanceSpec) -> LauncherInstance:
        """As any container, without a control group and without supplementary groups."""
        # setgroups(2) is forbidden where a user wrote the map of groups by himself.
        ids = (
            Ids(spec.ids.uid, spec.ids.gid) if (spec.ids.uid, spec.ids.gid) == (0, 0) else spec.ids
        )
        return super().launch(dataclasses.replace(spec, accounting=False, ids=ids))

    def plan(self, spec: InstanceSpec, lower: Lower, disk: Steps = steps.NOTHING) -> Plan:
        """A container's; the group of terminals does not exist in it."""
        whole = super().plan(spec, lower, disk)
        terminals = rootfs.DEVPTS.rpartition(",")[0]
        return dataclasses.replace(
            whole,
            parts=(
                Steps(
                    dataclasses.replace(step, arguments=(*step.arguments[:-1], terminals))
                    if step.arguments[-1:] == (rootfs.DEVPTS,)
                    else step
                    for step in whole.steps
                ),
            ),
        )

    def _mount(self, image: Image) -> Lower:
        tree = unpacked(image)
        folder = "image-" + image.digest.removeprefix("sha256:")[:16]
        (self.worker.directory / folder).mkdir(exist_ok=True)
        self.worker.setup((steps.mount(str(tree), folder, "", MS_BIND),))
        return Lower(folder, "folder", False, "unpacked into the cache, without root")
