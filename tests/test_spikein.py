"""Spike-in controls on the real path: what was put in is what comes out.

Run with ``-s`` to see every estimate with its interval.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench import arms, control_workloads, controls, plan, registry, spikein
from bench.backend import Backend
from bench.commands.execution import pinned_away
from bench.commands.progress import NoProgress
from bench.context import RunContext
from bench.control_workloads import MIB
from bench.controls import Control
from bench.journal import open_run
from bench.model import Gap, Image, Workload
from bench.pagecache import SharedCache
from bench.plan import Plan
from bench.spikein import Recovery, Surroundings
from bench.store import StoredRun

pytestmark = [pytest.mark.root, pytest.mark.alone]

NATIVE = ("container", "process")
ARMS = [*NATIVE, pytest.param("vm", marks=pytest.mark.vm)]
SAME_BASE = (controls.START, controls.START_30)
"""Measured in one campaign."""
COUNTED = (controls.MEMORY, controls.DISK, controls.VM_MEMORY)
"""What the kernel counts for an instance alone is the same on a busy host: no trial waits for it
to be quiet. Where time is measured each does, as in any campaign."""
LEAST_PAIRS = 0.75  # of the blocks: on a busy host a CPU window may have to be left out


@dataclass
class Bench:
    """A run's surroundings, and the arms opened in it so far."""

    context: RunContext
    cache: SharedCache
    images: dict[str, Image]
    folder: Path
    stack: contextlib.ExitStack
    backends: dict[str, Backend] = field(default_factory=dict)
    results: dict[str, list[Recovery]] = field(default_factory=dict)
    count: int = 0

    def directory(self) -> Path:
        """Of the next run."""
        self.count += 1
        return self.folder / f"run-{self.count}"

    def open(self, names: tuple[str, ...]) -> dict[str, Backend]:
        """The backends of these arms; an arm that this host cannot do skips the test."""
        for arm in arms.resolve(names):
            if arm.name not in self.backends:
                backend = self.stack.enter_context(registry.make(arm, self.context))
                found = backend.probe()
                if not found.usable:
                    pytest.skip(f"{arm.name}: {found.reason}")
                self.backends[arm.name] = backend
        return {name: self.backends[name] for name in names}

    def surroundings(self, made: Plan) -> Surroundings:
        """All that a campaign of this plan needs."""
        backends = self.open(made.arms)
        return Surroundings(backends, self.images, self.context, self.cache, NoProgress(made))

    def recoveries(self, control: Control, names: tuple[str, ...]) -> list[Recovery]:
        """What a control gave on these arms; measured once."""
        if control.name not in self.results:
            together = SAME_BASE if control in SAME_BASE else (control,)
            stored = self.measure(together, names)
            for each in together:
                self.results[each.name] = [
                    spikein.recovery(stored, each, injection, arm)
                    for arm in names
                    for injection in each.injections
                ]
        for found in self.results[control.name]:
            print(f"\n  {found.line()}", end="")
        return self.results[control.name]

    def measure(self, controls: tuple[Control, ...], names: tuple[str, ...]) -> StoredRun:
        """A campaign of controls whose base is the same: it and what is injected by each."""
        made = spikein.plan_of(controls[0], names, plan.new_seed())
        spiked = (control.spiked for control in controls)
        gap = Gap.NONE if controls[0] in COUNTED else Gap.QUIET
        made = dataclasses.replace(made, workloads=(controls[0].base, *spiked), gap=gap)
        with pinned_away(made):
            return spikein.measure(made, self.directory(), self.surroundings(made))

    def trials(
        self, arm: str, blocks: int, *workloads: Workload, gap: Gap = Gap.QUIET
    ) -> list[dict[str, Any]]:
        """So many trials of each workload on one arm."""
        made = Plan("readings", (arm,), workloads, blocks, plan.new_seed(), (), {}, gap=gap)
        with pinned_away(made):
            return spikein.measure(made, self.directory(), self.surroundings(made)).trials


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory, busybox: Image, default_image: Image
) -> Iterator[Bench]:
    """A journaled run, its page cache, and its images."""
    if os.geteuid() != 0:
        pytest.skip("measuring needs root")
    folder = tmp_path_factory.mktemp("spikein")
    images = {"busybox": busybox, "default": default_image}
    with (
        open_run(folder, network=True) as context,
        SharedCache(context.tag) as cache,
        contextlib.ExitStack() as stack,
    ):
        yield Bench(context, cache, images, folder, stack)


def values(trials: list[dict[str, Any]], metric: str, workload: str) -> list[float]:
    """A metric's values; every trial must have ended well."""
    chosen = [trial for trial in trials if trial["workload"] == workload]
    assert chosen and all(trial["outcome"] == "ok" for trial in chosen), chosen
    return [
        sample["value"]
        for trial in chosen
        for sample in trial["samples"]
        if sample["metric"] == metric
    ]


def assert_sound(found: Recovery) -> None:
    """Enough pairs, and the truth inside an interval that a sound path leaves once in a 1000."""
    assert found.comparison.n_pairs >= LEAST_PAIRS * found.control.blocks, found.line()
    assert found.sound, found.line()


def assert_sharp(found: Recovery) -> None:
    """The printed interval leaves out "nothing" and "twice", where the control is made for that."""
    if found.injection.sharp:
        assert found.detected and found.bounded, found.line()


CONTROLS = pytest.mark.parametrize(
    "control",
    [
        controls.START,
        controls.START_30,
        controls.MEMORY,
        controls.CPU,
        controls.NETWORK,
        controls.DISK,
    ],
    ids=lambda control: control.name,
)


@CONTROLS
def test_injected_effect_is_recovered(bench: Bench, control: Control) -> None:
    """Time, memory, CPU, latency and one flush are inside their intervals, natively."""
    for found in bench.recoveries(control, NATIVE):
        assert_sound(found)


@CONTROLS
def test_a_wrong_truth_is_not_recovered(bench: Bench, control: Control) -> None:
    """Nothing, or twice as much, lies outside the printed interval: the check can fail."""
    for found in bench.recoveries(control, NATIVE):
        assert_sharp(found)


@pytest.mark.vm
def test_injected_time_and_cpu_are_recovered_in_a_vm(bench: Bench) -> None:
    """+500 ms and +10 % of fixed work lie inside the intervals that a VM's noise gives."""
    for found in bench.recoveries(controls.VM_START_CPU, ("vm",)):
        assert_sound(found)
        assert_sharp(found)


@pytest.mark.vm
def test_injected_memory_is_recovered_in_a_vm(bench: Bench) -> None:
    """+16 MiB inside the guest are +16 MiB on the host: not nothing, not twice as much."""
    for found in bench.recoveries(controls.VM_MEMORY, ("vm",)):
        assert_sound(found)
        assert_sharp(found)


@pytest.mark.vm
def test_one_more_flush_of_a_guest_is_counted(bench: Bench) -> None:
    """The counter is QEMU's and exact: 21 instead of 20 are one more, in a single pair."""
    trials = bench.trials("vm", 1, *controls.DISK.workloads, gap=Gap.NONE)
    counts = [*(values(trials, "disk_flushes", w.name)[0] for w in controls.DISK.workloads)]
    print(f"\n  vm: {counts}", end="")
    assert counts[1] - counts[0] == 1.0 and counts[0] >= 20


@pytest.mark.vm
def test_a_late_reply_of_a_guest_is_seen_over_the_bridge(bench: Bench) -> None:
    """What a server in a VM holds back, the host waits for; without that it waits less."""
    base, spiked = controls.VM_NETWORK.workloads
    trials = bench.trials("vm", 1, base, spiked)
    at_once, late = (values(trials, "network_round_trip", w.name)[0] for w in (base, spiked))
    print(f"\n  vm: {at_once * 1e3:.2f} and {late * 1e3:.2f} ms", end="")
    assert late >= 0.010 > at_once


# The quickest of a few: a busy host only ever adds to these readings.
@pytest.mark.parametrize("arm", ARMS)
def test_a_sleep_of_a_second_and_a_half_reads_so(bench: Bench, arm: str) -> None:
    """`sleep 1.5; echo` is ready 1.50 s after `started`, never sooner."""
    emulated = arm == "vm"
    trials = bench.trials(arm, 2, control_workloads.sleeper("sleeper", 1.5))
    assert all(trial["outcome"] == "ok" for trial in trials), trials
    waits = [trial["timeline"]["ready"] - trial["timeline"]["started"] for trial in trials]
    errors = [trial["resolution"].get("started", 0.0) for trial in trials]
    print(f"\n  {arm}: {waits} s, resolution {errors} s", end="")
    assert min(wait + error for wait, error in zip(waits, errors, strict=True)) >= 1.5
    # Starting the shell and its child is in it: a millisecond, 0.1 s under emulation.
    assert min(waits) <= 1.5 + (0.2 if emulated else 0.01)


@pytest.mark.parametrize("arm", ARMS)
def test_64_mib_touched_read_so(bench: Bench, arm: str) -> None:
    """What touching 64 MiB adds to an interpreter that touches nothing is 64 MiB."""
    touched, idle = (
        control_workloads.toucher("touched", 64 * MIB),
        control_workloads.toucher("idle", 0),
    )
    trials = bench.trials(arm, 1, touched, idle, gap=Gap.NONE)
    read = min(values(trials, "memory_anon", "touched")) - min(
        values(trials, "memory_anon", "idle")
    )
    print(f"\n  {arm}: {read / MIB:.3f} MiB", end="")
    # A guest's kernel also reuses pages that were touched while it booted.
    assert abs(read - 64 * MIB) <= (4 if arm == "vm" else 0.5) * MIB


@pytest.mark.parametrize("arm", ARMS)
def test_a_second_of_cpu_time_reads_so(bench: Bench, arm: str) -> None:
    """A workload that used 1.0 CPU seconds by its own clock has a CPU window of 1.0 s."""
    read: list[float] = []
    for _ in range(5):  # on a busy host the first counter may be read too late for a window
        trials = bench.trials(arm, 2, control_workloads.burner("burner", 1.0))
        if read := values(trials, "cpu_window", "burner"):
            break
    print(f"\n  {arm}: {read} s", end="")
    if arm == "vm":
        # The guest counts the time in which the host let it wait as its own: busy hosts
        # read less. The emulator's own work is more than the guest knows of.
        assert 0.9 <= max(read) <= 1.3
    else:
        assert max(abs(value - 1.0) for value in read) <= 0.02
