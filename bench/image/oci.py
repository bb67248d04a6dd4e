"""An OCI image, from anything skopeo can copy, as an image of the cache.

skopeo copies (and checks digests, picks our architecture, recompresses what umoci cannot
read), umoci unpacks the layers, we check what neither does.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.command import run
from bench.errors import BadInput, HostCannot, HvctError
from bench.image import archive, blobs, config, index
from bench.image.archive import Source, read_json
from bench.image.erofs import normalise_times
from bench.image.index import Progress
from bench.image.members import DAMAGE, EXPORT, Budget, read_layer
from bench.image.users import make_folders, read_accounts
from bench.model import Image

MAX_BYTES = 20 << 30
MOST_LAYERS = 500  # umoci takes 50 ms for an empty one
TAG = "image"
WITHOUT_ROOT = ", unpacked without root: all files are root's, device nodes empty files"
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
LONGEST_NAME = 200


@dataclass(frozen=True)
class _Layout:
    """The OCI layout skopeo wrote, with its one image opened.

    Attributes:
        settings: the image's configuration as its source has it: converting a Docker image to
            OCI drops what only Docker knows, such as its HEALTHCHECK.
    """

    path: Path
    manifest_digest: str
    layers: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def parts(self) -> tuple[str, ...]:
        """Every digest of it."""
        manifest = read_json(self.blob(self.manifest_digest))
        return (self.manifest_digest, str(manifest["config"]["digest"]), *self.layers)

    def blob(self, digest: str) -> Path:
        """The file of a digest."""
        return self.path / "blobs" / digest.replace(":", "/")


def import_archive(
    path: Path,
    name: str | None,
    progress: Progress,
    max_bytes: int = MAX_BYTES,
    taken: frozenset[str] = frozenset(),
) -> Image:
    """Import an OCI layout or ``docker save`` archive; see `bench.image.store.import_archive`."""
    if name is not None:
        check_image_name(name)
    with index.build_space() as space:
        progress("reading the archive", 0.0)
        source = archive.locate(path, space, max_bytes)
        own = source.name if source.name not in taken else ""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name.removesuffix(path.suffix)).strip("-._")
        chosen = check_image_name(name or own or stem or "imported")
        if chosen in taken:
            raise BadInput(f"{chosen} is the name of a built-in image", "choose one with --name")
        return import_source(source, chosen, path.name, space, progress, max_bytes)


def check_image_name(name: str) -> str:
    """The name itself, when it may be one.

    Raises:
        BadInput: it has characters that no image name has, or is too long.
    """
    if not NAME_PATTERN.fullmatch(name) or len(quote(name, safe="")) > LONGEST_NAME:
        raise BadInput(
            f"{name[:60]!r} cannot be an image's name", "use letters, digits and . _ - / :"
        )
    return name


def import_source(
    source: Source,
    name: str,
    origin: str,
    space: Path,
    progress: Progress,
    max_bytes: int,
    *,
    kept: str = "",
    remote: str = "",
    remote_digest: str = "",
) -> Image:
    """Import what one skopeo reference means.

    Args:
        origin: what the user called it, for messages and the report.
        kept: digest of its manifest where the blob cache has all its parts already.
        remote, remote_digest: as `bench.image.index.Entry` has them.

    Raises:
        BadInput: it is damaged, too large or for another architecture.
        HostCannot: skopeo or umoci is missing.
    """
    progress("copying the image", 0.1)
    layout = copy(source, origin, space)
    archive.remove_copy(space)
    check_architecture(layout.settings, origin)
    progress("checking the layers", 0.3)
    newest = check_layers(layout, origin, max_bytes)
    progress("unpacking the layers", 0.5)
    tree = unpack(layout, origin, space)
    settings = config.parse(layout.settings.get("config"), read_accounts(tree))
    make_folders(tree, settings.volumes)
    normalise_times(tree, newest)
    progress("writing the image", 0.8)
    recipe = kept or layout.manifest_digest
    try:
        image = index.store_tree(
            name,
            tree,
            settings,
            source=f"{origin} ({recipe[:19]}{WITHOUT_ROOT if os.geteuid() else ''})",
            recipe=recipe,
            remote=remote,
            remote_digest=remote_digest,
        )
    except (BadInput, HostCannot):
        raise
    except HvctError as error:  # of mkfs.erofs, about something in this tree
        raise BadInput(f"{origin} holds what no volume can: {error.message}", EXPORT) from error
    if not kept:
        for digest in layout.parts:
            blobs.keep(layout.blob(digest), digest)
    return image


def need_root() -> None:
    """Owners and devices of an image can be made by root alone.

    Raises:
        HostCannot: we are not.
    """
    if os.geteuid() != 0:
        raise HostCannot("unpacking an image with its owners and devices needs root", "use sudo")


def copy(source: Source, origin: str, space: Path) -> _Layout:
    """Copy the image of our architecture into a layout of our own, every layer gzip.

    Raises:
        BadInput: it cannot be read, or there is none for this architecture.
    """
    target = space / "oci"
    temporary = space / "skopeo"
    temporary.mkdir(exist_ok=True)
    ours: list[str | Path] = [
        *("skopeo", "--insecure-policy", "--tmpdir", temporary),
        *("--override-os", "linux", "--override-arch", index.host_architecture()),
    ]
    try:
        run(
            [
                *(*ours, "copy", "--quiet", "--dest-compress-format", "gzip"),
                source.reference,
                f"oci:{target}:{TAG}",
            ],
            timeout_s=1800,
        )
        raw = run([*ours, "inspect", "--config", "--raw", source.reference])
    except HostCannot:
        raise
    except HvctError as error:
        raise _explained(error, origin) from error
    return _opened(target, raw, origin)


def _opened(path: Path, raw: bytes, origin: str) -> _Layout:
    """The layout skopeo wrote, with the configuration as it was before skopeo converted it.

    Raises:
        BadInput: a part of it is missing or of the wrong type; skopeo does not look.
    """

    def digest(descriptor: Any) -> str:
        value = descriptor["digest"]
        if not blobs.DIGEST.fullmatch(value):
            raise ValueError
        return str(value)

    layout = _Layout(path, "", (), {})
    try:
        (entry,) = read_json(path / "index.json")["manifests"]
        chosen = digest(entry)
        manifest = read_json(layout.blob(chosen))
        layers = tuple(digest(layer) for layer in manifest["layers"])
        config_blob = _add_blob(layout, raw)
        if config_blob != digest(manifest["config"]):
            manifest["config"] |= {"digest": config_blob, "size": len(raw)}
            chosen = _add_blob(layout, json.dumps(manifest, separators=(",", ":")).encode())
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"the manifest of {origin} is malformed", EXPORT) from error
    return _Layout(path, chosen, layers, read_json(layout.blob(config_blob)))


def _add_blob(layout: _Layout, data: bytes) -> str:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    layout.blob(digest).write_bytes(data)
    return digest


def _explained(error: HvctError, origin: str) -> HvctError:
    """What skopeo or umoci said, as one line for the user."""
    said = re.findall(r'msg="((?:[^"\\]|\\.)*)"', error.message) or [error.message]
    reason = str(said[-1]).replace('\\"', '"').rpartition("⨯ ")[2]  # umoci's mark of its last word
    if "no image found in" in reason:
        return _wrong_architecture(origin, "others")
    return BadInput(f"{origin} is damaged or no image: {reason}", EXPORT)


def _wrong_architecture(origin: str, found: str) -> BadInput:
    ours = index.host_architecture()
    return BadInput(f"{origin} is an image for {found}, not for {ours}", f"get it for {ours}")


def check_architecture(settings: dict[str, Any], origin: str) -> None:
    """Refuse an image for another machine: skopeo copies a single one whatever it is for.

    Raises:
        BadInput: it is for another architecture or operating system.
    """
    found = str(settings.get("architecture", "")) or "an unnamed architecture"
    system = str(settings.get("os", "linux"))
    if system != "linux":
        raise _wrong_architecture(origin, f"{system}/{found}")
    if found != index.host_architecture():
        raise _wrong_architecture(origin, found)


def check_layers(layout: _Layout, origin: str, max_bytes: int) -> int:
    """Read every layer once, as a whole; returns the newest time in them (s since the epoch).

    That finds truncation and bombs before anything is written. The newest time is the cap
    for whatever unpacking itself stamps, such as folders no layer mentions.

    Raises:
        BadInput: a layer is damaged or not to be unpacked, or all are larger than allowed.
    """
    if len(layout.layers) > MOST_LAYERS:
        raise BadInput(
            f"{origin} has {len(layout.layers)} layers, more than {MOST_LAYERS}",
            "squash it: container engines stop at 127",
        )
    budget = Budget(origin, max_bytes)
    for digest in layout.layers:
        try:
            with layout.blob(digest).open("rb") as raw, gzip.open(raw) as stream:
                read_layer(stream, budget)
        except (*DAMAGE, OSError) as error:
            raise BadInput(f"a layer of {origin} is damaged: {error}", EXPORT) from error
    return budget.newest


def unpack(layout: _Layout, origin: str, space: Path) -> Path:
    """Apply the layers in order, with owners, whiteouts, devices and attributes.

    Raises:
        BadInput: umoci refuses a layer.
    """
    tree = space / "tree"
    try:
        # "raw": no bundle. For its configuration umoci opens the image's /etc/passwd, which
        # may be a pipe, and it would hash every file.
        way = [] if os.geteuid() == 0 else ["--rootless"]
        image = f"{layout.path}:{TAG}"
        run(["umoci", "raw", "unpack", *way, "--image", image, tree], timeout_s=1800)
    except HostCannot:
        raise
    except HvctError as error:
        raise _explained(error, origin) from error
    return tree
