"""The same virtual machine without libvirt: the arm that shows what libvirt adds.

From the same plan as the domain XML comes a command line of QEMU: the same devices at the
same addresses, in the order and with the settings that libvirt gives them.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from bench.context import RUN_VARIABLE
from bench.errors import LaunchFailed
from bench.model import DiskUsage
from bench.programs.connection import Connection, Started
from hv.backend import VmBackend
from hv.connection import DomainLink
from hv.domain import CHANNEL_NAME, SLOTS, DomainPlan, command_line

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def qemu_argv(plan: DomainPlan) -> list[str]:
    """QEMU's command line for a plan. Pure."""
    mib, rest = divmod(plan.memory_bytes, 1 << 20)
    size = f"{mib + bool(rest)}"
    kvm = plan.kind == "kvm"
    cpu = ["host" if kvm else "max"]
    cpu += ["migratable=off"] if plan.architecture.hpet else []  # a property of x86 alone
    cpu += [f"{name}=off" for name in plan.disabled_features]
    words = [str(plan.emulator), "-name", f"guest={plan.name},debug-threads=on"]
    acpi = "" if plan.machine.acpi else ",acpi=off"
    machine = f"{plan.machine.type},usb=off,dump-guest-core=off,memory-backend=pc.ram{acpi}"
    words += ["-machine", machine]
    words += ["-accel", plan.kind, "-cpu", ",".join(cpu), "-m", size]
    words += [
        "-object",
        f"memory-backend-ram,id=pc.ram,size={size}M",
        "-overcommit",
        "mem-lock=off",
    ]
    words += ["-smp", f"{plan.vcpus},sockets={plan.vcpus},cores=1,threads=1", "-display", "none"]
    words += ["-no-user-config", "-nodefaults", "-rtc", "base=utc", "-no-reboot"]
    words += ["-no-hpet"] if plan.architecture.hpet and plan.machine.pci else []
    words += ["-boot", "strict=on", "-kernel", str(plan.kernel), "-initrd", str(plan.initramfs)]
    words += ["-append", command_line(plan), "-sandbox", SANDBOX]
    words += ["-device", _virtio(plan, "virtio-serial", "channel", "id=bus,max_ports=2")]
    for disk in plan.disks:
        direct = "on" if disk.cache == "none" else "off"
        cache = f"cache.direct={direct},cache.no-flush=off"
        kind = "file,aio=native" if direct == "on" else "file"
        read_only = "on" if disk.read_only else "off"
        file = f"driver={kind},filename={_escaped(disk.path)},node-name={disk.target}-file"
        words += ["-blockdev", f"{file},{cache},auto-read-only=on,discard=unmap"]
        raw = f"driver=raw,node-name={disk.target},file={disk.target}-file"
        words += ["-blockdev", f"{raw},read-only={read_only},{cache}"]
        sector = disk.sector_bytes
        sectors = f",logical_block_size={sector},physical_block_size={sector}" if sector else ""
        options = f"drive={disk.target},write-cache=on{sectors}"
        words += ["-device", _virtio(plan, "virtio-blk", disk.target, options)]
    if plan.nic is not None:
        words += ["-netdev", f"tap,id=net,ifname={plan.nic.link},script=no,downscript=no"]
        options = f"netdev=net,mac={plan.nic.mac}" + (",romfile=" if plan.machine.pci else "")
        words += ["-device", _virtio(plan, "virtio-net", "nic", options)]
    words += ["-chardev", f"file,id=console,path={_escaped(plan.console)}"]
    words += ["-serial", "chardev:console"]
    words += ["-chardev", f"socket,id=channel,path={_escaped(plan.channel)}"]
    words += ["-device", f"virtserialport,bus=bus.0,nr=1,chardev=channel,name={CHANNEL_NAME}"]
    words += ["-object", "rng-random,id=rng,filename=/dev/urandom"]
    words += ["-device", _virtio(plan, "virtio-rng", "rng", "rng=rng")]
    return words


def _virtio(plan: DomainPlan, kind: str, slot: str, options: str) -> str:
    """A virtio device at its fixed place on the root bus of PCI, where the machine has that."""
    if not plan.machine.pci:
        return f"{kind}-device,{options}"
    bus = "pci.0" if plan.machine.type == "pc" else "pcie.0"
    return f"{kind}-pci,bus={bus},addr={SLOTS[slot]:#x},{options}"


def _escaped(path: Path) -> str:
    """A path as a value of an option: a comma is doubled."""
    return str(path).replace(",", ",,")


@dataclass
class PlainLink(DomainLink):
    """What is known of one QEMU that we have started ourselves."""

    connection: Connection | None = None
    program: Started | None = None
    listener: socket.socket | None = None

    def receive(self) -> None:
        """Take in everything that has happened, without waiting."""
        connection, program = self.connection, self.program
        assert connection is not None and program is not None
        connection.ended(program, 0.0)
        if self.listener is not None:
            with contextlib.suppress(BlockingIOError):
                self.channel, _ = self.listener.accept()
                self.spawned_ns = time.monotonic_ns()
                self._stop_listening()
        if program.ended is not None and self.ended_ns is None:
            told = program.ended
            self.ended_ns, self.status = int(told["ns"]), int(told["status"])
            self.usage = {key: float(told[key]) for key in ("user_s", "system_s", "max_rss_kib")}
            self.words = program.words
            self.forgotten = True
        self.lost = connection.dead and not self.forgotten

    def await_that(self, condition: Callable[[], bool], deadline_ns: int) -> bool:
        """Receive until `condition` holds, there is no more to come, or the deadline."""
        self.receive()
        while not condition() and not self.over:
            left_ms = (deadline_ns - time.monotonic_ns()) / 1e6
            if left_ms <= 0:
                return False
            poller = select.poll()
            if self.connection is not None:
                poller.register(self.connection.fileno(), select.POLLIN)
            if self.listener is not None:
                poller.register(self.listener, select.POLLIN)
            poller.poll(max(1.0, left_ms))
            self.receive()
        return condition()

    def disk(self, deadline_ns: int) -> DiskUsage | None:
        """Without libvirt nobody asks QEMU."""
        return None

    def kill(self) -> None:
        """SIGKILL, while the worker has not reaped it."""
        if self.connection is not None and self.program is not None:
            self.connection.kill(self.program)

    def close(self) -> None:
        """Have what is left of it removed."""
        self._stop_listening()
        if self.connection is not None:
            with contextlib.suppress(LaunchFailed):  # the worker is gone
                self.connection.discard(self.name)
        super().close()

    def _stop_listening(self) -> None:
        if self.listener is not None:
            self.listener.close()
            self.listener = None


class QemuBackend(VmBackend):
    """Virtual machines by QEMU alone: kernel, devices, accounting and agent as through libvirt."""

    name: str = "qemu"
    own_name: ClassVar[str] = "qemu"
    _programs: Connection | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._programs is not None:
            self._programs.close()
            self._programs = None

    @property
    def programs(self) -> Connection:
        """The worker, started on first use, and again after somebody killed it."""
        if self._programs is not None and not self._programs.alive:
            self._programs.close()
            self._programs = None
        if self._programs is None:
            self._programs = Connection.open(self.context, self.own_name)
        return self._programs

    def ready(self) -> str:
        """Start the worker; what runs guests here."""
        _ = self.programs
        return f"QEMU {self.emulator.version}"

    def helpers(self) -> tuple[int, ...]:
        """The process id of the worker, once it runs."""
        return () if self._programs is None else (self._programs.process.pid,)

    def start(self, plan: DomainPlan) -> tuple[DomainLink, Mapping[str, object]]:
        """Start QEMU; it connects to the channel that we listen on."""
        programs, argv = self.programs, qemu_argv(plan)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        ours, theirs = socket.socketpair()  # the link's own wire is not used
        theirs.close()
        try:
            listener.bind(str(plan.channel))
            listener.listen(1)
            listener.setblocking(False)
            environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), **plan.environment}
            environment.setdefault(RUN_VARIABLE, self.context.tag)
            programs.start(plan.name, argv, environment)
            program = programs.started(plan.name)
        except BaseException as error:
            listener.close()
            ours.close()
            if isinstance(error, OSError):
                raise LaunchFailed(f"bind {plan.channel}: {error.strerror}") from error
            raise
        link = PlainLink(
            plan.name,
            ours,
            accepted_ns=program.accepted_ns,
            pid=program.pid,
            connection=programs,
            program=program,
            listener=listener,
        )
        return link, {"command": argv}
