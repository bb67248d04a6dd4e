"""Containers whose network namespace was made beforehand: the arm ``container:pooled``.

The network namespace is what the kernel takes longest to make of all namespaces (about half a
millisecond; the others are lost in the noise). Here one waits with ``lo`` up, and the new
process enters it; everything else happens at launch, the joining of the control group
included, so that this arm differs from ``container`` in one thing alone. A namespace serves
one instance. What the kernel keeps for it is charged to the launcher's group, not to the
instance's.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Sequence
from typing import ClassVar

from bench.context import RunContext
from bench.errors import HvctError, Refused
from bench.model import InstanceSpec, NetworkMode
from ct import steps
from ct.backend import CLONE_NEWNET, ContainerBackend
from ct.pending import Place
from ct.steps import Steps
from ct.worker import Worker

MAKE = Steps((steps.unshare(CLONE_NEWNET), steps.loopback(), steps.keep_netns()))


class PooledBackend(ContainerBackend):
    """Containers that enter a network namespace which waits for them."""

    enters_network: ClassVar[bool] = True

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self._pool: deque[tuple[Worker, str]] = deque()  # asked for; perhaps still in the making

    def check(self, spec: InstanceSpec) -> None:
        """It has to have a network namespace."""
        super().check(spec)
        if spec.network is NetworkMode.HOST:
            raise Refused(
                "a container with the host's network enters no network namespace of its own",
                "use network none or bridge, or the arm container",
            )

    def prepare(self, spec: InstanceSpec) -> None:
        """Also make the first namespace."""
        super().prepare(spec)
        self.reserve([spec])

    def reserve(self, specs: Sequence[InstanceSpec]) -> None:
        """Have a namespace wait for each of these.

        Raises:
            HvctError: there is no launcher.
        """
        super().reserve(specs)
        while len(self._pool) < len(specs):
            self._pool.append(self._ask())

    def _ask(self) -> tuple[Worker, str]:
        worker = self.worker
        return worker, worker.ask_namespace(MAKE)

    def _place(self, spec: InstanceSpec, held: contextlib.ExitStack, worker: Worker) -> Place:
        """Take a namespace, before anything is requested; another is made after the release."""
        while self._pool and self._pool[0][0] is not self.worker:
            self._pool.popleft()  # went with its launcher
        maker, id = self._pool.popleft() if self._pool else self._ask()
        namespace = maker.namespace(id, MAKE)
        place = Place(worker, namespaces=(namespace,))
        # Kept by us, it would outlive the instance.
        place.until_answered.callback(os.close, namespace)
        held.callback(self._refill)
        return place

    def _refill(self) -> None:
        """Have a namespace wait for the next instance; it is made while we go on."""
        if not self._pool and self._worker is not None:
            with contextlib.suppress(HvctError):  # the next launch tries again, and says why
                self._pool.append(self._ask())
