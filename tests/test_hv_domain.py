"""The domain XML is a pure function of its plan."""

from __future__ import annotations

import dataclasses
import mmap
import os
import platform
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.errors import HostCannot
from bench.model import Image, ImageConfig, InstanceSpec, Limits, MemoryBasis
from hv import memory
from hv.architecture import ARCHITECTURES, here
from hv.domain import (
    MACHINES,
    QEMU_NAMESPACE,
    Balloon,
    Disk,
    DomainPlan,
    Nic,
    command_line,
    domain_name,
    domain_xml,
    vcpu_count,
)
from hv.instance import resident_of
from hv.qemu import qemu_argv
from hv.tsc import host_tsc_khz

PLAN = DomainPlan(
    name="hvct-r1-0001",
    kind="kvm",
    memory_bytes=512 << 20,
    vcpus=2,
    emulator=Path("/cache/qemu"),
    kernel=Path("/cache/boot"),
    initramfs=Path("/cache/initramfs.cpio"),
    channel=Path("/run/a&b.sock"),
    console=Path("/run/console"),
    disks=(Disk("vda", Path("/cache/image.erofs")),),
    environment={"HVCT_RUN": "r1"},
)
NOTHING = Image("none", "", Path("/none"), 0, "", "amd64", ImageConfig(), "")


def parse(plan: DomainPlan) -> ET.Element:
    """The XML of a plan, parsed back."""
    return ET.fromstring(domain_xml(plan))


def test_the_same_plan_gives_the_same_text() -> None:
    """Nothing in it depends on time, order or chance."""
    assert domain_xml(PLAN) == domain_xml(dataclasses.replace(PLAN))


def test_size_boot_and_ending() -> None:
    """RAM, vCPUs, direct boot, and every way a guest ends destroys the domain."""
    domain = parse(PLAN)
    assert domain.get("type") == "kvm"
    assert domain.findtext("memory") == str(512 << 10)
    assert domain.findtext("vcpu") == "2"
    assert domain.findtext("os/kernel") == "/cache/boot"
    assert domain.findtext("os/initrd") == "/cache/initramfs.cpio"
    assert {domain.findtext(name) for name in ("on_poweroff", "on_reboot", "on_crash")} == {
        "destroy"
    }


def test_cpu_is_the_hosts_under_kvm_and_all_of_it_under_tcg() -> None:
    """Host passthrough, without what the probe found broken; under TCG the largest model."""
    plan = dataclasses.replace(PLAN, disabled_features=("arch-capabilities",))
    cpu = parse(plan).find("cpu")
    assert cpu is not None and cpu.get("mode") == "host-passthrough"
    assert [item.get("name") for item in cpu.findall("feature")] == ["arch-capabilities"]
    emulated = parse(dataclasses.replace(PLAN, kind="tcg"))
    assert emulated.get("type") == "qemu"
    assert emulated.find("cpu[@mode='maximum']") is not None


def test_devices() -> None:
    """A read-only disk, the channel we listen on, entropy; no balloon, no USB, no card unasked."""
    domain = parse(PLAN)
    disk = domain.find("devices/disk")
    assert disk is not None and disk.find("readonly") is not None
    channel = domain.find("devices/channel")
    assert channel is not None
    source = channel.find("source")
    assert source is not None
    assert (source.get("mode"), source.get("path")) == ("connect", "/run/a&b.sock")
    assert domain.find("devices/rng/backend") is not None
    assert domain.find("devices/memballoon[@model='none']") is not None
    assert domain.find("devices/controller[@type='usb'][@model='none']") is not None
    assert domain.find("devices/interface") is None


def test_a_balloon_where_one_is_asked_for() -> None:
    """A virtio device in its own slot; it reports free pages only in the arms that say so.

    One that is inflated is deflated by a guest that is short of memory.
    """
    inflated, reporting, both = (
        parse(dataclasses.replace(PLAN, balloon=kind)).find("devices/memballoon[@model='virtio']")
        for kind in (Balloon.INFLATED, Balloon.REPORTING, Balloon.BOTH)
    )
    assert inflated is not None and reporting is not None and both is not None
    on = [
        (one.get("freePageReporting"), one.get("autodeflate"))
        for one in (inflated, reporting, both)
    ]
    assert on == [(None, "on"), ("on", None), ("on", "on")]
    place = inflated.find("address")
    assert place is not None and place.get("slot") == "0x08"


def test_guest_memory_is_the_mapping_of_its_size() -> None:
    """Of a process's anonymous mappings the one as large as the RAM is read, and only it."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    size = 384 << 20
    with mmap.mmap(-1, size + 4096, flags=flags) as larger, mmap.mmap(-1, size, flags=flags) as ram:
        larger.madvise(mmap.MADV_SEQUENTIAL)  # so that the kernel does not join them
        ram.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(300):
            ram[page << 12] = 1
        assert resident_of(os.getpid(), size) == 300 * 4096
        assert resident_of(os.getpid(), size + 4096) == 0
    assert resident_of(os.getpid(), 1 << 45) is None


def test_card_and_scratch_disk() -> None:
    """A tap that exists already, and a disk past the page cache for what is written."""
    disks = (*PLAN.disks, Disk("vdb", Path("/cache/scratch"), False, "none"))
    domain = parse(dataclasses.replace(PLAN, nic=Nic("r1-3", "02:00:00:00:00:01"), disks=disks))
    target = domain.find("devices/interface[@type='ethernet']/target")
    assert target is not None and (target.get("dev"), target.get("managed")) == ("r1-3", "no")
    drivers = [item.attrib for item in domain.findall("devices/disk/driver")]
    assert [item["cache"] for item in drivers] == ["writeback", "none"]
    assert drivers[1]["io"] == "native"
    slots = [item.get("slot") for item in domain.iter("address")]
    assert len(slots) == len(set(slots)) > 3


def test_a_machine_without_pci_has_no_places() -> None:
    """microvm: each device on virtio-mmio, no timer that it lacks, the bus's module in time."""
    plan = dataclasses.replace(
        PLAN, machine=MACHINES["microvm"], nic=Nic("r1-3", "02:00:00:00:00:01")
    )
    domain = parse(plan)
    assert {place.get("type") for place in domain.iter("address")} == {"virtio-mmio"}
    assert len(list(domain.iter("address"))) == 4  # channel, disk, card, entropy
    assert domain.find("clock/timer") is None
    argv = qemu_argv(plan)
    devices = [argv[i + 1] for i, word in enumerate(argv) if word == "-device"]
    assert sum("-device," in device for device in devices) == 4
    assert not any("pci" in word for word in argv) and "-no-hpet" not in argv
    assert plan.machine.modules == ("virtio_mmio",)


def test_a_machine_without_acpi() -> None:
    """No tables by either way of starting it, and the guest's kernel does not look for any."""
    plan = dataclasses.replace(PLAN, machine=MACHINES["q35-noacpi"])
    assert parse(plan).find("features/acpi") is None
    assert "acpi=off" in command_line(plan).split()
    assert any("acpi=off" in word for word in qemu_argv(plan) if word.startswith("q35,"))
    assert parse(PLAN).find("features/acpi") is not None
    assert "acpi=off" not in command_line(PLAN)


def test_what_makes_libvirt_quick() -> None:
    """The capability that costs 0.26 s is taken out, and the variables reach QEMU."""
    domain = parse(PLAN)
    removed = domain.find(f"{{{QEMU_NAMESPACE}}}capabilities/{{{QEMU_NAMESPACE}}}del")
    assert removed is not None and removed.get("capability") == "cpu-unavailable-features"
    variable = domain.find(f"{{{QEMU_NAMESPACE}}}commandline/{{{QEMU_NAMESPACE}}}env")
    assert variable is not None and variable.attrib == {"name": "HVCT_RUN", "value": "r1"}


def test_mitigations_stay_at_their_defaults() -> None:
    """Nothing on the command line makes the guest quicker by making it less safe."""
    for kind in ("kvm", "tcg"):
        words = command_line(dataclasses.replace(PLAN, kind=kind))
        for name in ("mitigations", "spectre", "nopti", "retbleed", "lsm=", "nosmap", "nosmep"):
            assert name not in words


def test_fractions_of_a_cpu_are_whole_vcpus() -> None:
    """The quota takes the rest; names derive from the instance's id."""
    spec = InstanceSpec("r1-0007", NOTHING, ("true",), limits=Limits(cpus=1.5))
    assert vcpu_count(spec) == 2
    assert domain_name(spec) == "hvct-r1-0007"


def test_a_guest_that_firmware_boots() -> None:
    """No kernel is entered: it starts from its system disk, whose base is named and not written."""
    own = Disk("vdc", Path("/run/changes"), False, base=Path("/cache/system.raw"), boots=True)
    plan = dataclasses.replace(PLAN, kernel=None, initramfs=None, disks=(*PLAN.disks, own))
    domain = parse(plan)
    assert [item.tag for item in domain.findall("os/*")] == ["type"]
    image, system = domain.findall("devices/disk")
    assert image.find("boot") is None and image.find("readonly") is not None
    assert system.find("boot") is not None and system.find("readonly") is None
    drivers = [disk.find("driver") for disk in (image, system)]
    assert [driver.get("type") for driver in drivers if driver is not None] == ["raw", "qcow2"]
    below = system.find("backingStore/source")
    assert below is not None and below.get("file") == "/cache/system.raw"
    places = [int(str(item.get("slot")), 16) for item in domain.findall("devices/disk/address")]
    assert places == sorted(places), "the kernel would number them otherwise"


@pytest.mark.parametrize("basis", list(MemoryBasis))
def test_least_limit_would_boot(basis: MemoryBasis) -> None:
    """The minimum that a refusal names is accepted, and leads to no less RAM than boots."""
    least = memory.least_limit(basis)
    limits = Limits(memory_bytes=least, memory_basis=basis)
    memory.check(InstanceSpec("r1-0008", NOTHING, ("true",), limits=limits))
    ram = least if basis is MemoryBasis.NOMINAL else memory.guess(least)
    assert ram >= memory.DIRECT.least_ram_bytes - memory.MIB


def test_measured_size_converges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reserve is measured until available memory is the limit, and then kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    boots: list[int] = []

    def measure(ram_bytes: int) -> int:
        boots.append(ram_bytes)
        return int(ram_bytes * 0.85) - (70 << 20)

    limit = 512 << 20
    spec = InstanceSpec("r1-0009", NOTHING, ("true",), limits=Limits(memory_bytes=limit))
    first = memory.guest_size(spec, "key", measure)
    assert first.available_bytes is not None
    assert abs(first.available_bytes - limit) < 0.01 * limit
    seen = len(boots)
    assert memory.guest_size(spec, "key", measure) == first and len(boots) == seen
    assert memory.guest_size(spec, "other kernel", measure) == first and len(boots) > seen


def test_an_emulated_guest_is_told_its_clocks_rate() -> None:
    """It would measure it while it boots, on a busy host wrongly; under KVM it is told anyway."""
    assert "tsc_early_khz=2600000" in command_line(
        dataclasses.replace(PLAN, kind="tcg", tsc_khz=2600000)
    )
    assert "tsc_early_khz" not in command_line(dataclasses.replace(PLAN, kind="tcg"))
    assert "tsc_early_khz" not in command_line(dataclasses.replace(PLAN, tsc_khz=2600000))


def test_the_counters_rate_is_measured_alike_every_time() -> None:
    """Two measurements of a counter of constant speed agree; without one there is no figure."""
    first = host_tsc_khz()
    host_tsc_khz.cache_clear()
    assert host_tsc_khz() == pytest.approx(first, rel=1e-3)


def test_another_architecture_is_another_row_of_the_table() -> None:
    """On aarch64: its machine, serial port, interrupt controller and console; nothing of x86."""
    arm = ARCHITECTURES["aarch64"]
    plan = dataclasses.replace(
        PLAN, kind="tcg", architecture=arm, machine=MACHINES[arm.machines[0]], tsc_khz=0
    )
    domain = parse(plan)
    kind = domain.find("os/type")
    assert kind is not None and (kind.get("arch"), kind.get("machine")) == ("aarch64", "virt")
    assert domain.find("features/gic") is not None and domain.find("features/apic") is None
    assert not domain.findall("clock/timer")
    target = domain.find("devices/serial/target")
    assert target is not None and target.get("type") == "system-serial"
    assert domain.find("devices/serial/target/model[@name='pl011']") is not None
    words = command_line(plan).split()
    assert "console=ttyAMA0" in words
    assert words[-1] == "rdinit=/init", "what comes after it becomes an argument of the agent"
    assert not {"reboot=t", "tsc=reliable", "no5lvl", "noreplace-smp"} & set(words)


def test_what_no_table_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual machines of an architecture that is not in the table are not attempted."""
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(HostCannot, match="no virtual machines on s390x"):
        here()
