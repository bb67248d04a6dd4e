"""hvct on Debian 13: its Python, its libvirt and QEMU, in a bare root. `nox -s debian13` runs it.

Not in the gate: setting up takes minutes, and the suite may be out of the registries' reach.
What it printed stands in docs/debugging.md.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bareroot import BareRoot

pytestmark = pytest.mark.timeout(2400)  # setting up is in the first test's time
SUITE = "trixie"

VERSIONS = """
import platform, sys
import libvirt
number = libvirt.getVersion()
print("Python", platform.python_version(), "libvirt", number // 1000000, number // 1000 % 1000)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareRoot]:
    """A bare root of that release, in which hvct was set up by its first start."""
    path = tmp_path_factory.mktemp("debian13") / "root"
    path.mkdir()
    try:
        made = BareRoot(path, SUITE)
        out, _ = made.finish(made.start("./hvct", "--help"), timeout_s=1200)
        assert "usage" in out.lower()
        yield made
    finally:
        shutil.rmtree(path, ignore_errors=True)


def test_it_is_that_release(root: BareRoot) -> None:
    """Python 3.13 and libvirt 11 are what runs."""
    out, _ = root.finish(root.start(".venv/bin/python", "-c", VERSIONS))
    print(f"\n{(root.path / 'etc/debian_version').read_text().strip()}: {out.strip()}")
    assert re.match(r"Python 3\.13\.\d+ libvirt 11 ", out)


@pytest.mark.parametrize("arm", ["process", "container", "vm"])
def test_an_instance_runs_in_every_arm(root: BareRoot, arm: str) -> None:
    """The same image and command, its output and the command's status."""
    command = ("./hvct", "run", "--arm", arm, "busybox", "--", "sh", "-c", "echo $0; uname -r", arm)
    out, _ = root.finish(root.start(*command))
    print(f"\n{' '.join(out.split())}")
    assert out.startswith(f"{arm}\n")


@pytest.mark.parametrize(
    ("words", "what", "remedy"),
    [
        (("compere",), "no command 'compere'", "did you mean compare?"),
        (("run", "--network", "lan", "busybox"), "no network 'lan'", "none, bridge, host"),
        (("compare", "--blocks", "x"), "invalid int value: 'x'", "hvct compare --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_usage_errors_are_the_same(
    root: BareRoot, words: tuple[str, ...], what: str, remedy: str
) -> None:
    """Newer versions of argparse word them otherwise; a user here does not see that."""
    started = root.start("./hvct", *words)
    _, err = started.communicate(timeout=60)
    print(f"\n{err}", end="")
    lines = err.rstrip().splitlines()
    assert started.returncode == 2 and len(lines) == 2, err
    assert what in lines[0] and remedy in lines[1]


def test_a_comparison_becomes_a_report(root: BareRoot) -> None:
    """Container and process, six blocks, HTML and PDF."""
    options = ("--arms", "container,process", "--blocks", "7", "--output", "runs/one", "--quiet")
    root.finish(root.start("./hvct", "compare", "hello", *options))
    for name in ("report.html", "report.pdf"):
        assert Path(root.folder, "runs/one", name).stat().st_size > 20_000
