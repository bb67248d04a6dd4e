"""``hvct costs``: what one more instance takes on this host, as a ledger and a cost model."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import archive, estimate, host, ledger, plan, store, workloads
from bench import steps as step_file
from bench.commands.console import Console
from bench.commands.measuring import measure_new, raise_failures
from bench.commands.plans import check_against_host, expected_s, print_plan_json
from bench.commands.tune import tuning_names
from bench.errors import BadInput, HvctError
from bench.ledger import CostModel
from bench.model import Workload
from bench.plan import Plan
from bench.standing import SETTLE_S, launch_key
from bench.stats.student import LEAST_RUNS
from bench.steps import EXPERIMENT, is_guest

ARMS = ("vm", "container")
LAUNCH_GUESS_S = {True: 2.5, False: 0.05}  # of one more, before this host has launched any


def main(options: argparse.Namespace) -> int:
    """Plan, let stand, measure, keep, say."""
    if options.schema:
        from reports import schema

        print(schema.text(schema.cost_schema()), end="")
        return 0
    if options.show:
        with archive.opened(options.show) as directory:
            return say(model_of(directory, options.show), options)
    chosen = make_plan(options)
    tuning_names(options)  # a name that there is not is said now
    check_against_host(chosen, options.kernel)
    asked = steps_of(chosen, options)
    directory = options.output or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-costs"
    if not options.quiet:
        for line in beforehand(chosen, asked, options.hold):
            print(line, file=sys.stderr if options.json else sys.stdout)
    if options.dry_run:
        if options.json:
            seconds = expected_s(chosen) + standing_s(chosen, asked, options.hold)
            print_plan_json(chosen, directory, seconds, steps=asked)
        return 0
    described = {
        "host": host.summary_line(),
        "hold_s": options.hold,
        "arms": {arm: {"steps": list(steps)} for arm, steps in asked.items()},
    }
    return measure_new(chosen, directory, options, finish, {"costs": described})


def make_plan(options: argparse.Namespace) -> Plan:
    """What the options ask for.

    Raises:
        BadInput: a workload or an arm is not one, or does not suit.
    """
    held, work = workloads.builtin(options.workload), workloads.builtin(options.work)
    if held.until != "ready":
        raise BadInput(
            f"{held.name} ends by itself: it cannot stand idle",
            f"choose from {_names(lambda one: one.until == 'ready')}",
        )
    if not work.work_units:
        raise BadInput(
            f"--work {work.name}: it counts no work",
            f"choose from {_names(lambda one: bool(one.work_units))}",
        )
    if options.rounds < LEAST_RUNS:
        raise BadInput(
            f"{options.rounds} rounds give no interval", f"ask for at least {LEAST_RUNS}"
        )
    if not 0.1 <= options.hold <= 600:
        raise BadInput(f"--hold {options.hold:g} is no useful time", "it is 0.1 to 600 s")
    names = tuple(options.arms.split(",")) if options.arms else ARMS
    seed = plan.new_seed() if options.seed is None else options.seed
    return plan.check(
        Plan("costs", names, (held, work), options.rounds, seed, (), {}, experiment=EXPERIMENT)
    )


def _names(suits: Any) -> str:
    every: Sequence[Workload] = (*workloads.QUICK, *workloads.MORE)
    return ", ".join(one.name for one in every if suits(one))


def steps_of(chosen: Plan, options: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """How many instances stand, by arm.

    Raises:
        BadInput: the steps are no numbers, or too few.
    """
    native, guests = (
        _steps(name, getattr(options, name.replace("-", "_"))) for name in ("steps", "vm-steps")
    )
    return {arm: guests if is_guest(arm) else native for arm in chosen.arms}


def _steps(name: str, text: str) -> tuple[int, ...]:
    hint = "as in --steps 0,10,25,50: at least two different numbers, up to 10000"
    try:
        steps = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError as error:
        raise BadInput(f"--{name} {text!r} are no numbers", hint) from error
    if steps[0] < 0 or steps[-1] > 10000:
        raise BadInput(f"--{name} {text!r} cannot stand here", hint)
    if len(steps) < 2:
        raise BadInput(f"--{name} {text!r} gives no slope", hint)
    return steps


def beforehand(chosen: Plan, asked: Mapping[str, Sequence[int]], hold_s: float) -> list[str]:
    """What stands, and how long all of it takes."""
    seconds = expected_s(chosen) + standing_s(chosen, asked, hold_s)
    held, work = chosen.workloads
    stands = "; ".join(f"{arm} {', '.join(map(str, steps))}" for arm, steps in asked.items())
    return [
        f"{held.title}, standing idle: {stands}.",
        f"{chosen.blocks} rounds, then {chosen.blocks} trials each of {held.name} and "
        f"{work.name}: {estimate.phrase(seconds)}.",
        "Steps shrink where this host's memory does not allow them, and the reason is kept.",
    ]


def standing_s(chosen: Plan, asked: Mapping[str, Sequence[int]], hold_s: float) -> float:
    """Seconds that the passes will take; about half of a pass's instances are launched anew."""
    known = estimate.load()
    total = 0.0
    for arm, steps in asked.items():
        each = known.seconds.get(
            f"{arm}/{launch_key(chosen.workloads[0])}", LAUNCH_GUESS_S[is_guest(arm)]
        )
        total += len(steps) * (hold_s + SETTLE_S) + max(steps) * 1.5 * each
    return total * chosen.blocks


def finish(directory: Path, options: argparse.Namespace) -> int:
    """Write the cost model, report, say it; exit code from passes and trials."""
    stored = store.load(directory)
    model = model_of(directory)
    store.write_json(directory / ledger.MODEL_FILE, model.as_json())
    if not options.no_report:
        from bench.commands import report

        report.write(directory, quiet=True)
    say(model, options)
    if not options.json and not options.quiet:
        print(f"For a planner: {shlex.quote(str(directory / ledger.MODEL_FILE))} (docs/costs.md)")
    raise_short(stored.run, directory)
    raise_failures(stored.trials, directory)
    return 0


def say(model: CostModel, options: argparse.Namespace) -> int:
    """What a stored run says, without measuring."""
    if options.json:
        print(json.dumps(model.as_json(), indent=1))
    elif not options.quiet:
        tell(Console(), model)
    return 0


def model_of(directory: Path, named: Path | None = None) -> CostModel:
    """The cost model of a run directory.

    Args:
        named: the archive that it was unpacked from, where it was.

    Raises:
        BadInput: it holds none.
    """
    stored = store.load(directory)
    model = ledger.cost_model(directory, stored.run, stored.trials)
    if model is None:
        raise BadInput(f"{named or directory} holds no costs", "measure them with: hvct costs")
    return model


def raise_short(run: Mapping[str, Any], directory: Path) -> None:
    """Say that passes are missing, and why the first is.

    Raises:
        HvctError: the measured thing failed.
    """
    stored = step_file.read_steps(directory)
    wanted = {arm: item["steps"] for arm, item in run["costs"]["arms"].items()}
    complete, _ = step_file.passes(stored, wanted)
    errors = [one.error for one in stored if one.error and (one.arm, one.round) not in complete]
    if errors:
        raise HvctError(
            f"{len(errors)} passes ended early; the first: {errors[0]}",
            "they do not count; see the logs folder of the run",
        )


# -- saying --------------------------------------------------------------------------------


def tell(console: Console, model: CostModel) -> None:
    """Costs as a table, then the ledger, then what to know besides."""
    from reports import costs

    for title, lines in (
        (f"{model.workload}, mean [95 % interval]", costs.price_rows(model)),
        ("memory of one more", costs.ledger_rows(model)),
    ):
        grid = Table(box=None, pad_edge=False)
        grid.add_column(title)
        for arm in model.arms:
            grid.add_column(arm.label, justify="right")
        for name, cells in lines:
            grid.add_row(name, *cells)
        console.print(grid)
        console.print()
    for line in costs.remarks(model):
        console.print(line, soft_wrap=True)
