"""One file that holds a run: made to be sent, and reported from on any host.

A tar of the run directory under its own name, packed by gzip, or by the zstd program where the
file's name ends in ``.zst``; the same run gives the same bytes. Reading takes two members by
their names, into files that we name: nothing an archive says can choose a path.
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

from bench import command
from bench.errors import BadInput, HvctError, oserror
from bench.owner import hand_over
from bench.steps import STEPS_FILE
from bench.store import LOGS, RUN_FILE, TRIALS_FILE, load

SUFFIXES = (".hvct.tar.gz", ".hvct.tar.zst", ".tar.gz", ".tgz", ".tar.zst")
MOST_BYTES = 8 << 30
"""Of one member, unpacked: a run of many millions of trials; a bomb ends here."""

MOST_MEMBERS = 100_000
_CHUNK = 1 << 20
_HINT = "name a file made by hvct archive"


def pack(directory: Path, target: Path | None = None) -> Path:
    """Write a run directory into one file, without the reports made from it.

    Args:
        target: the file; its suffix chooses the packing. None: beside the run, by gzip.

    Raises:
        BadInput: it is no run, or the target's name is no archive's.
        HvctError: it could not be written.
    """
    load(directory)  # what is damaged is not sent on
    directory = directory.resolve()
    target = target or directory.with_name(f"{directory.name}{SUFFIXES[0]}")
    if stem(target) == target.name:
        raise BadInput(f"{target.name} is no name for an archive", f"end it in {SUFFIXES[0]}")
    if not target.absolute().parent.is_dir():
        raise BadInput(f"{target.parent} is no folder", "make it first, or name another --output")
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    unpacked = beside.with_name(f"{beside.name}.tar")
    try:
        with unpacked.open("xb") as plain, tarfile.open(fileobj=plain, mode="w") as tar:
            for path in members(directory):
                _add(tar, path, f"{directory.name}/{path.relative_to(directory)}")
        if target.name.endswith(".zst"):
            command.run(["zstd", "-q", "-12", "-o", beside, unpacked], hint="install zstd")
        else:
            with (
                beside.open("xb") as out,
                gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0) as packed,
                unpacked.open("rb") as source,
            ):
                _copy(source, packed)
        os.replace(beside, target)
    except OSError as error:
        raise oserror("write", target, error) from error
    finally:
        unpacked.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
    hand_over(target)
    return target


def members(directory: Path) -> list[Path]:
    """The regular files of a run that an archive holds, in a fixed order."""
    files = [directory / name for name in (RUN_FILE, TRIALS_FILE, STEPS_FILE)]
    wanted = [*files, *sorted((directory / LOGS).rglob("*"))]
    return [path for path in wanted if path.is_file() and not path.is_symlink()]


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    with path.open("rb") as handle:
        about = tarfile.TarInfo(name)
        about.size = os.fstat(handle.fileno()).st_size
        about.mode = 0o644  # owner and time stay 0: they say who packed, not what was measured
        tar.addfile(about, handle)


def stem(path: Path) -> str:
    """An archive's name without what says that it is one; any other file's name as it is."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix) and path.name != suffix:
            return path.name.removesuffix(suffix)
    return path.name


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The run directory at `path`: itself, or what an archive holds, for as long as this lasts.

    Raises:
        BadInput: the file is no archive of a run, or is damaged.
    """
    if not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="hvct-archive-") as room:
        folder = Path(room)
        try:
            with _tar(path) as tar:
                _take(tar, folder, path)
        except EOFError as error:
            raise BadInput(f"{path} is damaged: it ends too soon", _HINT) from error
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, ValueError) as error:
            raise BadInput(f"{path} is no archive of a run, or is damaged", _HINT) from error
        except HvctError as error:
            if type(error) is not HvctError:
                raise
            raise BadInput(f"{path} is damaged: {error.message}", _HINT) from error
        except OSError as error:
            failure = oserror("read", path, error)
            raise BadInput(failure.message, "make it readable, or run as its owner") from error
        yield folder


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    """The archive, unpacked while it is read, never to a disk, and to its end: its checksum."""
    with ExitStack() as stack:
        plain: IO[bytes]
        if path.name.endswith(".zst"):
            hint = "run ./hvct doctor, or pack it as .tar.gz"
            plain = stack.enter_context(command.stream(["zstd", "-q", "-d", "-c", path], hint=hint))
        else:
            plain = cast("IO[bytes]", stack.enter_context(gzip.open(path)))
        yield stack.enter_context(tarfile.open(fileobj=plain, mode="r|"))
        while plain.read(_CHUNK):
            pass


def _take(tar: tarfile.TarFile, folder: Path, path: Path) -> None:
    """Copy the files a report needs; whatever else there is stays where it is."""
    names = "|".join(map(re.escape, (RUN_FILE, TRIALS_FILE, STEPS_FILE)))
    pattern = re.compile(rf"[^/]+/({names})")
    for number, member in enumerate(tar):
        if number >= MOST_MEMBERS or member.size > MOST_BYTES:
            raise BadInput(f"{path} holds more than a run can be", _HINT)
        found = pattern.fullmatch(member.name)
        if found is None:
            continue
        handle = tar.extractfile(member) if member.isreg() else None
        if handle is None:
            raise BadInput(f"{path}: {found[1]} in it is no file of a run", _HINT)
        try:
            with (folder / found[1]).open("xb") as out:
                _copy(handle, out)
        except FileExistsError as error:
            raise BadInput(f"{path} holds more than one run", _HINT) from error
    if not (folder / RUN_FILE).exists():
        raise BadInput(f"{path} is no archive of a run: it has no {RUN_FILE}", _HINT)


def _copy(source: IO[bytes], target: IO[bytes] | gzip.GzipFile) -> None:
    while chunk := source.read(_CHUNK):
        target.write(chunk)
