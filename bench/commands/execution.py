"""Carrying out a plan on this host: images, backends, preflight, then its trials.

What `bench.commands.measuring` does between the plan and the report.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench import arms, estimate, journal, registration, registry, spec, store
from bench.backend import Backend, Makes
from bench.campaign import Campaign
from bench.commands.progress import RunProgress, told_to
from bench.context import RunContext
from bench.errors import BadInput, HostCannot
from bench.image import store as image_store
from bench.model import Capability, Finding, Image, NetworkMode
from bench.pagecache import SharedCache
from bench.plan import Plan
from bench.standing import Standing
from bench.steps import EXPERIMENT

LEFT_OUT = "arm.left-out."
"""How the code of a finding about an arm that was asked for by ``all`` begins."""


def execute(
    chosen: Plan,
    run: dict[str, Any],
    run_store: store.RunStore,
    options: argparse.Namespace,
    progress: RunProgress,
) -> None:
    """Set up what the plan needs, run its trials, and undo what was set up."""
    optional = getattr(options, "arms", None) == arms.ALL
    network = any(workload.network is NetworkMode.BRIDGE for workload in chosen.workloads)
    durations = estimate.load()
    with journal.open_run(
        run_store.directory,
        network=network,
        libvirt_uri=options.libvirt_uri,
        kernel=options.kernel,
    ) as context:
        images = prepare_images(chosen, run, told_to(progress), offline=options.offline)
        began = time.monotonic()
        with (
            # Before the helpers are started: they inherit it.
            pinned_away(chosen),
            SharedCache(context.tag) as cache,
            open_backends(chosen.arms, context, progress.stage, optional) as (backends, found),
            saying_so(progress),
        ):
            chosen, left_out = without_unusable(chosen, found)
            for capability in left_out:
                progress.banner("Without", f"{capability.backend}: {capability.reason}")
            if left_out:  # before any trial: what is settled is what can be measured
                run["plan"] = plan_document(chosen)
                run["registration"] = registration.register(run)
                progress.banner("Fixed", f"{registration.mark(run)}, now without them")
            found = {name: found[name] for name in chosen.arms}
            run["capabilities"] = store.jsonable(list(found.values()))
            record_vm(run, found, progress.banner)
            run["findings"] = [
                *store.jsonable(preflight(list(found.values()))),
                # A resumed run's were left out when it began.
                *(item for item in run["findings"] if item["code"].startswith(LEFT_OUT)),
                *store.jsonable(list(map(left_out_finding, left_out))),
            ]
            run_store.write_run(run)
            kind = Standing if chosen.experiment == EXPERIMENT else Campaign
            campaign = kind(
                chosen, run, run_store, backends, images, context, cache, progress, durations
            )
            prepare_backends(campaign, progress.stage)
            durations.note(estimate.OURS, "prepare", time.monotonic() - began)
            try:
                campaign.execute()
            finally:
                estimate.save(durations)


@contextlib.contextmanager
def saying_so(progress: RunProgress) -> Iterator[None]:
    """Say at once that an interrupt has arrived: undoing takes a moment."""
    try:
        yield
    except KeyboardInterrupt:
        progress.stage("interrupted; undoing what was set up")
        raise


def prepare_images(
    chosen: Plan,
    run: dict[str, Any],
    told: Callable[[str, float | None], None],
    *,
    offline: bool = False,
) -> dict[str, Image]:
    """Every image of the plan, built or pulled where it is missing. Never inside a trial.

    Raises:
        BadInput: the run began with another image of that name.
    """
    names = dict.fromkeys(workload.image for workload in chosen.workloads)
    images = {name: image_store.prepare(name, told, offline=offline) for name in names}
    for name, image in images.items():
        before = run["images"].get(name, {}).get("digest", image.digest)
        if before != image.digest:
            raise BadInput(
                f"image {name} is not what it was when the run began: it was {before[:19]},"
                f" is {image.digest[:19]}",
                "start a new run",
            )
    run["images"] = store.jsonable(images)
    return images


def plan_document(chosen: Plan) -> dict[str, Any]:
    """The plan as ``run.json`` holds it, with what follows from it."""
    return {
        **store.jsonable(chosen),
        "pairs": arms.pairs(chosen.arms),
        "baseline": arms.BASELINE if arms.BASELINE in chosen.arms else chosen.arms[-1],
        "fairness": chosen.fairness(),
    }


def without_unusable(
    chosen: Plan, found: Mapping[str, Capability]
) -> tuple[Plan, list[Capability]]:
    """The plan with the arms that work here, and what was found of the others.

    Raises:
        HostCannot: fewer than two work.
    """
    usable = tuple(name for name in chosen.arms if found[name].usable)
    left_out = [
        dataclasses.replace(found[name], backend=name) for name in chosen.arms if name not in usable
    ]
    if len(usable) < min(2, len(chosen.arms)):  # a calibration may be of one arm
        raise HostCannot("fewer than two arms work on this host", "run hvct doctor")
    return dataclasses.replace(chosen, arms=usable), left_out


def left_out_finding(capability: Capability) -> Finding:
    """Said in the report: an arm that was asked for by ``all`` and does not work here."""
    return Finding(
        f"{LEFT_OUT}{capability.backend}",
        "warning",
        f"{capability.backend} is not compared: {capability.reason}",
        "there is no figure of it in this run",
        capability.remedy,
    )


@contextlib.contextmanager
def open_backends(
    names: tuple[str, ...], context: RunContext, stage: Any, optional: bool = False
) -> Iterator[tuple[dict[str, Backend], dict[str, Capability]]]:
    """Every arm's backend, entered and probed.

    Args:
        optional: an arm that cannot run here is no reason to stop.

    Raises:
        HostCannot: an arm cannot run on this host; the hint is the remedy.
    """
    with contextlib.ExitStack() as stack:
        backends: dict[str, Backend] = {}
        found: dict[str, Capability] = {}
        for arm in arms.resolve(names):
            stage(f"trying what this host can do · {arm.name}")
            backend = stack.enter_context(registry.make(arm, context))
            capability = backend.probe()
            if capability.usable and isinstance(backend, Makes):
                capability = backend.make(_stage_of(stage, arm.name))
            found[arm.name] = capability
            if optional and not capability.usable:
                continue
            if not capability.usable:
                raise HostCannot(
                    f"{arm.name}: {capability.reason}", without(capability.remedy, arm.name, names)
                )
            backends[arm.name] = backend
        yield backends, found


def _stage_of(stage: Any, arm: str) -> Callable[[str, float | None], None]:
    """The progress of what an arm makes, as a stage."""

    def told(what: str, fraction: float | None) -> None:
        done = "" if fraction is None else f" · {fraction:.0%}"
        stage(f"making what {arm} needs · {what}{done}")

    return told


def without(remedy: str, arm: str, names: tuple[str, ...]) -> str:
    """The remedy, and how to compare the other arms meanwhile."""
    others = [name for name in names if name != arm]
    if len(others) < 2:
        return remedy
    return f"{remedy}{'; ' if remedy else ''}or compare without it: --arms {','.join(others)}"


def record_vm(run: dict[str, Any], found: Mapping[str, Capability], banner: Any) -> None:
    """Say on the terminal, and keep for the report, how VMs are executed here."""
    for name, capability in found.items():
        accelerator = capability.accelerator
        if accelerator.kind == "none":
            continue
        run["accelerator"] = store.jsonable(accelerator)
        if accelerator.emulated:
            text = f"TCG, not KVM: {accelerator.reason}. VM figures describe an emulator."
        else:
            text = f"{accelerator.label}: {accelerator.reason}"
        banner(name.upper() if name == "vm" else name, text)
        return


def preflight(capabilities: list[Capability]) -> list[Any]:
    """Findings about this host that belong beside the figures."""
    from bench.doctor import examine

    return [finding for finding in examine(capabilities) if finding.level != "info"]


def prepare_backends(campaign: Campaign, stage: Any) -> None:
    """Mounts, guest kernel and initramfs: once per image and arm, before the clock."""
    for name, backend in campaign.backends.items():
        for workload in campaign.plan.workloads:
            stage(f"preparing · {name} · {workload.title}")
            backend.prepare(campaign.make_spec(workload))


@contextlib.contextmanager
def pinned_away(chosen: Plan) -> Iterator[None]:
    """Keep harness and helpers off the CPUs of the instances, where the host has some to spare."""
    before = os.sched_getaffinity(0)
    widest = max(workload.limits.cpus for workload in chosen.workloads)
    free = spec.harness_cpus(spec.instance_cpus(widest)[0])
    if free:
        os.sched_setaffinity(0, free)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
