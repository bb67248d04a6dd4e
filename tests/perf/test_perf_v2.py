"""What accounting costs where containers are born in their group: on cgroup v2, in a guest.

The guest is emulated where there is no KVM, and then says nothing about the time itself:
the ratio is of two things that are emulated alike.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import v2_guest
from perf.table import Line, Table, equivalent, pairs

from bench.image import store
from bench.journal import open_run

pytestmark = [pytest.mark.root, pytest.mark.vm]
PAIRS = pairs(100)


def test_accounting_on_v2(targets: Table, tmp_path: Path) -> None:
    """Accounting on and off, cgroup v2; request to exec, equivalent within 3 % or 0.1 ms."""
    busybox, image = (store.prepare(name) for name in ("busybox", "default"))
    bundle = v2_guest.make_bundle(tmp_path / "bundle", busybox, ("tests/v2_limits.py",))
    with open_run(tmp_path / "run") as context:
        inside = v2_guest.boot(context, image, bundle, ("accounting", str(PAIRS)), limit_s=180.0)
    found = inside.result["pairs"]
    name = f"container, accounting on ÷ off (cgroup v2, {inside.accelerator})"
    targets.add(Line(name, equivalent(found["off"]), found["on"], found["off"]))
