"""Saved guests in the cache: what they are keyed by, one file per slot, and their XML.

libvirt restores a file under the name and UUID it was saved with, so guests that are to live
beside each other each need a file of their own: a slot. A slot's file is only read by a
restore, so any number of processes may use the same at once. It is made in a folder apart and
moved into place, and whoever uses it holds a shared lock, so that nobody makes room by
removing it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import cache
from bench.cache import cache_dir, hold, lock, publish, workspace
from hv.domain import CHANNEL_NAME, QEMU_NAMESPACE, DomainPlan, Nic, domain_xml

FORMAT = 1
MOST_BYTES = 2 << 30  # of all saved guests together
SEED_MAC = "02:00:00:00:00:01"
"""The card's address while a guest is saved; each that is restored gets its own."""

_NAMES = uuid.UUID("0c2c4b0e-54d1-4f7c-9b43-6d3a1f0d8a55")  # of ours, for UUIDs made from names


def cpu_model() -> str:
    """The host's CPU: what a guest under KVM has seen, and how fast its counters run."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""


def saved_key(plan: DomainPlan, prepare: Sequence[tuple[str, str]], facts: Sequence[str]) -> str:
    """What a saved guest depends on: its domain, what PREPARE did, and these facts besides.

    What is replaced at a restore (paths, tap, environment) has no part in it, nor has the
    counter's frequency, which is measured anew in every process.
    """
    nic = None if plan.nic is None else Nic("tap", SEED_MAC)
    same = dataclasses.replace(
        plan,
        name="",
        uuid="",
        channel=Path("/"),
        console=Path("/"),
        environment={},
        nic=nic,
        tsc_khz=0,
        saveable=True,
    )
    seen = repr((FORMAT, domain_xml(same), list(prepare), list(facts)))
    return hashlib.sha256(seen.encode()).hexdigest()[:32]


def restored_xml(xml: str, plan: DomainPlan) -> str:
    """A saved domain's XML with what is this launch's own; all else must stay as it was saved."""
    ET.register_namespace("qemu", QEMU_NAMESPACE)
    domain = ET.fromstring(xml)
    for device in domain.iterfind("devices/*"):
        source, target = device.find("source"), device.find("target")
        if device.tag in ("serial", "console") and source is not None:
            source.set("path", str(plan.console))
        elif device.tag == "channel" and source is not None and target is not None:
            if target.get("name") == CHANNEL_NAME:
                source.set("path", str(plan.channel))
        elif device.tag == "interface" and target is not None and plan.nic is not None:
            target.set("dev", plan.nic.link)
    commandline = domain.find(f"{{{QEMU_NAMESPACE}}}commandline")
    assert commandline is not None, "every domain of ours has an environment"
    for variable in commandline.findall(f"{{{QEMU_NAMESPACE}}}env"):
        commandline.remove(variable)
    for name, value in plan.environment.items():
        ET.SubElement(commandline, f"{{{QEMU_NAMESPACE}}}env", name=name, value=value)
    return ET.tostring(domain, encoding="unicode")


class Slot:
    """One saved guest that this process uses: its name, its file, and the lock on it."""

    def __init__(self, key: str, number: int) -> None:
        self.name = f"hvct-s{key[:8]}-{number}"
        self.uuid = str(uuid.uuid5(_NAMES, f"{key}-{number}"))
        folder = cache_dir("saved", key)
        self.file = folder / f"{number}.save"
        self.xml_file = folder / f"{number}.xml"
        self.free_since = 0.0
        self._lock = -1

    @property
    def xml(self) -> str:
        """The domain as it was saved."""
        return self.xml_file.read_text()

    def hold(self) -> bool:
        """Lock the file against removal; False when it is not there."""
        held = hold(self.file)
        if held is None:
            return False
        self._lock = held
        if not self.xml_file.exists():
            self.drop()
        return self._lock >= 0

    def drop(self) -> None:
        """Give up the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class Slots:
    """The slots of one kind of guest that this process uses; a new one is made when all are taken.

    Args:
        make: boots a guest and saves it into the file given, under the slot's name; returns the
            XML it was saved with.
    """

    def __init__(self, key: str, make: Callable[[Slot, Path], str]) -> None:
        self.key = key
        self._make = make
        self._all: list[Slot] = []
        self._free: list[Slot] = []
        self._guard = threading.Lock()

    @property
    def files(self) -> list[Path]:
        """Every file a restore may read."""
        return [slot.file for slot in self._all]

    def ensure(self, count: int) -> None:
        """Have at least so many."""
        with self._guard:
            while len(self._all) < count:
                self._free.append(self._another())

    def ensure_free(self, count: int) -> None:
        """Have at least so many that are free."""
        self.ensure(len(self._all) - len(self._free) + count)

    def take(self) -> Slot:
        """The slot that has been free the longest: libvirt forgets a name 0.2 s late."""
        with self._guard:
            if not self._free:
                return self._another()
            slot = min(self._free, key=lambda item: item.free_since)
            self._free.remove(slot)
        return slot

    def give_back(self, slot: Slot) -> None:
        """It may be taken again."""
        slot.free_since = time.monotonic()
        with self._guard:
            self._free.append(slot)

    def close(self) -> None:
        """Give up every lock; the files stay, for the next run."""
        for slot in self._all:
            slot.drop()
        self._all.clear()
        self._free.clear()

    def _another(self) -> Slot:
        slot = Slot(self.key, len(self._all))
        with lock(f"saved-{self.key}"):  # another process may be making the same
            if not slot.hold():
                make_room()
                with workspace("saved") as folder:
                    made = folder / "guest"
                    xml = self._make(slot, made)
                    (folder / "xml").write_text(xml)
                    publish(folder / "xml", slot.xml_file)
                    publish(made, slot.file)
                slot.hold()
        self._all.append(slot)
        return slot


def make_room(most_bytes: int = MOST_BYTES) -> list[Path]:
    """Remove saved guests, those used longest ago first, until all are within the bound.

    One that any process holds stays. Returns what was removed.
    """
    return cache.make_room(cache_dir("saved").glob("*/*.save"), most_bytes, _forget)


def _forget(path: Path) -> None:
    path.unlink()
    path.with_suffix(".xml").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
