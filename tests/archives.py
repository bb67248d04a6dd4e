"""Image archives made by hand: layers, OCI layouts, docker save; and a look inside the result."""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.image.index import host_architecture
from bench.model import Image

MTIME = 1_600_000_000
Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> Entry:
    """One member of a layer."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime, info.mode = kind, len(data), MTIME, 0o644
    if kind == tarfile.DIRTYPE:
        info.mode = 0o755
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def folder(name: str, **fields: Any) -> Entry:
    """A directory."""
    return entry(name, kind=tarfile.DIRTYPE, **fields)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Entry:
    """A symbolic link, or a hard one."""
    return entry(name, kind=kind, linkname=target)


def layer(*entries: Entry) -> bytes:
    """A layer's tar archive."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


BASE = layer(
    folder("bin"),
    entry("bin/app", b"#!/bin/true\n", mode=0o755),
    folder("etc"),
    entry("etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n"),
    entry("etc/group", b"root:x:0:\napp:x:1001:\nextra:x:2000:app\n"),
)


def digest(data: bytes) -> str:
    """``sha256:…``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def configuration(
    layers: tuple[bytes, ...], config: dict[str, Any], architecture: str
) -> dict[str, Any]:
    """An image configuration."""
    return {
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest(data) for data in layers]},
    }


class Layout:
    """An OCI layout in a folder, blob by blob."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifests: list[dict[str, Any]] = []
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        """Store a blob; its descriptor."""
        (self.path / "blobs" / digest(data).replace(":", "/")).write_bytes(data)
        return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}

    def image(
        self,
        *layers: bytes,
        architecture: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Store an image; its manifest's descriptor."""
        architecture = architecture or host_architecture()
        settings = json.dumps(configuration(layers, config or {}, architecture)).encode()
        kind = "application/vnd.oci.image"
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": self.blob(settings, f"{kind}.config.v1+json"),
            "layers": [
                self.blob(gzip.compress(data, 1, mtime=0), f"{kind}.layer.v1.tar+gzip")
                for data in layers
            ],
        }
        return self.blob(
            json.dumps(manifest).encode(),
            f"{kind}.manifest.v1+json",
            platform={"architecture": architecture, "os": "linux"},
        )

    def write(self, *manifests: dict[str, Any]) -> Path:
        """Write the index."""
        index = {"schemaVersion": 2, "manifests": list(manifests)}
        (self.path / "index.json").write_text(json.dumps(index))
        return self.path


def layout_of(path: Path, *layers: bytes, **config: Any) -> Path:
    """A layout with one image."""
    made = Layout(path)
    return made.write(made.image(*layers, config=config))


def docker_save(path: Path, *layers: bytes, tag: str = "shop/app:1", **config: Any) -> Path:
    """What ``docker save`` writes."""
    settings = json.dumps(configuration(layers, config, host_architecture())).encode()
    name = hashlib.sha256(settings).hexdigest()
    members = [entry(f"{name}.json", settings)]
    members += [entry(f"{number}/layer.tar", data) for number, data in enumerate(layers)]
    manifest = [
        {
            "Config": f"{name}.json",
            "RepoTags": [tag],
            "Layers": [f"{number}/layer.tar" for number in range(len(layers))],
        }
    ]
    members.append(entry("manifest.json", json.dumps(manifest).encode()))
    path.write_bytes(layer(*members))
    return path


def tarred(folder_path: Path, target: Path) -> Path:
    """A folder as a tar archive."""
    with tarfile.open(target, "w") as archive:
        archive.add(folder_path, arcname=".")
    return target


@contextmanager
def mounted(image: Image, where: Path) -> Iterator[Path]:
    """The image's files."""
    where.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [os.fsencode(image.path), os.fsencode(where), b"erofs", 1, b""]
    if libc.mount(*arguments) != 0:  # a kernel without file-backed mounts
        subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", image.path, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
