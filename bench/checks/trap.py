"""One known way in which a host spoils figures: how it is seen, what it does, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bench.checks.tree import Tree
from bench.model import Finding

GIB = 1 << 30


@dataclass(frozen=True)
class Trap:
    """A row of a table of traps.

    Attributes:
        code: stable; what ``hvct doctor --json`` and ``docs/doctor.md`` call it.
        level: ``problem`` (nothing runs), ``warning`` (figures suffer), ``info``.
        look: one line that says what is there, None where the trap is not set.
        meaning: its consequence for the numbers.
        remedy: what to do.
    """

    code: str
    level: str
    look: Callable[[Tree], str | None]
    meaning: str
    remedy: str


def spring(traps: Iterable[Trap], tree: Tree) -> Iterator[Finding]:
    """A finding for each trap that is set on a host."""
    for trap in traps:
        seen = trap.look(tree)
        if seen is not None:
            yield Finding(trap.code, trap.level, seen, trap.meaning, trap.remedy)


def gib(size: int) -> str:
    """``2.0 GiB``."""
    return f"{size / GIB:.1f} GiB"


def plural(count: int, word: str) -> str:
    """``1 CPU``, ``2 CPUs``."""
    return f"{count} {word}{'' if count == 1 else 's'}"
