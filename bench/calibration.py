"""A/A calibration: each arm against itself on this host, kept until the host changes.

A calibration is a campaign whose plan holds every workload twice, under two names, and
whose blocks (`schedule.against_itself`) hold every arm twice. What it finds can only make
verdicts stricter: a difference must also exceed the floor, and where the floor exceeds the
margin there is no equivalence.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import host, store
from bench.errors import BadInput, HostCannot, oserror
from bench.model import Better, Outcome, Scale, Workload
from bench.output_metrics import of_trial
from bench.plan import Plan, check, new_seed
from bench.registration import digest
from bench.schedule import AGAINST_ITSELF, TWIN, against_itself
from bench.version import VERSION

if TYPE_CHECKING:
    from bench.stats.noise import Noise, Place
    from bench.stats.pairs import PairedSeries

FORMAT = 2
"""Of a stored file; 1: the only one, by an image's name; 2: one per fingerprint, by its digest."""

LEAST_BLOCKS = 6
CANNOT_SHOW = (
    "what differs between reboots, days and neighbours: it is one spell of one host",
    "what happens in fewer than one launch of ten or so, and tails (p95, p99)",
    "other workloads, limits or images: a floor is used for the workload it was measured with",
)
"""What no calibration of some dozen blocks shows."""


def plan_of(
    workloads: Sequence[Workload], arms: Sequence[str], blocks: int, seed: int | None = None
) -> Plan:
    """The plan of a calibration.

    Raises:
        BadInput: an arm or a workload is not one, or the blocks are too few.
    """
    if blocks < LEAST_BLOCKS:
        raise BadInput(
            f"{blocks} blocks give no interval", f"calibrate with at least {LEAST_BLOCKS}"
        )
    twins = [dataclasses.replace(workload, name=workload.name + TWIN) for workload in workloads]
    both = tuple(one for pair in zip(workloads, twins, strict=True) for one in pair)
    return check(
        Plan(
            "calibration", tuple(arms), both, blocks, new_seed() if seed is None else seed, (), {},
            experiment=AGAINST_ITSELF,
        )
    )  # fmt: skip


def noise(stored: store.StoredRun, named: Path | None = None) -> list[Noise]:
    """Every metric of every workload in every arm against itself.

    Args:
        named: the archive that it was unpacked from, where it was.

    Raises:
        BadInput: the run is no calibration.
    """
    from bench.stats.noise import analyse  # numpy, which a run that measures need not hold

    plan = stored.run["plan"]
    if plan.get("experiment") != AGAINST_ITSELF:
        raise BadInput(
            f"{named or stored.directory} is no calibration", "make one with: hvct calibrate"
        )
    names = [item["name"] for item in plan["workloads"] if not item["name"].endswith(TWIN)]
    places = _places(plan, names)
    found = []
    for workload in names:
        for arm in plan["arms"]:
            for series in _series(stored, workload, arm):
                one = analyse(series, places[workload, arm])
                if one is not None:
                    found.append(one)
    return found


def _places(
    plan: Mapping[str, Any], names: Sequence[str]
) -> dict[tuple[str, str], dict[int, Place]]:
    """(workload, arm) → block → where its two trials stood."""
    from bench.stats.noise import Place

    slots = against_itself(plan["arms"], names, int(plan["blocks"]), int(plan["seed"]))
    at: dict[tuple[int, str, str], tuple[int, str]] = {}
    before = ""
    for slot in slots:
        at[slot.block, slot.workload, slot.arm] = (slot.position, before)
        before = slot.arm
    found: dict[tuple[str, str], dict[int, Place]] = {}
    for block, workload, arm in at:
        if not workload.endswith(TWIN):
            first, second = at[block, workload, arm], at[block, workload + TWIN, arm]
            found.setdefault((workload, arm), {})[block] = Place(
                (second[0], first[0]), (second[1], first[1])
            )
    return found


def _series(stored: store.StoredRun, workload: str, arm: str) -> Iterator[PairedSeries]:
    from bench.stats.pairs import Pair, PairedSeries

    outcomes: dict[tuple[str, int], str] = {}
    values: dict[str, dict[tuple[str, int], float]] = {}
    for trial in stored.trials:
        if trial["arm"] == arm and trial["workload"].removesuffix(TWIN) == workload:
            key = (str(trial["workload"]), int(trial["block"]))
            outcomes[key] = str(trial["outcome"])
            for metric, value in of_trial(trial["samples"]).items():
                values.setdefault(metric, {})[key] = value
    blocks = sorted({block for _, block in outcomes})
    missing = Outcome.FAILED.value
    for metric, about in stored.run["metrics"].items():
        got = values.get(metric)
        if not got:
            continue
        rows = [
            Pair(
                block,
                outcomes.get((workload + TWIN, block), missing),
                got.get((workload + TWIN, block)),
                outcomes.get((workload, block), missing),
                got.get((workload, block)),
            )
            for block in blocks
        ]
        yield PairedSeries(
            metric=metric, workload=workload, arm=arm, baseline=arm, unit=about["unit"],
            scale=Scale(about["scale"]), better=Better(about["better"]), margin=0.0,
            resolution=float(about.get("resolution") or 0.0), values=rows, elapsed=False,
        )  # fmt: skip


# -- kept per host -------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What is kept about this host.

    Attributes:
        entries: of workloads, as stored: see `keep`.
        expired: why what was kept does not count any more, one clause each.
        created: of the newest entry.
    """

    entries: tuple[dict[str, Any], ...] = ()
    expired: tuple[str, ...] = ()
    created: str = ""


def place() -> Path:
    """The folder of what is kept, ``$XDG_STATE_HOME/hvct/calibration``: a file per fingerprint.

    A host that is tuned is another one, and keeps what was found before it was.
    """
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "hvct" / "calibration"


def keep(stored: store.StoredRun, found: Sequence[Noise]) -> Path:
    """Add a calibration to what is kept; an older one of the same workload gives way.

    What was kept of this host in another state (kernel, QEMU, governor, …) stays, for when
    it is in that state again.

    Raises:
        HostCannot: it cannot be written.
    """
    workloads = {item["name"]: item for item in stored.run["plan"]["workloads"]}
    facts, created = stored.run["host"], datetime.now(UTC).isoformat(timespec="seconds")
    digests = {name: image["digest"] for name, image in stored.run["images"].items()}
    fresh = [
        {
            "workload": name,
            "workload_digest": same_work(workloads[name], digests),
            "created": created,
            "run": stored.run["id"],
            "blocks": len(stored.complete_blocks()),
            "noise": [store.jsonable(one) for one in found if one.workload == name],
        }
        for name in dict.fromkeys(one.workload for one in found)
    ]
    new = {entry["workload_digest"] for entry in fresh}
    here = next((file for file in _files() if not file.unlike(facts)), None)
    kept = [
        entry for entry in (here.entries if here else ()) if entry["workload_digest"] not in new
    ]
    path = here.path if here else place() / f"{digest(facts)[:16]}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostCannot(
            oserror("mkdir", path.parent, error).message,
            "set XDG_STATE_HOME to a folder you can write",
        ) from error
    store.write_json(
        path, {"format": FORMAT, "hvct_version": VERSION, "host": facts, "entries": [*kept, *fresh]}
    )
    return path


@dataclass(frozen=True)
class _File:
    """What is kept under one fingerprint."""

    path: Path
    host: dict[str, Any]
    version: str
    entries: tuple[dict[str, Any], ...]

    @property
    def created(self) -> str:
        """Of its newest entry."""
        return max((str(entry["created"]) for entry in self.entries), default="")

    def unlike(self, facts: Mapping[str, Any]) -> list[str]:
        """Why it is not of this host in this state, measured by this version."""
        changed = host.same_host(self.host, dict(facts))
        if self.version != VERSION:
            return [f"hvct was {self.version}, is {VERSION}", *changed]
        return changed


def _files() -> list[_File]:
    """Every file that can be read, the newest first; a damaged one says nothing."""
    found = []
    for path in sorted(place().glob("*.json")):
        try:
            document = json.loads(path.read_bytes())
            if document["format"] != FORMAT:
                continue
            entries = tuple(dict(entry) for entry in document["entries"])
            found.append(
                _File(path, dict(document["host"]), str(document["hvct_version"]), entries)
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda file: file.created, reverse=True)


def known(facts: Mapping[str, Any]) -> Known:
    """What is kept about the host of this fingerprint; nothing where it changed since."""
    files = _files()
    for file in files:
        if not file.unlike(facts):
            return Known(file.entries, (), file.created)
    if not files:
        return Known()
    # On a host in several states that is the reason worth telling.
    likest = min([file.unlike(facts) for file in files], key=len)
    return Known(expired=tuple(likest))


def same_work(workload: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """A digest of what a workload does, whatever it or its image is called.

    Args:
        digests: of images, by name; one that is not there is like no other.
    """
    what = {key: value for key, value in workload.items() if key not in {"name", "title", "image"}}
    return digest({**what, "image": digests.get(workload["image"])})


def floors(
    facts: Mapping[str, Any],
    workloads: Sequence[Mapping[str, Any]],
    arms: Sequence[str],
    digests: Mapping[str, str],
) -> dict[str, Any]:
    """What a run keeps of it: the floors of its own workloads and arms, and where from.

    Args:
        workloads: as ``run.json``'s plan holds them.
        digests: of the images that are there, by name; an image yet to come has no floor.
    """
    found = known(facts)
    by_work = {entry["workload_digest"]: entry for entry in found.entries}
    rows = []
    for workload in workloads:
        entry = by_work.get(same_work(workload, digests)) if workload["image"] in digests else None
        for one in entry["noise"] if entry else ():
            if one["arm"] in arms and one["floor"] is not None:
                rows.append(
                    {
                        "metric": one["metric"],
                        "workload": workload["name"],
                        "arm": one["arm"],
                        "floor": one["floor"],
                        "n": one["n"],
                        "detectable": one["detectable"],
                    }
                )
    return {"created": found.created, "expired": list(found.expired), "floors": rows}
