"""From the options of a command that measures to its plan; and a plan as it is announced."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import arms, estimate, host, plan, plan_text, spec, store, workloads
from bench.commands.images import check_image_options, check_kernel, image_workload, ready_rule
from bench.errors import BadInput
from bench.image import store as image_store
from bench.model import Workload
from bench.plan import Plan
from bench.schedule import Slot
from bench.stats.planning import check_reachable


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


def announce(chosen: Plan, directory: Path, left: Sequence[Slot] | None = None) -> str:
    """What is about to be done, and how long it takes."""
    how_long = estimate.phrase(expected_s(chosen, left))
    return f"{headline(chosen)} · {how_long} · {directory}"


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
