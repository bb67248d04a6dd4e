"""``hvct run``: one instance on one backend, its output here, its exit status ours."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import arms, journal, registry, spec, store
from bench.backend import Instance, Makes
from bench.cleanup import clean_dead
from bench.commands.images import check_kernel, environment_pairs, prepared_image, telling
from bench.commands.rights import default_arm, need_rights
from bench.commands.streams import attend
from bench.errors import BadInput, HostCannot, oserror
from bench.model import Event, Image, Limits, NetworkMode, OutputMode, Workload
from bench.owner import handed_over, make_folder
from bench.sizes import parse_size

START_LIMIT_NS = 120_000_000_000
NO_LIMIT = 1 << 62


def main(options: argparse.Namespace) -> int:
    """Launch, pass output and input through, return the workload's exit status."""
    options.arm = options.arm or default_arm()
    check_kernel(options.kernel)
    (arm,) = arms.resolve([options.arm])
    options.reduced = need_rights(arm, options.network)
    if options.reduced:
        print(f"hvct: without root: {options.reduced}", file=sys.stderr)
    image = prepared_image(options.image, offline=options.offline)
    workload = make_workload(options, image)
    clean_dead()  # what asks for nothing sensible undoes nothing either
    with (
        log_folder(options.logs) as folder,
        journal.open_run(
            folder,
            log_dir=folder,
            network=workload.network is NetworkMode.BRIDGE,
            libvirt_uri=options.libvirt_uri,
            kernel=options.kernel,
        ) as context,
        registry.make(arm, context) as backend,
    ):
        capability = backend.probe()
        if capability.usable and isinstance(backend, Makes):
            with telling() as told:
                capability = backend.make(told)
        if not capability.usable:
            raise HostCannot(f"{arm.name}: {capability.reason}", capability.remedy)
        wanted = dataclasses.replace(
            spec.make(workload, image, context, 1),
            output=OutputMode.STREAM,
            output_limit_bytes=NO_LIMIT,
            stdin=options.interactive,
            tty=options.tty,
            accounting=os.geteuid() == 0,  # control groups are root's
        )
        backend.prepare(wanted)
        with backend.launch(wanted) as instance, kept_console(instance, options.logs):
            if not instance.wait(Event.STARTED, time.monotonic_ns() + START_LIMIT_NS):
                raise HostCannot("the workload was not started within 120 s", "see hvct doctor")
            try:
                code = attend(instance, interactive=options.interactive, tty=options.tty)
            except BrokenPipeError:  # `hvct run … | head`: end as a program of its own would
                return 128 + signal.SIGPIPE
            kills = instance.oom_kills()
            if options.json or options.timeline:
                instance.synchronise()
            usage = {"cpu": instance.cpu(), "memory": instance.memory()}
            final = instance.release()
    if kills:
        print(f"hvct: out of memory: the kernel killed {kills}", file=sys.stderr)
        print(f"      it had {options.memory}; give it more with --memory", file=sys.stderr)
    if options.json:
        print(json.dumps(document(instance, usage, final, options)), file=sys.stderr)
    elif options.timeline:
        print_timeline(instance, options.arm)
    return code


@contextlib.contextmanager
def log_folder(chosen: Path | None) -> Iterator[Path | None]:
    """The folder that keeps the logs of this instance, if they are to be kept."""
    if chosen is None:
        yield None
        return
    try:
        make_folder(chosen)
    except OSError as error:
        raise BadInput(oserror("mkdir", chosen, error).message, "choose another --logs") from error
    with handed_over(chosen):
        yield chosen


@contextlib.contextmanager
def kept_console(instance: Instance, folder: Path | None) -> Iterator[None]:
    """Beside the logs that are kept: what a guest's kernel complained about, whatever happens."""
    try:
        yield
    finally:
        if folder is not None and (said := instance.console()):
            (folder / "console.log").write_bytes(said)


def make_workload(options: argparse.Namespace, image: Image) -> Workload:
    """A workload out of the options, with the meaning they have for container engines.

    Raises:
        BadInput: an option makes no sense.
    """
    pairs = environment_pairs(options.env)
    if options.tty:
        pairs.insert(0, ("TERM", os.environ.get("TERM", "xterm")))
    try:
        memory = parse_size(options.memory)
    except ValueError as error:
        raise BadInput(f"--memory: {error}", "e.g. --memory 256MiB") from error
    if options.interactive and options.tty and not os.isatty(0):
        raise BadInput("-i with -t needs a terminal as standard input", "leave out -t")
    if options.workdir is not None and not options.workdir.startswith("/"):
        raise BadInput(f"--workdir {options.workdir!r} is relative", "begin it with /")
    if options.argv and not options.argv[0]:
        raise BadInput("the command is an empty word", "hvct run IMAGE -- CMD…")
    if not options.cpus > 0:
        raise BadInput("--cpus must be positive", "e.g. --cpus 1")
    entrypoint = (options.entrypoint,) if options.entrypoint else image.config.entrypoint
    command = tuple(options.argv) if options.argv else ()
    if not command and not options.entrypoint:
        command = image.config.cmd
    return Workload(
        name="run",
        title="run",
        image=image.name,
        argv=(*entrypoint, *command) or None,
        env=tuple(pairs),
        user=options.user,
        workdir=options.workdir,
        limits=Limits(cpus=options.cpus, memory_bytes=memory),
        network=NetworkMode(options.network),
    )


def document(
    instance: Instance, usage: dict[str, Any], final: dict[str, float], options: argparse.Namespace
) -> dict[str, Any]:
    """All that is known of the launch, for a program."""
    return {
        "arm": options.arm,
        "reduced": options.reduced,
        "accelerator": store.jsonable(instance.accelerator),
        "image": {"name": instance.spec.image.name, "digest": instance.spec.image.digest},
        "argv": list(instance.spec.argv),
        "timeline": instance.timeline.seconds(),
        "usage": store.jsonable(usage),
        "final": final,
        "exit": store.jsonable(instance.exit),
    }


def print_timeline(instance: Instance, arm: str) -> None:
    """What the launch took, on standard error so that the workload's output stays clean."""
    label = instance.accelerator.label
    print(f"hvct: {arm}{f' ({label})' if label else ''}, ms since requested", file=sys.stderr)
    last = 0.0
    for name, seconds in instance.timeline.seconds().items():
        step = f"+{(seconds - last) * 1e3:.2f}"
        print(f"      {name:16}{seconds * 1e3:10.2f}{step:>12}", file=sys.stderr)
        last = seconds
