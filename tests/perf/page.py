"""The generated parts of docs/launch.md: each stands between two marks, prose is by hand."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from perf.table import Part, Table, digits

from bench import host
from bench.model import Event

PAGE_VARIABLE = "HVCT_LAUNCH_PAGE"
"""Names the page that the table is written into."""


def write_page(page: Path, table: Table, took_s: float) -> None:
    """Put targets, floor and phases into the page, with host and load."""
    load = os.getloadavg()[2]
    about = (
        f"{time.strftime('%Y-%m-%d')}, {host.summary_line()}, load {load:.1f} of "
        f"{os.cpu_count()} CPUs, in {took_s / 60:.0f} min {took_s % 60:.0f} s."
    )
    text = page.read_text()
    head = ("what", "target", "measured", "verdict", "medians")
    text = put(text, "targets", [about, "", *rows(head, [line.cells() for line in table.lines])])
    parts = [*(part.cells() for part in table.parts), *_guests(table)]
    text = put(text, "floor", rows(("part", "floor", "ours", "how close"), parts))
    head = ("arm", *(event.value for event in EVENTS), "n")
    text = put(text, "phases", rows(head, [_phases(*one) for one in table.phases.items()]))
    page.write_text(text)


EVENTS = (Event.ACCEPTED, Event.SPAWNED, Event.KERNEL, Event.INIT, Event.STARTED)


def _phases(arm: str, marks: dict[str, list[float]]) -> list[str]:
    """When each event was, in ms after the request: medians."""
    medians = [
        digits(statistics.median(marks[event]) * 1e3) if event in marks else "–" for event in EVENTS
    ]
    return [f"`{arm}`", *medians, str(max(map(len, marks.values())))]


def _guests(table: Table) -> list[tuple[str, str, str, str]]:
    """Parts of a VM's start, which plain QEMU's timeline gives."""
    steps = ((Event.REQUESTED, Event.SPAWNED), (Event.SPAWNED, Event.KERNEL),
             (Event.KERNEL, Event.INIT))  # fmt: skip
    floor, ours = (table.phases.get(name, {}) for name in ("qemu", "vm"))
    found = []
    for first, last in steps:
        if all(last in marks and first in marks for marks in (floor, ours)):
            sides = ([b - a for a, b in zip(marks[first], marks[last], strict=False)]
                     for marks in (floor, ours))  # fmt: skip
            name = f"virtual machine, {first} to {last}; floor: `qemu`, ours: `vm`"
            found.append(Part(name, *sides).cells())
    return found


def rows(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    marks = "|".join("---" for _ in head)
    cells = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in (head, *lines))
    first, *others = (f"| {line} |" for line in cells)
    return [first, f"|{marks}|", *others]


def put(text: str, name: str, lines: Sequence[str]) -> str:
    """Replace what is between the marks of one part.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no marks for {name}")
    return "\n".join((f"{before}{begin}", *lines, f"{end}{after}"))
