"""The wheel: four short top-level names, everything they need at run time, and nothing else."""

from __future__ import annotations

import configparser
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from bench.command import run

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = {"bench", "ct", "hv", "reports"}
DATA = {".c", ".h", ".S", ".ld", ".html", ".css", ".j2"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel as pip builds it, from a copy: building in place reuses what older builds left."""
    room = tmp_path_factory.mktemp("wheel")
    source = room / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    for name in (*PACKAGES, "tests"):
        shutil.copytree(
            CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", room, source])
    (built,) = room.glob("hvct-*.whl")
    return zipfile.ZipFile(built)


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
    """Distribution and command are both called hvct, under the Apache licence."""
    (entries,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    parsed = configparser.ConfigParser()
    parsed.read_string(wheel.read(entries).decode())
    assert dict(parsed["console_scripts"]) == {"hvct": "bench.cli:main"}
    info = entries.rpartition("/")[0]
    assert "License-Expression: Apache-2.0" in wheel.read(f"{info}/METADATA").decode()
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
