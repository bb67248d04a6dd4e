"""How soon hvct itself answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def asked(program: Path) -> None:
    """Run it until it has printed its help."""
    subprocess.run([program, "--help"], stdout=subprocess.DEVNULL, check=True)


def test_help(timed: Callable[..., Any]) -> None:
    """`hvct --help`; the installed command."""
    timed("hvct --help", 0.150, asked, Path(sys.executable).parent / "hvct", rounds=20)


def test_launcher(timed: Callable[..., Any]) -> None:
    """`./hvct --help`; a checkout that is set up."""
    if not (CHECKOUT / ".hvct/stamp-run").exists():
        pytest.skip("the checkout is not set up by ./hvct")
    timed("./hvct --help, the checkout's launcher", 0.300, asked, CHECKOUT / "hvct", rounds=20)
