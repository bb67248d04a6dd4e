"""Text for a person, in colours where there is a terminal."""

from __future__ import annotations

from typing import IO

from rich import console


class Console(console.Console):
    """As rich has it, but for a reader that goes away: that is told to `bench.cli`, as ever."""

    def __init__(
        self, file: IO[str] | None = None, *, quiet: bool = False, plain: bool = False
    ) -> None:
        """To `file` (default: standard output); `quiet`: nothing; `plain`: as to no terminal."""
        super().__init__(
            file=file, highlight=False, quiet=quiet, force_terminal=False if plain else None
        )

    def on_broken_pipe(self) -> None:
        """Not the end of the process with status 1, which means something else here."""
        raise BrokenPipeError
