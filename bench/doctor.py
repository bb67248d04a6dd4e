"""What works on this host, what does not, what it means for the numbers, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import checks, cleanup, host, journal
from bench.errors import HvctError
from bench.model import Capability, Finding

LEVELS = ("problem", "warning", "info")


def examine(capabilities: Sequence[Capability] = ()) -> list[Finding]:
    """Run every check on this host, about half a second; the worst findings come first.

    Args:
        capabilities: what the probes of the backends found.
    """
    facts = host.fingerprint()
    found = [
        *checks.rights(),
        *checks.programs(facts),
        *checks.accelerator(capabilities),
        *checks.control_groups(),
        *checks.devices(),
        *checks.network(),
        *checks.disk(),
        *judge(facts),
        *checks.load(),
        *leftovers(),
    ]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def judge(facts: host.Facts) -> list[Finding]:
    """Findings about a host that follow from its stored fingerprint alone."""
    return [*checks.memory_policy(facts), *checks.cpu_policy(facts)]


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
