"""Our arms against their peers: request to `started`, by one clock, the same image and limits."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from bench import arms, registry
from bench.backend import Backend
from bench.context import RunContext
from bench.image.busybox import busybox_image
from bench.journal import open_run
from bench.model import Event, InstanceSpec, Limits

if TYPE_CHECKING:
    from tests.perf.conftest import Table

pytestmark = pytest.mark.root
NUMBERS = itertools.count(1)
LIMITS = Limits(memory_bytes=256 << 20, pids=64)
LIMIT_NS = 60_000_000_000

PAIRS = [
    ("container", "runc", 0.4, 24),
    ("container", "podman", 0.15, 16),
    ("container", "docker", 0.08, 16),
    ("container:slot", "runc", 0.12, 24),
    ("container:slot", "podman", 0.04, 16),
    ("container:slot", "docker", 0.02, 16),
    ("container", "bwrap", 1.0, 24),
    ("container", "unshare", 1.0, 24),
    pytest.param("vm", "qemu", 1.05, 20, marks=pytest.mark.vm),
    pytest.param("vm", "vm:stock", 0.8, 12, marks=pytest.mark.vm),
]
"""Ours, the peer, the target for ours ÷ the peer's, pairs. All join a control group."""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run without a network."""
    with open_run(tmp_path_factory.mktemp("run")) as run:
        yield run


def started(backend: Backend, context: RunContext) -> float:
    """Seconds from the request to the workload's exec."""
    name = context.instance(next(NUMBERS))
    spec = InstanceSpec(name, busybox_image(), ("/bin/true",), limits=LIMITS)
    with backend.launch(spec) as instance:
        assert instance.wait(Event.EXITED, time.monotonic_ns() + LIMIT_NS), "it hangs"
        instance.synchronise()
        return instance.timeline.between(Event.REQUESTED, Event.STARTED) or 0.0


@pytest.mark.parametrize(("name", "peer", "target", "n"), PAIRS)
def test_request_to_started(
    ratios: Table, context: RunContext, name: str, peer: str, target: float, n: int
) -> None:
    """50 ms apart, as a user starts one: joining a control group then costs what it costs."""
    with (
        registry.make(arms.ARMS[name], context) as ours,
        registry.make(arms.ARMS[peer], context) as theirs,
    ):
        for backend in (ours, theirs):
            found = backend.probe()
            if not found.usable:
                pytest.skip(f"{found.backend}: {found.reason}")
        ratios.compare(
            f"{name}: request to started ÷ {peer}",
            target,
            lambda: started(ours, context),
            lambda: started(theirs, context),
            n=n,
            gap_s=0.25 if arms.ARMS[name].guest else 0.05,
        )
