"""The arm `vm:distro`: the same image in a machine that boots as a distribution does.

SeaBIOS reads GRUB from a disk, GRUB the distribution's kernel and initramfs, and systemd starts
our agent as one of its services. The agent leaves for a mount namespace with an empty root and
goes on there as it does as /init: it mounts the image from the same disk, under the same overlay,
so the workload sees the same root as in every arm. What the guest writes to its system disk goes
to a file of the instance's own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType

from bench.agent.build import agent_path
from bench.cache import hold, remove_tree
from bench.command import run
from bench.errors import HvctError, Refused
from bench.image import debian
from bench.image.index import Progress, silent
from bench.model import Capability, Image, InstanceSpec
from hv import memory, rootfs
from hv.backend import VmBackend
from hv.domain import Disk, DomainPlan
from hv.initramfs import Initramfs
from hv.probe import Verdict
from hv.system_disk import OTHERWISE, WHAT, SystemDisk, cached, missing, system_disk

ARCHITECTURE = "x86_64"  # the only one whose firmware and loader are known here
NEEDS = memory.Needs(160 * memory.MIB, 80 * memory.MIB)
"""With 144 MiB it booted; in 112 the kernel could not unpack the distribution's initramfs."""


class DistroBackend(VmBackend):
    """Virtual machines that firmware, boot loader and systemd bring up."""

    needs = NEEDS
    measure_limit_s = 180.0
    _disk: SystemDisk | None = None
    _held: int | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._held is not None:
            os.close(self._held)
            self._held = None

    @property
    def disk(self) -> SystemDisk:
        """What the guests boot from, made on first use."""
        if self._disk is None:
            self._disk = self._take()
        return self._disk

    def _take(self, told: Progress = silent) -> SystemDisk:
        """The disk, which nobody removes until this backend is closed."""
        while True:  # another process may remove it before it is held
            found = system_disk(agent_path(), told)
            self._held = hold(found.path)
            if self._held is not None:
                return found

    def probe(self) -> Capability:
        """What `vm` needs, and what the system disk is made with; it is not made here."""
        if self.architecture.name != ARCHITECTURE:
            why = f"its firmware and loader are known for {ARCHITECTURE} alone"
            return Capability(self.name, False, why, OTHERWISE)
        if lacking := missing():
            why = f"not installed: {', '.join(sorted(lacking))}"
            packages = " ".join(sorted(set(lacking.values())))
            return Capability(self.name, False, why, f"apt-get install {packages}")
        made = cached()
        try:
            if made is None:
                debian.check_host(WHAT, OTHERWISE)
        except HvctError as error:
            return Capability(self.name, False, error.message, error.hint)
        found = super().probe()
        if not found.usable:
            return found
        booted = "its disk is made when it is first used" if made is None else _versions(made)
        details = {**found.details, "kernel": "", "guest release": ""}
        if made is not None:
            details |= {"kernel": made.source, "guest release": made.release}
        return replace(found, version=f"{found.version}; {booted}", details=details)

    def make(self, told: Progress) -> Capability:
        """Make the system disk now, where there is none."""
        try:
            if self._disk is None:
                self._disk = self._take(told)
        except HvctError as error:
            return Capability(self.name, False, error.message, error.hint)
        return self.probe()

    def files_read(self, image: Image) -> list[Path]:
        """Image, system disk and QEMU."""
        return [image.path, self.disk.path, self.emulator.qemu]

    def prepare(self, spec: InstanceSpec) -> None:
        """The system disk too."""
        self.check(spec)
        _ = self.disk
        super().prepare(spec)

    def check(self, spec: InstanceSpec) -> None:
        """Decline what a distribution's own boot leaves no place for.

        Raises:
            Refused: with the reason.
        """
        super().check(spec)
        if self.context.kernel is not None:
            raise Refused(
                "vm:distro boots the kernel that is on its disk", "leave out --kernel, or the arm"
            )
        if spec.extra_modules:
            raise Refused(
                "vm:distro loads the kernel modules that its distribution does",
                "leave out the extra modules, or the arm",
            )

    @contextlib.contextmanager
    def own_disks(self, spec: InstanceSpec) -> Iterator[tuple[Disk, ...]]:
        """Scratch disk and system disk: the changes of this instance over the one in the cache."""
        base = self.disk.path
        self.context.runtime_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix="vm-system-", dir=self.context.runtime_dir))
        try:
            changes = folder / "changes.qcow2"
            run(
                ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, changes],
                hint="install the package qemu-utils",
            )
            target = rootfs.SYSTEM_TARGET
            with rootfs.scratch_disk(spec) as scratch:
                yield (*scratch, Disk(target, changes, read_only=False, base=base, boots=True))
        finally:
            remove_tree(folder)

    def _plan(
        self,
        spec: InstanceSpec,
        archive: Initramfs,
        size: memory.Size,
        verdict: Verdict,
        files: Path,
        *,
        own: tuple[Disk, ...] = (),
        whole: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> DomainPlan:
        """Without a kernel to be entered directly; the accelerator's probe is as for `vm`."""
        plan = super()._plan(
            spec, archive, size, verdict, files, own=own, whole=whole, environment=environment
        )
        return replace(plan, kernel=None, initramfs=None) if whole else plan

    def _facts(self, plan: DomainPlan, size: memory.Size, verdict: Verdict) -> dict[str, object]:
        facts = super()._facts(plan, size, verdict)
        if plan.kernel is None:
            facts |= {
                "kernel": self.disk.source,
                "kernel_digest": self.disk.kernel_digest,
                "system_disk": self.disk.digest,
                "system_packages": dict(self.disk.packages),
            }
        return facts

    @staticmethod
    def _prepare_keys(spec: InstanceSpec, archive: Initramfs) -> list[tuple[str, str]]:
        """As for `vm`, without modules: the distribution loads its own."""
        keys = VmBackend._prepare_keys(spec, archive)
        return [(name, value) for name, value in keys if name != "guest.module"]

    def _boots(self, spec: InstanceSpec) -> tuple[str, ...]:
        return (self.disk.digest,)


def _versions(disk: SystemDisk) -> str:
    packages = disk.packages
    told = {"GRUB": "grub-pc-bin", "systemd": "systemd"}
    named = [f"{name} {packages.get(package, '?')}" for name, package in told.items()]
    return ", ".join([*named, f"Linux {disk.release}"])
