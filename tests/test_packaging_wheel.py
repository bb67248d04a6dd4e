"""The wheel: four short top-level names, everything they need at run time, and nothing else."""

from __future__ import annotations

import configparser
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = {"bench", "ct", "hv", "reports"}
DATA = {".c", ".h", ".S", ".ld", ".html", ".css", ".j2"}


@pytest.fixture(scope="module")
def wheel(built_wheel: Path) -> zipfile.ZipFile:
    """The wheel as pip builds it."""
    return zipfile.ZipFile(built_wheel)


def test_wheel_ships_exactly_four_packages(wheel: zipfile.ZipFile) -> None:
    """Its top level is bench, ct, hv and reports: above all not `tests`, which would collide."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_wheel_ships_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    """Every module, and every C source and template that is read or compiled at run time."""
    shipped = set(wheel.namelist())
    for name in PACKAGES:
        for path in (CHECKOUT / name).rglob("*"):
            if path.suffix in {".py", *DATA}:
                assert str(path.relative_to(CHECKOUT)) in shipped


def test_wheel_ships_no_other_kind_of_file(wheel: zipfile.ZipFile) -> None:
    """No compiled program and no measured result slips in: the wheel is pure."""
    own = [Path(name) for name in wheel.namelist() if name.split("/")[0] in PACKAGES]
    assert {path.suffix for path in own} <= {".py", *DATA}


def test_wheel_has_one_command(wheel: zipfile.ZipFile) -> None:
    """Distribution, command and pytest plugin are called hvct, under the Apache licence."""
    (entries,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    parsed = configparser.ConfigParser()
    parsed.read_string(wheel.read(entries).decode())
    assert dict(parsed["console_scripts"]) == {"hvct": "bench.cli:main"}
    assert dict(parsed["pytest11"]) == {"hvct": "bench.pytest_plugin"}
    info = entries.rpartition("/")[0]
    assert "License-Expression: Apache-2.0" in wheel.read(f"{info}/METADATA").decode()
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
