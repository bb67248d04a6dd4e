"""``hvct compare``: the main job, from a plan to its report."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import arms, plan, store
from bench.commands.measuring import interrupted, measure_new, raise_failures
from bench.commands.plans import check_against_host, named_arms, named_work, planned, print_plan
from bench.commands.tune import tuning_names
from bench.errors import BadInput
from bench.plan import Plan
from bench.stats.planning import QUICK_BLOCKS


def main(options: argparse.Namespace) -> int:
    """Plan, prepare, measure, report."""
    chosen = make_plan(options)
    check_against_host(chosen, options.kernel)
    directory = options.output or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{chosen.name}"
    tuning_names(options)  # a name that there is not is said now
    if options.dry_run:
        return print_plan(chosen, directory, options)
    return measure_new(chosen, directory, options, finish)


def make_plan(options: argparse.Namespace) -> Plan:
    """The plan that the options describe.

    Raises:
        BadInput: they contradict each other, or the plan is not valid.
    """
    names, made = named_arms(options), planned(options)
    if made is not None:
        if options.together != 1:
            raise BadInput("--plan already says how many at once", "write together = N there")
        changes: dict[str, Any] = {"judge_emulated": options.judge_emulated}
        if names:
            changes["arms"] = names
        if options.blocks is not None:
            changes["blocks"] = options.blocks
        return plan.check(dataclasses.replace(made, **changes))
    name, chosen = named_work(options)
    made = plan.quick(
        [dataclasses.replace(one, together=options.together) for one in chosen],
        arms=names or arms.DEFAULT_ARMS,
        blocks=QUICK_BLOCKS if options.blocks is None else options.blocks,
        seed=options.seed,
        name=name,
    )
    return dataclasses.replace(made, judge_emulated=options.judge_emulated)


def finish(directory: Path, options: argparse.Namespace) -> int:
    """Report in the run directory, summary on the terminal, exit code from the outcomes."""
    from bench.commands import report

    try:
        if not options.no_report:
            report.write(directory, quiet=options.json)
        if options.json:
            report.print_json([directory])
    except KeyboardInterrupt as interrupt:
        return interrupted(
            interrupt, f"all is measured; write it with: hvct report {shlex.quote(str(directory))}"
        )
    raise_failures(store.load(directory).trials, directory)
    return 0
