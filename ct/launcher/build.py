"""Compiles the launcher."""

from __future__ import annotations

from pathlib import Path

from bench.agent.build import CLONE3, build_static


def launcher_path() -> Path:
    """The launcher, compiled on first use.

    Raises:
        HostCannot: no compiler, or one that cannot link statically.
    """
    folder = Path(__file__).parent
    headers = [*sorted(folder.glob("*.h")), CLONE3]
    return build_static("launcher", sorted(folder.glob("*.c")), headers)
