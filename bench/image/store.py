"""The images a user can name: resolve, prepare, list, inspect, remove, import.

This is what the rest of hvct calls; how an image comes into being is in its own module.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.errors import BadInput, HostCannot, HvctError
from bench.image import blobs, busybox, debian, dockerfile, export, index, oci, reference, remote
from bench.image.archive import Source
from bench.image.index import Entry, Progress, silent
from bench.image.reference import Reference
from bench.image.remote import Access
from bench.image.users import ids_of
from bench.model import Ids, Image

BUILTIN: dict[str, Callable[[Progress], Image]] = {
    debian.NAME: debian.default_image,
    busybox.NAME: busybox.busybox_image,
}


def known_names() -> list[str]:
    """Every name that `prepare` accepts: the built-in ones and the imported ones."""
    return sorted({*BUILTIN, *(entry.image.name for entry in index.entries())})


def find(name: str) -> Entry | None:
    """The entry of a name, or of what a registry calls so; None when it is not in the cache."""
    entry = index.load(name)
    if entry is None and name not in BUILTIN and reference.explicit(name):
        with contextlib.suppress(BadInput):
            return _pulled(reference.parse(name))
    return entry


def _pulled(wanted: Reference) -> Entry | None:
    for entry in index.entries():
        same = entry.remote == wanted.full
        if same or (wanted.digest and wanted.digest in (entry.remote_digest, entry.recipe)):
            return entry
    return None


def check_name(name: str) -> None:
    """Make sure that `prepare` will know this name, without building or pulling anything.

    Raises:
        BadInput: there is no such image, and it cannot be meant as one of a registry.
    """
    if name in BUILTIN or find(name) is not None:
        return
    if reference.explicit(name):
        reference.parse(name)
        return
    raise BadInput(
        f"there is no image {name!r}",
        f"use one of {', '.join(known_names())}, or hvct image pull {name},"
        f" or hvct image import ARCHIVE --name {name}",
    )


def built(name: str) -> bool:
    """True when the image of this name is in the cache (there may be no cache at all)."""
    try:
        return find(name) is not None
    except HostCannot:
        return False


def digests(names: Iterable[str]) -> dict[str, str]:
    """Digest of each of these images that is in the cache."""
    return {name: resolve(name).digest for name in dict.fromkeys(names) if built(name)}


def resolve(name: str) -> Image:
    """The image of this name, as it is in the cache now.

    Raises:
        BadInput: there is no such image in the cache.
        HvctError: it is a built-in one and has not been built yet.
    """
    return _entry(name).image


def _entry(name: str) -> Entry:
    check_name(name)
    entry = find(name)
    if entry is None:
        if name in BUILTIN:
            raise HvctError(f"the image {name} is not built yet", f"hvct image build {name}")
        raise BadInput(f"there is no image {name!r} in the cache", f"hvct image pull {name}")
    return entry


def prepare(name: str, progress: Progress = silent, *, offline: bool = False) -> Image:
    """The image of this name: a built-in one is built where it is missing or outdated.

    One of a registry is pulled where it is missing; what is in the cache is taken as it is.

    Raises:
        BadInput: there is no such image.
        HvctError: it cannot be built or pulled here (HostCannot: with the remedy).
    """
    check_name(name)
    if name in BUILTIN:
        return BUILTIN[name](progress)
    entry = find(name)
    return entry.image if entry else pull(name, progress=progress, offline=offline)[0]


def ensure(text: str, progress: Progress = silent, *, offline: bool = False) -> Image:
    """The image a user means: a name, a registry's reference, or the path of an archive.

    Raises:
        BadInput, HvctError: as `prepare` and `import_archive`.
    """
    return import_archive(Path(text), None, progress) if is_path(text) else prepare(
        text, progress, offline=offline
    )  # fmt: skip


def is_path(text: str) -> bool:
    """Whether a user means a file or folder: written as one, or it exists and is no name."""
    if text.startswith(("/", "./", "../")):
        return True
    if text in BUILTIN or built(text):
        return False
    path = Path(text)
    return path.is_file() or (path / "index.json").is_file()


def pull(
    text: str,
    access: Access = Access(),  # noqa: B008 - frozen
    progress: Progress = silent,
    *,
    name: str | None = None,
    offline: bool = False,
    max_bytes: int = oci.MAX_BYTES,
) -> tuple[Image, str]:
    """Bring an image of a registry into the cache; what is there already is not fetched again.

    Args:
        name: what it is called here; None for what one usually calls it (``nginx:1.27``).
        offline: take it from the cache, and ask nobody.

    Returns:
        The image, and what the user should be told about it ("" for nothing).

    Raises:
        BadInput: no such image, none for this host, damaged, too large, or access denied.
        HostCannot: the registry does not answer, and it is not in the cache; or not root.
    """
    wanted = reference.parse(text)
    called = wanted.full if wanted.familiar in BUILTIN else wanted.familiar
    chosen = oci.check_image_name(name or called)
    if chosen in BUILTIN:
        raise BadInput(f"{chosen} is the name of a built-in image", "choose another --name")
    cached = _pulled(wanted)
    if cached is not None and name is not None and cached.image.name != name:
        cached = None
    if cached is not None and (offline or wanted.digest):
        return cached.image, "in the cache already"
    if offline:
        raise HostCannot(f"{wanted.full} is not in the cache", "pull it without --offline")
    with _replacing(), blobs.in_use(), index.build_space() as space:
        progress(f"asking {wanted.domain}", None)
        try:
            found = remote.resolve(wanted, access, space)
        except remote.Unreachable as error:
            if cached is None:
                raise
            pulled = time.strftime("%Y-%m-%d %H:%M", time.localtime(cached.created))
            return cached.image, f"{error.message}; taking the one pulled on {pulled}"
        if cached is not None and cached.recipe == found.manifest_digest:
            return cached.image, "up to date"
        oci.check_architecture(remote.read(found.config, wanted), wanted.full)
        remote.fetch(found, access, space, progress, max_bytes)
        layout = blobs.layout(found.manifest_digest, space)
        image = oci.import_source(
            Source(f"oci:{layout}", ""),
            chosen,
            wanted.full,
            space,
            progress,
            max_bytes,
            kept=found.manifest_digest,
            remote=wanted.full,
            remote_digest=found.digest,
        )
    return image, ""


def push(
    name: str,
    text: str,
    access: Access = Access(),  # noqa: B008 - frozen
    progress: Progress = silent,
) -> tuple[str, str]:
    """Push an image of the cache; returns where it is now and its digest there.

    Raises:
        BadInput: there is no such image, or the registry refuses.
        HostCannot: the registry does not answer.
    """
    wanted, entry = reference.parse(text), _entry(name)
    with blobs.in_use(), index.build_space() as space:
        layout = export.layout_of(entry, space, progress)
        progress(f"pushing to {wanted.domain}", None)
        return wanted.full, remote.push(layout, wanted, access, space)


def build_folder(
    folder: Path,
    name: str | None = None,
    progress: Progress = silent,
    *,
    file: Path | None = None,
    arguments: Sequence[str] = (),
    offline: bool = False,
    max_bytes: int = oci.MAX_BYTES,
) -> Image:
    """Build a folder's Dockerfile; what it builds on is taken from the cache where it is there.

    Raises:
        BadInput: it cannot be built.
        HostCannot: not root, or buildah is not installed.
    """
    chosen = name or re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._")
    chosen = oci.check_image_name(chosen or "built")
    if chosen in BUILTIN:
        raise BadInput(f"{chosen} is the name of a built-in image", "choose another with -t")

    def base(wanted: str, space: Path) -> Path | None:
        if wanted in BUILTIN:
            prepare(wanted, progress)
        entry = find(wanted)
        return None if entry is None else export.layout_of(entry, space, progress)

    with _replacing(), blobs.in_use():
        return dockerfile.build(
            folder,
            chosen,
            base,
            progress,
            file=file,
            arguments=arguments,
            offline=offline,
            max_bytes=max_bytes,
        )


@contextlib.contextmanager
def _replacing() -> Iterator[None]:
    """Parts of images that have lost their name meanwhile go, once all has gone well."""
    before = {entry.recipe for entry in index.entries()}
    yield
    after = {entry.recipe for entry in index.entries()}
    blobs.sweep(after, before - after)


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
    with _replacing():
        return oci.import_archive(path, name, progress, max_bytes, taken=frozenset(BUILTIN))


def list_images() -> list[Image]:
    """All images in the cache, by name."""
    return [entry.image for entry in index.entries()]


def inspect(name: str) -> dict[str, object]:
    """Everything known about an image, ready for JSON.

    Raises:
        BadInput, HvctError: as `resolve`.
    """
    entry = _entry(name)
    return {
        **asdict(entry.image),
        "path": str(entry.image.path),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.created)),
        "recipe": entry.recipe,
        "remote": entry.remote,
        "remote_digest": entry.remote_digest,
    }


def remove(name: str) -> None:
    """Remove an image from the cache; a built-in one is built again when it is next needed.

    What is running from it goes on: the file only loses its name.

    Raises:
        BadInput: there is no such image.
    """
    check_name(name)
    entry = find(name)
    with _replacing():
        index.forget(entry.image.name if entry else name)


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
