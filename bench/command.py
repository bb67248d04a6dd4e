"""The one place where host programs are started."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import IO

from bench.errors import HostCannot, HvctError

log = logging.getLogger("hvct.command")

FULL = os.strerror(errno.ENOSPC)


def run(
    argv: Sequence[str | PathLike[str]],
    *,
    timeout_s: float = 600.0,
    env: Mapping[str, str] | None = None,
    cwd: str | PathLike[str] | None = None,
    input_bytes: bytes | None = None,
    hint: str = "",
) -> bytes:
    """Run a program to its end and return its standard output.

    Args:
        argv: the program and its arguments; never a shell string.
        hint: what to tell the user to do when it fails.

    Raises:
        HostCannot: the program is not installed, or found a disk full.
        HvctError: it failed or took too long; the last lines it printed are in the message.
    """
    words = [str(word) for word in argv]
    log.info("run %s", words)
    try:
        done = subprocess.run(
            words,
            input=input_bytes,
            stdin=subprocess.DEVNULL if input_bytes is None else None,
            capture_output=True,
            timeout=timeout_s,
            env=env,
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise HostCannot(f"{words[0]} is not installed", hint or "run ./hvct doctor") from error
    except subprocess.TimeoutExpired as error:
        raise HvctError(f"{words[0]} did not end within {timeout_s:.0f} s", hint) from error
    return _output(words[0], done.returncode, done.stdout, done.stderr, hint)


def _output(program: str, status: int, out: bytes, err: bytes, hint: str) -> bytes:
    if status == 0:
        return out
    said = (err or out).decode("utf-8", "replace").strip().splitlines()
    reason = " · ".join(said[-3:]) or "it printed nothing"
    message = f"{program} failed with status {status}: {reason}"
    if FULL in reason:  # whatever the program is for, that is what to mend
        raise HostCannot(message, "make room on that disk")
    raise HvctError(message, hint)


@contextmanager
def begun(argv: Sequence[str | PathLike[str]]) -> Iterator[Callable[[bytes], bytes]]:
    """A program that starts now, and gets its standard input when there is one.

    Yields what hands it over, waits for the end, and returns the standard output; it raises as
    `run` does. A program that is never called is killed.

    Raises:
        HostCannot: the program is not installed.
    """
    words = [str(word) for word in argv]
    log.info("begin %s", words)
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe)
    except FileNotFoundError as error:
        raise HostCannot(f"{words[0]} is not installed", "run ./hvct doctor") from error

    def finish(data: bytes) -> bytes:
        out, err = process.communicate(data)
        return _output(words[0], process.returncode, out, err, "")

    with process:
        try:
            yield finish
        finally:
            process.kill()


@contextmanager
def stream(argv: Sequence[str | PathLike[str]], *, hint: str = "") -> Iterator[IO[bytes]]:
    """The standard output of a program while it runs; it is ended with the context.

    What is left of it when the context ends well is read and dropped, to learn how it ended.

    Raises:
        HostCannot: the program is not installed.
        HvctError: it failed.
    """
    words = [str(word) for word in argv]
    log.info("read from %s", words)
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise HostCannot(f"{words[0]} is not installed", hint or "run ./hvct doctor") from error
    with process:
        assert process.stdout is not None
        try:
            yield process.stdout
            while process.stdout.read(1 << 20):
                pass
            if process.wait() != 0:
                raise HvctError(f"{words[0]} failed with status {process.returncode}", hint)
        finally:
            process.kill()
