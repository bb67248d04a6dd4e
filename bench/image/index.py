"""The cache's index: one ``.erofs`` per content, one small JSON file per name.

``<cache>/images/sha256-….erofs`` is addressed by content; ``<cache>/images/<name>.json``
says which of them a name means and how it is run. Two names may share one volume and
differ in configuration. Everything may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.cache import cache_dir, lock, publish, remove_tree, workspace
from bench.errors import BadInput, HostCannot, HvctError, oserror
from bench.image.erofs import make_volume
from bench.image.users import Accounts, ids_of, read_accounts
from bench.model import Healthcheck, Image, ImageConfig

FORMAT = 1
PREFIX = "image"  # of our folders below <cache>/tmp

Progress = Callable[[str, float | None], None]
"""Called with what is being done and how much of it is (0 to 1, None when unknown)."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "ppc64le": "ppc64le"}


def silent(what: str, fraction: float | None) -> None:
    """A progress callback that shows nothing."""


def host_architecture() -> str:
    """The host's architecture by its OCI name (``amd64``, ``arm64``)."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())


@dataclass(frozen=True)
class Entry:
    """What the index knows of one name.

    Attributes:
        recipe: what it was built from; a built-in whose recipe has changed is built anew.
            For one that came from outside, the digest of its manifest: its parts are kept.
        created: seconds since the epoch.
        accounts: the image's own users, so that a workload may name another one.
        remote: where a registry has it (``docker.io/library/nginx:1.27``), "" for others.
        remote_digest: what that meant when it was pulled.
    """

    image: Image
    recipe: str
    created: float
    accounts: Accounts
    remote: str = ""
    remote_digest: str = ""


def images_dir() -> Path:
    """Where volumes and index live."""
    return cache_dir("images")


def entry_path(name: str) -> Path:
    """The index file of a name; any name is a valid one."""
    return images_dir() / f"{quote(name, safe='')}.json"


def volume_path(digest: str) -> Path:
    """The volume of a digest ``sha256:…``."""
    return images_dir() / f"{digest.replace(':', '-')}.erofs"


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in fields.items()}


def _decode(text: str) -> Entry:
    data = json.loads(text)
    if data["format"] != FORMAT:
        raise ValueError("another format")
    fields: dict[str, Any] = data["image"]
    config: dict[str, Any] = fields.pop("config")
    config.pop("ids")  # derived from what follows, by the rules of today
    health = config.pop("healthcheck", None)
    accounts = Accounts(**data["accounts"])
    env = tuple((name, value) for name, value in config.pop("env"))
    image = Image(
        **_tuples(fields),
        path=volume_path(fields["digest"]),
        config=ImageConfig(
            **_tuples(config),
            env=env,
            ids=ids_of(accounts, config["user"]),
            healthcheck=Healthcheck(**_tuples(health)) if health else None,
        ),
    )
    remote, remote_digest = data.get("remote", ""), data.get("remote_digest", "")
    return Entry(image, data["recipe"], data["created"], accounts, remote, remote_digest)


def load(name: str) -> Entry | None:
    """The entry of a name; None when there is none, or it or its volume is damaged."""
    try:
        entry = _decode(entry_path(name).read_text())
        if entry.image.path.stat().st_size != entry.image.size_bytes:
            return None
    except (OSError, ValueError, KeyError, TypeError, BadInput):
        return None
    return entry


def entries() -> list[Entry]:
    """All entries, by name."""
    found = []
    for path in sorted(images_dir().glob("*.json")):
        try:
            name = str(json.loads(path.read_text())["image"]["name"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        entry = load(name)
        if entry is not None:
            found.append(entry)
    return found


def _publish(entry: Entry, volume: Path) -> None:
    """Volume first, so that a name never lies; then drop what no name means any more."""
    fields = asdict(entry.image)
    del fields["path"]
    record = {
        "format": FORMAT,
        "image": fields,
        "recipe": entry.recipe,
        "created": entry.created,
        "accounts": asdict(entry.accounts),
        "remote": entry.remote,
        "remote_digest": entry.remote_digest,
    }
    made = volume.with_suffix(".json")
    made.write_text(json.dumps(record, indent=1))
    with lock("image-index"):
        publish(volume, entry.image.path)
        publish(made, entry_path(entry.image.name))
        _drop_unnamed()


def _drop_unnamed() -> None:
    """Remove volumes that no name means: replaced ones, and those of killed builds.

    Who has one mounted or open keeps it until he lets go of it.
    """
    meant = {entry.image.path for entry in entries()}
    for path in images_dir().glob("*.erofs"):
        if path not in meant:
            path.unlink(missing_ok=True)


def store_tree(
    name: str,
    tree: Path,
    config: ImageConfig,
    *,
    source: str,
    recipe: str,
    architecture: str | None = None,
    packages: tuple[str, ...] = (),
    remote: str = "",
    remote_digest: str = "",
) -> Image:
    """Turn a tree inside a workspace into an image of the cache.

    Raises:
        HvctError: the volume cannot be made or stored.
    """
    accounts = read_accounts(tree)
    config = replace(config, ids=ids_of(accounts, config.user))
    volume = make_volume(tree, tree.parent / "volume.erofs")
    image = Image(
        name=name,
        digest=volume.digest,
        path=volume_path(volume.digest),
        size_bytes=volume.size_bytes,
        uuid=volume.uuid,
        architecture=architecture or host_architecture(),
        config=config,
        source=source,
        packages=packages,
        newest_mtime=volume.newest_mtime,
    )
    entry = Entry(image, recipe, time.time(), accounts, remote, remote_digest)
    _publish(entry, volume.path)
    return image


def forget(name: str) -> bool:
    """Remove a name, and its volume when no other name means it. True when there was one."""
    with lock("image-index"):
        try:
            entry_path(name).unlink()
        except FileNotFoundError:
            return False
        _drop_unnamed()
    return True


@contextmanager
def build_space() -> Iterator[Path]:
    """A workspace for one build; those of builds that were killed are swept first.

    A live one is held by a lock that dies with its process, which is how the dead are told.

    Raises:
        HostCannot: a file of the build could not be written (disk full), in one line.
    """
    with lock("image-sweep"):
        _sweep()
        space = workspace(PREFIX)
        path = space.__enter__()
        held = (path / "alive").open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield path
    except OSError as error:
        failure = oserror("write", error.filename or path, error)
        raise _about_space(failure) or failure from error
    except HvctError as error:
        raise _about_space(error) or error from error.__cause__
    finally:
        held.close()
        space.__exit__(None, None, None)


def _about_space(error: HvctError) -> HvctError | None:
    if "no space left" not in error.message.lower():
        return None
    return HostCannot(
        f"the disk of the cache {cache_dir()} is full: No space left on device",
        "free some space, or set XDG_CACHE_HOME to a folder on a larger disk",
    )


def _sweep() -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    for path in cache_dir("tmp").glob(f"{PREFIX}-*"):
        if str(path).replace(" ", "\\040") in mounts:  # never delete through a mount
            continue
        try:
            with (path / "alive").open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        remove_tree(path)


def fix_owner_and_mode(path: Path, mode: int) -> None:
    """Set a file's mode whatever the umask, and root as its owner where we may."""
    os.chmod(path, mode)
    if os.geteuid() == 0:
        os.chown(path, 0, 0, follow_symlinks=False)
