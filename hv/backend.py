"""The VM arm: one transient libvirt domain per instance, with the agent as its init.

A launch is: control group, tap and disks, domain XML, one request to the worker. Nothing
here waits for the guest; the accelerator, the kernel and the size of the guest's RAM are
settled before (`prepare`), once, by running something. Over 400 lines: a launch and what it rests
on (accelerator, size, disks, keys) are read together, and the arms derived from it override steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from bench import scratch
from bench.agent.build import agent_path
from bench.agent.confinement import MASKED, READ_ONLY
from bench.agent.launch_record import run_record
from bench.agent.seccomp import seccomp_program
from bench.cgroup import Cgroup, CgroupLimits, way_in
from bench.context import RUN_VARIABLE, RunContext
from bench.errors import HostCannot, HvctError, LaunchFailed, Refused
from bench.model import (
    Accelerator,
    Capability,
    Event,
    Image,
    InstanceSpec,
    NetworkMode,
    ProbeStage,
    ReceiptLevel,
    Security,
    Timeline,
)
from hv import memory, network, rootfs
from hv.architecture import here
from hv.connection import AGAIN, Connection, DomainLink, WorkerLost
from hv.domain import (
    DEFAULT_RAM_BYTES,
    MACHINES,
    Balloon,
    Disk,
    DomainPlan,
    domain_name,
    domain_xml,
    vcpu_count,
)
from hv.emulator import JOIN_VARIABLE, Emulator, emulator
from hv.initramfs import BALLOON_MODULES, Initramfs, initramfs
from hv.instance import VmInstance
from hv.kernel import GuestKernel, guest_kernel, own_kernel, packed_kernel
from hv.probe import Verdict, decide, stages
from hv.tsc import host_tsc_khz

BOOT_LIMIT_S = 20.0  # for the kernel to reach init under KVM, where 0.3 s is usual

Start = Callable[[DomainPlan], tuple[DomainLink, Mapping[str, object]]]
"""Has a planned domain started; what to follow it by, and what it was started as."""


class VmBackend:
    """Virtual machines through libvirt.

    Args:
        direct: read the image past the host's page cache (O_DIRECT).
        accelerator: ``kvm`` or ``tcg`` to overrule what the probe finds; for development.
        verbose_console: keep all of the guest kernel's messages (costs time).
        machine: a key of `hv.domain.MACHINES`; by default the architecture's first.
        stock: as libvirt and the distribution do by themselves: every check of the CPU, and the
            kernel as a bzImage that unpacks itself.
        host_kernel: boot the kernel this host runs, so that kernel version and virtualisation can
            be told apart.
        balloon: a way for the guest to give memory back (`hv.domain.Balloon`).
    """

    name: str = "vm"
    needs: memory.Needs = memory.DIRECT
    measure_limit_s: float = 60.0  # for the boot that measures the guest's reserve

    def __init__(
        self,
        context: RunContext,
        *,
        direct: bool = False,
        accelerator: str = "",
        verbose_console: bool = False,
        machine: str = "",
        stock: bool = False,
        host_kernel: bool = False,
        balloon: str = "none",
    ) -> None:
        self.context = context
        self.direct = direct
        self.forced = accelerator
        self.verbose_console = verbose_console
        self.architecture = here()
        self.machine = MACHINES[machine or self.architecture.machines[0]]
        self.stock = stock
        self.host_kernel = host_kernel
        self.balloon = Balloon(balloon)
        self._connection: Connection | None = None
        self._verdict: Verdict | None = None
        self._emulator: Emulator | None = None
        self._kernel: GuestKernel | None = None
        self._initramfs: dict[tuple[str, ...], Initramfs] = {}
        self._sizes: dict[tuple[object, ...], memory.Size] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            self._connection.__exit__(kind, error, trace)
            self._connection = None

    # -- settled once ----------------------------------------------------------------

    @property
    def emulator(self) -> Emulator:
        """QEMU and its wrapper."""
        if self._emulator is None:
            self._emulator = emulator()
        return self._emulator

    @property
    def kernel(self) -> GuestKernel:
        """The guest's kernel, fetched on first use."""
        if self._kernel is None:
            own = self.host_kernel
            self._kernel = own_kernel() if own else guest_kernel(self.context.kernel)
        return self._kernel

    @property
    def boots(self) -> Path:
        """The file that QEMU loads as the guest's kernel."""
        return packed_kernel(self.kernel, self.context.kernel) if self.stock else self.kernel.boot

    @property
    def connection(self) -> Connection:
        """The worker, started on first use, and again after somebody killed it."""
        if self._connection is not None and not self._connection.alive:
            self._connection.__exit__(None, None, None)
            self._connection = None
        if self._connection is None:
            started = Connection(self.reached(), self.emulator, self.machine.type)
            self._connection = started.__enter__()
        return self._connection

    def reached(self) -> RunContext:
        """The run, with the libvirt that starts this arm's domains."""
        return self.context

    @property
    def verdict(self) -> Verdict:
        """How guests are executed here, decided on first use."""
        if self._verdict is None:
            if self.forced:
                forced = Accelerator(self.forced, "chosen by option")
                self._verdict = Verdict(forced)
            else:
                self._verdict = decide(self.emulator, self.kernel.digest, self.try_boot)
        return self._verdict

    def probe(self) -> Capability:
        """Start the worker, and find the accelerator by running a guest under it.

        Without root it works too, reduced: no control group, no bridge.
        """
        try:
            version = self.ready()
            verdict = self.verdict
        except WorkerLost:
            raise
        except HvctError as error:
            return Capability(self.name, False, error.message, error.hint)
        return Capability(
            self.name,
            True,
            version=version,
            accelerator=verdict.accelerator,
            details={
                "kernel": self.kernel.source,
                "guest release": self.kernel.release,
                "libvirt": "" if self._connection is None else self._connection.uri,
                "disabled CPU features": " ".join(verdict.disabled_features),
            },
        )

    def kvm_stages(self) -> list[ProbeStage]:
        """Both stages of the KVM probe, done now."""
        return stages(self.emulator, self.try_boot)

    def ready(self) -> str:
        """Start the worker; the versions of what runs guests here."""
        version = self.connection.libvirt_version
        return f"QEMU {self.emulator.version}, libvirt {version}"

    def start(self, plan: DomainPlan) -> tuple[DomainLink, Mapping[str, object]]:
        """Have a planned domain started; what to follow it by, and what it was started as."""
        connection, xml = self.connection, domain_xml(plan)
        link = connection.start(plan.name, xml, plan.channel)
        return link, {
            "domain_xml": xml,
            "libvirt": connection.libvirt_version,
            "libvirt_uri": connection.uri,
        }

    def files_read(self, image: Image) -> list[Path]:
        """What a start reads through the host's page cache: image, kernel, initramfs, QEMU."""
        own = [] if self.direct else [image.path]
        archives = [archive.path for archive in self._initramfs.values()]
        return [*own, self.boots, *archives, self.emulator.qemu]

    def helpers(self) -> tuple[int, ...]:
        """The process id of the worker that holds libvirt, once it runs."""
        return () if self._connection is None else (self._connection.pid,)

    def prepare(self, spec: InstanceSpec) -> None:
        """Worker, kernel, initramfs, accelerator, and the guest's RAM: in no trial."""
        self.check(spec)
        if self.verdict.accelerator.emulated:
            host_tsc_khz()
        self.ready()
        self._archive(spec)
        self._size(spec)
        if spec.security is Security.SAME:
            seccomp_program()

    def check(self, spec: InstanceSpec) -> None:
        """Decline what a VM cannot honour.

        Raises:
            Refused: with the reason.
        """
        if spec.network is NetworkMode.HOST:
            raise Refused(
                "a virtual machine has no part in the host's network namespace",
                "use network none or bridge",
            )
        if spec.network is NetworkMode.BRIDGE and spec.address is None:
            raise Refused("network = bridge, but the run has no bridge", "this is a defect of hvct")
        memory.check(spec, self.needs)
        scratch.check(spec.limits.scratch_bytes)

    def own_disks(self, spec: InstanceSpec) -> contextlib.AbstractContextManager[tuple[Disk, ...]]:
        """The disks besides the image: made before the request, removed with the instance."""
        return rootfs.scratch_disk(spec)

    # -- launching -------------------------------------------------------------------

    def launch(self, spec: InstanceSpec) -> VmInstance:
        """Start a domain and return without waiting for the guest.

        What `prepare` would have settled and has not is settled first, outside the clock.
        """
        self.check(spec)
        archive, size, verdict = self._archive(spec), self._size(spec), self.verdict
        return self._launch(spec, archive, size, verdict)

    def _launch(
        self,
        spec: InstanceSpec,
        archive: Initramfs,
        size: memory.Size,
        verdict: Verdict,
        *,
        whole: bool = True,
        start: Start | None = None,
        pairs: Callable[[], list[tuple[str, str]] | None] | None = None,
        restored: bool = False,
        held: contextlib.ExitStack | None = None,
    ) -> VmInstance:
        """Not `whole`, the guest boots to its agent and no further: no disk, no card, no RUN.

        Args:
            start: in place of `start`.
            pairs: the RUN record, in place of a cold guest's.
            restored: the guest has to be woken before its RUN.
            held: what the instance gives back last.
        """
        with held or contextlib.ExitStack() as resources:
            self.ready()
            own: tuple[Disk, ...] = ()
            if whole:
                # Writing a scratch disk is preparation, whichever arm it is for.
                own = resources.enter_context(self.own_disks(spec))
            timeline = Timeline()
            timeline.mark(Event.REQUESTED, time.monotonic_ns())
            files = resources.enter_context(_files(self.context.runtime_dir, spec.id))
            cgroup = None
            if spec.accounting:
                cgroup = _cgroup(self.context.tag, spec)
                resources.callback(cgroup.remove)
            if whole:
                resources.enter_context(network.tap(self.context.network, spec))
            plan = self._plan(
                spec,
                archive,
                size,
                verdict,
                files,
                own=own,
                whole=whole,
                environment=self._environment(cgroup),
            )
            link, started_as = (start or self.start)(plan)
            # While libvirt works, as a container's is made while the launcher works.
            if pairs is not None:
                run_pairs = pairs()
            else:
                run_pairs = self._pairs(spec, archive) if whole else None
            facts = {**self._facts(plan, size, verdict), **started_as}
            return VmInstance(
                spec,
                timeline,
                verdict.accelerator,
                link,
                run_pairs,
                cgroup,
                self.context.network,
                plan.console,
                resources.pop_all(),
                facts,
                reclaim=plan.balloon,
                restored=restored,
            )

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
        return DomainPlan(
            name=domain_name(spec),
            kind=verdict.accelerator.kind,
            memory_bytes=size.ram_bytes,
            vcpus=vcpu_count(spec),
            emulator=self.emulator.wrapper,
            kernel=self.boots,
            initramfs=archive.path,
            channel=files / f"{spec.id}.sock",
            console=files / f"{spec.id}.console",
            disks=(rootfs.image_disk(spec, direct=self.direct), *own) if whole else (),
            nic=network.nic(spec) if whole else None,
            machine=self.machine,
            architecture=self.architecture,
            environment=environment or {},
            verbose_console=self.verbose_console,
            disabled_features=verdict.disabled_features,
            cpu_set=() if spec.accounting else spec.cpu_set,
            tsc_khz=host_tsc_khz() if verdict.accelerator.emulated else 0,
            trimmed=not self.stock,
            balloon=self.balloon,
        )

    def _environment(self, cgroup: Cgroup | None) -> dict[str, str]:
        variables = {RUN_VARIABLE: self.context.tag}  # so that a cleaner finds QEMU
        if cgroup is not None:
            variables[JOIN_VARIABLE] = ":".join(map(str, cgroup.join_files()))
        return variables

    def _facts(
        self,
        plan: DomainPlan,
        size: memory.Size,
        verdict: Verdict,
    ) -> dict[str, object]:
        return {
            "kernel": self.kernel.source,
            "kernel_digest": self.kernel.digest,
            "guest_ram_bytes": size.ram_bytes,
            "guest_available_bytes_when_measured": size.available_bytes,
            "vcpus": plan.vcpus,
            "accelerator": verdict.accelerator.kind,
            "accelerator_reason": verdict.accelerator.reason,
            "balloon": plan.balloon.value,
            "image_cache": plan.disks[0].cache if plan.disks else "",
            "scratch_disk": _scratch(plan),
            "qemu": self.emulator.version,
            "join": way_in(filter(None, plan.environment.get(JOIN_VARIABLE, "").split(":"))),
        }

    def _archive(self, spec: InstanceSpec) -> Initramfs:
        extra = spec.extra_modules
        if self.balloon is not Balloon.NONE:
            extra = (*extra, *BALLOON_MODULES)
        if spec.limits.scratch_bytes:
            extra = (*extra, *rootfs.SCRATCH_MODULES)
        if extra not in self._initramfs:
            self._initramfs[extra] = initramfs(
                self.kernel, agent_path(), extra, self.machine.modules
            )
        return self._initramfs[extra]

    @classmethod
    def _pairs(cls, spec: InstanceSpec, archive: Initramfs) -> list[tuple[str, str]]:
        guest = cls._prepare_keys(spec, archive) + network.guest_keys(spec)
        same = spec.security is Security.SAME
        return run_record(spec, guest, seccomp=seccomp_program() if same else b"")

    @staticmethod
    def _prepare_keys(spec: InstanceSpec, archive: Initramfs) -> list[tuple[str, str]]:
        """What guests of one kind have in common, and a saved one therefore has already."""
        groups = ["disk", "entropy", "extra"]
        if network.nic(spec) is not None:
            groups.append("network")
        guest = [("guest.module", name) for name in archive.modules(*groups)]
        guest += rootfs.guest_keys(spec)
        if spec.security is Security.SAME:
            guest += [("guest.mask", path) for path in MASKED]
            guest += [("guest.read_only", path) for path in READ_ONLY]
        return guest

    # -- by running something --------------------------------------------------------

    def _size(self, spec: InstanceSpec) -> memory.Size:
        """The guest's RAM; measured by a boot of its own where nobody has yet."""
        parts: tuple[object, ...] = (
            *self._boots(spec),
            self.verdict.accelerator.kind,
            self.emulator.identity,
            self.machine.name,
            vcpu_count(spec),
            network.nic(spec) is not None,
            rootfs.host_thp(),
        )
        limits = spec.limits
        key = (*parts, limits.memory_bytes, limits.memory_basis)
        if key not in self._sizes:
            self._sizes[key] = memory.guest_size(
                spec, repr(parts), lambda ram: self._available(spec, ram), self.needs
            )
        return self._sizes[key]

    def _boots(self, spec: InstanceSpec) -> tuple[str, ...]:
        """What a guest boots, by digest."""
        return (self.kernel.digest, self._archive(spec).digest)

    def _available(self, spec: InstanceSpec, ram_bytes: int) -> int | None:
        """Memory available at `started` in a guest with this much RAM."""
        level = ReceiptLevel.DIGEST  # the cheap one does not say
        trial = dataclasses.replace(spec, id=f"{spec.id}m", listen_port=0, receipt=level)
        archive = self._archive(spec)
        deadline_ns = time.monotonic_ns() + int(self.measure_limit_s * 1e9)
        size = memory.Size(ram_bytes)
        with self._launch(trial, archive, size, self.verdict) as instance:
            try:
                if not instance.wait(Event.STARTED, deadline_ns):
                    return None
                # Taken by the agent just before the exec; what was started is not wanted.
                instance.signal(signal.SIGKILL)
                instance.wait(Event.EXITED, deadline_ns)
            except LaunchFailed:
                return None  # the trials will fail the same way, and be counted there
            value = instance.receipt.get("mem_available_bytes")
            return int(value) if isinstance(value, str) else None

    def try_boot(self, verdict: Verdict) -> str:
        """Stage two of the probe: the real kernel to `init`; what went wrong, or ""."""
        from bench.model import ImageConfig, Limits

        nothing = Image("none", "", Path("/"), 0, "", "amd64", ImageConfig(), "")
        spec = InstanceSpec(
            id=f"{self.context.tag}-probe",
            image=nothing,
            argv=(),
            limits=Limits(memory_bytes=None),
            accounting=False,
            cpu_set=(),
        )
        size = memory.Size(DEFAULT_RAM_BYTES)
        archive = self._archive(spec)
        deadline_ns = time.monotonic_ns() + int(BOOT_LIMIT_S * 1e9)
        try:
            with self._launch(spec, archive, size, verdict, whole=False) as instance:
                if instance.wait(Event.INIT, deadline_ns):
                    return ""
        except LaunchFailed as failure:
            if self._connection is not None and self._connection.died():
                raise WorkerLost(f"the VM worker has ended: {failure.message}", AGAIN) from failure
            return f"the guest kernel does not boot under it: {failure.message}"
        return f"the guest kernel did not reach its init within {BOOT_LIMIT_S:.0f} s"


def _cgroup(tag: str, spec: InstanceSpec) -> Cgroup:
    """Accounted and pinned, never limited in memory: that limit is the guest's RAM."""
    limits = CgroupLimits(
        memory_bytes=None, swap_bytes=0, cpu_set=spec.cpu_set, cpu_quota=spec.cpu_quota
    )
    try:
        return Cgroup.create(tag, spec.id, limits)
    except HostCannot:
        raise
    except HvctError as error:
        raise LaunchFailed(error.message, error.hint) from error


@contextlib.contextmanager
def _files(runtime_dir: Path, id: str) -> Iterator[Path]:
    """A folder for an instance's socket and console, removed with them."""
    runtime_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="vm-", dir=runtime_dir))
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()


def _scratch(plan: DomainPlan) -> str:
    disks = [disk for disk in plan.disks if disk.target == rootfs.SCRATCH_TARGET]
    return f"virtio-blk, cache=none, sectors of {scratch.SECTOR_BYTES}" if disks else ""
