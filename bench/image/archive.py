"""What a user hands over as an image: an OCI layout (folder or tar) or ``docker save``.

Each becomes a reference that skopeo understands, with exactly one image behind it.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BadInput, HostCannot, oserror
from bench.image.index import host_architecture
from bench.image.members import DAMAGE, EXPORT, outer_members, too_large

REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
LARGEST_JSON_BYTES = 4 << 20
LAYOUT_FILE = re.compile(r"oci-layout|index\.json|blobs/[a-z0-9]+/[0-9a-f]+")
DECOMPRESSORS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


@dataclass(frozen=True)
class Source:
    """One image, ready to be copied.

    Attributes:
        reference: as skopeo takes it, e.g. ``oci:/…``.
        name: what the archive itself calls the image, "" when it does not.
    """

    reference: str
    name: str


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of an image.

    Raises:
        BadInput: it is missing, too large or not an object.
    """
    try:
        data = json.loads(_read_small(path))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path.name} in the archive cannot be read", EXPORT) from error
    if not isinstance(data, dict):
        raise BadInput(f"{path.name} in the archive is not a JSON object", EXPORT)
    return data


def _read_small(path: Path) -> bytes:
    """A regular file of at most a few MiB; whatever else lies there is not waited for.

    Raises:
        OSError: it cannot be opened.
        BadInput: it is something else, or larger.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as handle:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadInput(f"{path.name} in the archive is no regular file", EXPORT)
        data = handle.read(LARGEST_JSON_BYTES + 1)
    if len(data) > LARGEST_JSON_BYTES:
        raise BadInput(
            f"{path.name} in the archive is larger than {LARGEST_JSON_BYTES >> 20} MiB", EXPORT
        )
    return data


def locate(path: Path, space: Path, max_bytes: int) -> Source:
    """Find out what `path` is, and make it something skopeo can copy from.

    Args:
        space: a workspace; an archive that has to be unpacked is unpacked there.

    Raises:
        BadInput: it is none of the forms we take, damaged, or holds several images.
    """
    if path.is_dir():
        return _layout(path, space)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadInput(f"{path} is neither a file nor a folder", "save the archive in a file")
        plain = _decompressed(path, space, max_bytes)
        members = outer_members(plain)
        names = {os.path.normpath(member.name) for member in members}
        with tarfile.open(plain, "r:") as archive:
            if {"oci-layout", "index.json"} <= names:
                if sum(member.size for member in members) > max_bytes:
                    raise too_large(path.name, max_bytes)
                return _layout(_extract(archive, members, space / "archive"), space)
            if "manifest.json" in names:
                return _docker(path.name, plain, archive, members, space)
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist", "give the archive's path") from error
    except (*DAMAGE, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise BadInput(f"{path.name} is damaged or no archive: {reason}", EXPORT) from error
    except OSError as error:
        if error.errno is None:  # what decompressors raise for bad data
            raise BadInput(f"{path.name} is damaged: {error}", EXPORT) from error
        failure = oserror("read", path, error)
        if isinstance(failure, HostCannot):
            raise failure from error
        raise BadInput(failure.message, "give an archive that can be read") from error
    raise BadInput(f"{path.name} is neither an OCI layout nor a docker save archive", EXPORT)


def _extract(archive: tarfile.TarFile, members: list[tarfile.TarInfo], target: Path) -> Path:
    """The files a layout consists of, and no others: names of this shape cannot lead outside.

    (Python 3.11.2 has no ``filter="data"`` yet.)
    """
    for member in members:
        name = os.path.normpath(member.name)
        handle = archive.extractfile(member) if member.isreg() else None
        if handle is not None and LAYOUT_FILE.fullmatch(name):
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as output:
                shutil.copyfileobj(handle, output, 1 << 20)
    return target


def _layout(path: Path, space: Path) -> Source:
    """A layout of our own with one manifest in its index, the blobs linked to."""
    if not (path / "index.json").is_file():
        raise BadInput(f"{path.name} is not an OCI layout: it has no index.json", EXPORT)
    manifests = read_json(path / "index.json").get("manifests")
    if not isinstance(manifests, list) or not all(map(_is_descriptor, manifests)):
        raise BadInput(f"the index of {path.name} is malformed", EXPORT)
    chosen = _choose(manifests)
    _check_digest(path, chosen)
    _check_blobs(path)
    notes = chosen.get("annotations") or {}
    name = notes.get(FULL_NAME) or notes.get(REF_NAME) or ""
    own = space / "layout"
    own.mkdir()
    (own / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (own / "blobs").symlink_to((path / "blobs").resolve())
    entry = {key: value for key, value in chosen.items() if key != "annotations"}
    (own / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return Source(f"oci:{own}", _short(str(name)))


def _is_descriptor(value: Any) -> bool:
    """Whether what we look at in it has the right type; skopeo checks the rest."""
    tables = ("platform", "annotations")
    return isinstance(value, dict) and all(
        isinstance(value.get(name), dict | None) for name in tables
    )


def _check_digest(path: Path, entry: dict[str, Any]) -> None:
    """Compare the manifest with its digest: skopeo does so for every blob but this one."""
    algorithm, _, value = str(entry.get("digest")).partition(":")
    blob = path / "blobs" / algorithm / value
    if algorithm != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise BadInput(f"the index of {path.name} has no sha256 digest", EXPORT)
    try:
        data = _read_small(blob)
    except OSError as error:
        raise BadInput(f"the manifest is missing in {path.name}", EXPORT) from error
    if hashlib.sha256(data).hexdigest() != value:
        raise BadInput(f"the manifest in {path.name} does not fit its digest", EXPORT)


def _check_blobs(path: Path) -> None:
    """Refuse a layout with a blob that is no file: skopeo would wait at a pipe."""
    for folder, _, names in os.walk(path / "blobs"):
        for name in names:
            if not stat.S_ISREG(os.stat(os.path.join(folder, name)).st_mode):
                raise BadInput(f"the blob {name[:19]} in {path.name} is no regular file", EXPORT)


def _choose(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """The one image for this host; an index inside the index is left to skopeo."""
    images = [
        one for one in manifests if (one.get("platform") or {}).get("architecture") != "unknown"
    ]
    if len(images) == 1:
        return images[0]
    if not images:
        raise BadInput("the archive holds no image", EXPORT)
    architecture = host_architecture()
    platforms = [one.get("platform") or {} for one in images]
    fitting = [
        one
        for one, platform in zip(images, platforms, strict=True)
        if platform.get("architecture") == architecture and platform.get("os", "linux") == "linux"
    ]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting and all(platforms):
        offered = ", ".join(sorted({str(one.get("architecture")) for one in platforms}))
        raise BadInput(
            f"the archive has no image for {architecture}, only for {offered}",
            f"export the {architecture} image",
        )
    tags = sorted(str((one.get("annotations") or {}).get(REF_NAME, "unnamed")) for one in images)
    raise BadInput(
        f"the archive holds several images: {', '.join(tags)}",
        "copy one out first: skopeo copy oci:FOLDER:NAME oci-archive:one.tar",
    )


def _decompressed(path: Path, space: Path, max_bytes: int) -> Path:
    """The archive as a plain tar: skopeo's own decompression fails on small ones."""
    with path.open("rb") as handle:
        head = handle.read(6)
    opener = next((made for magic, made in DECOMPRESSORS.items() if head.startswith(magic)), None)
    if opener is None:
        return path
    plain = space / "archive.tar"
    with opener(path) as source, plain.open("wb") as output:
        while chunk := source.read(1 << 20):
            output.write(chunk)
            if output.tell() > max_bytes:
                raise too_large(path.name, max_bytes)
    return plain


def _docker(
    shown: str,
    path: Path,
    archive: tarfile.TarFile,
    members: list[tarfile.TarInfo],
    space: Path,
) -> Source:
    member = next(one for one in members if os.path.normpath(one.name) == "manifest.json")
    handle = archive.extractfile(member)
    if handle is None or member.size > LARGEST_JSON_BYTES:
        raise BadInput(f"manifest.json in {shown} cannot be read", EXPORT)
    images = json.loads(handle.read())
    if not isinstance(images, list) or not all(isinstance(one, dict) for one in images):
        raise BadInput(f"manifest.json in {shown} is malformed", EXPORT)
    if len(images) != 1:
        raise BadInput(f"{shown} holds {len(images)} images", "docker save one image at a time")
    link = space / "source.tar"  # skopeo splits references at colons; this path has none
    link.symlink_to(path.resolve())
    tags = images[0].get("RepoTags") or [""]
    if not isinstance(tags, list):
        raise BadInput(f"manifest.json in {shown} is malformed", EXPORT)
    return Source(f"docker-archive:{link}", _short(str(tags[0])))


def _short(name: str) -> str:
    """A name without Docker's defaults: ``docker.io/library/app:latest`` is ``app``."""
    for prefix in ("docker.io/library/", "docker.io/"):
        name = name.removeprefix(prefix)
    return name.removesuffix(":latest")


def remove_copy(space: Path) -> None:
    """Give back the disk that `locate` took, once the image has been copied."""
    shutil.rmtree(space / "archive", ignore_errors=True)
    (space / "archive.tar").unlink(missing_ok=True)
