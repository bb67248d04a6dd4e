"""From a plan of a virtual machine to libvirt's domain XML. Pure: nothing here acts."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from bench.model import InstanceSpec
from hv.architecture import ARCHITECTURES, Architecture

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
CHANNEL_NAME = "org.hvct.agent"
DEFAULT_RAM_BYTES = 512 << 20  # for a specification without a memory limit


@dataclass(frozen=True)
class Machine:
    """A QEMU machine type and where its devices sit.

    Attributes:
        type: libvirt's machine name.
        acpi: whether the guest is given ACPI tables.
        pci: devices have fixed slots on the root bus of PCI, which spares the guest one bridge
            per device to enumerate; else each is a virtio-mmio device.
    """

    name: str
    type: str
    acpi: bool = True
    pci: bool = True

    @property
    def modules(self) -> tuple[str, ...]:
        """The guest kernel's modules for the bus that its devices sit on."""
        return ("virtio_pci",) if self.pci else ("virtio_mmio",)


MACHINES: Mapping[str, Machine] = {
    machine.name: machine
    for machine in (
        *(Machine(name, name) for here in ARCHITECTURES.values() for name in here.machines),
        # What tests/perf/cold.py compares the default with: docs/cold.md.
        Machine("q35-noacpi", "q35", acpi=False),
        Machine("microvm", "microvm", pci=False),
    )
}

# Device → slot on the root bus. Fixed, so that every guest enumerates the same tree.
# The kernel numbers disks in the order of their slots: what comes last renames none before it.
SLOTS = {"channel": 3, "rng": 4, "vda": 5, "vdb": 6, "nic": 7, "balloon": 8, "vdc": 9}

# Why each word is there. Mitigations stay at the kernel's defaults.
_COMMAND_LINE = (
    "quiet",  # errors and worse reach the console: a panic, a kill for lack of memory
    "panic=-1",  # a panic resets at once, and a reset ends the domain
    "cryptomgr.notests=1",  # the crypto self tests take 0.2 s under TCG
    "nokaslr",
)
# Last: a word that the kernel does not know is handed to init, but for those before this one.
_INIT = "rdinit=/init"


@dataclass(frozen=True)
class Disk:
    """A file as a virtio-blk disk.

    Attributes:
        cache: ``writeback`` goes through the host's page cache; ``none`` is O_DIRECT.
        sector_bytes: as the guest sees it; 0: QEMU's own.
        base: the raw file that `path`, then a qcow2 file, holds the changes to.
        boots: firmware starts from it.
    """

    target: str
    path: Path
    read_only: bool = True
    cache: str = "writeback"
    sector_bytes: int = 0
    base: Path | None = None
    boots: bool = False


@dataclass(frozen=True)
class Nic:
    """A tap that exists already, seen by the guest as a virtio-net card."""

    link: str
    mac: str


class Balloon(StrEnum):
    """The ways in which a guest gives memory back to the host, through a virtio balloon device."""

    NONE = "none"  # no such device
    INFLATED = "inflated"  # the host inflates it after a peak, by the rule of `hv.balloon`
    REPORTING = "reporting"  # the guest reports its free pages; nobody inflates it
    BOTH = "both"

    @property
    def inflates(self) -> bool:
        """Whether the host takes memory by inflating it."""
        return self in (Balloon.INFLATED, Balloon.BOTH)

    @property
    def reports(self) -> bool:
        """Whether free page reporting is on."""
        return self in (Balloon.REPORTING, Balloon.BOTH)


@dataclass(frozen=True)
class DomainPlan:
    """Everything that decides what one domain is.

    Attributes:
        kind: ``kvm`` or ``tcg``.
        emulator: what libvirt executes; our wrapper around QEMU.
        kernel: entered directly, with `initramfs`; None: firmware starts from a disk.
        environment: variables of the emulator process.
        channel: the socket QEMU connects to.
        console: file for the serial console.
        verbose_console: all kernel messages rather than only a panic's.
        disabled_features: CPU features taken from the guest.
        cpu_set: host CPUs for all of QEMU's threads, where no cgroup sets them.
        trimmed: without what libvirt does for migration and we do not need.
        saveable: the guest may be saved; KVM then shows it no counter that would forbid that.
        uuid: of the domain; "" leaves the choice to libvirt.
        tsc_khz: frequency of the time stamp counter an emulated guest reads; 0: unknown.
    """

    name: str
    kind: str
    memory_bytes: int
    vcpus: int
    emulator: Path
    kernel: Path | None
    initramfs: Path | None
    channel: Path
    console: Path
    disks: tuple[Disk, ...] = ()
    nic: Nic | None = None
    machine: Machine = MACHINES["q35"]
    architecture: Architecture = ARCHITECTURES["x86_64"]
    environment: Mapping[str, str] = field(default_factory=dict)
    verbose_console: bool = False
    disabled_features: tuple[str, ...] = ()
    cpu_set: tuple[int, ...] = ()
    tsc_khz: int = 0
    trimmed: bool = True
    balloon: Balloon = Balloon.NONE
    saveable: bool = False
    uuid: str = ""


def domain_name(spec: InstanceSpec) -> str:
    """The libvirt name of an instance."""
    return f"hvct-{spec.id}"


def vcpu_count(spec: InstanceSpec) -> int:
    """vCPUs of an instance: its CPUs, a fraction rounded up (the quota takes the rest)."""
    return max(1, math.ceil(spec.limits.cpus))


def command_line(plan: DomainPlan) -> str:
    """The guest kernel's command line."""
    words = [*_COMMAND_LINE, *plan.architecture.words]
    # After those that the kernel may not know as its own: it drops what it kept for /init so far.
    words += ["rdinit=/init", f"console={plan.architecture.console}"]
    words += [] if plan.machine.acpi else ["acpi=off"]
    if plan.kind == "tcg":
        words += plan.architecture.emulated_words
        if plan.tsc_khz:  # measured while it boots on a busy host, it can be wrong four times over
            words.append(f"tsc_early_khz={plan.tsc_khz}")
    if plan.verbose_console:
        words.remove("quiet")
        words += ["ignore_loglevel", "printk.time=1"]
    return " ".join([*words, _INIT])


def domain_xml(plan: DomainPlan) -> str:
    """The domain as libvirt is given it."""
    # The prefix must be `qemu` for libvirt's parser to see its own extension.
    ET.register_namespace("qemu", QEMU_NAMESPACE)
    domain = ET.Element("domain", type="kvm" if plan.kind == "kvm" else "qemu")
    _text(domain, "name", plan.name)
    if plan.uuid:
        _text(domain, "uuid", plan.uuid)
    _text(domain, "memory", str(-(-plan.memory_bytes // 1024)), unit="KiB")
    vcpu = _text(domain, "vcpu", str(plan.vcpus), placement="static")
    if plan.cpu_set:
        vcpu.set("cpuset", ",".join(map(str, plan.cpu_set)))
    _add_boot(domain, plan)
    features = _add(domain, "features")
    if plan.machine.acpi:
        _add(features, "acpi")
    for name in plan.architecture.features:
        _add(features, name)
    _add_cpu(domain, plan)
    clock = _add(domain, "clock", offset="utc")
    if plan.architecture.hpet and plan.machine.pci:
        _add(clock, "timer", name="hpet", present="no")
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(domain, event, "destroy")
    _add_devices(domain, plan)
    # Nothing but the files named here is touched by libvirt's own confinement.
    _add(domain, "seclabel", type="none")
    _add_qemu(domain, plan)
    return ET.tostring(domain, encoding="unicode")


def _add_boot(domain: ET.Element, plan: DomainPlan) -> None:
    boot = _add(domain, "os")
    _text(boot, "type", "hvm", arch=plan.architecture.name, machine=plan.machine.type)
    if plan.kernel is None:
        return
    _text(boot, "kernel", str(plan.kernel))
    _text(boot, "initrd", str(plan.initramfs))
    _text(boot, "cmdline", command_line(plan))


def _add_cpu(domain: ET.Element, plan: DomainPlan) -> None:
    if plan.kind == "kvm":
        migratable = "on" if plan.saveable else "off"
        cpu = _add(domain, "cpu", mode="host-passthrough", check="none", migratable=migratable)
    else:
        # Everything the emulator can do, RDRAND included: without it the guest's
        # entropy comes a second late and servers wait for it.
        cpu = _add(domain, "cpu", mode="maximum", check="none", migratable="off")
    for name in plan.disabled_features:
        _add(cpu, "feature", policy="disable", name=name)


def _add_devices(domain: ET.Element, plan: DomainPlan) -> None:
    devices = _add(domain, "devices")
    _text(devices, "emulator", str(plan.emulator))
    _add(devices, "controller", type="usb", model="none")
    serial_bus = _add(devices, "controller", type="virtio-serial", index="0", ports="2")
    _place(serial_bus, plan, "channel")
    for item in plan.disks:
        disk = _add(devices, "disk", type="file", device="disk")
        driver = _add(disk, "driver", name="qemu", cache=item.cache)
        driver.set("type", "raw" if item.base is None else "qcow2")
        if item.cache == "none":
            driver.set("io", "native")
        _add(disk, "source", file=str(item.path))
        if item.base is not None:  # named, so that nobody looks into the files for it
            below = _add(disk, "backingStore", type="file")
            _add(below, "format", type="raw")
            _add(below, "source", file=str(item.base))
            _add(below, "backingStore")
        _add(disk, "target", dev=item.target, bus="virtio")
        if item.boots:
            _add(disk, "boot", order="1")
        if item.sector_bytes:
            size = str(item.sector_bytes)
            _add(disk, "blockio", logical_block_size=size, physical_block_size=size)
        if item.read_only:
            _add(disk, "readonly")
        _place(disk, plan, item.target)
    if plan.nic is not None:
        nic = _add(devices, "interface", type="ethernet")
        _add(nic, "target", dev=plan.nic.link, managed="no")
        _add(nic, "mac", address=plan.nic.mac)
        _add(nic, "model", type="virtio")
        _add(nic, "rom", enabled="no")  # no network boot firmware to run
        _place(nic, plan, "nic")
    console = _add(devices, "serial", type="file")
    _add(console, "source", path=str(plan.console))
    target, model = plan.architecture.serial
    _add(_add(console, "target", type=target, port="0"), "model", name=model)
    channel = _add(devices, "channel", type="unix")
    _add(channel, "source", mode="connect", path=str(plan.channel))
    _add(channel, "target", type="virtio", name=CHANNEL_NAME)
    rng = _add(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    _place(rng, plan, "rng")
    _add_balloon(devices, plan)


def _add_balloon(devices: ET.Element, plan: DomainPlan) -> None:
    if plan.balloon is Balloon.NONE:
        _add(devices, "memballoon", model="none")
        return
    balloon = _add(devices, "memballoon", model="virtio")
    if plan.balloon.inflates:
        balloon.set("autodeflate", "on")  # a guest that is short takes back before it kills
    if plan.balloon.reports:
        balloon.set("freePageReporting", "on")
    _place(balloon, plan, "balloon")


def _add_qemu(domain: ET.Element, plan: DomainPlan) -> None:
    commandline = _add(domain, f"{{{QEMU_NAMESPACE}}}commandline")
    for name, value in plan.environment.items():
        _add(commandline, f"{{{QEMU_NAMESPACE}}}env", name=name, value=value)
    if not plan.trimmed:
        return
    capabilities = _add(domain, f"{{{QEMU_NAMESPACE}}}capabilities")
    # With it libvirt reads 400 CPU properties one by one before the guest may run (0.26 s).
    _add(capabilities, f"{{{QEMU_NAMESPACE}}}del", capability="cpu-unavailable-features")


def _place(device: ET.Element, plan: DomainPlan, name: str) -> None:
    if plan.machine.pci:
        _add(device, "address", type="pci", bus="0x00", slot=f"{SLOTS[name]:#04x}")
    else:
        _add(device, "address", type="virtio-mmio")


def _add(parent: ET.Element, tag: str, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, tag, attributes)


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = _add(parent, tag, **attributes)
    element.text = text
    return element
