"""How soon an instance is gone once it has stopped: RELEASE_REQUESTED to RELEASED."""

from __future__ import annotations

import contextlib
import time

import pytest
from perf.launches import LIMIT_NS, between, make_spec
from perf.table import Bound, Kind, Line, Table, pairs
from perf.test_perf_peers import backend_of

from bench.context import RunContext
from bench.image.busybox import busybox_image
from bench.model import Event

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("arm", "most_s", "n"),
    [("container", 0.015, 24), pytest.param("vm", 0.3, 8, marks=pytest.mark.vm)],
)
def test_release(targets: Table, context: RunContext, arm: str, most_s: float, n: int) -> None:
    """Released after stop; a sleeping workload is killed, then everything of it is undone."""
    found = []
    with contextlib.ExitStack() as stack:
        backend = backend_of(arm, context, stack)
        for _ in range(pairs(n)):
            time.sleep(0.05)
            with backend.launch(make_spec(backend, busybox_image(), ("sleep", "1000"))) as instance:
                assert instance.wait(Event.STARTED, time.monotonic_ns() + LIMIT_NS)
                instance.stop(5.0)
                instance.timeline.mark(Event.RELEASE_REQUESTED, time.monotonic_ns())
                instance.release()
            found.append(between(instance.timeline, Event.RELEASE_REQUESTED, Event.RELEASED))
    targets.add(Line(f"{arm}: released after stop", Bound(most_s), found, kind=Kind.VALUE))
