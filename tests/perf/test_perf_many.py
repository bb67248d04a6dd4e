"""Many containers: two hundred that stay up, and as many as possible one after another.

What is named "first ten" and "last ten" are launches of one round of 200, each container still
standing when the next is asked for.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from perf.floor import Floor, floor
from perf.launches import LIMIT_NS, NUMBERS, STAMP, between, make_spec
from perf.table import Bound, Line, Table, Unit, interleaved, pairs

from bench.context import RunContext
from bench.journal import open_run
from bench.model import Event, Image
from ct.backend import ContainerBackend
from ct.instance import LauncherInstance

pytestmark = pytest.mark.root

STANDING, EDGE = 200, 10
ROUNDS = 6
BATCH = 30
LAUNCHERS = {1: "one launcher", 2: "two launchers, two C programs"}


@pytest.mark.parametrize(("bridged", "most"), [(False, 1.3), (True, 2.0)], ids=["none", "veth"])
def test_standing(
    targets: Table, backend: ContainerBackend, stamp_image: Image, bridged: bool, most: float
) -> None:
    """The last ten ÷ the first ten of 200 containers; all standing."""
    first, last = [], []
    for _ in range(pairs(ROUNDS)):
        took = one_round(backend, stamp_image, bridged=bridged)
        first.append(statistics.median(took[:EDGE]))
        last.append(statistics.median(took[-EDGE:]))
    network = "with veth" if bridged else "no network"
    name = f"{STANDING} containers standing, {network}: last ten ÷ first ten to started"
    targets.add(Line(name, Bound(most), last, first, note="rounds of 200"))


def one_round(backend: ContainerBackend, image: Image, *, bridged: bool) -> list[float]:
    """Seconds to `started` of each, in order; then all are released."""
    standing: list[LauncherInstance] = []
    with contextlib.ExitStack() as stack:
        for _ in range(STANDING):
            spec = make_spec(backend, image, ("/bin/sleep", "1000"), bridged=bridged)
            instance = stack.enter_context(backend.launch(spec))
            assert instance.wait(Event.STARTED, time.monotonic_ns() + LIMIT_NS)
            standing.append(instance)
    for instance in standing:  # its address comes round again
        instance.wait_network_released(time.monotonic_ns() + LIMIT_NS)
    return [between(one.timeline, Event.REQUESTED, Event.STARTED) for one in standing]


@pytest.mark.parametrize("launchers", [1, 2])
def test_rate(
    targets: Table, context: RunContext, stamp_image: Image, launchers: int, tmp_path: Path
) -> None:
    """Containers per second ÷ the C program's; in a group, made, run to their end, removed."""
    with contextlib.ExitStack() as stack:
        ours: list[Callable[[], None]] = []
        theirs: list[Callable[[], None]] = []
        for number in range(launchers):
            own = stack.enter_context(open_run(tmp_path / str(number)))
            backend = stack.enter_context(ContainerBackend(own))
            spec = make_spec(backend, stamp_image, (STAMP,))
            program = stack.enter_context(floor(backend, own, stamp_image, spec, STAMP, first=True))
            ours.append(lambda backend=backend: through_launcher(backend, stamp_image))  # type: ignore[misc]
            theirs.append(lambda own=own, program=program: through_c(own, program))  # type: ignore[misc]
        a, b = interleaved(lambda: together(ours), lambda: together(theirs), n=10, gap_s=0.02)
    targets.add(
        Line(
            f"containers per second, {LAUNCHERS[launchers]} ÷ the same calls in C",
            Bound(least=0.6),
            [launchers * BATCH / seconds for seconds in a],
            [launchers * BATCH / seconds for seconds in b],
            unit=Unit.RATE,
            note=f"batches of {BATCH}, asked for at once",
        )
    )


def through_launcher(backend: ContainerBackend, image: Image) -> None:
    """A batch by ours: all asked for at once, then each run to its end and released."""
    with contextlib.ExitStack() as stack:
        asked = [
            stack.enter_context(backend.begin(make_spec(backend, image, (STAMP,))))
            for _ in range(BATCH)
        ]
        for instance in [stack.enter_context(pending.complete()) for pending in asked]:
            assert instance.wait(Event.EXITED, time.monotonic_ns() + LIMIT_NS)


def through_c(context: RunContext, program: Floor) -> None:
    """A batch by the C program."""
    for _ in range(BATCH):
        program.start(context.instance(next(NUMBERS)))


def together(works: list[Callable[[], None]]) -> float:
    """Seconds until all have ended, each in a thread of its own."""
    failed: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works[1:]]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    run(works[0])
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    if failed:
        raise failed[0]
    return took
