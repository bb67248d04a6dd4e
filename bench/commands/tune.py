"""``hvct tune``: settings of the host that make figures noisier, shown, changed, restored."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from bench import host, settings, spec, tuning
from bench.checks.interference import cpus_of_list
from bench.checks.tree import Tree
from bench.cleanup import clean_dead
from bench.commands.doctor import print_text
from bench.commands.rights import need_root
from bench.errors import BadInput, HostCannot
from bench.hostchange import Change
from bench.plan import Plan
from bench.settings import Cpus, Row

MARKS = {"absent": "-", "as wanted": "✓", "differs": "!", "cannot": "✗"}
NAME_WIDTH = 16


def main(options: argparse.Namespace) -> int:
    """Show, apply or reset."""
    if options.action == "reset":
        return reset(options)
    chosen = settings.select(options.only)
    cpus = cpus_for(options.cpus, chosen)
    if options.action == "show":
        return show(options, settings.survey(Tree(), cpus, chosen), cpus)
    if options.dry_run:
        changes = wanted(settings.survey(Tree(), cpus, chosen), named=options.only is not None)
        return say(options, changes, "would be changed", cpus)
    need_root("changing settings of the host", "files in /proc and /sys, IRQs")
    clean_dead()
    changes = wanted(settings.survey(Tree(), cpus, chosen), named=options.only is not None)
    made = tuning.apply(changes, cpus.measured, keep=True) if changes else []
    return say(options, made, "changed", cpus)


def cpus_for(count: float, chosen: Sequence[settings.Setting], tree: Tree | None = None) -> Cpus:
    """Which CPUs will be measured on, and which are the others', once `chosen` is in force.

    Raises:
        BadInput: the host has not so many, or will not have.
    """
    here = tree or Tree()
    gone: frozenset[int] = frozenset()
    smt = next((setting for setting in chosen if setting.name == "smt"), None)
    if smt and smt.changes(here, Cpus((), ())) and not smt.obstacle(here, Cpus((), ())):
        gone = settings.siblings_off(here)
    usable = [cpu for cpu in spec.usable_cpus() if cpu not in gone]
    if not (math.isfinite(count) and 0 < count <= len(usable)):
        raise BadInput(
            f"{count:g} CPUs cannot be kept for instances, of {len(usable)}",
            f"it is at least 1 and at most {len(usable)}",
        )
    measured = tuple(usable[-math.ceil(count) :])
    online = cpus_of_list(here.text(f"{settings.CPUS}/online") or "") or frozenset(usable)
    free = sorted(online - gone - set(measured))
    apart = [cpu for cpu in free if not spec.siblings(cpu) & set(measured)]
    return Cpus(measured, tuple(apart or free))


def wanted(rows: Sequence[Row], *, named: bool) -> list[Change]:
    """What is to be changed; what cannot be is told, or refused where it was asked for by name.

    Raises:
        HostCannot: it was.
    """
    changes: list[Change] = []
    for row in rows:
        if row.state == "cannot":
            text = f"{row.setting.name} is left alone: {row.obstacle}"
            if named:
                raise HostCannot(text, "leave it out of --only")
            print(text, file=sys.stderr)
        elif row.state == "absent" and named:
            raise HostCannot(f"this host has no {row.setting.name} to be set", "leave it out")
        elif row.state == "differs":
            changes += row.changes
    # A file that two settings concern is written down once, with what changes it.
    real = {change.path for change in changes if change.old != change.new}
    return [change for change in changes if change.old != change.new or change.path not in real]


def show(options: argparse.Namespace, rows: Sequence[Row], cpus: Cpus) -> int:
    """How the host stands to each setting, with what it does to the numbers."""
    if options.json:
        document = {
            "measured_cpus": cpus.measured,
            "other_cpus": cpus.others,
            "in_force": tuning.in_force(),
            "settings": [
                {
                    "name": row.setting.name,
                    "title": row.setting.title,
                    "state": row.state,
                    "now": row.now,
                    "obstacle": row.obstacle,
                    "code": row.setting.trap,
                    "meaning": row.setting.about.meaning,
                    "changes": [asdict(change) for change in row.changes],
                }
                for row in rows
            ],
        }
        print(json.dumps(document, indent=1))
        return 0
    for row in rows:
        said = row.told if row.changes else row.now
        state = f"{row.state}: {said}" if said else row.state
        print_text(f"{MARKS[row.state]} {row.setting.name:{NAME_WIDTH}} ", row.setting.title)
        print_text(f"  {'':{NAME_WIDTH}} ", state)
        if row.obstacle:
            print_text(f"  {'':{NAME_WIDTH}} ", f"cannot be changed: {row.obstacle}")
        if row.state != "absent":
            print_text(f"  {'':{NAME_WIDTH}} ", row.setting.about.meaning)
    print()
    if force := tuning.in_force():
        print(f"In force: {', '.join(map(str, force['settings']))}")  # type: ignore[call-overload]
    print(f"CPUs for instances: {_list(cpus.measured)}; for the rest: {_list(cpus.others)}")
    return 0


def reset(options: argparse.Namespace) -> int:
    """Restore what is in force."""
    if options.dry_run:
        record = tuning.read()
        return say(options, record.changes if record else (), "would be restored")
    need_root("restoring settings of the host", "files in /proc and /sys, IRQs")
    done = tuning.reset()
    if options.json:
        print(json.dumps({"done": done}, indent=1))
        return 0
    for line in done or ["nothing was changed"]:
        print(line)
    return 0


def say(
    options: argparse.Namespace, changes: Sequence[Change], what: str, cpus: Cpus | None = None
) -> int:
    """The changes, one line each."""
    if options.json:
        document = {"dry_run": options.dry_run, "changes": [asdict(change) for change in changes]}
        if cpus:
            document |= {"measured_cpus": cpus.measured, "other_cpus": cpus.others}
        print(json.dumps(document, indent=1))
        return 0
    for change in changes:
        one, other = change.old or "empty", change.new or "empty"
        if "restored" in what:
            one, other = other, one
        if one != other:
            print(f"{what}: {change.path}: {one} → {other}")
    if not changes:
        print("nothing has to be changed" if cpus else "nothing was changed")
    elif not options.dry_run:
        print("undo it with: hvct tune reset")
    return 0


def tuning_names(options: argparse.Namespace) -> list[str] | None:
    """The settings that ``--tune`` or ``--tune-only`` mean; None without them.

    Raises:
        BadInput: there is none of that name.
    """
    only = getattr(options, "tune_only", None)
    if only is None and not getattr(options, "tune", False):
        return None
    return [setting.name for setting in settings.select(only)]


@contextlib.contextmanager
def tuned(chosen: Plan, options: argparse.Namespace) -> Iterator[None]:
    """The host with those settings for the time of a run, as its widest workload needs them.

    Raises:
        HostCannot: one that was asked for by name cannot be changed, or not undone.
    """
    names = tuning_names(options)
    if names is None:
        yield
        return
    widest = max(workload.limits.cpus for workload in chosen.workloads)
    which = settings.select(names)
    cpus = cpus_for(widest, which)
    # A list is what a resumed run kept: it says what was tried then, not what must be there.
    asked = isinstance(options.tune_only, str)
    changes = wanted(settings.survey(Tree(), cpus, which), named=asked)
    if not changes:
        yield
        return
    with tuning.applied(changes, cpus.measured) as made:
        host.forget()  # facts that were looked up before
        if not options.quiet:
            names = list(dict.fromkeys(change.setting for change in made))
            print(f"Tuned: {', '.join(names)}; undone at the end", file=sys.stderr)
        yield


def _list(cpus: Sequence[int]) -> str:
    return ", ".join(map(str, cpus)) or "none"
