"""Targets as values: what was measured, in which unit, and whether the target was reached."""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from bench.model import Timeline
from bench.stats.signed_rank import interval, pseudomedian

Measure = Callable[[], float]
FEWEST = 6
"""Below this many values no 95 % interval by signed ranks exists; the range seen stands for it."""


def digits(value: float) -> str:
    """Three of them, and never a power of ten."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Kind(StrEnum):
    """What a line says about its values."""

    RATIO = "÷"  # ours over the other's, in pairs
    DIFFERENCE = "−"  # ours less the other's, in pairs
    VALUE = ""  # ours alone


class Unit(Enum):
    """How values are shown: a name, and how much of the base unit (s, bytes) it is."""

    MS = ("ms", 1e-3)
    S = ("s", 1.0)
    MIB = ("MiB", float(1 << 20))
    RATE = ("/s", 1.0)

    def show(self, value: float) -> str:
        """A value of the base unit in this one."""
        return digits(value / self.value[1])


@dataclass(frozen=True)
class Bound:
    """What the estimate should be: at most, at least, or (two-sided) within."""

    most: float = math.inf
    least: float = -math.inf

    def verdict(self, low: float, high: float) -> str:
        """`reached` or `missed` where the whole interval says so, else `open`."""
        if low >= self.least and high <= self.most:
            return "reached"
        return "missed" if high < self.least or low > self.most else "open"

    def text(self, show: Callable[[float], str]) -> str:
        """The target in words."""
        if self.least == -math.inf:
            return f"≤ {show(self.most)}"
        if self.most == math.inf:
            return f"≥ {show(self.least)}"
        return f"{show(self.least)} to {show(self.most)}"


@dataclass(frozen=True)
class Line:
    """One target with what was measured for it.

    Attributes:
        bound: of a ratio, or in the base unit.
        ours, theirs: in the base unit (s, bytes, 1/s); `theirs` empty for a value.
        note: what a reader has to know to read it.
    """

    name: str
    bound: Bound
    ours: Sequence[float]
    theirs: Sequence[float] = ()
    kind: Kind = Kind.RATIO
    unit: Unit = Unit.MS
    note: str = ""

    def estimate(self) -> tuple[float, float, float]:
        """Pseudomedian and the ends of its 95 % interval (below `FEWEST`: of the range)."""
        if self.kind is Kind.VALUE:
            values = list(self.ours)
        elif self.kind is Kind.DIFFERENCE:
            values = [a - b for a, b in zip(self.ours, self.theirs, strict=True)]
        else:
            values = [math.log(a / b) for a, b in zip(self.ours, self.theirs, strict=True)]
        ends = interval(values) if len(values) >= FEWEST else (min(values), max(values))
        found = (pseudomedian(values), *ends)
        if self.kind is Kind.RATIO:
            return math.exp(found[0]), math.exp(found[1]), math.exp(found[2])
        return found

    @property
    def verdict(self) -> str:
        """`reached`, `open` or `missed`; a few pairs, as when trying a row out, decide nothing."""
        if self.theirs and len(self.ours) < FEWEST:
            return "open"
        _, low, high = self.estimate()
        return self.bound.verdict(low, high)

    def show(self, value: float) -> str:
        """A ratio, or a value in the line's unit, without it."""
        return digits(value) if self.kind is Kind.RATIO else self.unit.show(value)

    def cells(self) -> tuple[str, str, str, str, str]:
        """What, target, measured, verdict, medians and n: for both the terminal and the page."""
        middle, low, high = map(self.show, self.estimate())
        unit = "" if self.kind is Kind.RATIO else f" {self.unit.value[0]}"
        spread = f"[{low}, {high}]" if len(self.ours) >= FEWEST else f"({low} to {high})"
        measured = f"{middle} {spread}{unit}" if len(self.ours) > 1 else f"{middle}{unit}"
        about = f"n = {len(self.ours)}"
        if self.theirs:
            a, b = (self.unit.show(statistics.median(side)) for side in (self.ours, self.theirs))
            about = f"{a} {self.kind.value} {b} {self.unit.value[0]}, {about}"
        if self.note:
            about += f"; {self.note}"
        return self.name, self.bound.text(self.show) + unit, measured, self.verdict, about


@dataclass(frozen=True)
class Missing:
    """A target that could not be measured, and why."""

    name: str
    reason: str
    verdict = "not measured"

    def cells(self) -> tuple[str, str, str, str, str]:
        """As a line's."""
        return self.name, "", "", self.verdict, self.reason


@dataclass(frozen=True)
class Part:
    """One part of a start: what it takes alone, and what it takes in ours, in seconds."""

    name: str
    floor: Sequence[float]
    ours: Sequence[float] = ()

    def cells(self) -> tuple[str, str, str, str]:
        """Name, floor, ours, how close: medians."""
        floor = statistics.median(self.floor)
        if not self.ours:
            return self.name, microseconds(floor), "–", "–"
        ours = statistics.median(self.ours)
        return self.name, microseconds(floor), microseconds(ours), f"{ours / floor:.2g}×"


def microseconds(seconds: float) -> str:
    """As µs, or from 10 ms on as ms."""
    return f"{digits(seconds * 1e3)} ms" if seconds >= 0.01 else f"{digits(seconds * 1e6)} µs"


@dataclass
class Table:
    """All targets of a session; and what else was measured on the way, for the page.

    Attributes:
        parts: of the floor, in order.
        phases: seconds from the request to each event, by arm and event.
    """

    lines: list[Line | Missing] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    phases: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def note_phases(self, arm: str, timeline: Timeline) -> None:
        """Take the events of one launch."""
        for event, seconds in timeline.seconds().items():
            self.phases.setdefault(arm, {}).setdefault(event, []).append(seconds)

    def compare(
        self,
        name: str,
        bound: Bound,
        ours: Measure,
        theirs: Measure,
        *,
        n: int = 24,
        gap_s: float = 0.02,
        kind: Kind = Kind.RATIO,
        note: str = "",
    ) -> Line:
        """Measure both `n` times in random order within each pair, `gap_s` apart; in seconds."""
        a, b = interleaved(ours, theirs, n=n, gap_s=gap_s)
        return self.add(Line(name, bound, a, b, kind=kind, note=note))

    def add(self, line: Line) -> Line:
        """Take what was measured elsewhere."""
        self.lines.append(line)
        return line

    def missing(self, name: str, reason: str) -> None:
        """Say why something is not there."""
        self.lines.append(Missing(name, " ".join(reason.split()) or "without a word"))


SHARE, LEAST_S = 0.03, 0.0001


def equivalent(baseline: Sequence[float]) -> Bound:
    """Equivalent within 3 % or 0.1 ms, whichever is more, as bounds of a ratio."""
    margin = max(SHARE, LEAST_S / statistics.median(baseline))
    return Bound(1 + margin, 1 / (1 + margin))


def pairs(usual: int) -> int:
    """How many to measure: `usual`, or fewer for trying a benchmark out (HVCT_PAIRS)."""
    return min(usual, int(os.environ.get("HVCT_PAIRS", usual)))


def interleaved(
    ours: Measure, theirs: Measure, *, n: int, gap_s: float
) -> tuple[list[float], list[float]]:
    """Both, `n` times, in random order within each pair."""
    found: dict[Measure, list[float]] = {ours: [], theirs: []}
    order = random.Random(20)
    for measure in (ours, theirs):  # what is paid once is paid here
        measure()
    for _ in range(pairs(n)):
        for measure in order.sample((ours, theirs), 2):
            time.sleep(gap_s)
            found[measure].append(measure())
    return found[ours], found[theirs]
