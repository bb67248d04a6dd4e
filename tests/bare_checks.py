"""`./hvct test` with all its packages in a bare root of this release. `nox -s bare` runs it.

Not in the gate: the packages of [test] are over 1 GB, and take minutes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bareroot import BareRoot

pytestmark = pytest.mark.timeout(2400)  # instead of the usual limit: see above


@pytest.fixture
def root(tmp_path: Path) -> Iterator[BareRoot]:
    """A bare root."""
    path = tmp_path / "root"
    path.mkdir()
    try:
        yield BareRoot(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def test_the_checks_run_on_a_bare_machine(root: BareRoot) -> None:
    """From nothing: packages, environment, and the whole of the lint session."""
    started = root.start("./hvct", "test", "--session", "lint")
    _, err = root.finish(started, timeout_s=1800)
    print(f"\n{err}")
    assert "Session lint was successful" in err
