"""The guest's kernel: the distribution's own cloud kernel, fetched into the cache.

Nothing is installed on the host and /boot is not touched. What is fetched once stays
the guest kernel of this machine until the cache is deleted, so that runs stay comparable.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.cache import cache_dir, lock, publish, workspace
from bench.command import run
from bench.errors import BadInput, HostCannot, HvctError
from hv import vmlinux
from hv.architecture import here

PACKED = "vmlinuz"
OWN = "this host's own kernel"
_OFFLINE = "check the network, run apt-get update, or give a kernel with --kernel PATH"


@dataclass(frozen=True)
class GuestKernel:
    """One kernel ready to boot.

    Attributes:
        release: ``uname -r`` of the guest.
        boot: what QEMU loads: the uncompressed vmlinux where QEMU can enter it.
        modules: its ``/lib/modules/<release>``, None when everything is built in.
        digest: SHA-256 of `boot`, hexadecimal.
        source: package and version, or the path given.
    """

    release: str
    boot: Path
    modules: Path | None
    digest: str
    source: str


def guest_kernel(chosen: Path | None = None) -> GuestKernel:
    """The kernel to boot guests with: `chosen`, else the distribution's cloud kernel.

    Raises:
        BadInput: the chosen file is not a kernel.
        HostCannot: the kernel cannot be fetched here.
    """
    if chosen is not None:
        return _from_file(chosen)
    with lock("kernel"):
        current = cache_dir("kernel") / "current.json"
        found = _load(current)
        if found is None:
            found = _fetch()
            made = current.with_suffix(f".{os.getpid()}")
            made.write_text(_dump(found))
            os.replace(made, current)
        return found


def module_closure(modules: Path | None, wanted: Iterable[str]) -> list[Path]:
    """Module files for these names with all they need, dependencies first.

    A name that is built into the kernel needs no file. The dependencies are read from
    the modules themselves: packages carry no modules.dep, it is made at installation.

    Raises:
        BadInput: the kernel has no such module.
    """
    if modules is None:
        return []
    files = {_module_name(path): path for path in sorted(modules.rglob("*.ko*"))}
    builtin_list = modules / "modules.builtin"
    builtin = (
        {_module_name(Path(line)) for line in builtin_list.read_text().split()}
        if builtin_list.exists()
        else set()
    )
    order: list[Path] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        name = name.replace("-", "_")
        if name in seen:
            return
        seen.add(name)
        if name in builtin:
            return
        if name not in files:
            raise BadInput(
                f"the guest kernel {modules.name} has no module {name}",
                "choose another kernel with --kernel",
            )
        for needed in _depends(module_bytes(files[name])):
            visit(needed)
        order.append(files[name])

    for name in wanted:
        visit(name)
    return order


def module_bytes(path: Path) -> bytes:
    """A module as the kernel loads it, unpacked where the distribution compresses it."""
    data = path.read_bytes()
    if path.name.endswith(".xz"):
        return lzma.decompress(data)
    if path.name.endswith(".zst"):
        return run(["zstd", "-dc"], input_bytes=data, hint="install zstd")
    return data


def _module_name(path: Path) -> str:
    return path.name.split(".ko", 1)[0].replace("-", "_")


def _depends(module: bytes) -> list[str]:
    at = module.find(b"\0depends=")
    if at < 0:
        return []
    text = module[at + 9 : module.index(b"\0", at + 9)].decode("ascii", "replace")
    return [name for name in text.split(",") if name]


def _fetch() -> GuestKernel:
    """Download the package the metapackage stands for; the metapackage itself is empty."""
    metapackage = here().metapackage
    if shutil.which("apt-get") is None:
        return own_kernel()
    listed = run(["apt-cache", "depends", metapackage], hint=_OFFLINE).decode()
    names = [line.split(":", 1)[1].strip() for line in listed.splitlines() if "Depends:" in line]
    package = next((name for name in names if name.startswith("linux-image-")), "")
    if not package:
        raise HostCannot(f"apt knows no {metapackage}", _OFFLINE)
    with workspace("kernel") as folder:
        image, version = _download(package, folder)
        release = _release(image, image.read_bytes())
        packed_modules = folder / "unpacked" / "lib" / "modules" / release
        if not packed_modules.is_dir():
            packed_modules = folder / "unpacked" / "usr" / "lib" / "modules" / release
        boot, digest = _unpacked(image.read_bytes())
        final = cache_dir("kernel") / f"{package}_{version}".replace(":", "_").replace("/", "_")
        shutil.rmtree(final, ignore_errors=True)
        # One rename makes the whole folder visible at once.
        ready = folder / "ready"
        ready.mkdir()
        (ready / "boot").write_bytes(boot)
        (ready / PACKED).write_bytes(image.read_bytes())
        shutil.move(packed_modules, ready / release)
        os.replace(ready, final)
    return GuestKernel(release, final / "boot", final / release, digest, f"{package} {version}")


def own_kernel(root: Path = Path("/"), release: str = "") -> GuestKernel:
    """The kernel this host runs, as its distribution installed it: where there is no apt.

    Args:
        root: where the distribution's files are.
        release: whose; of the running kernel by default.

    Raises:
        HostCannot: its file is not there, or its modules are not.
    """
    release = release or platform.release()
    modules = root / "lib/modules" / release
    for name in (f"boot/vmlinuz-{release}", f"lib/modules/{release}/vmlinuz", *_UNVERSIONED):
        path = root / name
        if not (path.is_file() and modules.is_dir()):
            continue
        try:
            if name not in _UNVERSIONED or _release(path, path.read_bytes()) == release:
                return dataclasses.replace(
                    _from_file(path), modules=modules, source=f"{OWN} ({release})"
                )
        except BadInput:
            continue
    raise HostCannot(
        f"{OWN} ({release}) is not in /boot or /lib/modules with its modules",
        "give one with --kernel PATH, its modules beside it or in /lib/modules",
    )


_UNVERSIONED = ("boot/vmlinuz-linux", "boot/vmlinuz-linux-lts", "boot/Image", "boot/vmlinuz")


def _release(path: Path, data: bytes) -> str:
    """A kernel's release: from the file itself, or from its name where that says nothing."""
    if here().elf:
        return vmlinux.release(data)
    named = path.name.partition("-")[2]
    if not named:
        raise BadInput(f"{path} does not say which kernel it is", "name it vmlinuz-RELEASE")
    return named


def _download(package: str, folder: Path) -> tuple[Path, str]:
    """Download and unpack a kernel package below a folder; its bzImage and its version."""
    try:
        run(["apt-get", "download", package], cwd=folder, hint=_OFFLINE)
    except HvctError as error:
        remedy = error.hint or _OFFLINE
        raise HostCannot(f"the guest kernel was not fetched: {error.message}", remedy) from error
    archive = next(folder.glob("*.deb"))
    version = run(["dpkg-deb", "-f", archive, "Version"]).decode().strip()
    run(["dpkg-deb", "-x", archive, folder / "unpacked"])
    return next((folder / "unpacked" / "boot").glob("vmlinuz-*")), version


def packed_kernel(kernel: GuestKernel, chosen: Path | None = None) -> Path:
    """The same kernel as its distribution ships it, which unpacks itself: a bzImage.

    Raises:
        HostCannot: it is no longer there and cannot be fetched.
    """
    if chosen is not None:
        return chosen
    if kernel.source.startswith(OWN):
        return kernel.boot
    path = kernel.boot.with_name(PACKED)
    with lock("kernel"):
        if not path.exists():  # fetched before it was kept
            package, _, version = kernel.source.partition(" ")
            with workspace("kernel") as folder:
                publish(_download(f"{package}={version}", folder)[0], path)
    return path


def _from_file(path: Path) -> GuestKernel:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"the kernel {path} cannot be read: {error.strerror}") from error
    release = _release(path, data)
    boot, digest = _unpacked(data)
    kept = cache_dir("kernel", "chosen") / digest
    if not kept.exists():
        with workspace("kernel") as folder:
            (folder / "boot").write_bytes(boot)
            os.replace(folder / "boot", kept)
    candidates = [path.parent / release, path.parent.parent / "lib" / "modules" / release]
    candidates.append(Path("/lib/modules") / release)
    modules = next((item for item in candidates if item.is_dir()), None)
    return GuestKernel(release, kept, modules, digest, str(path))


def _unpacked(image: bytes) -> tuple[bytes, str]:
    """What QEMU is to load and its digest: the ELF if it can be entered, else the bzImage."""
    if not here().elf:
        return image, hashlib.sha256(image).hexdigest()
    elf = vmlinux.unpack(image)
    boot = elf if vmlinux.boots_directly(elf) else image
    return boot, hashlib.sha256(boot).hexdigest()


def _dump(kernel: GuestKernel) -> str:
    return json.dumps({name: str(value) for name, value in asdict(kernel).items()})


def _load(path: Path) -> GuestKernel | None:
    """The kernel fetched before; None when there is none or part of it is gone."""
    try:
        data = json.loads(path.read_text())
        modules = Path(data["modules"])
        kernel = GuestKernel(
            data["release"], Path(data["boot"]), modules, data["digest"], data["source"]
        )
    except (OSError, ValueError, KeyError):
        return None
    return kernel if kernel.boot.exists() and modules.is_dir() else None
