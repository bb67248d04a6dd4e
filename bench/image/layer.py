"""A volume's files as one gzip layer, the same bytes each time: ``python -m bench.image.layer``.

Run in a mount namespace of its own, so that the mount goes with the process whatever ends it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

from bench.command import run
from bench.image.erofs import walk

LEVEL = 1  # of gzip: built-in images leave the host seldom, and a build waits for this


def write_layer(tree: Path, output: Path) -> str:
    """Write every file below `tree`; returns the digest of the archive before compression."""
    with (
        output.open("wb") as raw,
        gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as packed,
        _Tee(packed) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in walk(tree):
            _add(archive, path, os.fsdecode(path.relative_to(tree)))
    return f"sha256:{stream.digest.hexdigest()}"


class _Tee(io.RawIOBase):
    """Passes on what is written, and takes its digest."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream, self.digest = stream, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._stream.write(data)


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    member = archive.gettarinfo(path, arcname=name)  # knows hard links by inode
    member.uname = member.gname = ""
    member.mtime = int(member.mtime)
    keys = sorted(os.listxattr(path, follow_symlinks=False))
    values = [os.getxattr(path, key, follow_symlinks=False) for key in keys]
    member.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
        for key, value in zip(keys, values, strict=True)
    }
    if member.isreg():
        with path.open("rb") as file:
            archive.addfile(member, file)
    else:
        archive.addfile(member)


def main(volume: str, output: str) -> int:
    """Mount the volume beside the output, write its layer, print the digest."""
    tree = Path(output).with_suffix(".tree")
    tree.mkdir()
    run(["mount", "-t", "erofs", "-o", "loop,ro", volume, tree])
    print(write_layer(tree, Path(output)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
