"""Programs that hvct starts: whether they are there, and new enough."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.checks.distributions import how_to_install
from bench.checks.tree import Tree
from bench.model import Finding


@dataclass(frozen=True)
class Program:
    """A program and the package that has it.

    Attributes:
        packages: its package by distribution family.
        without: what fails where it is missing.
        oldest: the oldest version hvct is tested with, "" where any will do.
        fact: its name among the versions of the fingerprint, where it has another there.
    """

    name: str
    packages: dict[str, str]
    without: str
    oldest: str = ""
    fact: str = ""


def _named(debian: str, fedora: str = "", arch: str = "") -> dict[str, str]:
    return {"debian": debian, "fedora": fedora or debian, "arch": arch or debian}


QEMU = {
    "x86_64": _named("qemu-system-x86", "qemu-system-x86-core"),
    "aarch64": _named("qemu-system-arm", "qemu-system-aarch64-core", "qemu-system-aarch64"),
}


def programs_of(machine: str) -> tuple[Program, ...]:
    """What hvct needs on an architecture."""
    qemu = QEMU.get(machine, _named(f"qemu-system-{machine}"))
    return (
        Program(f"qemu-system-{machine}", qemu, "there is no arm `vm`", "7.2", "qemu"),
        Program("mkfs.erofs", _named("erofs-utils"), "no image can be made", "1.5"),
        Program("skopeo", _named("skopeo"), "no image can be pulled or imported", "1.9"),
        Program("umoci", _named("umoci", arch="aur/umoci"), "no image can be imported", "0.4.7"),
        Program(
            "mmdebstrap", _named("mmdebstrap", arch="aur/mmdebstrap"),
            "the default image cannot be built", "1.3",
        ),
        Program(
            "musl-gcc", _named("musl-tools", "musl-gcc", "musl"),
            "agent and launcher cannot be compiled, so no arm works",
        ),
        Program("ip", _named("iproute2", "iproute"), "remedies that name it cannot be followed"),
        Program("mkfs.ext4", _named("e2fsprogs"), "no scratch disks"),
        Program("modprobe", _named("kmod"), "modules are not loaded by themselves"),
    )  # fmt: skip


def programs(tree: Tree, versions: Mapping[str, object]) -> Iterator[Finding]:
    """What ./hvct installs and is not there, or is older than what hvct is tested with.

    Args:
        versions: of the fingerprint (`bench.host.program_versions`).
    """
    for program in programs_of(tree.machine):
        remedy = how_to_install(tree, program.packages)
        if not shutil.which(program.name) and not Path("/usr/sbin", program.name).exists():
            yield Finding(
                f"program.{program.name}",
                "problem",
                f"{program.name} is not installed",
                program.without,
                remedy,
            )
            continue
        found = str(versions.get(program.fact or program.name) or "")
        if program.oldest and older(found, program.oldest):
            yield Finding(
                f"program.{program.name}.old",
                "warning",
                f"{program.name} is version {found}",
                f"hvct is tested with {program.oldest} and newer",
                f"a newer distribution, or {remedy} from its backports",
            )


def binding() -> Iterator[Finding]:
    """libvirt for Python."""
    if importlib.util.find_spec("libvirt") is None:
        yield Finding(
            "program.libvirt",
            "problem",
            "the libvirt binding for Python is not installed",
            "there is no arm `vm`",
            "./hvct sets it up; by hand: install libvirt's development package, then pip install "
            "libvirt-python",
        )


def older(found: str, oldest: str) -> bool:
    """Whether one version comes before another; what is no version is never older."""
    return bool(re.match(r"\d", found)) and _numbers(found) < _numbers(oldest)


def _numbers(version: str) -> tuple[int, ...]:
    digits = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in digits[0].split(".")) if digits else ()
