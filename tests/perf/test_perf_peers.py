"""Our arms against their peers, and against each other: by one clock, the same image and limits."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest
from perf.launches import between, ended, joining_as_engines_do, make_spec
from perf.table import Bound, Table

from bench import arms, registry
from bench.backend import Backend
from bench.cgroup import version
from bench.context import RunContext
from bench.image.busybox import busybox_image
from bench.model import Event

pytestmark = pytest.mark.root

SAME_JOIN = ", joining as engines do"


@dataclass(frozen=True)
class Pair:
    """Two arms that are compared.

    Attributes:
        most: that ours ÷ theirs may be.
        n: pairs of launches.
        same_join: ours joins its control group as container engines do, not by our way.
    """

    ours: str
    theirs: str
    most: float
    n: int = 24
    to: Event = Event.STARTED
    same_join: bool = False


PAIRS = [
    Pair("container", "runc", 0.4),
    Pair("container", "podman", 0.15),
    Pair("container", "docker", 0.08),
    Pair("container", "runc", 0.4, 60, same_join=True),  # a wait of 6 to 10 ms is in both
    Pair("container", "podman", 0.15, 40, same_join=True),
    Pair("container", "docker", 0.08, 40, same_join=True),
    Pair("container:slot", "runc", 0.12),
    Pair("container:slot", "podman", 0.04),
    Pair("container:slot", "docker", 0.02),
    Pair("container", "bwrap", 1.0),
    Pair("container", "unshare", 1.0),
    Pair("vm", "qemu", 1.05, to=Event.INIT),
    Pair("vm", "vm:stock", 0.8),
    Pair("vm:restore", "vm", 0.12),
]
"""All join a control group. An arm that this version has not, or this host, has a row that says
so."""


def backend_of(name: str, context: RunContext, stack: contextlib.ExitStack) -> Backend:
    """An arm's backend that works here, ready for launches."""
    if name not in arms.ARMS:
        pytest.skip(f"there is no arm {name}")
    backend: Backend = stack.enter_context(registry.make(arms.ARMS[name], context))
    found = backend.probe()
    if not found.usable:
        pytest.skip(f"{found.backend}: {found.reason}")
    backend.prepare(make_spec(backend, busybox_image()))
    return backend


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(
            pair,
            id=f"{pair.ours} and {pair.theirs}{', same join' * pair.same_join}",
            marks=[pytest.mark.vm] if pair.ours.startswith("vm") else [],
        )
        for pair in PAIRS
    ],
)
def test_against_a_peer(targets: Table, context: RunContext, pair: Pair) -> None:
    """One arm ÷ another; from the request, 50 ms apart (VMs 250), all with a control group."""
    with contextlib.ExitStack() as stack:
        if pair.same_join:
            if version() != 1:
                pytest.skip("on cgroup v2 both are born in their group")
            stack.enter_context(joining_as_engines_do())
        ours = backend_of(pair.ours, context, stack)
        theirs = backend_of(pair.theirs, context, stack)

        def launched(name: str, backend: Backend) -> float:
            with ended(backend, make_spec(backend, busybox_image())) as instance:
                if not pair.same_join:
                    targets.note_phases(name, instance.timeline)
                return between(instance.timeline, Event.REQUESTED, pair.to)

        targets.compare(
            f"{pair.ours}{SAME_JOIN * pair.same_join}: request to {pair.to} ÷ {pair.theirs}",
            Bound(pair.most),
            lambda: launched(pair.ours, ours),
            lambda: launched(pair.theirs, theirs),
            n=pair.n,
            gap_s=0.25 if pair.ours.startswith("vm") else 0.05,
        )
