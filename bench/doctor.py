"""What works on this host, what does not, what it means for the numbers, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import cleanup, host, journal, tuning
from bench.checks import confinement, cpu, interference, kernel, live, memory, tenants
from bench.checks.programs import binding, programs
from bench.checks.trap import Trap, spring
from bench.checks.tree import Tree
from bench.errors import HvctError
from bench.model import Capability, Finding

LEVELS = ("problem", "warning", "info")
TRAPS: tuple[Trap, ...] = (
    *kernel.TRAPS,
    *confinement.TRAPS,
    *memory.TRAPS,
    *cpu.TRAPS,
    *interference.TRAPS,
    *tenants.TRAPS,
)
"""Everything that files of a host tell. ``docs/doctor.md`` lists it for users."""


def examine(capabilities: Sequence[Capability] = ()) -> list[Finding]:
    """Run every check on this host, about half a second; the worst findings come first.

    Args:
        capabilities: what the probes of the backends found.
    """
    here = Tree()
    found = [
        *live.rights(),
        *programs(here, host.program_versions()),
        *binding(),
        *live.accelerator(capabilities),
        *live.control_groups(),
        *spring(TRAPS, here),
        *live.network(),
        *live.disk(),
        *live.window(),
        *leftovers(),
        *tuned(),
    ]
    return worst_first(list(dict.fromkeys(found)))  # arms of one backend are found the same


def worst_first(found: Sequence[Finding]) -> list[Finding]:
    """The order in which findings are shown."""
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def leftovers() -> Iterator[Finding]:
    """Runs that died and could not be undone."""
    for record in journal.dead():
        try:
            count = len(cleanup.clean(record.tag, dry_run=True))
        except HvctError:
            count = 0
        yield Finding(
            "left.run",
            "warning",
            f"run {record.tag} of {record.since} died and left {count} things behind",
            "they take memory and names, and may disturb measurements",
            f"hvct clean {record.tag}",
        )


def tuned() -> Iterator[Finding]:
    """Settings of the host that hvct itself has changed."""
    try:
        record = tuning.read()
    except HvctError as error:
        yield Finding("left.tuning", "warning", error.message, "the host is not as it was",
                      error.hint)  # fmt: skip
        return
    if record is None:
        return
    names = ", ".join(record.settings)
    if record.dead:
        yield Finding(
            "left.tuning",
            "warning",
            f"a command that died had changed settings of this host: {names}",
            "the host is not as it was, and fingerprints say so",
            "hvct clean",
        )
    else:
        yield Finding(
            "tune.applied",
            "info",
            f"hvct tune has changed settings of this host since {record.since}: {names}",
            "figures are those of a host tuned like that, and every run says so",
            "hvct tune reset",
        )
