"""The blob cache: manifests, configurations and layers of images, by digest.

What a pull that was cut short has fetched stays here, layers that images share are fetched
once, and an image is pushed as it came, byte for byte. `layout` makes an OCI layout out of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench.cache import cache_dir
from bench.errors import BadInput
from bench.image.erofs import sha256_file

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
KEPT_S = 86400.0
"""How long what no image names is kept: the parts of a pull that is to go on."""


def folder() -> Path:
    """The blob cache, as skopeo shares it between layouts: one folder per algorithm."""
    cache_dir("blobs", "sha256")
    return cache_dir("blobs")


def path(digest: str) -> Path:
    """The file of a digest, whether it is there or not."""
    return cache_dir("blobs", "sha256") / digest.removeprefix("sha256:")


def put(data: bytes) -> str:
    """Keep some bytes; returns their digest."""
    value = sha256(data).hexdigest()
    final = path(value)
    draft = final.with_name(f".{value[:16]}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(final)
    return f"sha256:{value}"


def keep(source: Path, digest: str) -> None:
    """Keep a file whose digest is known to be right: a hard link, no copy."""
    if not path(digest).exists():
        os.link(source, path(digest))


@contextmanager
def in_use() -> Iterator[None]:
    """While this is held nothing is swept: what is fetched now is named only at the end."""
    with (cache_dir("locks") / "blobs.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def layers_of(manifest: dict[str, Any], what: str) -> dict[str, int]:
    """Every layer's digest with its size in bytes.

    Raises:
        BadInput: the manifest is malformed.
    """
    found: dict[str, int] = {}
    layers = manifest.get("layers")
    for layer in layers if isinstance(layers, list) else [None]:
        digest = layer.get("digest") if isinstance(layer, dict) else None
        size = layer.get("size") if isinstance(layer, dict) else None
        if not (isinstance(digest, str) and DIGEST.fullmatch(digest) and isinstance(size, int)):
            raise BadInput(f"the manifest of {what} is malformed", "push it again")
        found[digest] = max(0, size)
    return found


def drop_damaged(layers: Iterable[str]) -> None:
    """Take away what does not fit its digest any more: it is fetched again."""
    for digest in layers:
        if path(digest).is_file() and sha256_file(path(digest)) != digest:
            path(digest).unlink(missing_ok=True)


def parts(manifest_digest: str) -> set[str]:
    """The digests an image consists of; empty where its manifest is not here."""
    try:
        manifest = json.loads(path(manifest_digest).read_bytes())
        config = str(manifest["config"]["digest"])
        return {manifest_digest, config, *(str(layer["digest"]) for layer in manifest["layers"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def complete(manifest_digest: str) -> bool:
    """Whether every part of an image is here."""
    digests = parts(manifest_digest)
    return bool(digests) and all(path(digest).is_file() for digest in digests)


def layout(manifest_digest: str, space: Path) -> Path:
    """An OCI layout with one image, its blobs those of the cache."""
    own = space / f"layout-{manifest_digest[-12:]}"
    own.mkdir()
    manifest = path(manifest_digest)
    kind = json.loads(manifest.read_bytes()).get("mediaType") or OCI_MANIFEST
    entry = {"mediaType": kind, "digest": manifest_digest, "size": manifest.stat().st_size}
    (own / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (own / "blobs").symlink_to(folder())
    (own / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return own


def sweep(named: Iterable[str], dropped: Iterable[str]) -> None:
    """Remove what belongs to no image.

    Args:
        named: manifest digests of the images there are.
        dropped: those of images just removed or replaced, whose parts go at once.
    """
    with (cache_dir("locks") / "blobs.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # somebody is pulling: the next one sweeps
            return
        wanted = {digest.removeprefix("sha256:") for one in named for digest in parts(one)}
        gone = {digest.removeprefix("sha256:") for one in dropped for digest in parts(one)}
        for file in cache_dir("blobs", "sha256").iterdir():
            old = time.time() - file.lstat().st_mtime > KEPT_S
            if file.name not in wanted and (file.name in gone or old):
                file.unlink(missing_ok=True)
