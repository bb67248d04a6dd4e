"""The disk that a guest of `vm:distro` boots from: firmware, GRUB, kernel, systemd, our agent.

mmdebstrap installs a small system from the apt sources this host is set up with; GRUB comes
with it, so that the host needs none. The agent is put into a copy: another agent needs no other
packages, and no network. What was used longest ago is removed when all are more than the bound.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from bench import cache
from bench.cache import cache_dir, hold, lock, publish, workspace
from bench.command import run
from bench.errors import HvctError
from bench.image import debian
from bench.image.debian_clean import newest_before
from bench.image.erofs import fingerprint, normalise_times, sha256_file
from bench.image.index import Progress, build_space, silent

WHAT = "the system disk of vm:distro"
OTHERWISE = "leave the arm vm:distro out"
MOST_BYTES = 2 << 30  # of all system disks together, when another is to be made
REVISION = 1  # raise when the tree changes for another reason than what is below
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "qemu-img": "qemu-utils",
}
"""Program → the package that has it: what the arm needs besides those of `vm`."""

PACKAGES = (
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "udev",
    "kmod",
    "grub-pc-bin",
    "busybox",  # of the distribution's initramfs, as installers have it
    "zstd",  # packs that
)
UUID = "68766374-0000-4000-8000-737973746d64"
"""Fixed, as is the seed of the directories' hashes; by it the kernel finds its root."""

SECTOR_BYTES = 512
FIRST_SECTOR = 2048  # of the one partition; where partitioning programs put it
BOOT_CODE_BYTES = 440  # of the first sector; the partition table follows
ROOM_BYTES = 96 << 20  # for the file system itself, and for what a running system writes
SCRIPTS_TIME = 1_700_000_000  # what SOURCE_DATE_EPOCH tells the packages' scripts

AGENT = "usr/lib/hvct/agent"
UNIT = f"""\
[Unit]
Description=The workload of this machine
FailureAction=poweroff-immediate

[Service]
ExecStart=/{AGENT} --port
TasksMax=infinity
OOMPolicy=continue

[Install]
WantedBy=multi-user.target
"""
# The words of Debian's cloud images, and that a panic ends the domain. The console is where
# hvct reads of panics and of kills for lack of memory.
COMMAND_LINE = f"root=UUID={UUID} ro net.ifnames=0 console=ttyS0 quiet panic=-1"
GRUB_CONFIG = """\
linux /boot/vmlinuz-{release} {words}
initrd /boot/initrd.img-{release}
boot
"""
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "normal", "linux", "boot")


@dataclass(frozen=True)
class SystemDisk:
    """A raw disk in the cache.

    Attributes:
        digest: of the loader and of all files, agent included, but not of when its file
            system was made; hexadecimal.
        release: ``uname -r`` of its kernel.
        kernel_digest: SHA-256 of that kernel's file, hexadecimal.
        packages: name → version of those that boot it.
    """

    path: Path
    digest: str
    release: str
    kernel_digest: str
    packages: dict[str, str]

    @property
    def source(self) -> str:
        """The kernel's package and version."""
        name = f"linux-image-{self.release}"
        return f"{name} {self.packages.get(name, '')}".strip()


def system_disk(agent: Path, progress: Progress = silent) -> SystemDisk:
    """The disk with this agent in it; made in about two minutes when it is not in the cache.

    Raises:
        HostCannot: not root, or not a host with apt and mmdebstrap, and no disk is there.
        HvctError: packages could not be fetched or installed.
    """
    program = agent.read_bytes()
    with lock("system-disk"):
        found = cached() or _make(progress)
        held = hold(found.path)  # its use counts as that of every disk that was made of it
        try:
            digest = sha256(f"{found.digest}\0".encode() + program).hexdigest()
            path = cache_dir("system") / f"{digest[:32]}.raw"
            if not path.exists():
                make_room()
                progress("putting the agent into the system disk", None)
                _put_agent(found.path, program, path)
        finally:
            if held is not None:
                os.close(held)
    return SystemDisk(path, digest, found.release, found.kernel_digest, found.packages)


def make_room(most_bytes: int = MOST_BYTES) -> list[Path]:
    """Remove system disks, those used longest ago first, until all are within the bound.

    One that any process holds stays. Returns what was removed.
    """
    folder = cache_dir("system")
    disks = [path for ending in ("raw", "base") for path in folder.glob(f"*.{ending}")]
    return cache.make_room(disks, most_bytes, _forget)


def _forget(path: Path) -> None:
    path.unlink()
    if path.suffix == ".base":
        path.with_suffix(".json").unlink(missing_ok=True)


def cached() -> SystemDisk | None:
    """The disk without an agent, where it has been made."""
    note = _note()
    try:
        made = SystemDisk(note.with_suffix(".base"), **json.loads(note.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return made if made.path.exists() else None


def missing() -> dict[str, str]:
    """Programs that are needed and not there → their package."""
    return {name: package for name, package in PROGRAMS.items() if shutil.which(name) is None}


def _note() -> Path:
    parts = (REVISION, PACKAGES, UNIT, COMMAND_LINE, GRUB_CONFIG, GRUB_MODULES,
             debian.release().get("VERSION_CODENAME", ""))  # fmt: skip
    key = sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return cache_dir("system") / f"{key}.json"


def _make(progress: Progress) -> SystemDisk:
    suite = debian.check_host(WHAT, OTHERWISE)
    note = _note()
    with build_space() as space:
        tree, disk, began = space / "tree", space / "disk", time.time()
        epoch = {"SOURCE_DATE_EPOCH": str(SCRIPTS_TIME)}  # the initramfs is then reproducible
        debian.bootstrap(space, tree, suite, progress, WHAT, PACKAGES, epoch)
        progress("making the system disk", 0.9)
        versions = dict(line.split(" ", 1) for line in debian.installed(tree))
        release = next((tree / "boot").glob("vmlinuz-*")).name.partition("-")[2]
        loader = _loader(tree)
        _configure(tree, release)
        normalise_times(tree, newest_before(tree, began))
        files, _ = fingerprint(tree)
        digest = sha256(files.encode() + loader).hexdigest()
        _write(tree, loader, disk)
        kernel = sha256_file(tree / "boot" / f"vmlinuz-{release}").partition(":")[2]
        named = {name: versions[name] for name in sorted(versions) if _told(name)}
        made = SystemDisk(note.with_suffix(".base"), digest, release, kernel, named)
        publish(disk, made.path)
        fields = asdict(made)
        del fields["path"]
        (space / "note").write_text(json.dumps(fields))
        publish(space / "note", note)  # last: what it speaks of is there
    return made


def _told(package: str) -> bool:
    return package.startswith("linux-image-") or package in ("systemd", "grub-pc-bin", "udev")


def _loader(tree: Path) -> bytes:
    """The first 440 bytes of the disk's first sector, and after that sector GRUB's core."""
    core = "tmp/core.img"
    prefix = "(hd0,msdos1)/boot/grub"
    run(["chroot", tree, "grub-mkimage", "-O", "i386-pc", "-o", f"/{core}", "-p", prefix,
         *GRUB_MODULES])  # fmt: skip
    image = (tree / core).read_bytes()
    (tree / core).unlink()
    if len(image) > (FIRST_SECTOR - 1) * SECTOR_BYTES:
        raise HvctError(f"GRUB's core of {len(image)} bytes does not fit before the partition")
    boot = (tree / "usr/lib/grub/i386-pc/boot.img").read_bytes()[:BOOT_CODE_BYTES]
    return boot.ljust(SECTOR_BYTES, b"\0") + image


def _configure(tree: Path, release: str) -> None:
    """What is of no package: mounts, the loader's orders, our unit."""
    for path in _made_by_the_build(tree):
        path.unlink(missing_ok=True)
    units = tree / "etc/systemd/system"
    wanted = units / "multi-user.target.wants"
    files = {
        tree / "etc/fstab": f"UUID={UUID} / ext4 errors=remount-ro 0 0\n",
        tree / "etc/hostname": "hvct\n",
        tree / "etc/machine-id": "",  # each that boots makes its own
        tree / "boot/grub/grub.cfg": GRUB_CONFIG.format(release=release, words=COMMAND_LINE),
        units / "hvct-agent.service": UNIT,
        tree / AGENT: "",  # a place for it
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
    wanted.mkdir(exist_ok=True)
    (wanted / "hvct-agent.service").symlink_to("../hvct-agent.service")


def _made_by_the_build(tree: Path) -> Iterable[Path]:
    """Files of this host or of this hour."""
    yield tree / "etc/resolv.conf"
    yield from (tree / "etc/apt/sources.list.d").glob("*")
    for folder in ("var/log", "var/cache/ldconfig", "var/cache/apt", "tmp"):
        yield from (
            path for path in (tree / folder).rglob("*") if stat.S_ISREG(path.lstat().st_mode)
        )


def _write(tree: Path, loader: bytes, disk: Path) -> None:
    """Loader, partition table and file system into one file; its times are those of the tree."""
    used = int(run(["du", "-s", "-B", "1", tree]).split()[0])
    offset = FIRST_SECTOR * SECTOR_BYTES
    kib = (used + used // 8 + ROOM_BYTES) // 1024
    run(
        ["mkfs.ext4", "-q", "-F", "-d", tree, "-U", UUID, "-m", "0", "-E",
         f"offset={offset},nodiscard,lazy_itable_init=0,lazy_journal_init=0,hash_seed={UUID}",
         disk, f"{kib}k"],
        hint="install the package e2fsprogs",
    )  # fmt: skip
    with disk.open("r+b") as file:
        file.write(loader)
        file.seek(BOOT_CODE_BYTES)
        file.write(partition_table(kib * 1024 // SECTOR_BYTES))
        file.truncate(offset + kib * 1024)


def partition_table(sectors: int) -> bytes:
    """The end of a master boot record, from its signature on: one active partition for Linux."""
    number = FIRST_SECTOR.to_bytes(4, "little") + sectors.to_bytes(4, "little")
    # Places by cylinder, head and sector, which nobody reads, are all ones as for large disks.
    first = b"\x80\xfe\xff\xff\x83\xfe\xff\xff" + number
    return b"hvct\0\0" + first.ljust(64, b"\0") + b"\x55\xaa"


def _put_agent(base: Path, program: bytes, final: Path) -> None:
    """A copy of the disk in which the agent has its place."""
    with workspace("system") as space:
        disk, agent = space / "disk", space / "agent"
        run(["cp", "--sparse=always", "--reflink=auto", base, disk])
        agent.write_bytes(program)
        agent.chmod(0o755)
        inside = f"{disk}?offset={FIRST_SECTOR * SECTOR_BYTES}"
        orders = space / "orders"
        orders.write_text(f"rm /{AGENT}\nwrite {agent} /{AGENT}\nquit\n")
        run(["debugfs", "-w", "-f", orders, inside], hint="install the package e2fsprogs",
            env={**os.environ, "DEBUGFS_PAGER": "cat"})  # fmt: skip
        # It ends well whatever it could not do.
        run(["debugfs", "-R", f"dump -p /{AGENT} {space / 'back'}", inside])
        back = space / "back"
        if back.read_bytes() != program or back.stat().st_mode & 0o777 != 0o755:
            raise HvctError("debugfs has not put the agent into the system disk")
        publish(disk, final)
