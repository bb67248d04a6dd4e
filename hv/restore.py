"""The VM arm that boots once and from then on starts by restoring: `vm:restore`.

A seed boots as every guest does, up to all that guests of its kind have in common (modules,
mounts, confinement), and is saved. A launch restores such a file; before its workload the
guest reseeds its random generator and gets its own clock, MAC, address, host name and
machine-id. A restored guest shares with its siblings what its kernel drew at boot (the
method's page says what).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from bench.agent.launch_record import run_record
from bench.agent.seccomp import seccomp_program
from bench.context import RunContext
from bench.errors import LaunchFailed, Refused
from bench.model import Image, InstanceSpec, Security
from hv import memory, network
from hv.backend import VmBackend
from hv.connection import DomainLink
from hv.domain import DomainPlan
from hv.initramfs import Initramfs
from hv.instance import VmInstance
from hv.probe import Verdict
from hv.saved import SEED_MAC, Slot, Slots, cpu_model, restored_xml, saved_key

READY_SLOTS = 2  # made by `prepare`: libvirt still knows the last one's name when the next starts
SEED_LIMIT_S = 120.0  # for a seed to boot, become quiet and be saved


class RestoreBackend(VmBackend):
    """Virtual machines restored from a guest that was saved just before its workload."""

    def __init__(self, context: RunContext, *, direct: bool = False) -> None:
        super().__init__(context, direct=direct)
        self._slots: dict[str, Slots] = {}
        self._images: dict[str, set[str]] = {}  # digest → keys of its saved guests

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        for slots in self._slots.values():
            slots.close()

    def check(self, spec: InstanceSpec) -> None:
        """Decline what cannot be restored.

        Raises:
            Refused: with the reason.
        """
        super().check(spec)
        if self.context.libvirt_uri:
            raise Refused(
                "a daemon would keep a restored domain when hvct dies (no autodestroy)",
                "leave out the libvirt URI, or the arm vm:restore",
            )
        if spec.limits.scratch_bytes:
            raise Refused(
                "a scratch disk is made afresh for each instance, and a saved guest has its own",
                "leave out the scratch disk, or the arm vm:restore",
            )

    def prepare(self, spec: InstanceSpec) -> None:
        """What a cold start needs, and two saved guests."""
        super().prepare(spec)
        self._slots_of(spec).ensure(READY_SLOTS)

    def reserve(self, specs: Sequence[InstanceSpec]) -> None:
        """A saved guest for each, before any of them is requested."""
        wanted = Counter(self._slots_of(spec).key for spec in specs)
        for key, count in wanted.items():
            self._slots[key].ensure_free(count)

    def files_read(self, image: Image) -> list[Path]:
        """The saved guests too."""
        keys = self._images.get(image.digest, set())
        return [*super().files_read(image), *(p for key in keys for p in self._slots[key].files)]

    def launch(self, spec: InstanceSpec) -> VmInstance:
        """Restore a saved guest and return without waiting for it.

        Where none is free one is made first, outside the clock.
        """
        self.check(spec)
        archive, size, verdict = self._archive(spec), self._size(spec), self.verdict
        slots = self._slots_of(spec)
        slot = slots.take()
        held = contextlib.ExitStack()
        held.callback(slots.give_back, slot)

        def start(plan: DomainPlan) -> tuple[DomainLink, Mapping[str, object]]:
            return self._restore(slot, plan)

        def own_pairs() -> list[tuple[str, str]]:
            same = spec.security is Security.SAME
            guest = network.guest_keys(spec, mac=True)
            return run_record(spec, guest, seccomp=seccomp_program() if same else b"")

        return self._launch(
            spec, archive, size, verdict, start=start, pairs=own_pairs, restored=True, held=held
        )

    # -- saved guests ----------------------------------------------------------------

    def _slots_of(self, spec: InstanceSpec) -> Slots:
        """The saved guests that a specification can start from."""
        archive, size, verdict = self._archive(spec), self._size(spec), self.verdict
        self.ready()
        prepare = self._prepare_keys(spec, archive)
        plan = self._plan(spec, archive, size, verdict, Path("/"))
        facts = [
            spec.image.digest,
            self.kernel.digest,
            archive.digest,
            self.emulator.identity,
            self.connection.libvirt_version,
            cpu_model(),
        ]
        key = saved_key(plan, prepare, facts)
        if key not in self._slots:
            seed = _seed_of(spec)
            self._slots[key] = Slots(
                key, lambda slot, file: self._save(seed, archive, size, verdict, slot, file)
            )
        self._images.setdefault(spec.image.digest, set()).add(key)
        return self._slots[key]

    def _save(
        self,
        seed: InstanceSpec,
        archive: Initramfs,
        size: memory.Size,
        verdict: Verdict,
        slot: Slot,
        file: Path,
    ) -> str:
        """Boot a seed under the slot's name and save it; the XML that it was saved with."""

        def start(plan: DomainPlan) -> tuple[DomainLink, Mapping[str, object]]:
            named = dataclasses.replace(plan, name=slot.name, uuid=slot.uuid, saveable=True)
            return self.start(named)

        deadline_ns = time.monotonic_ns() + int(SEED_LIMIT_S * 1e9)
        with self._launch(seed, archive, size, verdict, start=start, pairs=lambda: None) as guest:
            return guest.save(self._prepare_keys(seed, archive), file, deadline_ns)

    def _restore(self, slot: Slot, plan: DomainPlan) -> tuple[DomainLink, Mapping[str, object]]:
        try:
            xml = restored_xml(slot.xml, plan)
            saved_bytes = slot.file.stat().st_size
        except OSError as error:  # somebody has emptied the cache meanwhile
            raise LaunchFailed(f"the saved guest {slot.file} is gone: {error.strerror}") from error
        link = self.connection.start(slot.name, xml, plan.channel, slot.file)
        return link, {
            "domain_xml": xml,
            "libvirt": self.connection.libvirt_version,
            "libvirt_uri": self.connection.uri,
            "restored_from": str(slot.file),
            "saved_bytes": saved_bytes,
        }


def _seed_of(spec: InstanceSpec) -> InstanceSpec:
    """The specification a seed boots with: the instance's, before anything is its own."""
    address = spec.address and dataclasses.replace(spec.address, mac=SEED_MAC)
    return dataclasses.replace(spec, id=f"{spec.id}s", address=address, listen_port=0)
