"""What a cold VM's start takes on other machines: the table of docs/cold.md, by `nox -s cold`.

Every variant once per round, in random order, with the image as a disk and the channel as in the
arm `vm`. One that does not reach the agent in time is a row that says why.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench import host
from bench.context import RunContext
from bench.errors import HvctError
from bench.image.busybox import busybox_image
from bench.journal import open_run
from bench.model import Event, InstanceSpec, Limits, MemoryBasis
from bench.stats.signed_rank import interval, pseudomedian
from hv.backend import VmBackend
from hv.instance import VmInstance
from hv.qemu import QemuBackend
from tests.perf.page import put, rows

BOOT_LIMIT_S = 20.0
WORDS_SHOWN = 200  # of why something does not boot


@dataclass
class Variant:
    """A machine, and what its starts took: seconds from the request to `init` and `started`."""

    name: str
    backend: Callable[[RunContext], VmBackend]
    cpus: float = 1.0
    reason: str = ""
    failures: list[str] = field(default_factory=list)
    init_s: list[float] = field(default_factory=list)
    started_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def variants() -> list[Variant]:
    """The first is the default, which the others are divided by."""
    return [
        Variant("q35 (the default)", VmBackend),
        Variant("pc", lambda context: VmBackend(context, machine="pc")),
        Variant("q35, no ACPI", lambda context: VmBackend(context, machine="q35-noacpi")),
        Variant("q35, 2 vCPUs", VmBackend, cpus=2.0),
        Variant("microvm", lambda context: VmBackend(context, machine="microvm")),
        Variant("q35, QEMU alone", QemuBackend),
        Variant("microvm, QEMU alone", lambda context: QemuBackend(context, machine="microvm")),
    ]


def trial(variant: Variant, backend: VmBackend, id: str) -> tuple[float, float, float]:
    """One start: seconds to `init`, to `started`, and of CPU.

    Raises:
        HvctError: it did not come up.
    """
    spec = InstanceSpec(
        id,
        busybox_image(),
        ("true",),
        env=(("PATH", "/bin"),),
        limits=Limits(cpus=variant.cpus, memory_bytes=256 << 20, memory_basis=MemoryBasis.NOMINAL),
    )
    backend.prepare(spec)
    deadline_ns = time.monotonic_ns() + int(BOOT_LIMIT_S * 1e9)
    with backend.launch(spec) as instance:
        if not instance.wait(Event.EXITED, deadline_ns):
            raise HvctError(f"not up after {BOOT_LIMIT_S:.0f} s{last_words(instance)}")
        instance.synchronise()
        timeline = instance.timeline
        final = instance.release()
    init_s, started_s = (
        timeline.between(Event.REQUESTED, event) or math.nan
        for event in (Event.INIT, Event.STARTED)
    )
    return init_s, started_s, final["cgroup_cpu_s"]


def measure(variants: list[Variant], backends: Mapping[str, VmBackend], ids: Iterator[str]) -> None:
    """One round; where one does not come up in it, no variant's start of that round counts."""
    found = []
    for variant in variants:
        try:
            found.append((variant, trial(variant, backends[variant.name], next(ids))))
        except HvctError as error:
            variant.failures.append(error.message)
            print(f"{variant.name}: {error.message}", flush=True)
    if len(found) == len(variants):
        for variant, (init_s, started_s, cpu_s) in found:
            variant.init_s.append(init_s)
            variant.started_s.append(started_s)
            variant.cpu_s.append(cpu_s)


def last_words(instance: VmInstance) -> str:
    """What the guest's kernel printed last."""
    lines = instance.console().decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1].strip()}" if lines else ", and its kernel printed nothing"


@contextlib.contextmanager
def opened(
    context: RunContext, chosen: list[Variant], ids: Iterator[str]
) -> Iterator[Mapping[str, VmBackend]]:
    """A backend for each, tried once; what does not boot has a reason, and no backend."""
    with contextlib.ExitStack() as stack:
        found = {}
        for variant in chosen:
            try:
                backend = stack.enter_context(variant.backend(context))
                trial(variant, backend, next(ids))  # what is paid once is paid in this one
                found[variant.name] = backend
            except HvctError as error:
                variant.reason = " ".join(error.message.split())[:WORDS_SHOWN]
            print(f"{variant.name}: {variant.reason or 'boots'}", flush=True)
        yield found


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Pseudomedian of the paired ratios, with its 95 % interval."""
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    low, high = interval(logs)
    return f"{math.exp(pseudomedian(logs)):.3g} [{math.exp(low):.3g}, {math.exp(high):.3g}]"


HEAD = (
    "machine",
    "request to `init`, s",
    "÷ the default",
    "request to `started`, s",
    "÷ the default",
    "CPU of a whole life, s",
    "÷ the default",
)


def row(variant: Variant, base: Variant) -> list[str]:
    """One line of the table."""
    if variant.reason:
        return [variant.name, f"does not boot: {variant.reason}", *[""] * (len(HEAD) - 2)]
    failed = len(variant.failures)
    cells = [f"{variant.name}{f' ({failed} starts failed)' if failed else ''}"]
    for ours, theirs in (
        (variant.init_s, base.init_s),
        (variant.started_s, base.started_s),
        (variant.cpu_s, base.cpu_s),
    ):
        cells.append(f"{statistics.median(ours):.2f} [{min(ours):.2f}, {max(ours):.2f}]")
        cells.append("1" if variant is base else ratio(ours, theirs))
    return cells


def rounds(context: RunContext, chosen: list[Variant], n: int) -> tuple[int, str]:
    """Try every variant once, then measure; how many rounds are whole, and the accelerator.

    Raises:
        HvctError: no round is whole, or the default does not boot.
    """
    order = random.Random(20)
    ids = map(context.instance, itertools.count(1))
    with opened(context, chosen, ids) as backends:
        boots = [variant for variant in chosen if variant.name in backends]
        for _ in range(n):
            measure(order.sample(boots, len(boots)), backends, ids)
        if not chosen[0].init_s:
            why = [chosen[0].reason, *(text for variant in chosen for text in variant.failures)]
            raise HvctError(f"nothing to compare with: {'; '.join(filter(None, why))}")
        return len(boots[0].init_s), backends[boots[0].name].verdict.accelerator.label


def main() -> None:
    """Measure, print, and write the page where one is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=7, help="starts of each variant")
    parser.add_argument("--page", type=Path, help="a page with the marks for the table")
    options = parser.parse_args()
    chosen = variants()
    with tempfile.TemporaryDirectory() as folder, open_run(Path(folder)) as context:
        whole, label = rounds(context, chosen, options.n)
    load = f"load {os.getloadavg()[1]:.1f} of {os.cpu_count()} CPUs"
    about = f"{time.strftime('%Y-%m-%d')}, {host.summary_line()}, {load}, {label}, "
    about += (
        f"{whole} whole rounds of {options.n}; median [least, most], ratio with its 95 % interval."
    )
    lines = [about, "", *rows(HEAD, [row(variant, chosen[0]) for variant in chosen])]
    print("\n".join(lines))
    if options.page:
        options.page.write_text(put(options.page.read_text(), "cold", lines))


if __name__ == "__main__":
    main()
