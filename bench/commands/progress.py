"""Live progress on a terminal: what runs now, how far it is, and the time left.

Stages of preparation are animated by a thread. While trials run there is none: the line
is drawn between two of them, never in one. On a pipe there is one line per stage and
block; ``--quiet`` prints nothing.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console as AnyConsole
from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from bench.commands.console import Console
from bench.model import Outcome, Trial, Workload
from bench.plan import Plan
from bench.schedule import Slot

LABEL_WIDTH = 8
BAR_WIDTH = 20
FRAMES_PER_S = 8
FAILURES_SAID = 5


class Stages:
    """Lines that stay, and one line at the end that says what is being done."""

    def __init__(self, console: AnyConsole) -> None:
        self._console = console
        self._live: Live | None = None
        self._stage = ""
        self._since = 0.0

    def banner(self, label: str, text: str) -> None:
        """A line that stays: ``Host    …``; its rest is indented where it is too long."""
        if self._console.is_terminal:
            width = max(20, self._console.width - LABEL_WIDTH)
            text = f"\n{'':{LABEL_WIDTH}}".join(textwrap.wrap(text, width, break_on_hyphens=False))
        line = Text(f"{label:{LABEL_WIDTH}}", style="bold")
        line.append(text, style="default not bold")
        self._console.print(line, soft_wrap=True)

    def stage(self, text: str) -> None:
        """Something of which the end is not known begins: ``what it is · which part of it``."""
        if _kind(text) != _kind(self._stage):
            self._since = time.monotonic()
            if not self._console.is_terminal:
                self.banner("…", _kind(text))
        self._stage = text
        if self._console.is_terminal and not (self._live and self._live.auto_refresh):
            self.close()
            spinner = Spinner("dots")

            def draw() -> RenderableType:
                return self._stage_line(spinner)

            self._live = Live(
                console=self._console,
                get_renderable=draw,
                refresh_per_second=FRAMES_PER_S,
                transient=True,
            )
            self._live.start(refresh=True)

    def _stage_line(self, spinner: Spinner) -> RenderableType:
        line = Table.grid(expand=True)
        line.add_column(width=LABEL_WIDTH)
        line.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        line.add_column(justify="right", no_wrap=True)
        line.add_row(spinner, self._stage, f"  {time.monotonic() - self._since:.0f} s")
        return line

    def close(self) -> None:
        """Take the last line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class RunProgress(Stages):
    """The same, and the blocks of a run with the time left."""

    def __init__(self, console: AnyConsole, plan: Plan) -> None:
        super().__init__(console)
        self._plan = plan
        self._block = -1
        self._failed = 0

    def begin(
        self, slot: Slot, workload: Workload, done: int, total: int, left_s: float | None
    ) -> None:
        """A trial begins."""
        left = "" if left_s is None else f"{clock(left_s)} left"
        block = f"{slot.block + 1}/{self._plan.blocks}"
        if self._console.is_terminal:
            if self._live is None or self._live.auto_refresh:
                self.close()
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            what = f"{slot.arm} · {workload.title}"
            self._live.update(self._block_line(block, done, total, what, left), refresh=True)
        elif slot.block != self._block:
            self.banner("Block", f"{block}  {left}")
        self._block = slot.block

    def _block_line(
        self, block: str, done: int, total: int, what: str, left: str
    ) -> RenderableType:
        line = Table.grid(expand=True, padding=(0, 2, 0, 0), pad_edge=False)
        line.add_column(no_wrap=True, width=LABEL_WIDTH + 2 * len(str(self._plan.blocks)) + 1)
        line.add_column(width=BAR_WIDTH)
        line.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        line.add_column(justify="right", no_wrap=True)
        head = Text(f"{'Block':{LABEL_WIDTH}}", style="bold").append(block, style="default")
        failed = Text(f"{self._failed} not ok  " if self._failed else "", style="red")
        bar = ProgressBar(total=total, completed=done, width=BAR_WIDTH)
        line.add_row(head, bar, what, failed.append(left, style="default"))
        return line

    def end(self, trial: Trial) -> None:
        """A trial was stored; one that is not ok is said at once, the first few of them."""
        if trial.outcome is not Outcome.OK:
            self._failed += 1
            if self._failed <= FAILURES_SAID:
                self.banner(
                    "Trial", f"{trial.arm} · {trial.workload}: {trial.outcome}: {trial.error}"
                )


class NoProgress(RunProgress):
    """Says nothing."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(Console(quiet=True, plain=True), plan)


def _kind(stage: str) -> str:
    return stage.partition(" · ")[0]


def told_to(stages: Stages) -> Callable[[str, float | None], None]:
    """The progress callback of `bench.image` that shows itself as a stage."""

    def told(what: str, fraction: float | None) -> None:
        stages.stage(what if fraction is None else f"{what} · {fraction:.0%}")

    return told


def clock(seconds: float) -> str:
    """``1:51``, ``2:03:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def open_progress(plan: Plan, stream: TextIO, *, quiet: bool = False) -> Iterator[RunProgress]:
    """Progress of a run, in the form that suits the stream."""
    console = Console(stream)
    progress = NoProgress(plan) if quiet else RunProgress(console, plan)
    try:
        yield progress
    finally:
        progress.close()


@contextmanager
def open_stages(stream: TextIO) -> Iterator[Stages]:
    """Progress of something that is no run, such as building an image."""
    stages = Stages(Console(stream))
    try:
        yield stages
    finally:
        stages.close()
