"""The guest's first root: the agent as /init and the modules it loads. Deterministic.

Written as an uncompressed cpio archive (newc): QEMU hands it over through memory, and
compression was lost in the noise of a boot.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.cache import cache_dir, lock, workspace
from hv.kernel import GuestKernel, module_bytes, module_closure

# Loaded by the agent before it speaks: without them there is no channel. Before it comes that
# of the bus, which is the machine's.
BUS_MODULES = ("virtio_pci",)
CHANNEL_MODULES = ("virtio_console",)
DISK_MODULES = ("virtio_blk", "erofs", "overlay")
NETWORK_MODULES = ("virtio_net",)
ENTROPY_MODULES = ("virtio_rng",)
BALLOON_MODULES = ("virtio_balloon",)

_FORMAT = b"hvct initramfs 1"


@dataclass(frozen=True)
class Initramfs:
    """An initramfs in the cache.

    Attributes:
        digest: SHA-256 of the file, hexadecimal.
        late: for each group of modules, the files the agent is still asked to load, in
            order: ``disk``, ``network``, ``entropy``, ``extra``.
    """

    path: Path
    digest: str
    late: dict[str, tuple[str, ...]]

    def modules(self, *groups: str) -> list[str]:
        """The file names of these groups in loading order, each once."""
        return list(dict.fromkeys(name for group in groups for name in self.late[group]))


def initramfs(
    kernel: GuestKernel,
    agent: Path,
    extra: Iterable[str] = (),
    bus: tuple[str, ...] = BUS_MODULES,
) -> Initramfs:
    """The initramfs for this kernel and agent, made once and kept by content.

    Raises:
        BadInput: the kernel lacks a module that is needed.
    """
    extra = tuple(extra)
    program = agent.read_bytes()
    key = hashlib.sha256(
        b"\0".join(
            [_FORMAT, kernel.digest.encode(), program, ",".join((*bus, "", *extra)).encode()]
        )
    ).hexdigest()
    folder = cache_dir("initramfs")
    note = folder / f"{key}.json"
    archive = folder / f"{key}.cpio"
    with lock("initramfs"):
        if not (note.exists() and archive.exists()):
            _make(kernel, program, extra, bus, archive, note)
    data = json.loads(note.read_text())
    late = {group: tuple(names) for group, names in data["late"].items()}
    return Initramfs(archive, data["digest"], late)


def cpio(entries: Iterable[tuple[str, int, bytes, int]]) -> bytes:
    """A newc archive of (path, mode, content, device number) with no times and no owners."""
    parts = []
    for number, (path, mode, content, device) in enumerate([*entries, ("TRAILER!!!", 0, b"", 0)]):
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = [number + 1, mode, 0, 0, links, 0, len(content), 0, 0]
        fields += [os.major(device), os.minor(device), len(name), 0]
        header = b"070701" + "".join(f"{value:08X}" for value in fields).encode()
        parts.append(_padded(header + name))
        parts.append(_padded(content))
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _make(
    kernel: GuestKernel,
    program: bytes,
    extra: tuple[str, ...],
    bus: tuple[str, ...],
    archive: Path,
    note: Path,
) -> None:
    groups = {
        "disk": DISK_MODULES,
        "network": NETWORK_MODULES,
        "entropy": ENTROPY_MODULES,
        "extra": extra,
    }
    early = module_closure(kernel.modules, (*bus, *CHANNEL_MODULES))
    early_names = [_file_name(path) for path in early]
    files = {_file_name(path): path for path in early}
    late: dict[str, list[str]] = {}
    for group, wanted in groups.items():
        closure = module_closure(kernel.modules, wanted)
        files.update((_file_name(path), path) for path in closure)
        late[group] = [name for path in closure if (name := _file_name(path)) not in early_names]
    entries: list[tuple[str, int, bytes, int]] = [
        (name, stat.S_IFDIR | 0o755, b"", 0) for name in ("dev", "modules", "proc", "sys")
    ]
    # Without it PID 1 starts with no stdin, stdout and stderr.
    entries.append(("dev/console", stat.S_IFCHR | 0o600, b"", os.makedev(5, 1)))
    entries.append(("init", stat.S_IFREG | 0o755, program, 0))
    order = "".join(name + "\n" for name in early_names).encode()
    entries.append(("modules/order", stat.S_IFREG | 0o644, order, 0))
    for name, path in sorted(files.items()):
        entries.append((f"modules/{name}", stat.S_IFREG | 0o644, module_bytes(path), 0))
    data = cpio(entries)
    with workspace("initramfs") as folder:
        (folder / "archive").write_bytes(data)
        (folder / "note").write_text(
            json.dumps({"digest": hashlib.sha256(data).hexdigest(), "late": late})
        )
        os.replace(folder / "archive", archive)
        os.replace(folder / "note", note)


def _file_name(path: Path) -> str:
    return path.name.split(".ko", 1)[0] + ".ko"
