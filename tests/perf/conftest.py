"""Measuring hvct itself: every target with what was measured for it, printed, never asserted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from perf.launches import make_image
from perf.page import PAGE_VARIABLE, write_page
from perf.table import Bound, Kind, Line, Table, Unit
from pytest_benchmark.fixture import BenchmarkFixture

from bench.command import run
from bench.context import RunContext
from bench.journal import open_run
from bench.model import Image
from ct.backend import ContainerBackend

_TABLE = pytest.StashKey[Table]()
_BEGAN = time.monotonic()


@pytest.fixture(scope="session")
def targets(request: pytest.FixtureRequest) -> Iterator[Table]:
    """The table that the session prints."""
    yield request.config.stash.setdefault(_TABLE, Table())


@pytest.fixture
def timed(benchmark: BenchmarkFixture, targets: Table) -> Callable[..., Any]:
    """Time a function by pytest-benchmark, in seconds against a bound; gives what it returned."""

    def run(
        name: str, most_s: float, function: Callable[..., Any], *args: Any, **options: Any
    ) -> Any:
        found = benchmark.pedantic(function, args, **options)
        if benchmark.stats is None:
            targets.missing(name, "needs --benchmark-enable")
        else:
            values = benchmark.stats.stats.data
            unit = Unit.MS if most_s < 1 else Unit.S
            targets.add(Line(name, Bound(most_s), values, kind=Kind.VALUE, unit=unit))
        return found

    return run


@pytest.fixture(scope="session")
def stamp_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Busybox and a program that prints when it runs, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        room = tmp_path_factory.mktemp("image")
        patch.setenv("XDG_CACHE_HOME", str(room))
        made = make_image(room)
    yield made


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run with a bridge."""
    with open_run(tmp_path_factory.mktemp("run"), network=True) as run_context:
        yield run_context


@pytest.fixture(scope="module")
def backend(context: RunContext) -> Iterator[ContainerBackend]:
    """The container arm."""
    with ContainerBackend(context) as arm:
        yield arm


@pytest.fixture(scope="module")
def root(stamp_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same image, mounted for the peers."""
    where = tmp_path_factory.mktemp("root")
    run(["mount", "-t", "erofs", "-o", "ro,loop", stamp_image.path, where])
    try:
        yield where
    finally:
        run(["umount", where])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What cannot be measured has a row too, which says why; the others go on."""
    report = yield
    if report.failed or report.skipped:
        table = item.config.stash.setdefault(_TABLE, Table())
        about = (getattr(item.obj, "__doc__", "") or item.name).partition(";")[0].rstrip(".")
        case = item.name.partition("[")[2].rstrip("]")
        table.missing(f"{about} ({case})" if case else about, _reason(call))
    return report


def _reason(call: pytest.CallInfo[None]) -> str:
    error = call.excinfo.value if call.excinfo else None
    return (str(error) or type(error).__name__).partition("\n")[0]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, and write it into the page where one is named."""
    table = terminalreporter.config.stash.get(_TABLE, Table())
    if not table.lines and not table.parts:
        return
    if page := os.environ.get(PAGE_VARIABLE):
        write_page(Path(page), table, time.monotonic() - _BEGAN)
    terminalreporter.section("targets (pseudomedian and its 95 % interval; of pairs: interleaved)")
    rows = [line.cells() for line in table.lines]
    width = max((len(row[0]) for row in rows), default=0)
    for name, target, measured, verdict, about in rows:
        terminalreporter.write_line(
            f"{verdict:12}  {name:{width}}  target {target or '–':16} {measured or '–':28} {about}"
        )
