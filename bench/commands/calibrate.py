"""``hvct calibrate``: each arm against itself, and what this host can therefore show."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.table import Table

from bench import archive, calibration, estimate, store, workloads
from bench.arms import DEFAULT_ARMS
from bench.commands.console import Console
from bench.commands.measuring import measure_new, raise_failures
from bench.commands.plans import (
    check_against_host,
    expected_s,
    named_arms,
    named_work,
    planned,
    print_plan,
)
from bench.commands.tune import tuning_names
from bench.errors import BadInput
from bench.model import Gap, PageCache, Scale
from bench.numbers import format_percent, format_value
from bench.plan import Plan, default_primary
from bench.stats.noise import SIZES, Noise

DEFAULT_BLOCKS = 12
MOST_LAG1 = 0.3
"""A correlation above this is said; see bench.stats.order."""


def main(options: argparse.Namespace) -> int:
    """Plan, measure, keep, say."""
    if options.show:
        return show(options)
    chosen = make_plan(options)
    tuning_names(options)  # a name that there is not is said now
    check_against_host(chosen, options.kernel)
    directory = options.output or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-calibration"
    told = sys.stderr if options.json else sys.stdout
    if not options.quiet:
        for line in beforehand(chosen):
            print(line, file=told)
    if options.dry_run:
        return print_plan(chosen, directory, options) if options.json else 0
    return measure_new(chosen, directory, options, finish)


def make_plan(options: argparse.Namespace) -> Plan:
    """What the options ask for: the work and the arms of the comparison they would make.

    Raises:
        BadInput: as for a comparison; or too few blocks.
    """
    made, names = planned(options), named_arms(options)
    if made is not None and made.page_cache is PageCache.COLD:
        raise BadInput("a calibration is of warm starts", 'give it a plan with page_cache = "warm"')
    if made is not None and made.gap is Gap.NONE:
        raise BadInput(
            "a calibration is of trials on a host that has settled",
            'give it a plan with gap = "quiet"',
        )
    chosen = made.workloads if made else named_work(options)[1]
    names = names or (made.arms if made else DEFAULT_ARMS)
    blocks = DEFAULT_BLOCKS if options.blocks is None else options.blocks
    return calibration.plan_of(chosen, names, blocks, options.seed)


def beforehand(chosen: Plan) -> list[str]:
    """How long it takes, and what it cannot show in that time."""
    count = len(chosen.workloads) // 2
    trials = 2 * count * len(chosen.arms) * chosen.blocks
    how_long = estimate.phrase(expected_s(chosen))
    return [
        f"Each of {len(chosen.arms)} arms against itself, {count} "
        f"workload{'' if count == 1 else 's'}, {chosen.blocks} blocks: {trials} trials, "
        f"{how_long}.",
        "It cannot show:",
        *(f"  - {what}" for what in calibration.CANNOT_SHOW),
    ]


def finish(directory: Path, options: argparse.Namespace) -> int:
    """Keep what was found, and say it."""
    stored = store.load(directory)
    found = calibration.noise(stored)
    kept = calibration.keep(stored, found)
    if options.json:
        print(json.dumps(store.jsonable(found), indent=1))
    elif not options.quiet:
        console = Console()
        tell(console, found)
        console.print(
            f"Kept in {kept} for hvct compare; all figures: "
            f"hvct calibrate --show {shlex.quote(str(directory))} --json",
            soft_wrap=True,
        )
    raise_failures(stored.trials, directory)
    return 0


def show(options: argparse.Namespace) -> int:
    """What a stored calibration found, without measuring."""
    with archive.opened(options.show) as directory:
        found = calibration.noise(store.load(directory), options.show)
    if options.json:
        print(json.dumps(store.jsonable(found), indent=1))
    else:
        tell(Console(), found)
    return 0


def tell(console: Console, found: Sequence[Noise]) -> None:
    """The most telling metrics as a table, then what is wrong with any of them."""
    chosen = {
        name: default_primary([workload])
        for name in dict.fromkeys(one.workload for one in found)
        for workload in workloads.quick_suite()
        if workload.name == name
    }
    rows = [
        one
        for one in found
        if not chosen.get(one.workload) or (one.metric, one.workload) in chosen[one.workload]
    ]
    grid = Table(box=None, pad_edge=False, title_justify="left")
    grid.add_column("against itself")
    grid.add_column("floor", justify="right")
    for n in SIZES:
        grid.add_column(f"n = {n}", justify="right")
    for one in rows:
        sizes = (_size(one, one.detectable[n]) for n in SIZES)
        grid.add_row(f"{one.arm} · {one.workload} · {one.metric}", _size(one, one.floor), *sizes)
    console.print(grid)
    console.print(
        "floor: a difference up to this may be the host's alone · n: what so many blocks would "
        "detect in 80 % of runs"
    )
    alarms = sum(one.false_alarm for one in found)
    console.print(
        f"{alarms} of {len(found)} intervals leave out nothing, which is true of all; "
        f"about {len(found) / 20:.0f} are expected."
    )
    for line in remarks(rows):
        console.print(line, soft_wrap=True)


def remarks(rows: Sequence[Noise]) -> list[str]:
    """What speaks against trusting blocks of this host, most telling metrics only."""
    said = []
    for one in rows:
        label = f"{one.arm}, {one.metric} of {one.workload}"
        if one.n < one.n_blocks:
            said.append(f"{label}: {one.n_blocks - one.n} of {one.n_blocks} pairs have no value")
        if abs(one.lag1) > MOST_LAG1 and one.n >= 1 / MOST_LAG1**2:
            said.append(f"{label}: neighbouring blocks resemble each other (lag-1 {one.lag1:.2f})")
        if one.position_p * len(rows) <= 0.05:
            said.append(f"{label}: each place later in the block adds {_size(one, one.position)}")
        said += [
            f"{label}: after {item.arm} it is {_size(one, item.estimate)} more"
            for item in one.follows
            if item.shown
        ]
    return said


def _size(one: Noise, value: float | None) -> str:
    if value is None:
        return "not known"
    if one.scale is Scale.RATIO:
        return format_percent(value)
    return format_value(value, one.unit)
