"""What accounting costs where containers are born in their group: on cgroup v2, in a guest.

The guest is emulated where there is no KVM, and then says nothing about the time itself:
the ratio is of two things that are emulated alike.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import v2_guest

from bench.image import store
from bench.journal import open_run

if TYPE_CHECKING:
    from tests.perf.conftest import Table

pytestmark = [pytest.mark.root, pytest.mark.vm]
PAIRS = 100
SHARE, LEAST_S = 0.03, 0.0001  # equivalent within the larger of the two


def test_accounting_on_v2(ratios: Table, tmp_path: Path) -> None:
    """Request to exec with a control group over without; target: within 3 % or 0.1 ms."""
    busybox, image = (store.prepare(name) for name in ("busybox", "default"))
    bundle = v2_guest.make_bundle(tmp_path / "bundle", busybox, ("tests/v2_limits.py",))
    with open_run(tmp_path / "run") as context:
        inside = v2_guest.boot(context, image, bundle, ("accounting", str(PAIRS)), limit_s=180.0)
    pairs = inside.result["pairs"]
    target = 1 + max(SHARE, LEAST_S / statistics.median(pairs["off"]))
    name = f"container, accounting on ÷ off (cgroup v2, {inside.accelerator})"
    ratios.add(name, target, pairs["on"], pairs["off"])
