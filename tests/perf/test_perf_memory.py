"""Memory held by hvct itself while instances stand: the harness and its helpers, by PSS.

Measured in a process of its own that imports what `hvct compare` imports; the workloads and the
agents inside are in the instances' groups and are theirs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from perf.table import Bound, Kind, Line, Table, Unit

pytestmark = pytest.mark.root

FIXED, EACH = 60 << 20, 0.2 * (1 << 20)
CODE = """
import contextlib, json, os, sys, time
from pathlib import Path

from bench.cli import main  # as the command does
import bench.commands.compare
from bench.commands import execution
from bench.commands.progress import open_progress
from bench.image import store
from bench.journal import open_run
from bench.model import Event, InstanceSpec, Limits, NetworkMode

arm, count, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])

def pss(pid):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024

with contextlib.ExitStack() as stack:
    context = stack.enter_context(open_run(folder, network=True))
    image = store.prepare("busybox")
    backends, found = stack.enter_context(
        execution.open_backends((arm,), context, lambda text: None))
    execution.preflight(list(found.values()))
    backend = backends[arm]
    def spec(number):
        return InstanceSpec(context.instance(number), image, ("/bin/sleep", "1000"),
            limits=Limits(memory_bytes=128 << 20), network=NetworkMode.BRIDGE,
            address=context.network.address(number))
    backend.prepare(spec(1))
    helpers = lambda: sum(map(pss, backend.helpers()))
    before = pss("self"), helpers()
    for number in range(1, count + 1):
        instance = stack.enter_context(backend.launch(spec(number)))
        assert instance.wait(Event.STARTED, time.monotonic_ns() + 60 * 10**9)
    print(json.dumps([*before, pss("self"), helpers()]))
"""


@pytest.mark.parametrize(
    ("arm", "count"), [("container", 50), pytest.param("vm", 50, marks=pytest.mark.vm)]
)
def test_memory_held(targets: Table, tmp_path: Path, arm: str, count: int) -> None:
    """Memory held by hvct itself; harness and helpers with instances standing."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CODE, arm, str(count), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.strip().rpartition("\n")[2]
    before, helpers_before, harness, helpers = json.loads(done.stdout)
    each = (harness + helpers - before - helpers_before) / count / (1 << 20)
    note = f"harness {harness / 2**20:.1f}, helpers {helpers / 2**20:.1f}; {each:.2f} MiB for each"
    targets.add(
        Line(
            f"memory held by hvct itself, {count} × {arm} standing",
            Bound(FIXED + count * EACH),
            [harness + helpers],
            kind=Kind.VALUE,
            unit=Unit.MIB,
            note=note,
        )
    )
