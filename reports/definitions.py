"""Start-up time as others defined it, from our timeline; published figures beside ours.

No two studies mean the same by "start-up time". Each definition here is a chain of intervals
between our events that has the same two ends. What was published comes from the studies' own
papers, raw data and scripts, named with each figure; a figure that somebody else quotes is not
in here.
"""

# ruff: noqa: E501 - these tables read best with one row a line

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from bench.model import Event, Outcome
from bench.numbers import format_value
from reports.data import Run
from reports.model import Arm, DefinedStart, Definition, Published

_Chain = tuple[tuple[Event, Event], ...]


@dataclass(frozen=True)
class _Known:
    """One definition: `ends` is summed, so that what we do in between does not count.

    `machine`: it speaks of virtual machines only.
    """

    key: str
    study: str
    theirs: str
    ends: _Chain
    machine: bool = False

    @property
    def ours(self) -> str:
        return " + ".join(f"{a.value} → {b.value}".replace("_", " ") for a, b in self.ends)


_GONE: _Chain = ((Event.REQUESTED, Event.EXITED), (Event.RELEASE_REQUESTED, Event.RELEASED))
KNOWN = (
    _Known("ready", "hvct", "request → first useful reply of the workload", ((Event.REQUESTED, Event.READY),)),
    _Known("fork-exec", "fork and exec (LightVM's process row)", "fork → the program is executed", ((Event.REQUESTED, Event.STARTED),)),
    _Known("kata-workload", "Kata, launch_times.sh, to-workload", "before the engine's run command → the payload runs", ((Event.REQUESTED, Event.STARTED),)),
    _Known("run", "docker run, by a stopwatch", "command typed → command has returned, its sandbox gone", _GONE),
    _Known("firecracker-end", "Firecracker, NSDI'20 scripts", "VMM executed → VMM gone; the guest's init ends at once", _GONE, machine=True),
    _Known("firecracker-spec", "Firecracker, SPECIFICATION.md", "InstanceStart received → guest's init begins", ((Event.SPAWNED, Event.INIT),), machine=True),
    _Known("lightvm-create", "LightVM, create", "toolstack called → guest exists", ((Event.REQUESTED, Event.SPAWNED),), machine=True),
    _Known("lightvm-boot", "LightVM, boot", "guest exists → guest is up", ((Event.SPAWNED, Event.INIT),), machine=True),
    _Known("unikraft-vmm", "Unikraft, VMM part", "VMM executed → first guest instruction", ((Event.REQUESTED, Event.KERNEL),), machine=True),
    _Known("unikraft-guest", "Unikraft, guest part", "first guest instruction → main()", ((Event.KERNEL, Event.STARTED),), machine=True),
)  # fmt: skip

_NSDI = "firecracker-microvm/nsdi2020-data, raw series"
_METAL = "m5d.metal (Xeon 8175M), QEMU 4.2, 1 vCPU, 256 MB, n = 500"
_DIRECT = "QEMU started directly, without libvirt; firmware, kernel and init of their own"
PUBLISHED = (
    # study, what, platform, figure, definition, arm, what differs, source
    ("Agache et al., NSDI'20", "QEMU with its default BIOS", _METAL, "243.5 ms (median)", "firecracker-end", "vm", _DIRECT, _NSDI),
    ("Agache et al., NSDI'20", "QEMU with qboot", _METAL, "213.9 ms (median)", "firecracker-end", "vm", _DIRECT, _NSDI),
    ("Agache et al., NSDI'20", "QEMU with its default BIOS", "Xeon E3-1226 v3, else the same", "190.9 ms (median)", "firecracker-end", "vm", _DIRECT, _NSDI),
    ("Agache et al., NSDI'20", "Firecracker through its API", _METAL, "160.9 ms (median)", "firecracker-end", "vm", "another VMM", _NSDI),
    ("Firecracker", "its promise", "its specification's hosts", "at most 125 ms", "firecracker-spec", "vm", "another VMM", "firecracker-microvm/firecracker, SPECIFICATION.md"),
    ("Kata Containers", "its CI's baseline for QEMU", "Equinix m3.small", "0.71 s (mean)", "kata-workload", "vm", "through a container engine; the end is stamped by the guest's clock", "kata-containers/kata-containers, checkmetrics/ci_worker"),
    ("Kuenzer et al., EuroSys'21", "QEMU", "i7-9700K, Linux 4.19, n = 26", "37.5 ms (median)", "unikraft-vmm", "vm", "a unikernel of a few hundred KiB, started without libvirt", "unikraft/eurosys21-artifacts, raw series"),
    ("Manco et al., SOSP'17", "process", "Xeon E5-1630 v3", "3.5 ms (mean)", "fork-exec", "process", "ours also makes a cgroup and mounts the image", "the paper"),
)  # fmt: skip


def definitions() -> tuple[Definition, ...]:
    """Every definition, as the report lists them."""
    return tuple(Definition(item.key, item.study, item.theirs, item.ours) for item in KNOWN)


def defined(run: Run, arms: Sequence[Arm]) -> tuple[DefinedStart, ...]:
    """Medians by every definition of every workload that any arm has its events for.

    Where a definition ends with the workload, only workloads that end by themselves count: a
    server is held and stopped by us.
    """
    good = run.trials.index[run.trials["outcome"] == Outcome.OK.value]
    marks = run.marks[run.marks["trial"].isin(good)]
    at_s = marks.pivot_table(index="trial", columns="event", values="at_s", observed=True)
    about = run.trials.loc[at_s.index, ["workload", "arm"]]
    until = {item["name"]: item.get("until", "exit") for item in run.record["plan"]["workloads"]}
    found = []
    for known in KNOWN:
        events = {event.value for pair in known.ends for event in pair}
        if not events <= set(at_s.columns):
            continue
        length: pd.Series[float] = sum(at_s[b.value] - at_s[a.value] for a, b in known.ends)  # type: ignore[assignment]
        middle = length.groupby([about["workload"], about["arm"]], observed=True).median()
        for workload in until:
            if Event.EXITED.value in events and until[workload] != "exit":
                continue
            levels = [
                None if known.machine and not arm.name.startswith("vm")
                else middle.get((workload, arm.name))
                for arm in arms
            ]  # fmt: skip
            levels = [None if v is None or pd.isna(v) else float(v) for v in levels]
            if any(level is not None for level in levels):
                texts = tuple("–" if v is None else format_value(v, "s") for v in levels)
                found.append(DefinedStart(workload, known.key, tuple(levels), texts))
    order = {name: n for n, name in enumerate(until)}
    return tuple(sorted(found, key=lambda item: order[item.workload]))


def published(
    run: Run, arms: Sequence[Arm], found: Sequence[DefinedStart]
) -> tuple[Published, ...]:
    """Published figures beside ours of the workload that does least.

    An emulated machine's figure stands beside none: it would look like agreement, or like the
    lack of it, and is neither. Ours is "" then.
    """
    least = _least(run)
    if least is None:
        return ()
    rows = []
    for study, what, platform, figure, key, name, differs, source in PUBLISHED:
        place = next((n for n, arm in enumerate(arms) if arm.name == name), None)
        mine = next((d for d in found if (d.workload, d.definition) == (least, key)), None)
        if place is None or mine is None or mine.levels[place] is None:
            continue
        arm = arms[place]
        ours = "" if arm.emulated else f"{mine.texts[place]} (median)"
        rows.append(Published(study, what, platform, figure, key, arm.label, ours, differs, source))
    return tuple(rows)


def _least(run: Run) -> str | None:
    """The workload that only starts and ends; None where there is none."""
    for item in run.record["plan"]["workloads"]:
        ready = item.get("ready")
        kind = ready.get("kind") if isinstance(ready, dict) else None
        if item.get("until", "exit") == "exit" and kind in {"started", "output"}:
            return str(item["name"])
    return None
