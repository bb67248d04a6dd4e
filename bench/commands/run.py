"""``hvct run``: one instance on one backend, its output here, its exit status ours."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import select
import signal
import struct
import sys
import tempfile
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import arms, journal, registry, spec, store
from bench.backend import Instance
from bench.cleanup import clean_dead
from bench.commands.compare import need_root
from bench.errors import BadInput, HostCannot
from bench.image import store as images
from bench.model import (
    Event,
    Image,
    InstanceSpec,
    Limits,
    NetworkMode,
    OutputMode,
    Workload,
)
from bench.plan_file import parse_size

START_LIMIT_NS = 120_000_000_000
CHUNK = 65536


def main(options: argparse.Namespace) -> int:
    """Launch, pass output and input through, return the workload's exit status."""
    need_root()
    (arm,) = arms.resolve([options.arm])
    clean_dead()
    image = images.prepare(options.image, _told)
    workload = make_workload(options, image)
    with (
        tempfile.TemporaryDirectory(prefix="hvct-run-") as folder,
        journal.open_run(
            Path(folder),
            network=workload.network is NetworkMode.BRIDGE,
            libvirt_uri=options.libvirt_uri,
            kernel=options.kernel,
        ) as context,
        registry.make(arm, context) as backend,
    ):
        capability = backend.probe()
        if not capability.usable:
            raise HostCannot(f"{arm.name}: {capability.reason}", capability.remedy)
        wanted = dataclasses.replace(
            spec.make(workload, image, context, 1),
            output=OutputMode.STREAM,
            output_limit_bytes=1 << 62,
            stdin=options.interactive,
            tty=options.tty,
        )
        backend.prepare(wanted)
        with backend.launch(wanted) as instance:
            code = attend(instance, wanted, options)
            instance.synchronise()
            usage = {"cpu": instance.cpu(), "memory": instance.memory()}
            final = instance.release()
        say_timeline(instance, usage, final, options)
        return code


def _told(what: str, _fraction: float | None) -> None:
    print(f"hvct: {what}", file=sys.stderr)


def make_workload(options: argparse.Namespace, image: Image) -> Workload:
    """A workload out of the options, with the meaning they have for container engines.

    Raises:
        BadInput: an option makes no sense.
    """
    pairs = []
    for item in options.env:
        name, equals, value = item.partition("=")
        if not name or not (equals or name in os.environ):
            raise BadInput(f"-e {item!r} is no NAME=VALUE", "write it as -e NAME=VALUE")
        pairs.append((name, value if equals else os.environ[name]))
    if options.tty:
        pairs.insert(0, ("TERM", os.environ.get("TERM", "xterm")))
    try:
        memory = parse_size(options.memory)
    except ValueError as error:
        raise BadInput(f"--memory: {error}", 'write it as "256MiB"') from error
    if options.cpus <= 0:
        raise BadInput("--cpus must be positive", "e.g. --cpus 1")
    entrypoint = (options.entrypoint,) if options.entrypoint else image.config.entrypoint
    command = tuple(options.argv) if options.argv else ()
    if not command and not options.entrypoint:
        command = image.config.cmd
    return Workload(
        name="run",
        title="run",
        image=options.image,
        argv=(*entrypoint, *command) or None,
        env=tuple(pairs),
        user=options.user,
        workdir=options.workdir,
        limits=Limits(cpus=options.cpus, memory_bytes=memory),
        network=NetworkMode(options.network),
    )


def attend(instance: Instance, wanted: InstanceSpec, options: argparse.Namespace) -> int:
    """Pass bytes and signals until the workload ends; its exit status as a shell would give it."""

    def show(stream: str, data: bytes, _stamp_ns: int) -> None:
        target = sys.stderr if stream == "stderr" else sys.stdout
        target.buffer.write(data)
        target.buffer.flush()

    instance.watch_output(show)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: instance.signal(received))
    limit = time.monotonic_ns() + START_LIMIT_NS
    if not instance.wait(Event.STARTED, limit):
        raise HostCannot("the workload was not started within 120 s", "see hvct doctor")
    with _raw_terminal(instance, wanted.tty and sys.stdin.isatty()):
        reading = options.interactive
        while instance.exit is None:
            instance.pump(0.02 if reading else 0.25)
            if reading and select.select([sys.stdin], [], [], 0)[0]:
                data = os.read(sys.stdin.fileno(), CHUNK)
                instance.send_stdin(data)
                reading = bool(data)
    status = instance.exit
    kills = instance.oom_kills()
    if kills:
        print(f"hvct: out of memory: the kernel killed {kills}", file=sys.stderr)
    return 128 + status.signal if status.signal is not None else int(status.code or 0)


@contextlib.contextmanager
def _raw_terminal(instance: Instance, wanted: bool) -> Iterator[None]:
    """Our terminal raw while the workload's own line discipline is in charge."""
    if not wanted:
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def resize(*_: Any) -> None:
        size = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, b"\0" * 8)
        rows, columns, _, _ = struct.unpack("HHHH", size)
        instance.resize(rows, columns)

    signal.signal(signal.SIGWINCH, resize)
    resize()
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def say_timeline(
    instance: Instance, usage: dict[str, Any], final: dict[str, float], options: argparse.Namespace
) -> None:
    """What the launch took, on standard error so that the workload's output stays clean."""
    marks = instance.timeline.seconds()
    if options.json:
        document = {
            "arm": options.arm,
            "accelerator": store.jsonable(instance.accelerator),
            "timeline": marks,
            "usage": store.jsonable(usage),
            "final": final,
            "exit": store.jsonable(instance.exit),
        }
        print(json.dumps(document, indent=1), file=sys.stderr)
    elif options.timeline:
        label = instance.accelerator.label
        print(f"hvct: {options.arm}{f' ({label})' if label else ''}", file=sys.stderr)
        for name, seconds in marks.items():
            print(f"      {name:18}{seconds * 1e3:10.2f} ms", file=sys.stderr)
