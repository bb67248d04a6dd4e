"""The images a user can name: resolve, prepare, list, inspect, remove, import.

This is what the rest of hvct calls; how an image comes into being is in its own module.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench.errors import BadInput, HostCannot, HvctError
from bench.image import busybox, debian, index, oci
from bench.image.index import Progress, silent
from bench.image.users import ids_of
from bench.model import Ids, Image

BUILTIN: dict[str, Callable[[Progress], Image]] = {
    debian.NAME: debian.default_image,
    busybox.NAME: busybox.busybox_image,
}


def known_names() -> list[str]:
    """Every name that `prepare` accepts: the built-in ones and the imported ones."""
    return sorted({*BUILTIN, *(entry.image.name for entry in index.entries())})


def check_name(name: str) -> None:
    """Make sure that `prepare` will know this name, without building anything.

    Raises:
        BadInput: there is no such image.
    """
    if name not in BUILTIN and index.load(name) is None:
        raise BadInput(
            f"there is no image {name!r}",
            f"use one of {', '.join(known_names())}, or hvct image import ARCHIVE --name {name}",
        )


def built(name: str) -> bool:
    """True when the image of this name is in the cache (there may be no cache at all)."""
    try:
        return index.load(name) is not None
    except HostCannot:
        return False


def resolve(name: str) -> Image:
    """The image of this name, as it is in the cache now.

    Raises:
        BadInput: there is no such image.
        HvctError: it is a built-in one and has not been built yet.
    """
    check_name(name)
    entry = index.load(name)
    if entry is None:
        raise HvctError(f"the image {name} is not built yet", f"hvct image build {name}")
    return entry.image


def prepare(name: str, progress: Progress = silent) -> Image:
    """The image of this name, built first where it is a built-in one and missing or outdated.

    Raises:
        BadInput: there is no such image.
        HvctError: it cannot be built here (HostCannot: with the remedy).
    """
    check_name(name)
    return BUILTIN[name](progress) if name in BUILTIN else resolve(name)


def build_default(progress: Progress = silent) -> Image:
    """Build the default image anew, with the packages of today."""
    return debian.default_image(progress, fresh=True)


def import_archive(
    path: Path,
    name: str | None = None,
    progress: Progress = silent,
    max_bytes: int = oci.MAX_BYTES,
) -> Image:
    """Import an OCI layout (folder or tar) or a ``docker save`` archive under a name.

    Args:
        name: None for the one the archive itself gives, else its file name.
        max_bytes: most bytes its layers may unpack to.

    Raises:
        BadInput: it is no such archive, damaged, too large or for another architecture.
    """
    if name in BUILTIN:
        raise BadInput(f"{name} is the name of a built-in image", "choose another --name")
    return oci.import_archive(path, name, progress, max_bytes, taken=frozenset(BUILTIN))


def list_images() -> list[Image]:
    """All images in the cache, by name."""
    return [entry.image for entry in index.entries()]


def inspect(name: str) -> dict[str, object]:
    """Everything known about an image, ready for JSON.

    Raises:
        BadInput, HvctError: as `resolve`.
    """
    image = resolve(name)
    entry = index.load(name)
    created = entry.created if entry else 0.0
    return {
        **asdict(image),
        "path": str(image.path),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created)),
        "recipe": entry.recipe if entry else "",
    }


def remove(name: str) -> None:
    """Remove an image from the cache; a built-in one is built again when it is next needed.

    What is running from it goes on: the file only loses its name.

    Raises:
        BadInput: there is no such image.
    """
    check_name(name)
    index.forget(name)


def ids_for(image: Image, user: str | None) -> Ids:
    """Numbers of the user a workload runs as: `user` by the image's own tables, or its own.

    Raises:
        BadInput: the image has no such user or group.
    """
    if user is None:
        return image.config.ids
    entry = index.load(image.name)
    if entry is None or entry.image.digest != image.digest:
        raise HvctError(f"the image {image.name} was removed or replaced", "run it again")
    return ids_of(entry.accounts, user)
