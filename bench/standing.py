"""Instances that stand idle, so many at a time: the steps of `bench.ledger`.

A pass goes through the steps of one arm in a random order, launching or releasing what
makes the difference. All of it stands on one set of CPUs, as every instance of a run does.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bench import host
from bench import steps as step_file
from bench.backend import GivesBack, HasGuest, Instance
from bench.campaign import Campaign
from bench.cgroupfs import read_text
from bench.disturbances import run_time_s
from bench.errors import HostCannot, HvctError
from bench.host import room_bytes
from bench.model import NetworkMode, Workload
from bench.network import HOSTS
from bench.pagecache import resident_pages
from bench.startup import await_ready
from bench.steps import PAGE_BYTES, Step, is_guest

SETTLE_S = 0.5  # after the last launch or release; the kernel gives memory back by and by
LOOKS = 9  # at the host's memory, over the hold; their median counts
STOP_GRACE_S = 5.0
LINK_LIMIT_NS = 5_000_000_000
GROWTH = 1.25  # what stands may grow by a quarter over what one held when it was tried
UNRECLAIMABLE = ("SUnreclaim", "KernelStack", "PageTables", "SecPageTables", "Percpu")
"""Lines of /proc/meminfo: kernel memory that MemAvailable counts as gone."""


def launch_key(workload: Workload) -> str:
    """Under which name the time of one launch is kept, for estimates."""
    return f"standing:{workload.name}"


def fitting(
    asked: Sequence[int], each_bytes: float, room_bytes: float, most: int | None = None
) -> tuple[tuple[int, ...], str]:
    """The steps that fit, and why they are not those asked for ("" where they are).

    Args:
        each_bytes: what one instance held when it was tried alone.
        room_bytes: what all may hold together.
        most: a limit of another kind: addresses of the bridge.

    Raises:
        HostCannot: not even two instances fit.
    """
    wanted = tuple(sorted(set(asked)))
    largest = wanted[-1]
    fits, why = largest, ""
    if most is not None and most < fits:
        fits, why = most, "the run's network has no more addresses"
    by_memory = int(room_bytes // (each_bytes * GROWTH))
    if by_memory < fits:
        fits = by_memory
        why = f"one holds {each_bytes / 2**20:.0f} MiB and {room_bytes / 2**20:.0f} MiB may be used"
    if not why:
        return wanted, ""
    if fits < 2:
        raise HostCannot(f"not even two instances can stand: {why}", "free memory on this host")
    shrunk = tuple(sorted({step * fits // largest for step in wanted}))
    said = ", ".join(map(str, shrunk))
    return shrunk, f"{said} instead of {', '.join(map(str, wanted))}: {why}"


@dataclass
class Standing(Campaign):
    """A campaign that lets instances of its first workload stand before its blocks."""

    @property
    def held(self) -> Workload:
        """The workload that stands."""
        return self.plan.workloads[0]

    def before_blocks(self) -> None:
        """Settle the steps, then go through those of every pass that is not complete.

        Raises:
            HostCannot: the host has no room, or the steps cannot be stored.
        """
        self.settle_steps()
        directory = self.run_store.directory
        about: dict[str, Any] = self.run["costs"]["arms"]
        stored = step_file.read_steps(directory)
        wanted = {arm: tuple(item["steps"]) for arm, item in about.items()}
        complete, _ = step_file.passes(stored, wanted)
        attempts = {(step.arm, step.round): step.attempt for step in stored}
        for number in range(self.plan.blocks):
            draw = random.Random(f"{self.plan.seed} {number}")
            for arm in draw.sample(self.plan.arms, len(self.plan.arms)):
                order = draw.sample(wanted[arm], len(wanted[arm]))
                if (arm, number) not in complete:
                    attempt = attempts.get((arm, number), 0) + 1
                    self._pass(arm, number, attempt, order)

    def settle_steps(self) -> None:
        """How many may stand, once per run and arm, by trying one.

        Raises:
            HostCannot: not even two of them.
        """
        about: dict[str, Any] = self.run["costs"]["arms"]
        for arm, item in about.items():
            if "each_bytes" in item:
                continue
            self.progress.stage(f"how much memory one takes · {arm}")
            with contextlib.ExitStack() as stack:
                instance = self._stand(stack, arm)
                self._wait([instance], SETTLE_S)
                charged, resident = instance.memory(), instance.process_memory()
                item["accelerator"] = vars(instance.accelerator).copy()
            current = charged.current_bytes if charged and charged.current_bytes else 0
            item["each_bytes"] = max(current, resident.pss_bytes if resident else 0, 1 << 20)
            # Addresses come round again; within a pass no two launches may share one.
            bridged = self.held.network is NetworkMode.BRIDGE
            most = HOSTS * max(item["steps"]) // sum(item["steps"]) if bridged else None
            item["steps"], item["shrunk"] = fitting(
                item["steps"], item["each_bytes"], room_bytes(), most
            )
            if item["shrunk"]:
                self.progress.stage(f"{arm} stands in fewer: {item['shrunk']}")
        self.run_store.write_run(self.run)

    # -- one pass ----------------------------------------------------------------------------

    def _pass(self, arm: str, number: int, attempt: int, order: Sequence[int]) -> None:
        """Go through one arm's steps; a failure ends the pass and is stored as its last step."""
        standing: list[tuple[Instance, contextlib.ExitStack]] = []
        with contextlib.ExitStack() as everything:
            for position, wanted in enumerate(order):
                self.progress.stage(
                    f"round {number + 1} of {self.plan.blocks} · {wanted} standing · {arm}"
                )
                step = Step(number, attempt, arm, position, wanted)
                try:
                    while len(standing) > wanted:
                        standing.pop()[1].close()
                    while len(standing) < wanted:
                        standing.append(self._one_more(everything, arm))
                    found = self._read(arm, step, [one for one, _ in standing])
                except HvctError as error:
                    said = " ".join(error.message.split())
                    step_file.append(self.run_store.directory, _dated(step, error=said))
                    return
                step_file.append(self.run_store.directory, found)

    def _one_more(
        self, everything: contextlib.ExitStack, arm: str
    ) -> tuple[Instance, contextlib.ExitStack]:
        if room_bytes() < 0:
            raise HostCannot(
                "the host ran short of memory", "free memory, or ask for smaller steps"
            )
        began = time.monotonic()
        own = everything.enter_context(contextlib.ExitStack())
        instance = self._stand(own, arm)
        self.durations.note(arm, launch_key(self.held), time.monotonic() - began)
        return instance, own

    def _stand(self, stack: contextlib.ExitStack, arm: str) -> Instance:
        """Launch one and wait until it is ready; the stack ends it."""
        instance = stack.enter_context(self.backends[arm].launch(self.make_spec(self.held)))
        stack.callback(_end, instance)
        await_ready(instance, self.held)
        if self.held.elastic and isinstance(instance, GivesBack):
            instance.give_back()
        return instance

    def _wait(self, standing: Sequence[Instance], seconds: float) -> None:
        """Handle what arrives, and notice what ended."""
        until = time.monotonic() + seconds
        while True:
            for instance in standing:
                instance.pump(0.0)
                if instance.exit is not None:
                    raise HvctError(f"{instance.spec.id} ended: {instance.exit.describe()}")
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.1))

    # -- reading -----------------------------------------------------------------------------

    def _read(self, arm: str, step: Step, standing: Sequence[Instance]) -> Step:
        """Watch what stands for a while, then read all sums."""
        self._wait(standing, SETTLE_S)
        helpers = self.backends[arm].helpers()
        hold_s = float(self.run["costs"]["hold_s"])
        began = time.monotonic()
        before, helped = _cpu_s(standing), sum(map(run_time_s, helpers))
        looks, available = [], []
        for _ in range(LOOKS):
            self._wait(standing, hold_s / LOOKS)
            looks.append(host.meminfo())
            available.append(host.mem_available_bytes())
        window_s = time.monotonic() - began
        cpu_s = _cpu_s(standing) - before
        helpers_cpu_s = sum(map(run_time_s, helpers)) - helped
        kernel = [sum(facts.get(name, 0) for name in UNRECLAIMABLE) for facts in looks]
        return _dated(
            step,
            available_bytes=statistics.median(available),
            kernel_bytes=statistics.median(kernel),
            **_sums(standing),
            guest_bytes=_guest_bytes(standing) if is_guest(arm) else None,
            helpers_bytes=sum(_own_memory(pid)[0] for pid in helpers),
            helpers_pss_bytes=sum(_own_memory(pid)[1] for pid in helpers),
            harness_bytes=_own_memory("self")[0],
            shared_bytes=self._shared_bytes(arm),
            window_s=window_s,
            cpu_s=cpu_s,
            helpers_cpu_s=helpers_cpu_s,
        )

    def _shared_bytes(self, arm: str) -> float:
        files = self.read_by(arm, self.held)
        return PAGE_BYTES * sum(resident_pages(path)[0] for path in files)


def _end(instance: Instance) -> None:
    """Stop it as a trial does, and wait for what the kernel does later."""
    with contextlib.suppress(HvctError):
        instance.stop(STOP_GRACE_S)
    instance.release()
    instance.wait_network_released(time.monotonic_ns() + LINK_LIMIT_NS)


def _dated(step: Step, **found: Any) -> Step:
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Step(**{**vars(step), **found, "wall_time": stamp})


def _cpu_s(standing: Sequence[Instance]) -> float:
    return sum(usage.total_s for one in standing if (usage := one.cpu()) is not None)


def _sums(standing: Sequence[Instance]) -> dict[str, float]:
    """What is charged to all of them, and their PSS."""
    charged = [found for one in standing if (found := one.memory()) is not None]
    resident = [held for one in standing if (held := one.process_memory()) is not None]
    return {
        "anon_bytes": sum(found.anon_bytes or 0 for found in charged),
        "shmem_bytes": sum(found.shmem_bytes or 0 for found in charged),
        "charged_kernel_bytes": sum(found.kernel_bytes or 0 for found in charged),
        "file_bytes": sum(found.file_bytes or 0 for found in charged),
        "pss_bytes": sum(held.pss_bytes for held in resident),
    }


def _guest_bytes(standing: Sequence[Instance]) -> float | None:
    found = [one.guest_memory_bytes() if isinstance(one, HasGuest) else None for one in standing]
    known = [value for value in found if value is not None]
    return float(sum(known)) if len(known) == len(found) else None


def _own_memory(pid: int | str) -> tuple[float, float]:
    """Private anonymous and tmpfs memory of a process, and its PSS; nothing for one that ended."""
    sums = dict.fromkeys(("Pss", "Pss_Anon", "Pss_Shmem"), 0.0)
    with contextlib.suppress(HvctError):
        for key, value in _rollup(read_text(f"/proc/{pid}/smaps_rollup")):
            if key in sums:
                sums[key] += value
    return sums["Pss_Anon"] + sums["Pss_Shmem"], sums["Pss"]


def _rollup(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines()[1:]:
        key, _, rest = line.partition(":")
        yield key, float(rest.split()[0]) * 1024
