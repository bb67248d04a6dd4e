"""What every command that measures does between its plan and what it says at the end."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import calibration, findings, host, journal, registration, schedule, store, tuning
from bench.cleanup import clean_dead
from bench.commands.execution import execute, plan_document
from bench.commands.images import ready_rule
from bench.commands.plans import announce
from bench.commands.progress import open_progress
from bench.commands.rights import need_root
from bench.commands.tune import tuned, tuning_names
from bench.errors import BadInput, HostCannot, HvctError, Refused, Terminated
from bench.image import store as image_store
from bench.metrics import table
from bench.model import Gap, Outcome, PageCache
from bench.owner import handed_over
from bench.plan import Plan
from bench.schedule import Slot
from bench.version import VERSION

Finish = Callable[[Path, argparse.Namespace], int]
"""What a command does when all is measured: the run directory, the options; its exit status."""


@contextlib.contextmanager
def alone(wait: bool, directory: Path) -> Iterator[None]:
    """Be the only comparison here, with nothing left of those that died."""

    def told(first: str) -> None:
        print(f"Waiting for another comparison to end: {first}", file=sys.stderr)

    with journal.exclusive(wait, directory, told):
        clean_dead()  # only now: the one we waited for may have died
        yield


@contextlib.contextmanager
def _kept_if_begun(run_store: store.RunStore) -> Iterator[None]:
    """Take a new run directory away again where input or host ended the run before its first trial.

    It stays where something of ours failed: its logs are wanted then.
    """
    try:
        yield
    except (BadInput, HostCannot, Refused, OSError):
        run_store.discard()
        raise


def measure_new(
    chosen: Plan,
    directory: Path,
    options: argparse.Namespace,
    finish: Finish,
    more: Mapping[str, Any] | None = None,
) -> int:
    """Make a run directory, and measure. Returns the exit code.

    Args:
        more: what ``run.json`` holds besides.

    Raises:
        BadInput: there is something in the run directory already.
        HostCannot: the caller has not the rights.
    """
    need_root()
    store.check_free(directory)  # before waiting for others
    with alone(options.wait, directory), tuned(chosen, options):
        run = {**describe_run(chosen, directory, options), **(more or {})}
        run_store = store.RunStore.create(directory)
        with _kept_if_begun(run_store):
            run_store.write_run(run)
            return measure(chosen, run, run_store, options, finish)


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
    # What a calibration measures is warm starts on a host that has settled.
    like_it = chosen.page_cache is PageCache.WARM and chosen.gap is Gap.QUIET
    if chosen.experiment != schedule.AGAINST_ITSELF and like_it:
        run["calibration"] = calibration.floors(
            run["host"],
            run["plan"]["workloads"],
            chosen.arms,
            image_store.digests(workload.image for workload in chosen.workloads),
        )
    return {**run, "registration": registration.register(run)}


def measure(
    chosen: Plan,
    run: dict[str, Any],
    run_store: store.RunStore,
    options: argparse.Namespace,
    finish: Finish,
) -> int:
    """Prepare, run what is not stored yet, and finish. Returns the exit code."""
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
