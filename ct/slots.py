"""Containers whose control group is made and joined beforehand: the arm ``container:slot``.

Making a control group in every hierarchy, setting its limits and joining it is 0.7 ms of a start.
On v1 a helper of the launcher has done so before the instance is requested, and clones the
instance, which is born in the group. On v2, where clone3 puts a child into any group, the group is
made beforehand and nobody needs to be parked in it.

Each slot is one fresh group for one instance, never used again: its peak and its counters
are that instance's. What the helper does after it has joined is in them too (its pages that
differ from the launcher's, some of its CPU time: docs/method.md), and it counts as a process
while it is there.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from bench.cgroup import Cgroup, CgroupLimits
from bench.cgroup import version as cgroup_version
from bench.context import RunContext
from bench.errors import HvctError, LaunchFailed, Refused
from bench.model import InstanceSpec
from ct.backend import ContainerBackend
from ct.groups import join_steps, limits_of, new_cgroup
from ct.pending import Place
from ct.worker import ParkedSlot, Worker

PARKED = "a helper parked in the group clones it"
MADE = "group made before; clone3 into it"


@dataclass
class Slot:
    """A group that waits for an instance.

    Attributes:
        worker: the launcher it belongs to.
        parked: the helper in it; None on cgroup v2.
    """

    worker: Worker
    cgroup: Cgroup
    parked: ParkedSlot | None

    def close(self) -> None:
        """Give up a slot that was not used."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.cgroup.remove)
            if self.parked:
                self.parked.close()


class SlotBackend(ContainerBackend):
    """Containers that are born in a control group which waits for them."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self._slots: dict[CgroupLimits, deque[Slot]] = defaultdict(deque)
        self._count = 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as undo:
            for slots in self._slots.values():
                for slot in slots:
                    undo.callback(slot.cgroup.remove)
                    if slot.parked:
                        slot.parked.close()
            self._slots.clear()
            undo.callback(super().__exit__, kind, error, trace)

    def check(self, spec: InstanceSpec) -> None:
        """Without a control group there is nothing to wait in."""
        super().check(spec)
        if not spec.accounting:
            raise Refused(
                "a slot is a control group, and this instance is to have none",
                "use the arm container",
            )

    def prepare(self, spec: InstanceSpec) -> None:
        """Also park the first slot."""
        super().prepare(spec)
        self.reserve([spec])

    def reserve(self, specs: Sequence[InstanceSpec]) -> None:
        """Have a slot wait for each of these; returns once all are joined.

        Their helpers work beside each other; where there are none, several launchers do.

        Raises:
            LaunchFailed: one cannot be had.
        """
        if cgroup_version() == 2:
            super().reserve(specs)
        wanted: dict[CgroupLimits, int] = defaultdict(int)
        for spec in specs:
            wanted[limits_of(spec)] += 1
        for limits, count in wanted.items():
            slots = self._slots[limits]
            while len(slots) < count:  # all of them first: they join at the same time
                slots.append(self._park(limits))
            taken: list[Slot] = []
            try:
                while len(taken) < count:
                    taken.append(self._take(limits))
            finally:
                slots.extend(taken)

    def _park(self, limits: CgroupLimits) -> Slot:
        worker = self.worker
        self._count += 1
        name = f"slot-{self._count:04d}"
        with contextlib.ExitStack() as undo:
            cgroup = new_cgroup(self.context.tag, name, limits)
            undo.callback(cgroup.remove)
            parked = worker.park(name, join_steps(cgroup)) if cgroup_version() == 1 else None
            undo.pop_all()
        return Slot(worker, cgroup, parked)

    def _take(self, limits: CgroupLimits) -> Slot:
        """A slot that is joined and waits; one that has died meanwhile is passed over.

        Raises:
            LaunchFailed: there is none, and none can be had.
        """
        while waiting := self._slots[limits]:
            slot = waiting.popleft()
            if slot.worker is self.worker:
                with contextlib.suppress(LaunchFailed):
                    return self._joined(slot)
            else:
                slot.close()
        return self._joined(self._park(limits))

    def _joined(self, slot: Slot) -> Slot:
        try:
            if slot.parked:
                slot.parked.await_parked()
        except BaseException:
            slot.close()
            raise
        return slot

    def _place(self, spec: InstanceSpec, held: contextlib.ExitStack, worker: Worker) -> Place:
        """Take a slot, before anything is requested; another takes its place after the release."""
        limits = limits_of(spec)
        slot = self._take(limits)
        held.callback(self._refill, limits)
        place = Place(worker, slot.cgroup, MADE)
        if slot.parked:
            place = Place(slot.parked, slot.cgroup, PARKED)
            place.until_answered.callback(slot.parked.close)
        return place

    def _refill(self, limits: CgroupLimits) -> None:
        """Have a slot wait for the next instance; it joins while we go on."""
        if not self._slots[limits] and self._worker is not None:
            with contextlib.suppress(HvctError):  # the next launch tries again, and says why
                self._slots[limits].append(self._park(limits))
