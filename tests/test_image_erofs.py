"""A tree as an erofs volume: the same tree is the same bytes, and the volume is the tree."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.errors import HostCannot, HvctError
from bench.image.busybox import find_busybox, populate
from bench.image.erofs import fingerprint, make_volume, normalise_times

MTIME = 1_600_000_000


def make_tree(root: Path) -> Path:
    """A tree with one of everything that needs no privilege."""
    (root / "dir" / "empty").mkdir(parents=True)
    (root / "dir" / "small").write_bytes(b"tail")
    (root / "large").write_bytes(os.urandom(1) * 100_001)
    (root / "large").write_bytes(b"ab" * 50_000)
    (root / "blocks").write_bytes(bytes(range(256)) * 32)
    os.link(root / "large", root / "linked")
    (root / "link").symlink_to("/outside")
    (root / "dir" / "Ünïcode \n name").write_text("x")
    (root / "program").write_text("#!/bin/sh\n")
    (root / "program").chmod(0o4750)
    os.mkfifo(root / "pipe")
    for number in range(300):
        (root / "dir" / f"file{number}").write_text(str(number))
    normalise_times(root, MTIME)
    return root


@contextmanager
def mounted(volume: Path, where: Path) -> Iterator[str]:
    """Mount a volume as the arms do; yields how it was mounted."""
    where.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (os.fsencode(volume), os.fsencode(where), b"erofs", 1, b"directio")
    way = "directio" if libc.mount(*arguments) == 0 else "loop"
    if way == "loop":
        subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", volume, where], check=True)
    try:
        yield way
    finally:
        subprocess.run(["umount", where], check=True)


def test_same_tree_same_bytes(tmp_path: Path) -> None:
    """Two trees made apart, with the same content, are one volume, UUID included."""
    volumes = [
        make_volume(make_tree(tmp_path / name), tmp_path / f"{name}.erofs") for name in ("a", "b")
    ]
    assert volumes[0].digest == volumes[1].digest
    assert volumes[0].uuid == volumes[1].uuid
    assert (tmp_path / "a.erofs").read_bytes() == (tmp_path / "b.erofs").read_bytes()
    assert volumes[0].newest_mtime == MTIME


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "large").write_bytes(b"ba" * 50_000),
        lambda root: (root / "program").chmod(0o750),
        lambda root: os.utime(root / "program", (MTIME - 5, MTIME - 5)),
        lambda root: (root / "dir" / "empty").rmdir(),
        lambda root: (root / "dir" / "file7").rename(root / "dir" / "file-7"),
        lambda root: ((root / "link").unlink(), (root / "link").symlink_to("/else")),
        lambda root: ((root / "linked").unlink(), (root / "linked").write_bytes(b"ab" * 50_000)),
    ],
    ids=["content", "mode", "time", "removed", "renamed", "link", "hard link"],
)
def test_any_change_is_another_volume(tmp_path: Path, change: Callable[[Path], object]) -> None:
    """Content, mode, time, names and links each decide the fingerprint, and so the UUID."""
    before = fingerprint(make_tree(tmp_path / "a"))
    changed = make_tree(tmp_path / "b")
    assert fingerprint(changed) == before
    change(changed)
    normalise_times(changed, MTIME)
    assert fingerprint(changed)[0] != before[0]


@pytest.mark.root
def test_mounted_volume_is_the_tree(tmp_path: Path) -> None:
    """Read through a mount, every name, mode, owner, time, attribute, link and byte is there."""
    tree = make_tree(tmp_path / "tree")
    os.chown(tree / "dir" / "small", 70_000, 70_001)
    os.mknod(tree / "device", 0o20644, os.makedev(5, 1))
    os.setxattr(
        tree / "program", "security.capability", bytes.fromhex("0100000200040000" + "00" * 12)
    )
    normalise_times(tree, MTIME)
    volume = make_volume(tree, tmp_path / "v.erofs")
    with mounted(volume.path, tmp_path / "mounted"):
        assert fingerprint(tmp_path / "mounted") == fingerprint(tree)


@pytest.mark.root
def test_volume_mounts_without_being_cached_twice(tmp_path: Path) -> None:
    """Where the kernel mounts erofs from a file, direct I/O is accepted and reads are right."""
    tree = make_tree(tmp_path / "tree")
    volume = make_volume(tree, tmp_path / "v.erofs")
    with mounted(volume.path, tmp_path / "mounted") as way:
        if way != "directio":
            pytest.skip("this kernel cannot mount erofs from a file; a loop device is used")
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        (line,) = [line for line in mounts if str(tmp_path / "mounted") in line]
        assert "directio" in line
        for name in ("large", "blocks", "dir/small"):
            assert (tmp_path / "mounted" / name).read_bytes() == (tree / name).read_bytes()


def test_times_are_capped_not_erased(tmp_path: Path) -> None:
    """Times above the cap become the cap, older ones stay, fractions go, links included."""
    for name, seconds in {"old": 1000.75, "new": 3000.5}.items():
        (tmp_path / name).write_text("")
        (tmp_path / f"{name}-link").symlink_to(name)
        for path in (tmp_path / name, tmp_path / f"{name}-link"):
            os.utime(path, (seconds, seconds), follow_symlinks=False)
    normalise_times(tmp_path, 2000)
    times = {path.name: path.lstat().st_mtime for path in tmp_path.iterdir()}
    assert times == {"old": 1000, "old-link": 1000, "new": 2000, "new-link": 2000}


def test_volume_that_cannot_be_written(tmp_path: Path) -> None:
    """A place that does not exist ends in one line that names the program."""
    with pytest.raises(HvctError, match=r"mkfs\.erofs failed"):
        make_volume(make_tree(tmp_path / "tree"), tmp_path / "missing" / "v.erofs")


@pytest.mark.root
def test_a_full_disk_is_said_as_that(tmp_path: Path) -> None:
    """Wherever it fills up: mkfs.erofs has several names for it, we have one, and exit code 3."""
    tree, small = tmp_path / "tree", tmp_path / "small"
    populate(tree, find_busybox(tmp_path))
    small.mkdir()
    # Near the end are directories of several blocks, of which only a part is written.
    whole = make_volume(tree, tmp_path / "volume.erofs").size_bytes // 1024
    for kib in (4, 512, *range(whole - 64, whole, 4)):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", small], check=True)
        try:
            with pytest.raises(HostCannot, match="No space left on device"):
                make_volume(tree, small / "volume.erofs")
        finally:
            subprocess.run(["umount", small], check=True)
