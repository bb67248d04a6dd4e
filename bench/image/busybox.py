"""The tiny image: the distribution's static busybox with all its applets."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from bench.cache import lock
from bench.command import run
from bench.errors import HostCannot, HvctError
from bench.image import index
from bench.image.erofs import normalise_times
from bench.image.index import Progress, silent
from bench.model import Image, ImageConfig

NAME = "busybox"
RECIPE = "busybox-1"  # raise when the tree below changes
HINT = "install the package busybox-static"
PT_INTERP = 3

DIRECTORIES = {
    "dev": 0o755,
    "etc": 0o755,
    "mnt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var/log": 0o755,
    "var/tmp": 0o1777,
}

FILES = {
    "etc/group": "root:x:0:\ndaemon:x:1:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/hostname": "hvct\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    ),
    "etc/resolv.conf": "",
    "etc/shells": "/bin/sh\n",
}

CONFIG = ImageConfig(
    cmd=("/bin/sh",),
    env=(("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),),
)


def busybox_image(progress: Progress = silent) -> Image:
    """The busybox image, built in under a second when it is not in the cache.

    Raises:
        HostCannot: there is neither a static busybox here nor a way to download one.
    """
    with lock("image-busybox"):
        entry = index.load(NAME)
        if entry is not None and entry.recipe == RECIPE:
            return entry.image
        progress("building the busybox image", None)
        return _build()


def _build() -> Image:
    with index.build_space() as space:
        program = find_busybox(space)
        tree = space / "tree"
        version = populate(tree, program)
        return index.store_tree(
            NAME,
            tree,
            CONFIG,
            source="the distribution's busybox-static",
            recipe=RECIPE,
            packages=(version,),
        )


def is_static(program: Path) -> bool:
    """Whether an ELF file needs no interpreter (it has no PT_INTERP header)."""
    try:
        with program.open("rb") as handle:
            head = handle.read(64)
            if head[:4] != b"\x7fELF" or head[4] != 2:
                return False
            order = "<" if head[5] == 1 else ">"
            offset, *_, size, count = struct.unpack(f"{order}32xQ14xHH6x", head)
            handle.seek(offset)
            table = handle.read(size * count)
    except (OSError, struct.error):
        return False
    kinds = (struct.unpack_from(f"{order}I", table, at)[0] for at in range(0, len(table), size))
    return PT_INTERP not in kinds


def find_busybox(space: Path) -> Path:
    """A static busybox: the installed one, else the one of the distribution's package.

    Raises:
        HostCannot: neither is to be had.
    """
    for candidate in (Path("/bin/busybox"), Path("/usr/bin/busybox")):
        if is_static(candidate):
            return candidate
    try:
        run(["apt-get", "-q", "download", "busybox-static"], cwd=space, timeout_s=120, hint=HINT)
        (package,) = space.glob("busybox-static_*.deb")
        run(["dpkg-deb", "-x", package, space / "package"], hint=HINT)
    except (HvctError, ValueError) as error:
        raise HostCannot(f"no static busybox here, and none to download: {error}", HINT) from error
    return space / "package" / "bin" / "busybox"


def populate(tree: Path, program: Path) -> str:
    """Fill `tree`: the program, a link per applet, and the few files a system expects.

    Every time in it is the program's own, so that two builds are the same. Returns the
    program's version.
    """
    stamp = int(program.stat().st_mtime)
    applets = run([program, "--list-full"]).decode().split()
    version = run([program, "--help"]).decode(errors="replace").partition("\n")[0].split(" (")[0]
    for name, mode in DIRECTORIES.items():
        (tree / name).mkdir(parents=True)
        index.fix_owner_and_mode(tree / name, mode)
    for name, text in FILES.items():
        (tree / name).write_text(text)
        index.fix_owner_and_mode(tree / name, 0o644)
    for applet in {*applets, "bin/sh", "bin/busybox"}:
        link = tree / applet
        link.parent.mkdir(parents=True, exist_ok=True)
        if applet != "bin/busybox":
            link.symlink_to("/bin/busybox")
    shutil.copyfile(program, tree / "bin" / "busybox")
    index.fix_owner_and_mode(tree / "bin" / "busybox", 0o755)
    for name in ("", "bin", "sbin", "usr", "usr/bin", "usr/sbin", "var"):
        if (tree / name).is_dir():
            index.fix_owner_and_mode(tree / name, 0o755)
    normalise_times(tree, stamp)
    return version
