"""The members of a layer, looked at one by one before anything of it is written.

A layer comes from strangers and is unpacked by root. Here it is read once as a stream, in
little memory, and refused where unpacking it would fill the disk, never end, or name what
no file system can hold. What is left for umoci is an archive of sane size and names.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from bench.errors import BadInput, HvctError

EXPORT = "export it again, with docker save or skopeo copy"
STRANGE = "build the image again without it"

BLOCK_BYTES = 4096  # what the smallest file takes, there and in the volume
HEADER_LIMIT_BYTES = 1 << 20  # of one member: names, attributes, map of a sparse file
OUTER_MEMBERS = 50_000  # of an archive of blobs; a layer's are bounded by their size
NAME_BYTES = 254  # NAME_MAX is 255, at which mkfs.erofs 1.5 loses the last byte
PATH_BYTES = LINK_BYTES = 4095  # PATH_MAX without its NUL, for a link's target too
LARGEST_ID = 2**32 - 2  # -1 means "leave it"; larger numbers lose their upper half
LARGEST_MAJOR, LARGEST_MINOR = 2**12 - 1, 2**20 - 1
DEPTH = 512  # folders in each other; umoci needs quadratic time, real images have about 40

DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError)
"""What reading a damaged archive raises, besides OSError."""


class Stream(Protocol):
    """What is read from: a file, or a decompressor."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""
        ...

    def seek(self, place: int, /) -> int:
        """Go to a place."""
        ...

    def tell(self) -> int:
        """Where we are."""
        ...


class Guard:
    """A stream for tarfile that only goes forward and bounds what one header may take.

    tarfile reads headers and skips content, so all that is *read* between two members are
    headers: names, attributes and sparse maps, which it (and umoci) keep in memory. A size
    that is negative would have it read the same header for ever.
    """

    def __init__(self, stream: Stream, what: str) -> None:
        self._stream = stream
        self._what = what
        self._read = 0

    def next_member(self) -> None:
        """A member was taken: its header is done with."""
        self._read = 0

    def read(self, size: int = -1) -> bytes:
        """As a file's, within the limit."""
        self._read += size
        if size < 0 or self._read > HEADER_LIMIT_BYTES:
            raise BadInput(
                f"{self._what} has a member whose header is larger than "
                f"{HEADER_LIMIT_BYTES >> 20} MiB",
                STRANGE,
            )
        return self._stream.read(size)

    def seek(self, place: int) -> int:
        """Forward only."""
        if place < self._stream.tell():
            raise BadInput(f"{self._what} is damaged: a member of negative size", EXPORT)
        return self._stream.seek(place)

    def tell(self) -> int:
        """Where we are."""
        return self._stream.tell()


@dataclass
class Budget:
    """How much an image may unpack to, over all its layers.

    Attributes:
        spent: bytes so far, every member counted as whole blocks and its header.
        newest: newest time of any member, seconds since the epoch.
    """

    origin: str
    max_bytes: int
    spent: int = 0
    newest: int = 0

    def spend(self, count: int) -> None:
        """Count bytes.

        Raises:
            BadInput: it is too much.
        """
        self.spent += count
        if self.spent > self.max_bytes:
            raise too_large(self.origin, self.max_bytes)


def too_large(what: str, max_bytes: int) -> HvctError:
    """The error for an image beyond the limit."""
    return BadInput(
        f"{what} unpacks to more than {max_bytes / 2**30:.3g} GiB",
        f"if you trust it, raise the limit: --max-size {max(1, max_bytes * 2 >> 30)}GiB",
    )


def read_layer(stream: IO[bytes] | Stream, budget: Budget) -> None:
    """Read a whole layer, check every member, and count it.

    Raises:
        BadInput: a member is not to be unpacked, or there is too much of them.
        tarfile.TarError, ValueError, EOFError, …: it is damaged (`DAMAGE`).
    """
    guard = Guard(stream, f"a layer of {budget.origin}")
    with tarfile.open(fileobj=guard, mode="r:") as layer:  # type: ignore[call-overload]
        for member in layer:
            guard.next_member()
            check_member(member, budget.origin)
            budget.spend(BLOCK_BYTES + -(-member.size // BLOCK_BYTES) * BLOCK_BYTES)
            budget.newest = max(budget.newest, int(member.mtime))
            layer.members.clear()  # else all are kept
    while chunk := stream.read(1 << 20):  # to the checksum at its end
        budget.spend(len(chunk))


def outer_members(path: Path) -> list[tarfile.TarInfo]:
    """The members of an archive of blobs.

    Raises:
        BadInput: there are too many, or one is no member.
        tarfile.TarError, ValueError, EOFError, …: it is damaged (`DAMAGE`).
    """
    found = []
    with path.open("rb") as raw:
        guard = Guard(raw, path.name)
        with tarfile.open(fileobj=guard, mode="r:") as archive:  # type: ignore[call-overload]
            for member in archive:
                guard.next_member()
                found.append(member)
                if len(found) > OUTER_MEMBERS:
                    raise BadInput(f"{path.name} has more than {OUTER_MEMBERS} members", EXPORT)
    return found


def check_member(member: tarfile.TarInfo, origin: str) -> None:
    """Refuse what no file system holds, and what points out of the image.

    Raises:
        BadInput: with the member's name, as far as it can be shown.
    """
    path = _bytes(member.name)
    reason = _wrong_path(path)
    if not reason and member.size < 0:
        reason = "is of negative size"
    if not reason and not (0 <= member.uid <= LARGEST_ID and 0 <= member.gid <= LARGEST_ID):
        reason = f"belongs to user {member.uid}, group {member.gid}, which cannot be"
    if not reason and (member.isblk() or member.ischr()):
        fits = 0 <= member.devmajor <= LARGEST_MAJOR and 0 <= member.devminor <= LARGEST_MINOR
        reason = "" if fits else f"is device {member.devmajor}:{member.devminor}, which cannot be"
    if not reason and member.islnk():
        reason = _wrong_path(_bytes(member.linkname)) and "is a hard link out of the image"
    if not reason and member.issym() and not 0 < len(_bytes(member.linkname)) <= LINK_BYTES:
        reason = f"is a link to nothing, or to more than {LINK_BYTES} bytes"
    if reason:
        shown = path[:60].decode("utf-8", "replace")
        raise BadInput(f"a layer of {origin}: {shown!r} {reason}", STRANGE)


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _wrong_path(path: bytes) -> str:
    """Why a path cannot be one inside an image, "" when it can."""
    depth = 0
    parts = path.split(b"/")
    for part in parts:
        if part == b"..":
            depth -= 1
        elif part not in (b"", b"."):
            depth += 1
        if depth < 0:
            return "points out of the image"
    if b"\0" in path:
        return "has a NUL in its name"
    if max(map(len, parts)) > NAME_BYTES:
        return f"has a name of more than {NAME_BYTES} bytes"
    if len(path) > PATH_BYTES or len(parts) > DEPTH:
        return f"is more than {DEPTH} folders or {PATH_BYTES} bytes deep"
    return ""
