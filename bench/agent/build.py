"""Compiling our C programs into the cache: static, on first use, keyed by their content."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.cache import cache_dir, lock, publish, workspace
from bench.command import run
from bench.errors import HostCannot

FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
CLONE3 = Path(__file__).with_name("clone3.h")
"""What the agent and the launcher have in common."""

HINT = "install a C compiler: apt-get install musl-tools (or gcc with libc6-dev)"

# musl's own headers lack the kernel's; -idirafter adds those without ever preferring
# the other C library's headers.
_MUSL = ("musl-gcc", "-static", "-s", "-idirafter", "/usr/include")
_MULTIARCH = Path("/usr/include")


def compiler() -> tuple[str, ...]:
    """The command that makes static programs here: musl-gcc, else gcc or cc.

    Raises:
        HostCannot: there is none.
    """
    if shutil.which("musl-gcc"):
        folders = sorted(_MULTIARCH.glob("*-linux-gnu"))
        return (*_MUSL, *(word for folder in folders for word in ("-idirafter", str(folder))))
    for name in ("gcc", "cc"):
        if shutil.which(name):
            return (name, "-static", "-s")
    raise HostCannot("no C compiler is installed, and our agent has to be compiled once", HINT)


def _key(command: Sequence[str], flags: Sequence[str], files: Sequence[Path]) -> str:
    """Digest of all that decides what the program will be, the compiler's version included."""
    digest = hashlib.sha256()
    digest.update(run([command[0], "--version"]))
    for word in (*command, *flags):
        digest.update(word.encode() + b"\0")
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def build_static(
    name: str,
    sources: Sequence[Path],
    headers: Sequence[Path] = (),
    extra_flags: Sequence[str] = (),
) -> Path:
    """Compile a static program, or find it in the cache.

    Args:
        name: of the program; also of its lock.
        headers: what the sources include of ours: part of the key, not of the command.
        extra_flags: after our own (``-Wall -Wextra -Werror -O2``).

    Raises:
        HostCannot: no compiler, or one that cannot link statically.
        HvctError: the sources do not compile.
    """
    command = compiler()
    flags = (*FLAGS, *extra_flags)
    final = cache_dir("programs") / f"{name}-{_key(command, flags, (*sources, *headers))}"
    if final.exists():
        return final
    with lock(f"program-{name}"):
        if final.exists():
            return final
        with workspace(f"build-{name}") as folder:
            made = folder / name
            run([*command, *flags, "-o", made, *sources], timeout_s=120, hint=HINT)
            made.chmod(0o755)
            return publish(made, final)


def agent_path() -> Path:
    """The agent as an executable file, compiled on first use."""
    folder = Path(__file__).parent
    return build_static("agent", sorted(folder.glob("*.c")), sorted(folder.glob("*.h")))
