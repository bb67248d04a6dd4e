"""hvct as a user starts it: on pipes, and in a terminal of 80 columns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS = 80
ROWS = 24


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: bytes
    err: bytes

    @property
    def complaint(self) -> tuple[str, str]:
        """Its error: what is wrong, and what to do (after having waited, perhaps)."""
        said = self.err.decode().splitlines()
        lines = [line for line in said if not line.startswith("Waiting for another")]
        assert len(lines) == 2, self
        assert lines[0].startswith("hvct: ") and lines[1].startswith("      "), self
        return lines[0].removeprefix("hvct: "), lines[1].strip()


def hvct_argv(*arguments: str | Path) -> list[str]:
    """The command line that starts hvct."""
    return [sys.executable, "-m", "bench.cli", *map(str, arguments)]


def hvct(
    *arguments: str | Path,
    stdin: bytes = b"",
    cwd: Path | None = None,
    before: Sequence[str] = (),
    timeout_s: float = 120.0,
) -> Done:
    """Run hvct to its end, `before` being what starts it."""
    done = subprocess.run(
        [*before, *hvct_argv(*arguments)],
        input=stdin,
        cwd=cwd,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def lines_of(drawn: str) -> list[str]:
    """Lines as they were drawn, without colours; each movement begins a new one."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", re.sub(r"\x1b\[[0-9;]*m", "", drawn))
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


class Terminal:
    """A terminal in which one command runs, and everything that was drawn in it."""

    def __init__(self, argv: Sequence[str], cwd: Path | None = None) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.before = termios.tcgetattr(self.ours)
        self.drawn = ""
        # setsid --ctty: the terminal becomes the controlling one, so that ^C is a signal.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": ""},
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        """What a user types."""
        os.write(self.ours, text.encode())

    def until(self, pattern: str, seconds: float = 60.0) -> re.Match[str]:
        """Read what is drawn until something has been."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.drawn)) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.drawn!r}"
            assert self._read(0.1) or self.process.poll() is None, self.drawn
        return found

    def end(self, seconds: float = 60.0) -> int:
        """Wait for the command's end; its exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.drawn
            self._read(0.1)
        while self._read(0.0):
            pass
        return self.process.returncode

    @property
    def restored(self) -> bool:
        """True when the terminal is as it was before."""
        return termios.tcgetattr(self.ours) == self.before

    @property
    def lines(self) -> list[str]:
        """Every line that was drawn, also those drawn over, without colours and movements."""
        return lines_of(self.drawn)

    def _read(self, seconds: float) -> bool:
        if not select.select([self.ours], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.ours, 65536)
        except OSError:  # nobody has the other end open any more
            return False
        self.drawn += data.decode("utf-8", "replace")
        return bool(data)


@contextlib.contextmanager
def terminal(*arguments: str | Path, cwd: Path | None = None) -> Iterator[Terminal]:
    """A terminal in which hvct runs; it is ended at the end."""
    made = Terminal(hvct_argv(*arguments), cwd)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                made.process.send_signal(signal.SIGKILL)
            made.process.wait()
        os.close(made.ours)
