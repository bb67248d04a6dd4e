"""What differs between the architectures a virtual machine can have: one table.

Only x86-64 is tested. The rest is from QEMU's and libvirt's documentation ("virt" machine,
PL011 serial port, GIC) and the kernel's (Documentation/arch/arm64/booting.rst); the doctor
says so on such a host.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from bench.errors import HostCannot


@dataclass(frozen=True)
class Architecture:
    """How a virtual machine of one architecture is made.

    Attributes:
        name: as uname, libvirt and QEMU's program name have it.
        machines: QEMU machine types it can have; the first is the default.
        serial: type and model of libvirt's serial port.
        console: what the guest's kernel calls that port.
        features: of libvirt's domain, besides ACPI.
        hpet: it has that timer, which is switched off.
        words: of the guest kernel's command line, for this architecture alone.
        emulated_words: the same, under TCG.
        metapackage: Debian's package that depends on its newest cloud kernel.
        elf: the kernel file holds an ELF that QEMU enters directly; else QEMU loads the
            file as it is.
        payload: the first stage of the KVM probe has a payload for it.
        tested: whether hvct is tested on it.
    """

    name: str
    machines: tuple[str, ...]
    serial: tuple[str, str]
    console: str
    features: tuple[str, ...]
    hpet: bool
    words: tuple[str, ...]
    emulated_words: tuple[str, ...]
    metapackage: str
    elf: bool
    payload: bool
    tested: bool

    @property
    def qemu(self) -> str:
        """QEMU's program."""
        return f"qemu-system-{self.name}"


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="x86_64",
            machines=("q35", "pc"),
            serial=("isa-serial", "isa-serial"),
            console="ttyS0",
            features=("apic",),
            hpet=True,
            words=(
                "reboot=t",  # by triple fault: no firmware to ask
                "tsc=reliable",  # no calibration against other timers
                "no_timer_check",
                "no5lvl",
            ),
            # Patching out lock prefixes costs an emulator more than the prefixes do.
            emulated_words=("noreplace-smp",),
            metapackage="linux-image-cloud-amd64",
            elf=True,
            payload=True,
            tested=True,
        ),
        Architecture(
            name="aarch64",
            machines=("virt",),
            serial=("system-serial", "pl011"),
            console="ttyAMA0",
            features=("gic",),
            hpet=False,
            words=(),
            emulated_words=(),
            metapackage="linux-image-cloud-arm64",
            elf=False,
            payload=False,
            tested=False,
        ),
    )
}


def here() -> Architecture:
    """This host's.

    Raises:
        HostCannot: virtual machines of it are not known here.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise HostCannot(
            f"hvct makes no virtual machines on {machine}",
            f"it does on {' and '.join(ARCHITECTURES)}; leave the arm out with --arms",
        )
    return ARCHITECTURES[machine]
