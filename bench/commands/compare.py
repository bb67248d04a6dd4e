"""``hvct compare`` and ``hvct resume``: the main job, from a plan to its report."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import (
    arms,
    calibration,
    estimate,
    findings,
    host,
    journal,
    plan,
    plan_text,
    registration,
    schedule,
    spec,
    store,
    tuning,
    workloads,
)
from bench.cleanup import clean_dead
from bench.commands.execution import execute, plan_document
from bench.commands.images import check_image_options, check_kernel, image_workload, ready_rule
from bench.commands.progress import open_progress
from bench.commands.rights import need_root
from bench.commands.tune import tuned, tuning_names
from bench.errors import BadInput, HostCannot, HvctError, Refused, Terminated
from bench.image import store as image_store
from bench.metrics import table
from bench.model import Outcome, PageCache, Workload
from bench.owner import handed_over
from bench.plan import Plan
from bench.schedule import Slot
from bench.stats.planning import QUICK_BLOCKS, check_reachable
from bench.steps import EXPERIMENT
from bench.version import VERSION


def main(options: argparse.Namespace) -> int:
    """Plan, prepare, measure, report."""
    chosen = make_plan(options)
    check_against_host(chosen, options.kernel)
    directory = options.output or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{chosen.name}"
    tuning_names(options)  # a name that there is not is said now
    if options.dry_run:
        return print_plan(chosen, directory, options)
    need_root()
    store.check_free(directory)  # before waiting for others
    with alone(options.wait, directory), tuned(chosen, options):
        run = describe_run(chosen, directory, options)
        run_store = store.RunStore.create(directory)
        with kept_if_begun(run_store):
            run_store.write_run(run)
            return measure(chosen, run, run_store, options)


def resume(options: argparse.Namespace) -> int:
    """Go on with an interrupted run."""
    from bench import plan_file  # pydantic: 7 MiB and 0.1 s that a quick run need not spend

    stored = store.load(options.run)
    chosen = plan_file.from_run(stored.run["plan"])
    need_root()
    kept = stored.run.get("options", {})
    options.libvirt_uri = kept.get("libvirt_uri", "")
    options.kernel = Path(kept["kernel"]) if kept.get("kernel") else None
    options.tune, options.tune_only = bool(kept.get("tune")), kept.get("tune")
    check_kernel(options.kernel)
    with alone(options.wait, options.run), tuned(chosen, options):
        check_same_host(stored.run)
        if not remaining(chosen, stored.directory):
            print(f"{options.run} is complete: nothing is left to measure", file=sys.stderr)
            return finish(stored.directory, options)
        return measure(chosen, stored.run, store.RunStore(stored.directory), options)


def check_same_host(run: dict[str, Any]) -> None:
    """Refuse to go on with a run on another host, in another state, or with another version.

    Raises:
        BadInput: with what has changed.
    """
    changed = host.same_host(run.get("host", {}), host.fingerprint())
    if run.get("hvct_version") != VERSION:
        changed = [f"hvct {run.get('hvct_version')} began it, this is {VERSION}", *changed]
    if changed:
        raise BadInput(
            f"this is not the host, or not the state, the run began on: {'; '.join(changed[:3])}",
            "start a new run; several runs are compared with hvct report RUN RUN",
        )


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


def named_arms(options: argparse.Namespace) -> tuple[str, ...] | None:
    """The arms that the options name, all where they say so, None where they name none."""
    names = tuple(options.arms.split(",")) if options.arms else None
    return tuple(arms.ARMS) if names == (arms.ALL,) else names


def planned(options: argparse.Namespace) -> Plan | None:
    """The plan of the file that the options name, None where they name none.

    Raises:
        BadInput: the options contradict each other, or the plan is not valid.
    """
    check_image_options(options)
    if options.plan is None:
        return None
    if options.workload or options.image_option:
        raise BadInput("--plan already says which workloads", "leave the workload names out")
    from bench import plan_file

    return plan_file.from_toml(options.plan, seed=options.seed)


def named_work(options: argparse.Namespace) -> tuple[str, tuple[Workload, ...]]:
    """The work that the options name without a plan, and what to call it.

    Raises:
        BadInput: there is no such workload, or the options contradict each other.
    """
    if not options.image_option:
        name = "quick" if not options.workload else "-".join(options.workload)[:40]
        return name, workloads.named(options.workload) or workloads.quick_suite()
    if options.workload:
        raise BadInput("--image is one workload of its own", "put its command after --")
    workload = image_workload(options)
    return workload.name, (workload,)


def print_plan(chosen: Plan, directory: Path, options: argparse.Namespace) -> int:
    """What would be run, as a plan file, and how long it would take."""
    if options.json:
        print_plan_json(chosen, directory, expected_s(chosen))
        return 0
    notes = {
        workload.name: ("" if workload.argv else "the image's own command; ")
        + f"ready: {ready_rule(workload)}"
        for workload in chosen.workloads
    }
    judged = ", ".join(f"{metric} of {name}" for metric, name in chosen.primary)
    comments = [announce(chosen, directory), f"judged: {judged}"]
    if chosen.judge_emulated:
        comments.append("with --judge-emulated, which is no part of a plan file")
    for comment in comments:
        print(f"# {plan_text.printable(comment)}")
    print(plan_text.toml(chosen, notes), end="")
    return 0


def print_plan_json(chosen: Plan, directory: Path, seconds: float, **more: Any) -> None:
    """The same for a program."""
    document = {
        "plan": store.jsonable(chosen),
        "estimated_s": seconds,
        "directory": str(directory),
        **more,
    }
    print(json.dumps(document, indent=1))


def expected_s(chosen: Plan, left: Sequence[Slot] | None = None) -> float:
    """How long it will take, in seconds: images that are missing, trials, report."""
    names = {workload.image for workload in chosen.workloads}
    missing = [name for name in names if not image_store.built(name)]
    return estimate.run_seconds(chosen, None, left, missing)


def headline(chosen: Plan) -> str:
    """One line of counts: arms × workloads × blocks, and the seed."""
    count = len(chosen.workloads)
    return (
        f"{len(chosen.arms)} arms × {count} workload{'' if count == 1 else 's'}"
        f" × {chosen.blocks} blocks · seed {chosen.seed}"
    )


@contextlib.contextmanager
def alone(wait: bool, directory: Path) -> Iterator[None]:
    """Be the only comparison here, with nothing left of those that died."""

    def told(first: str) -> None:
        print(f"Waiting for another comparison to end: {first}", file=sys.stderr)

    with journal.exclusive(wait, directory, told):
        clean_dead()  # only now: the one we waited for may have died
        yield


@contextlib.contextmanager
def kept_if_begun(run_store: store.RunStore) -> Iterator[None]:
    """Take a new run directory away again where input or host ended the run before its first trial.

    It stays where something of ours failed: its logs are wanted then.
    """
    try:
        yield
    except (BadInput, HostCannot, Refused, OSError):
        run_store.discard()
        raise


def check_against_host(chosen: Plan, kernel: Path | None = None) -> None:
    """Refuse now what this host cannot give, and statistics that could never decide."""
    for name in dict.fromkeys(workload.image for workload in chosen.workloads):
        image_store.check_name(name)
    for workload in chosen.workloads:
        spec.check_command_size(workload.argv or (), workload.env)
    check_kernel(kernel)
    plan.check_against_host(
        chosen, cpus=len(spec.usable_cpus()), memory_bytes=host.mem_available_bytes()
    )
    unreachable = check_reachable(chosen.blocks, len(chosen.primary), chosen.alpha)
    if unreachable is not None:
        raise BadInput(unreachable.message, unreachable.remedy)


def describe_run(chosen: Plan, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything ``run.json`` holds before the first trial."""
    run: dict[str, Any] = {
        "id": directory.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "ended": None,
        "seed": chosen.seed,
        "hvct_version": VERSION,
        "command": shlex.join(["hvct", *sys.argv[1:]]),
        "options": {  # what resuming needs besides the plan
            "libvirt_uri": options.libvirt_uri,
            "kernel": str(options.kernel.absolute()) if options.kernel else None,
            "tune": tuning_names(options),
        },
        "tuning": tuning.in_force(),
        "plan": plan_document(chosen),
        "metrics": store.jsonable(table(chosen.workloads)),
        "host": host.fingerprint(),
        "images": {},
        "capabilities": [],
        "findings": [],
        "receipts": [],
        "descriptions": {},
    }
    # What a calibration measures is warm starts.
    if chosen.experiment != schedule.AGAINST_ITSELF and chosen.page_cache is PageCache.WARM:
        run["calibration"] = calibration.floors(
            run["host"],
            run["plan"]["workloads"],
            chosen.arms,
            image_store.digests(workload.image for workload in chosen.workloads),
        )
    return {**run, "registration": registration.register(run)}


def measure(
    chosen: Plan, run: dict[str, Any], run_store: store.RunStore, options: argparse.Namespace
) -> int:
    """Prepare, run what is not stored yet, report or calibrate. Returns the exit code."""
    directory = run_store.directory
    told = sys.stderr if options.json else sys.stdout
    with (
        handed_over(directory),
        open_progress(chosen, told, quiet=options.quiet) as progress,
    ):
        progress.banner("Host", host.summary_line())
        progress.banner("Plan", announce(chosen, directory, remaining(chosen, directory)))
        if floor := floor_line(run):
            progress.banner("Floor", floor)
        for warning in findings.beyond_detection(run):
            progress.banner("Beware", f"{warning.message}; {warning.remedy}")
        if fixed := registration.mark(run):
            progress.banner("Fixed", f"{fixed} stands for margins, judged metrics, blocks, rules")
        if getattr(options, "image_option", None):
            progress.banner("Ready", ready_rule(chosen.workloads[0]))
        go_on = f"go on with: hvct resume {shlex.quote(str(directory))}"
        try:
            execute(chosen, run, run_store, options, progress)
        except KeyboardInterrupt as interrupt:
            progress.close()
            return interrupted(interrupt, go_on)
        except HvctError as error:
            if run_store.begun and go_on not in error.hint:
                error.hint = f"{error.hint}{'; then ' if error.hint else ''}{go_on}"
            raise
        run["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
        run_store.write_run(run)
        progress.close()
        return finish(directory, options)


def floor_line(run: dict[str, Any]) -> str:
    """What is known of the host's noise, for a run that uses it."""
    kept = run.get("calibration")
    if kept is None:
        return ""
    if kept["floors"]:
        return f"noise of this host as calibrated {kept['created'][:10]}"
    why = f" any more ({kept['expired'][0]})" if kept["expired"] else ""
    return f"noise of this host not known{why}; hvct calibrate measures it"


def remaining(chosen: Plan, directory: Path) -> list[Slot]:
    """What a run has still to measure; a block cut short is measured whole again."""
    complete = store.load(directory).complete_blocks()
    names = [workload.name for workload in chosen.workloads]
    slots = schedule.of_plan(chosen.experiment, chosen.arms, names, chosen.blocks, chosen.seed)
    return [slot for slot in slots if slot.block not in complete]


def announce(chosen: Plan, directory: Path, left: Sequence[Slot] | None = None) -> str:
    """What is about to be done, and how long it takes."""
    how_long = estimate.phrase(expected_s(chosen, left))
    return f"{headline(chosen)} · {how_long} · {directory}"


def finish(directory: Path, options: argparse.Namespace) -> int:
    """Report in the run directory, summary on the terminal, exit code from the outcomes."""
    from bench.commands import calibrate, costs, report

    experiment = store.load(directory).run["plan"].get("experiment")
    if experiment == schedule.AGAINST_ITSELF:
        return calibrate.finish(directory, options)
    if experiment == EXPERIMENT:
        return costs.finish(directory, options)
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


def interrupted(interrupt: KeyboardInterrupt, advice: str) -> int:
    """Say what to do after an interrupt; what a shell expects as exit status."""
    number = interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT
    print(f"\nhvct: interrupted\n      {advice}", file=sys.stderr)
    return 128 + number


def raise_failures(trials: list[dict[str, Any]], directory: Path) -> None:
    """Say how many trials did not end well, and why the first of them did not.

    Raises:
        HvctError: the measured thing failed, at least once.
        HostCannot: it did not, but this host had to decline trials.
    """
    bad = [trial for trial in trials if trial["outcome"] != Outcome.OK]
    if not bad:
        return
    serious = [trial for trial in bad if trial["outcome"] != Outcome.REFUSED]
    first = (serious or bad)[0]
    count = "all" if len(bad) == len(trials) else f"{len(bad)} of"
    message = (
        f"{count} {len(trials)} trials did not end well;"
        f" {first['arm']} · {first['workload']} {first['outcome']}: {first['error']}"
    )
    hint = f"hvct show {shlex.quote(str(directory))}, and the files in its logs folder"
    raise HvctError(message, hint) if serious else HostCannot(message, hint)
