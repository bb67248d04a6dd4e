"""The errors that reach a user: what is wrong, and what to do about it.

Libraries raise these; only the outermost function of the command line prints
them and exits. Stdlib only, imports nothing of ours.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable


class HvctError(Exception):
    """Something went wrong in a way that is explained in one line.

    Attributes:
        message: one line saying what is wrong.
        hint: one line saying what to do about it ("" when there is nothing to do).
        exit_code: what the command exits with when this error ends it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class LaunchFailed(HvctError):
    """The measured thing failed: an instance did not start, or died."""


class BadInput(HvctError):
    """The user's input is wrong: exit code 2, nothing done, nothing half-written."""

    exit_code = 2


def no_such(what: str, name: str, choices: Iterable[str], otherwise: str = "") -> BadInput:
    """A name that there is not: with the one that was meant, else with all there are."""
    import difflib  # only a mistake needs it

    known = list(choices)
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}{otherwise}"
    return BadInput(f"there is no {what} {name!r}", hint)


class HostCannot(HvctError):
    """This host cannot do what was asked; the hint is the remedy."""

    exit_code = 3


class Refused(HvctError):
    """An arm declines a specification it cannot honour; outcome ``refused``, as data."""

    exit_code = 3


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived: as an interrupt, but for the exit status."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


_REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in that quota",
    errno.EROFS: "use a folder that can be written",
    errno.EACCES: "use a folder that can be written, or run it as root",
    errno.EPERM: "run it as root",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "allow more open files (sysctl fs.file-max)",
}
"""What to do where the host, not the measured thing, is why a system call failed."""


def oserror(call: str, path: str | os.PathLike[str], error: OSError) -> HvctError:
    """Name the system call and the path of a failed one; the only way we report errno.

    A `HostCannot` with its remedy where the host is to blame (disk full, not writable…).
    """
    message = f"{call} {os.fspath(path)}: {os.strerror(error.errno) if error.errno else error}"
    remedy = _REMEDIES.get(error.errno or 0)
    return HostCannot(message, remedy) if remedy else HvctError(message)
