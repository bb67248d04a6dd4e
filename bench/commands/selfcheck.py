"""``hvct selfcheck``: spike-in controls on the user's host, and what it can resolve."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import arms, controls, estimate, journal, registry, spikein
from bench.backend import Backend
from bench.cleanup import clean_dead
from bench.commands.console import Console
from bench.commands.execution import pinned_away
from bench.commands.progress import open_progress, open_stages, told_to
from bench.commands.rights import need_root
from bench.commands.tune import tuned, tuning_names
from bench.context import RunContext
from bench.controls import Control
from bench.errors import BadInput, HostCannot, HvctError
from bench.image import store as images
from bench.model import Scale
from bench.numbers import format_estimate, format_percent, quantity
from bench.pagecache import SharedCache
from bench.plan import Plan, new_seed
from bench.spikein import Recovery, Surroundings

LEAST_BLOCKS = 6
LEAST_PAIRS = 0.75
"""Of the blocks: on a busy host a CPU window may have to be left out."""


@dataclass(frozen=True)
class Part:
    """One control on the arms it is made for."""

    control: Control
    plan: Plan


def main(options: argparse.Namespace) -> int:
    """Announce, measure, say. Exit 1 when an injected effect was not found."""
    check(options)
    tuning_names(options)  # a name that there is not is said now
    need_root()
    with (
        journal.exclusive(options.wait, told=waiting),
        contextlib.ExitStack() as stack,
    ):
        clean_dead()
        with (
            journal.open_run(
                None,
                network=True,
                libvirt_uri=options.libvirt_uri,
                kernel=options.kernel,
            ) as context,
            SharedCache(context.tag) as cache,
            open_arms(options, context) as (backends, emulated),
        ):
            parts = chosen_parts(options, list(backends), emulated)
            # One set of CPUs for all: every control's instance has one.
            stack.enter_context(tuned(parts[0].plan, options))
            if not options.quiet:
                took = estimate.phrase(sum(estimate.run_seconds(part.plan) for part in parts))
                print(f"{len(parts)} controls, {took}", file=sys.stderr)
            found = [
                one
                for number, part in enumerate(parts)
                for one in measure(
                    part,
                    context.runtime_dir / f"run-{number}",
                    backends,
                    context,
                    cache,
                    options.quiet,
                )
            ]
    if options.json:
        print(json.dumps([plain(one) for one in found], indent=1))
    else:
        tell(Console(), found)
    return 0 if all(right(one) for one in found) else 1


def check(options: argparse.Namespace) -> None:
    """Refuse what no host could do.

    Raises:
        BadInput: too few blocks, or an arm or a control that there is not.
    """
    if options.blocks is not None and options.blocks < LEAST_BLOCKS:
        raise BadInput(f"{options.blocks} blocks give no interval", f"use at least {LEAST_BLOCKS}")
    every = (*controls.NATIVE, *controls.EMULATED, *controls.KVM)
    for what, asked, known in (
        ("arm", options.arms, arms.DEFAULT_ARMS),
        ("control", options.controls, [control.name for control in every]),
    ):
        for name in asked.split(",") if asked else ():
            if name not in known:
                choice = ", ".join(dict.fromkeys(known))
                raise BadInput(f"there is no {what} {name!r} to check", f"choose from {choice}")


def waiting(first: str) -> None:
    """Say who is first."""
    print(f"Waiting for another comparison to end: {first}", file=sys.stderr)


@contextlib.contextmanager
def open_arms(
    options: argparse.Namespace, context: RunContext
) -> Iterator[tuple[dict[str, Backend], bool]]:
    """The arms that were asked for, or all that work; and whether the VM is emulated.

    Raises:
        HostCannot: one that was asked for does not work, or none does.
    """
    names = tuple(options.arms.split(",")) if options.arms else arms.DEFAULT_ARMS
    emulated, reasons = False, []
    with contextlib.ExitStack() as stack, open_stages(sys.stderr) as stages:
        backends: dict[str, Backend] = {}
        for arm in arms.resolve(names):
            if not options.quiet:
                stages.stage(f"trying what this host can do · {arm.name}")
            backend = stack.enter_context(registry.make(arm, context))
            found = backend.probe()
            if found.usable:
                backends[arm.name] = backend
                emulated = emulated or found.accelerator.emulated
                continue
            if options.arms:
                raise HostCannot(f"{arm.name}: {found.reason}", found.remedy)
            reasons.append(f"{arm.name}: {found.reason}")
        if not backends:
            raise HostCannot(f"no arm works here: {'; '.join(reasons)}", "hvct doctor says why")
        stages.close()
        yield backends, emulated


def chosen_parts(options: argparse.Namespace, names: Sequence[str], emulated: bool) -> list[Part]:
    """Each control with the arms it belongs to.

    Raises:
        BadInput: there is no such control for these arms.
    """
    native = [name for name in names if arms.ARMS[name].backend != "vm"]
    machines = [name for name in names if name not in native]
    for_vm = controls.EMULATED if emulated else controls.KVM
    wanted = [(control, native) for control in controls.NATIVE if native]
    wanted += [(control, machines) for control in for_vm if machines]
    if options.controls:
        asked = options.controls.split(",")
        wanted = [(control, on) for control, on in wanted if control.name in asked]
        if not wanted:
            raise BadInput(
                f"{', '.join(names)}: there is no such control for them",
                "hvct selfcheck --help says which there are",
            )
    seed = new_seed()
    return [
        Part(control, spikein.plan_of(control, on, seed, options.blocks)) for control, on in wanted
    ]


def measure(
    part: Part,
    directory: Path,
    backends: Mapping[str, Backend],
    context: RunContext,
    cache: SharedCache,
    quiet: bool,
) -> list[Recovery]:
    """Run one control.

    Raises:
        HvctError: an arm could not be prepared; the control is named.
    """
    made = part.plan
    with open_progress(made, sys.stderr, quiet=quiet) as progress, pinned_away(made):
        progress.banner("Control", part.control.title)
        names = dict.fromkeys(workload.image for workload in made.workloads)
        prepared = {name: images.prepare(name, told_to(progress)) for name in names}
        used = {arm: backends[arm] for arm in made.arms}
        try:
            return spikein.run(
                part.control,
                made,
                directory,
                Surroundings(used, prepared, context, cache, progress),
            )
        except HvctError as error:
            error.message = f"control {part.control.name}: {error.message}"
            raise


def right(one: Recovery) -> bool:
    """The rule of the gate in `bench.spikein`: the truth found, told from none and from twice."""
    enough = one.comparison.n_pairs >= LEAST_PAIRS * one.comparison.n_blocks
    sharp = one.detected and one.bounded
    return enough and one.sound and (sharp or not one.injection.sharp)


def tell(console: Console, found: Sequence[Recovery]) -> None:
    """What was put in, what came out, and what that says about this installation."""
    grid = Table(box=None, pad_edge=False)
    for title in ("arm · metric", "put in", "came out", "", "resolves"):
        grid.add_column(title)
    for one in found:
        name = f"{one.arm} · {one.injection.metric}"
        grid.add_row(name, truth(one), printed(one), state(one), resolution(one))
    console.print(grid)
    missed = [one for one in found if not right(one)]
    console.print(
        "Every effect that was put in came out."
        if not missed
        else f"{len(missed)} of {len(found)} effects were not found as they were put in: do not "
        "believe differences of those metrics on this host, in its present state."
    )
    console.print("resolves: the smallest effect that as many blocks tell from nothing here, now.")


def truth(one: Recovery) -> str:
    """The range in which the injected effect lies."""
    injection = one.injection
    ends = (quantity(end, injection.unit, digits=4) for end in (injection.low, injection.high))
    return " to ".join(dict.fromkeys(ends))


def printed(one: Recovery) -> str:
    """The estimate as a report would print it."""
    c, injection = one.comparison, one.injection
    signed = injection.scale is Scale.DIFFERENCE
    return format_estimate(c.estimate, c.low, c.high, injection.unit, signed=signed)


def state(one: Recovery) -> str:
    """In a word."""
    if right(one):
        return "found" if one.injection.sharp else "not contradicted"
    return "MISSED"


def resolution(one: Recovery) -> str:
    """The smallest effect told from nothing."""
    if not math.isfinite(one.resolves):
        return "nothing"
    if one.injection.scale is Scale.RATIO:
        return format_percent(one.resolves)
    return quantity(one.resolves, one.injection.unit)


def plain(one: Recovery) -> dict[str, Any]:
    """For JSON; infinities as None."""
    return {
        "control": one.control.name,
        "arm": one.arm,
        "metric": one.injection.metric,
        "unit": one.injection.unit,
        "scale": one.injection.scale.value,
        "put_in": [one.injection.low, one.injection.high],
        "came_out": one.comparison.plain(),
        "wide": [end if math.isfinite(end) else None for end in one.wide],
        "right": right(one),
        "resolves": one.resolves if math.isfinite(one.resolves) else None,
        "blocks": one.comparison.n_blocks,
    }
