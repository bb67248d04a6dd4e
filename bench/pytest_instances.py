"""Instances for tests: what `bench.pytest_plugin` opens once a test asks for one.

A session is one journaled run, like ``hvct run``: whatever ends pytest, the helpers of the
arms release what they own and undo the rest. What a host cannot do skips the test.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import pytest

from bench import arms, host, journal, plan_file, registry, spec
from bench.backend import Backend, Instance
from bench.cleanup import clean_dead
from bench.context import RunContext
from bench.disturbances import wait_quiet
from bench.errors import HostCannot, HvctError, Refused
from bench.image import store
from bench.model import Capability, Event, Image, NetworkMode, Workload
from bench.startup import await_ready
from bench.version import VERSION

RELEASE_LIMIT_NS = 5_000_000_000
DEFAULT_ROUNDS = 10


class Instances:
    """Everything that outlives a test: runs, opened arms, images. A context manager.

    Args:
        folder: where logs go.
        kernel: guest kernel instead of the default one.
    """

    def __init__(self, folder: Path, kernel: Path | None) -> None:
        self._folder, self._kernel = folder, kernel
        self._stack = contextlib.ExitStack()
        self._runs: dict[bool, RunContext] = {}  # with and without a bridge
        self._backends: dict[tuple[str, bool], tuple[Backend, Capability]] = {}
        self._prepared: set[tuple[str, Workload]] = set()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def launcher(self, arm: str, extra_info: dict[str, object]) -> Iterator[Launcher]:
        """What one test launches with in one arm; releases all that is left at its end."""
        with contextlib.ExitStack() as stack:
            yield Launcher(self, arm, extra_info, stack)

    def launch(self, arm: str, workload: Workload, image: Image) -> Instance:
        """Launch and return without waiting; what is done once is done before.

        Raises:
            HvctError: the arm cannot be had here, or declines the workload, or failed.
        """
        bridge = workload.network is NetworkMode.BRIDGE
        backend, context = self.backend(arm, bridge), self._run(bridge)
        self._count += 1
        wanted = spec.make(workload, image, context, self._count)
        if (arm, workload) not in self._prepared:
            backend.prepare(wanted)
            self._prepared.add((arm, workload))
        return backend.launch(wanted)

    def backend(self, arm: str, bridge: bool) -> Backend:
        """The backend of an arm, entered and probed once.

        Raises:
            HostCannot: it does not work here.
        """
        if (arm, bridge) not in self._backends:
            if os.geteuid() != 0:
                raise HostCannot(f"{arm} needs root (namespaces, cgroups)", "run pytest with sudo")
            context = self._run(bridge)
            made = registry.make(arms.ARMS[arm], context)
            entered = self._stack.enter_context(made)
            self._backends[arm, bridge] = entered, entered.probe()
        backend, found = self._backends[arm, bridge]
        if not found.usable:
            raise HostCannot(f"{arm}: {found.reason}", found.remedy)
        return backend

    def _run(self, bridge: bool) -> RunContext:
        if bridge not in self._runs:
            clean_dead()
            opened = journal.open_run(self._folder, network=bridge, kernel=self._kernel)
            self._runs[bridge] = self._stack.enter_context(opened)
        return self._runs[bridge]


class Launcher:
    """Starts instances in one arm for one test. Call it as `hvct_launch` is documented."""

    def __init__(
        self,
        instances: Instances,
        arm: str,
        extra_info: dict[str, object],
        stack: contextlib.ExitStack,
    ) -> None:
        self._instances, self.arm, self.extra_info, self._stack = instances, arm, extra_info, stack

    @contextlib.contextmanager
    def __call__(
        self, image: str = "busybox", argv: list[str] | None = None, **workload: Any
    ) -> Iterator[Instance]:
        """An instance that is ready, released at the end of the block.

        Args:
            image: a name in hvct's cache, or what is built on first use.
            argv: the whole command; by default the image's own.
            **workload: the keys of a workload in a plan (``docs/plan.md``).
        """
        wanted = self.workload(image, argv, workload)
        with self.started(wanted) as instance:
            yield instance

    def to_end(
        self, image: str = "busybox", argv: list[str] | None = None, **workload: Any
    ) -> Instance:
        """Run it to its end within `timeout_s`; output, exit and timeline stay readable."""
        wanted = self.workload(image, argv, workload)
        with self.started(wanted) as instance:
            requested = instance.timeline.marks_ns[Event.REQUESTED]
            if not instance.wait(Event.EXITED, requested + int(wanted.timeout_s * 1e9)):
                pytest.fail(f"hvct: it had not ended after {wanted.timeout_s:g} s", pytrace=False)
        return instance

    @staticmethod
    def workload(
        image: str, argv: list[str] | None, further: Mapping[str, Any] | None = None
    ) -> Workload:
        """What these arguments describe; a test that got them wrong fails, saying so."""
        try:
            command = {} if argv is None else {"argv": list(argv)}
            return plan_file.workload({"image": image, **command, **(further or {})})
        except HvctError as error:
            _give_up(error)

    @contextlib.contextmanager
    def started(self, workload: Workload) -> Iterator[Instance]:
        """The same, of a workload that is known already."""
        with contextlib.ExitStack() as stack:
            try:
                image = store.prepare(workload.image)
                instance = self._instances.launch(self.arm, workload, image)
                stack.enter_context(instance)
                self._stack.callback(instance.release)  # a block that is never left, too
                await_ready(instance, workload)
            except HvctError as error:
                _give_up(error)
            self.note(instance)
            yield instance

    def note(self, instance: Instance) -> None:
        """Say with the benchmark's result what was measured."""
        about = instance.spec
        self.extra_info |= {
            "hvct_arm": self.arm,
            "hvct_accelerator": instance.accelerator.label,
            "hvct_image": about.image.name,
            "hvct_image_digest": about.image.digest,
            "hvct_argv": list(about.argv),
            "hvct_host": host.summary_line(),
            "hvct_version": VERSION,
        }


class Starter:
    """Measures how long starts take, with pytest-benchmark's clock around them."""

    def __init__(self, launcher: Launcher, wanted: dict[str, Any]) -> None:
        image, argv = wanted.pop("image", "busybox"), wanted.pop("argv", None)
        self._launcher, self._workload = launcher, launcher.workload(image, argv, wanted)
        self._current = contextlib.ExitStack()
        self._timelines: list[dict[str, float]] = []

    def __call__(self, benchmark: Any, rounds: int = DEFAULT_ROUNDS) -> list[dict[str, float]]:
        """Start `rounds` instances, one after the other; a first one is not measured.

        Timed is from the request until the harness knows that it is ready. Releasing it and
        settling (`bench.disturbances.wait_quiet`) are not timed.

        Returns:
            The timeline of every start, in seconds since the request.
        """
        with contextlib.ExitStack() as left:
            left.callback(self._release)
            benchmark.pedantic(self._start, setup=self._settle, rounds=rounds, warmup_rounds=1)
        timelines = self._timelines[-rounds:]
        for event in (Event.STARTED, Event.READY):
            seen = [timeline[event] for timeline in timelines if event in timeline]
            if seen:
                self._launcher.extra_info[f"hvct_{event}_s"] = statistics.median(seen)
        return timelines

    def _start(self) -> None:
        self._instance = self._current.enter_context(self._launcher.started(self._workload))

    def _settle(self) -> None:
        self._release()
        wait_quiet()

    def _release(self) -> None:
        instance, self._instance = self._instance, None
        self._current.close()
        if instance is not None:
            instance.wait_network_released(time.monotonic_ns() + RELEASE_LIMIT_NS)
            self._timelines.append(instance.timeline.seconds())

    _instance: Instance | None = None


def _give_up(error: HvctError) -> NoReturn:
    """What the host cannot do skips a test; anything else fails it. Both say what to do."""
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    if isinstance(error, HostCannot | Refused):
        pytest.skip(f"hvct: {text}")
    pytest.fail(f"hvct: {text}", pytrace=False)
