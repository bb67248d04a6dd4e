"""Live progress of a run on a terminal: what runs now, how far, and the time left.

On a pipe it prints one line per block instead; ``--quiet`` prints nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from bench.model import Outcome, Trial, Workload
from bench.plan import Plan
from bench.schedule import Slot

LABEL_WIDTH = 8


class LiveProgress:
    """Prints banners, the current stage, and a bar with time left."""

    def __init__(self, plan: Plan, console: Console, bar: Progress | None) -> None:
        self._plan = plan
        self._console = console
        self._bar = bar
        self._task = None if bar is None else bar.add_task("", total=None, what="")
        self._block = -1
        self._failed = 0

    def banner(self, label: str, text: str) -> None:
        """A line that stays: ``Host    …``."""
        line = Text(f"{label:{LABEL_WIDTH}}", style="bold")
        line.append(text, style="default not bold")
        self._console.print(line, soft_wrap=True)

    def stage(self, text: str) -> None:
        """A stage of preparation begins; it is overwritten by the next."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text, total=None, refresh=True)

    def begin(
        self, slot: Slot, workload: Workload, done: int, total: int, left_s: float | None
    ) -> None:
        """A trial begins."""
        left = "" if left_s is None else f"{int(left_s) // 60}:{int(left_s) % 60:02d} left"
        block = f"{slot.block + 1}/{self._plan.blocks}"
        if self._bar is not None and self._task is not None:
            failed = f" · {self._failed} not ok" if self._failed else ""
            self._bar.update(
                self._task,
                description=f"Block   {block}",
                completed=done,
                total=total,
                what=f"{slot.arm} · {workload.title}{failed}  {left}",
                refresh=True,
            )
        elif slot.block != self._block:
            self._console.print(f"Block   {block}  {left}", soft_wrap=True)
        self._block = slot.block

    def end(self, trial: Trial) -> None:
        """A trial was stored; one that is not ok is said at once, once."""
        if trial.outcome is not Outcome.OK:
            self._failed += 1
            if self._failed <= 5:
                self.banner(
                    "Trial", f"{trial.arm} · {trial.workload}: {trial.outcome}: {trial.error}"
                )

    def close(self) -> None:
        """Stop drawing."""
        if self._bar is not None:
            self._bar.stop()


class NoProgress(LiveProgress):
    """Says nothing."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, Console(quiet=True), None)


@contextmanager
def open_progress(plan: Plan, *, quiet: bool = False) -> Iterator[LiveProgress]:
    """Progress that suits where the output goes."""
    if quiet:
        yield NoProgress(plan)
        return
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        yield LiveProgress(plan, console, None)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=26),
        TextColumn("{task.fields[what]}"),
        console=console,
        transient=True,
        auto_refresh=False,  # it draws from a thread of ours, ten times a second, in trials too
    )
    with bar:
        yield LiveProgress(plan, console, bar)
