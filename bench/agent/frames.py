"""The agent's frames and stamps as values, and its ERROR as an error (docs/protocol.md)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from errno import ELOOP, EXDEV

from bench.errors import LaunchFailed

FRAME_MAX = 1 << 20
STDIN_WINDOW = 1 << 16
STAMP_MOST = 1 << 60  # ns, 36 years: no clock that counts from boot has more
_HEADER = struct.Struct("<B3xI")


class Frame(IntEnum):
    """Frame types of docs/protocol.md."""

    RUN = 1
    SIGNAL = 2
    STDIN = 3
    PING = 4
    FETCH = 5
    QUIT = 6
    WINDOW = 7
    EXEC = 8
    EXEC_KILL = 9
    PREPARE = 10
    WAKE = 11
    HELLO = 65
    EVENT = 66
    STDOUT = 67
    STDERR = 68
    EXIT = 69
    RECEIPT = 70
    PONG = 71
    ERROR = 72
    FILE = 73
    FILE_END = 74
    CREDIT = 75
    EXEC_DONE = 76


def pack(kind: Frame, payload: bytes) -> bytes:
    """One frame, ready to send."""
    return _HEADER.pack(kind, len(payload)) + payload


def unpack(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take the complete frames out of a buffer.

    Raises:
        LaunchFailed: what is there is no frame.
    """
    start = 0
    try:
        while len(buffer) - start >= _HEADER.size:
            kind, length = _HEADER.unpack_from(buffer, start)
            if length > FRAME_MAX:
                raise LaunchFailed("the agent's channel carries something that is no frame")
            if len(buffer) - start - _HEADER.size < length:
                return
            start += _HEADER.size + length
            yield kind, bytes(buffer[start - length : start])
    finally:
        del buffer[:start]


def number(fields: Mapping[str, str], key: str, least: int = 0, most: int = STAMP_MOST) -> int:
    """A number of a record: what a hostile guest sends must not overflow anything later.

    Raises:
        KeyError: it is not there.
        ValueError: it is none, or out of bounds.
    """
    value = int(fields[key])
    if not least <= value <= most:
        raise ValueError(f"{key} is out of bounds")
    return value


@dataclass(frozen=True)
class ClockMapping:
    """How the instance's CLOCK_MONOTONIC maps to the host's, from one or two ping-pongs.

    Attributes:
        offset_ns: host stamp minus instance stamp, at `at_ns`.
        error_ns: half of the best round trip; 0 where the clock is shared.
        at_ns: the instance stamp at which the offset was measured.
        boot_ns: instance stamp of its BOOTTIME 0 (of no meaning where the clock is shared).
        rate: host nanoseconds per nanosecond of the instance. A guest calibrates its
            clock while it boots, and on a busy host it may get it wrong.
    """

    offset_ns: int = 0
    error_ns: int = 0
    at_ns: int = 0
    boot_ns: int = 0
    rate: float = 1.0

    def host_ns(self, stamp_ns: int) -> int:
        """The host stamp of an instance stamp."""
        return stamp_ns + self.offset_ns + round((stamp_ns - self.at_ns) * (self.rate - 1.0))

    @property
    def boot_zero_ns(self) -> int:
        """Host stamp of the instance's BOOTTIME 0: the ``kernel`` mark of a VM."""
        return self.host_ns(self.boot_ns)

    def through(self, later: ClockMapping) -> ClockMapping:
        """The line through this point and a later one, where the two tell a rate at all.

        Offsets that agree within their errors do not: then the rates are taken as equal.
        """
        span_ns = later.at_ns - self.at_ns
        moved_ns = later.offset_ns - self.offset_ns
        error_ns = self.error_ns + later.error_ns
        if span_ns <= 0 or abs(moved_ns) <= error_ns:
            return replace(later, error_ns=max(self.error_ns, later.error_ns))
        return replace(self, error_ns=error_ns, rate=1.0 + moved_ns / span_ns)


NOT_EXECUTABLE, NOT_FOUND = 126, 127
LINK = "the image has a symbolic link there, which may lead out of it: build it without"


class NotExecuted(LaunchFailed):
    """The workload's program cannot be executed: the exit status is a shell's for it."""

    def __init__(self, status: int, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.exit_code = status


def launch_error(pairs: Mapping[str, str], argv0: str) -> LaunchFailed:
    """The agent's ERROR as one line and a hint."""
    step, message = pairs.get("step", "?"), pairs.get("message", "")
    errno = number(pairs, "errno", most=4095) if "errno" in pairs else 0
    reason = os.strerror(errno)
    name = argv0 or message
    if step == "exec" and errno == 2 and message == name and "/" not in name:
        return NotExecuted(
            NOT_FOUND, f"{name}: not found in the image's PATH", "check the command's name"
        )
    if step == "exec" and errno == 2:
        return NotExecuted(
            NOT_FOUND,
            f"{message}: not found in the image, or its interpreter is missing",
            "check the path, and the loader or first line of the program",
        )
    if step == "exec" and errno == 13:
        return NotExecuted(
            NOT_EXECUTABLE,
            f"{message}: permission denied: not executable",
            "give it execute permission in the image, for the user it runs as",
        )
    if step == "exec" and errno == 8:
        return NotExecuted(
            NOT_EXECUTABLE,
            f"{message}: not a program this CPU runs",
            "a script needs a #! line; a binary must be for this architecture",
        )
    if step == "cwd":
        return LaunchFailed(
            f"working directory {message}: {reason}", "check the image's or workload's workdir"
        )
    if step == "user":
        return LaunchFailed(f"cannot become the workload's user ({message}): {reason}")
    if step == "protocol":
        return LaunchFailed(f"the agent rejected what it was sent: {message}")
    subject = f" {message}" if message else ""
    link = step.startswith("guest.") and errno in (ELOOP, EXDEV)
    return LaunchFailed(f"the launch failed at {step}{subject}: {reason}", LINK if link else "")
