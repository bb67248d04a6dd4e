"""A Dockerfile as an image of the cache, through buildah; with no network where it needs none.

Each build has a store of its own in a workspace, gone when it ends, and process and mount
namespaces of its own: what a ``RUN`` starts or mounts cannot outlive it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.command import run
from bench.errors import BadInput, HostCannot, HvctError
from bench.image import oci
from bench.image.archive import Source
from bench.image.index import Progress, build_space
from bench.image.reference import parse
from bench.model import Image

NAMES = ("Dockerfile", "Containerfile")
LARGEST_BYTES = 1 << 20
TIMEOUT_S = 7200.0
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'
TAG = "localhost/hvct-build:latest"

Base = Callable[[str, Path], Path | None]
"""The OCI layout of an image of the cache by its name, made in a workspace; None: unknown."""


def find_dockerfile(folder: Path, chosen: Path | None = None) -> Path:
    """The file that says how to build.

    Raises:
        BadInput: there is none.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder", "hvct image build --help shows how")
    for path in [chosen] if chosen else [folder / name for name in NAMES]:
        if path.is_file():
            return path
    raise BadInput(f"{chosen or folder} has no Dockerfile", "write one, or name it with --file")


def bases(text: str, arguments: dict[str, str]) -> Iterator[str]:
    """The images a Dockerfile builds on, its ARGs filled in; not its own stages, nor scratch."""
    known, stages = dict(arguments), set[str]()
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        kind, rest = words[0].upper(), [word for word in words[1:] if not word.startswith("--")]
        if kind == "ARG" and rest:
            name, equals, value = rest[0].partition("=")
            if equals:
                known.setdefault(name, value.strip("\"'"))
        sources = re.findall(r"--from=(\S+)", line) if kind == "COPY" else []
        if kind == "FROM" and rest:
            sources = rest[:1]
        for source in sources:
            name = re.sub(
                r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))",
                lambda found: known.get(found[1] or found[3], found[2] or ""),
                source,
            )
            if name and name != "scratch" and name.lower() not in stages and not name.isdigit():
                yield name
        if kind == "FROM" and len(rest) == 3 and rest[1].upper() == "AS":
            stages.add(rest[2].lower())


def build(
    folder: Path,
    name: str,
    base: Base,
    progress: Progress,
    *,
    file: Path | None = None,
    arguments: Sequence[str] = (),
    offline: bool = False,
    max_bytes: int = oci.MAX_BYTES,
) -> Image:
    """Build a folder's Dockerfile.

    Args:
        arguments: ``NAME=VALUE`` for its ARGs.
        offline: pull no base image: they are in the cache.

    Raises:
        BadInput: no Dockerfile, or one of its steps fails; the last lines it said are told.
        HostCannot: not root, or buildah is not installed.
    """
    chosen = find_dockerfile(folder, file)
    oci.need_root()
    if shutil.which("buildah") is None:
        raise HostCannot("buildah is not installed", "apt-get install buildah")
    for argument in arguments:
        if not re.match(r"\w+=", argument):
            raise BadInput(f"--build-arg {argument!r} is no NAME=VALUE", "write it as NAME=VALUE")
    with chosen.open("rb") as handle:
        text = handle.read(LARGEST_BYTES).decode("utf-8", "replace")
    with build_space() as space:
        own = _options(space)
        pairs = dict(argument.split("=", 1) for argument in arguments)
        for number, wanted in enumerate(dict.fromkeys(bases(text, pairs))):
            room = space / f"base{number}"
            room.mkdir()
            if layout := base(wanted, room):
                progress(f"taking {wanted} from the cache", None)
                _load(layout, wanted, space)
        progress(f"building {name}", None)
        try:
            run(
                [
                    *(*_contained(), "buildah", *own, "build", "--isolation", "chroot"),
                    *("--format", "docker", "--tag", TAG, "--file", chosen.resolve()),
                    *(f"--build-arg={argument}" for argument in arguments),
                    *(("--pull-never",) if offline else ()),
                    *("--signature-policy", space / "policy.json", folder.resolve()),
                ],
                timeout_s=TIMEOUT_S,
                env=_environment(space),
            )
            run(
                [
                    *(*_contained(), "buildah", *own, "push", "--quiet", "--disable-compression"),
                    *("--signature-policy", space / "policy.json", TAG, f"dir:{space / 'built'}"),
                ],
                timeout_s=TIMEOUT_S,
                env=_environment(space),
            )
        except HostCannot:
            raise
        except HvctError as error:
            raise _explained(error, folder) from error
        shutil.rmtree(space / "store", ignore_errors=True)  # room for what comes
        source = Source(f"dir:{space / 'built'}", "")
        return oci.import_source(
            source, name, f"{folder.name}/{chosen.name}", space, progress, max_bytes
        )


def _contained() -> tuple[str, ...]:
    return (
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
    )


def _options(space: Path) -> tuple[str, ...]:
    """Where buildah keeps what it makes; also writes the files it wants."""
    (space / "policy.json").write_text(POLICY)
    # A short name that is not in the cache is Docker's, as everywhere in hvct.
    (space / "registries.conf").write_text('unqualified-search-registries = ["docker.io"]\n')
    (space / "storage.conf").write_text('[storage]\ndriver = "vfs"\n')
    return (
        *("--root", str(space / "store"), "--runroot", str(space / "run")),
        *("--storage-driver", "vfs"),
    )


def _environment(space: Path) -> dict[str, str]:
    return {
        **os.environ,
        "TMPDIR": str(space),
        "CONTAINERS_REGISTRIES_CONF": str(space / "registries.conf"),
        "CONTAINERS_STORAGE_CONF": str(space / "storage.conf"),
    }


def _load(layout: Path, wanted: str, space: Path) -> None:
    """Put a layout's image into the build's own store, under the name the Dockerfile uses."""
    where = f"[vfs@{space / 'store'}+{space / 'run'}]"
    names = {parse(wanted).full}
    if re.fullmatch(r"[a-z0-9._-]+(:[\w.-]+)?", wanted):
        names.add(f"localhost/{wanted if ':' in wanted else wanted + ':latest'}")
    for name in sorted(names):
        run(
            [
                *(*_contained(), "skopeo", "--insecure-policy", "copy", "--quiet"),
                *(f"oci:{layout}", f"containers-storage:{where}{name}"),
            ],
            timeout_s=1800,
            env=_environment(space),
        )


def _explained(error: HvctError, folder: Path) -> BadInput:
    said = re.sub(r"^\w+ failed with status \d+: ", "", error.message)
    return BadInput(f"{folder} cannot be built: {said}", "mend its Dockerfile")
