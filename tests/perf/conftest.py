"""Measuring hvct itself: interleaved pairs, printed as ratios beside targets, never asserted."""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench import host
from bench.stats.signed_rank import interval, pseudomedian

Measure = Callable[[], float]


@dataclass(frozen=True)
class Line:
    """One ratio: `ours` over `theirs`, in pairs measured beside each other, in seconds."""

    name: str
    target: float
    ours: list[float]
    theirs: list[float]

    def ratio(self) -> tuple[float, float, float]:
        """Pseudomedian and the ends of its 95 % interval."""
        logs = [math.log(a / b) for a, b in zip(self.ours, self.theirs, strict=True)]
        low, high = interval(logs)
        return math.exp(pseudomedian(logs)), math.exp(low), math.exp(high)

    def verdict(self) -> str:
        """Whether the target was reached: the whole interval on one side of it."""
        _, low, high = self.ratio()
        return "reached" if high <= self.target else "missed" if low > self.target else "open"

    def text(self) -> str:
        """The ratio with its 95 % interval, both medians, and whether the target was reached."""
        ratio, low, high = self.ratio()
        a, b = (statistics.median(values) * 1e3 for values in (self.ours, self.theirs))
        return (
            f"{self.name:58} {ratio:6.3f} [{low:.3f}, {high:.3f}]  target {self.target:<5g} "
            f"{self.verdict():8} {a:9.2f} ms ÷ {b:9.2f} ms, n = {len(self.ours)}"
        )


@dataclass
class Table:
    """All ratios of a session, printed at its end."""

    lines: list[Line] = field(default_factory=list)

    def compare(
        self, name: str, target: float, ours: Measure, theirs: Measure, *, n: int = 24,
        gap_s: float = 0.02,
    ) -> None:  # fmt: skip
        """Measure both `n` times in random order within each pair, `gap_s` apart."""
        pairs: dict[Measure, list[float]] = {ours: [], theirs: []}
        order = random.Random(20)
        for measure in (ours, theirs):  # what is paid once is paid here
            measure()
        for _ in range(n):
            for measure in order.sample((ours, theirs), 2):
                time.sleep(gap_s)
                pairs[measure].append(measure())
        self.add(name, target, pairs[ours], pairs[theirs])

    def add(self, name: str, target: float, ours: list[float], theirs: list[float]) -> None:
        """Take pairs that were measured elsewhere, in seconds."""
        self.lines.append(Line(name, target, ours, theirs))


PAGE_VARIABLE = "HVCT_LAUNCH_PAGE"
"""Names the page that the ratios are written into, between its two marks."""


def write_page(page: Path, table: Table) -> None:
    """Put the ratios into a page of documentation, with host and load."""
    rows = ["| ours ÷ the other's | ratio | target | medians, pairs |", "|---|---|---|---|"]
    for line in table.lines:
        ratio, low, high = line.ratio()
        a, b = (statistics.median(values) * 1e3 for values in (line.ours, line.theirs))
        rows.append(
            f"| {line.name} | {ratio:.3g} [{low:.3g}, {high:.3g}] | {line.target:g}: "
            f"{line.verdict()} | {a:.3g} ÷ {b:.3g} ms, {len(line.ours)} |"
        )
    load = os.getloadavg()[1]
    busy = f"load {load:.1f} of {os.cpu_count()} CPUs"
    about = f"{time.strftime('%Y-%m-%d')}, {host.summary_line()}, {busy}."
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text("\n".join([f"{before}{BEGIN}\n{about}\n", *rows, "", f"{END}{after}"]))


BEGIN, END = "<!-- measured -->", "<!-- end -->"

_TABLE = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def ratios(request: pytest.FixtureRequest) -> Iterator[Table]:
    """The table that the session prints."""
    yield request.config.stash.setdefault(_TABLE, Table())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the ratios; hvct over the other one, so less is better."""
    table = terminalreporter.config.stash.get(_TABLE, Table())
    if table.lines and (page := os.environ.get(PAGE_VARIABLE)):
        write_page(Path(page), table)
    if table.lines:
        terminalreporter.section("ratios (interleaved pairs, pseudomedian and 95 % interval)")
        for line in table.lines:
            terminalreporter.write_line(line.text())
