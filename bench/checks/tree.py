"""A host as the files that describe it: /proc, /sys, /dev, /etc, below a root directory.

Every trap (`bench.checks.trap`) looks at one of these and at nothing else, so that a folder
with a few files in it is a host as good as this one.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tree:
    """Files of a host. A file that is not there reads as None, as on a kernel without it.

    Attributes:
        root: where it is; ``/`` is this host.
        machine: its architecture, as uname names it.
    """

    root: Path = Path("/")
    machine: str = platform.machine()

    def path(self, name: str) -> Path:
        """Where a file of the host is; names begin with a slash."""
        return self.root / name.lstrip("/")

    def there(self, name: str) -> bool:
        """Whether it exists."""
        try:
            return self.path(name).exists()
        except OSError:
            return False

    def text(self, name: str) -> str | None:
        """Its text without the last newline."""
        try:
            return self.path(name).read_text(errors="replace").strip()
        except OSError:
            return None

    def has(self, name: str, text: str) -> bool:
        """Whether one of its lines contains this; of a long file no more than a line is held."""
        try:
            with self.path(name).open(errors="replace") as lines:
                return any(text in line for line in lines)
        except OSError:
            return False

    def link(self, name: str) -> str | None:
        """Where a symbolic link points to."""
        try:
            return os.readlink(self.path(name))
        except OSError:
            return None

    def words(self, name: str) -> list[str]:
        """Its words; none where there is no such file."""
        return (self.text(name) or "").split()

    def number(self, name: str) -> int | None:
        """The number it begins with."""
        found = re.match(r"-?\d+", self.text(name) or "")
        return int(found[0]) if found else None

    def chosen(self, name: str) -> str | None:
        """The bracketed word of a file such as ``always [madvise] never``."""
        found = re.search(r"\[(\S+)\]", self.text(name) or "")
        return found[1] if found else None

    def fields(self, name: str, separator: str = ":") -> dict[str, str]:
        """``key: value`` lines, of the first paragraph (as /proc/cpuinfo has one per CPU)."""
        found = {}
        for line in (self.text(name) or "").split("\n\n")[0].splitlines():
            key, _, value = line.partition(separator)
            found[key.strip()] = value.strip()
        return found

    def glob(self, pattern: str) -> list[Path]:
        """Every file that matches, in order."""
        try:
            return sorted(self.root.glob(pattern.lstrip("/")))
        except OSError:
            return []

    def name(self, path: Path) -> str:
        """What `glob` found, as the host itself names it."""
        return f"/{path.relative_to(self.root)}"

    @property
    def release(self) -> str:
        """The kernel's release."""
        return self.text("/proc/sys/kernel/osrelease") or ""

    @property
    def kernel_version(self) -> tuple[int, int]:
        """Its first two numbers; (0, 0) where it is not known."""
        found = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def memory_bytes(self, key: str) -> int:
        """A line of /proc/meminfo in bytes (counts, such as ``HugePages_Total``, as they are)."""
        words = self.fields("/proc/meminfo").get(key, "0").split()
        return int(words[0]) * (1024 if "kB" in words else 1) if words else 0

    @property
    def cpu_flags(self) -> list[str]:
        """Features of the first CPU."""
        return self.fields("/proc/cpuinfo").get("flags", "").split()

    @property
    def cpu_count(self) -> int:
        """CPUs that are online."""
        return sum(
            line.startswith("processor") and ":" in line
            for line in (self.text("/proc/cpuinfo") or "").splitlines()
        )
