"""``hvct doctor --validate``: is hvct right on this host? For the owner of a host with KVM.

Every part tries something on the real path and notes what it saw; a part that cannot be
tried does not end the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import arms, controls, estimate, host, identity, journal, registry, spikein, store
from bench import spec as specs
from bench.backend import Backend
from bench.campaign import Campaign
from bench.cleanup import clean, clean_dead
from bench.commands.execution import pinned_away
from bench.commands.progress import open_progress, open_stages, told_to
from bench.commands.rights import need_root
from bench.context import RunContext
from bench.doctor import examine
from bench.errors import BadInput, HvctError, oserror
from bench.image import store as images
from bench.model import Capability, Event, Image, Workload
from bench.owner import hand_over, make_folder
from bench.pagecache import SharedCache
from bench.plan import Plan, new_seed
from bench.spikein import Surroundings
from bench.validation import PARTS, Check, Sheet, judge, line
from bench.version import VERSION
from bench.workloads import HELLO, REDIS

SHEET = "hvct-validation"
BLOCKS = 2  # of the campaign whose receipts are compared
LIMIT_NS = 120_000_000_000
STATUS = 3
SAYS = Workload("says", "says", "busybox", ("sh", "-c", f"echo $((6 * 7)); exit {STATUS}"))
FIXED_S = {"host": 2.0, "kvm": 4.0, "arms": 8.0}


@dataclass
class Validation:
    """What is open while the parts run."""

    sheet: Sheet
    context: RunContext
    cache: SharedCache
    folder: Path
    told: Callable[[str], None]
    backends: dict[str, Backend] = field(default_factory=dict)
    found: dict[str, Capability] = field(default_factory=dict)
    count: int = 0

    def note(self, part: str, name: str, passed: bool | None, said: str, since: float) -> None:
        """Note a check and print it."""
        print_check(self.sheet.add(part, name, passed, said, time.monotonic() - since))

    @property
    def emulated(self) -> bool:
        """Whether the VM runs under TCG."""
        return "vm" in self.found and self.found["vm"].accelerator.emulated


def main(options: argparse.Namespace) -> int:
    """Announce, run the parts, write the sheet. Exit 0 when all passed, 1 when not."""
    need_root()
    parts = chosen_parts(options.parts)
    try:
        make_folder(options.output)
    except OSError as error:
        raise BadInput(
            oserror("mkdir", options.output, error).message, "name a folder with --output"
        ) from error
    names = [f"{SHEET}.txt", f"{SHEET}.json"]
    print_to_user(f"Validating {', '.join(parts)}: {estimate.phrase(expected_s(parts))}", options)
    with journal.exclusive(wait=True, told=waiting):
        clean_dead()
        sheet = run(parts, options)
    write(options.output, sheet)
    for name in names:
        hand_over(options.output / name)
    if options.json:
        print(json.dumps(sheet.document(), indent=1))
    else:
        print(f"\n{sheet.verdict()}")
        print(f"Written to {' and '.join(str(options.output / name) for name in names)}")
    return 0 if sheet.passed else 1


def chosen_parts(asked: str | None) -> tuple[str, ...]:
    """The parts to run, in their own order.

    Raises:
        BadInput: there is no such part.
    """
    names = PARTS if asked is None else tuple(asked.split(","))
    for name in names:
        if name not in PARTS:
            raise BadInput(f"--parts: there is no part {name!r}", f"choose from {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in names)


def expected_s(parts: Sequence[str]) -> float:
    """How long it will take, in seconds."""
    plans = [made for part in parts for made in plans_of(part, arms.DEFAULT_ARMS, emulated=True)]
    needed = {workload.image for made in plans for workload in made.workloads} | {"busybox"}
    seconds = [estimate.run_seconds(made) for made in plans]
    missing = [name for name in needed if not images.built(name)]
    build = estimate.run_seconds(plans[0], slots=(), missing_images=missing) if plans else 0.0
    return sum(FIXED_S.get(part, 0.0) for part in parts) + sum(seconds) + build


def plans_of(part: str, names: Sequence[str], *, emulated: bool) -> list[Plan]:
    """What a part measures on these arms."""
    seed, made = new_seed(), []
    if part == "identity" and len(names) > 1:
        made = [Plan("identity", tuple(names), (HELLO,), BLOCKS, seed, (), {})]
    if part == "network" and names:
        made = [Plan("network", tuple(names), (REDIS,), BLOCKS, seed, (), {})]
    if part == "spike-ins":
        native = [name for name in names if arms.ARMS[name].backend != "vm"]
        made = [spikein.plan_of(c, native, seed) for c in controls.NATIVE if native]
        for_vm = controls.EMULATED if emulated else controls.KVM
        made += [spikein.plan_of(c, ["vm"], seed) for c in for_vm if "vm" in names]
    return made


def run(parts: Sequence[str], options: argparse.Namespace) -> Sheet:
    """Run the parts one after the other; what is left behind at the end is the last check."""
    about = {
        "hvct_version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="minutes"),
        "summary": host.summary_line(),
        "host": host.fingerprint(),
        "parts": list(parts),
        "capabilities": {},
    }
    sheet = Sheet(about)
    with open_stages(sys.stderr) as stages:
        with (
            journal.open_run(
                None,
                network=bool({"network", "spike-ins"} & set(parts)),
                libvirt_uri=options.libvirt_uri,
                kernel=options.kernel,
            ) as context,
            SharedCache(context.tag) as cache,
            contextlib.ExitStack() as stack,
        ):
            validation = Validation(sheet, context, cache, context.runtime_dir, stages.stage)
            open_arms(validation, stack, parts)
            for part in parts:
                RUN[part](validation)
                stages.close()
            about["capabilities"] = store.jsonable(validation.found)
        began = time.monotonic()
        left = clean(context.tag, dry_run=True)
        sheet.add("host", "nothing is left", not left, "; ".join(left) or "no trace of the run")
        print_check(sheet.checks[-1], time.monotonic() - began)
    return sheet


def open_arms(validation: Validation, stack: contextlib.ExitStack, parts: Sequence[str]) -> None:
    """Enter and probe every arm; one that does not work is a failed check."""
    if set(parts) <= {"host"}:
        return
    for arm in arms.resolve(arms.DEFAULT_ARMS):
        validation.told(f"trying {arm.name}")
        began = time.monotonic()
        try:
            backend = stack.enter_context(registry.make(arm, validation.context))
            found = backend.probe()
        except (HvctError, ImportError) as error:
            found = Capability(arm.backend, False, str(error))
        validation.found[arm.name] = found
        if found.usable:
            validation.backends[arm.name] = backend
        elif "arms" in parts or arm.backend == "vm":
            said = f"{found.reason}; {found.remedy}" if found.remedy else found.reason
            validation.note("arms", f"{arm.name} works", False, said, began)


# -- the parts -----------------------------------------------------------------------------


def check_host(validation: Validation) -> None:
    """Nothing hvct needs is missing; what spoils figures is listed, and fails nothing."""
    began = time.monotonic()
    findings = examine(list(validation.found.values()))
    problems = [finding for finding in findings if finding.level == "problem"]
    said = "; ".join(f"{item.code}: {item.message}" for item in problems) or "nothing is missing"
    validation.note("host", "requirements", not problems, said, began)
    warned = [item for item in findings if item.level == "warning"]
    listed = "; ".join(f"{item.code}: {item.message}" for item in warned)
    validation.sheet.about["findings"] = store.jsonable(findings)
    if listed:
        validation.note("host", "warnings", None, listed, began)


def check_kvm(validation: Validation) -> None:
    """Both stages of the probe, run anew."""
    backend: Any = validation.backends.get("vm")
    if backend is None:
        validation.sheet.add("kvm", "payload", False, "the vm arm does not work")
        print_check(validation.sheet.checks[-1])
        return
    for stage in backend.kvm_stages():
        check = validation.sheet.add("kvm", stage.name, stage.passed, stage.said, stage.seconds)
        print_check(check)


def check_arms(validation: Validation) -> None:
    """Each arm runs a command: its output and its exit status arrive."""
    for name, backend in validation.backends.items():
        began = time.monotonic()
        label = validation.found[name].accelerator.label
        try:
            image = images.prepare(SAYS.image)
            validation.count += 1
            wanted = specs.make(SAYS, image, validation.context, 9000 + validation.count)
            backend.prepare(wanted)
            with backend.launch(wanted) as instance:
                ended = instance.wait(Event.EXITED, time.monotonic_ns() + LIMIT_NS)
                status = instance.exit.code if instance.exit else None
                passed = ended and instance.stdout == b"42\n" and status == STATUS
                said = f"printed {instance.stdout!r} and ended with {status}"
        except HvctError as error:
            passed, said = False, error.message
        title = f"{name} ({label}) runs a command" if label else f"{name} runs a command"
        validation.note("arms", title, passed, said, began)


def check_identity(validation: Validation) -> None:
    """Receipts of the same program in each arm agree in every field that must match."""
    for made in plans_of("identity", list(validation.backends), emulated=validation.emulated):
        began = time.monotonic()
        try:
            stored = measured(validation, made)
        except HvctError as error:
            validation.note("identity", "receipts", False, error.message, began)
            return
        security = {workload.name: workload.security.value for workload in made.workloads}
        compared = identity.compare(
            stored.trials, stored.run["receipts"], arms.pairs(made.arms), security
        )
        for pair in compared:
            refused = [*pair.refused.values(), *pair.work_refused.values()]
            good = not refused and pair.pairs == BLOCKS == pair.identical
            said = f"{pair.identical} of {pair.pairs} pairs of trials identical"
            title = f"{pair.arm} against {pair.baseline}"
            validation.note("identity", title, good, "; ".join([said, *refused]), began)


def check_network(validation: Validation) -> None:
    """A server in each arm answers through the bridge."""
    for made in plans_of("network", list(validation.backends), emulated=validation.emulated):
        began = time.monotonic()
        try:
            trials = measured(validation, made).trials
        except HvctError as error:
            validation.note("network", "a server answers", False, error.message, began)
            return
        for arm in made.arms:
            own = [trial for trial in trials if trial["arm"] == arm]
            good = [trial for trial in own if trial["outcome"] == "ok"]
            said = f"{len(good)} of {len(own)} servers answered"
            errors = {str(trial["error"]) for trial in own if trial["outcome"] != "ok"}
            passed = bool(own) and len(good) == len(own)
            validation.note("network", f"{arm} answers", passed, "; ".join([said, *errors]), began)


def check_spike_ins(validation: Validation) -> None:
    """Effects of known size are found again, and are told from none and from twice as much."""
    known = {control.name: control for control in (*controls.NATIVE, *controls.EMULATED,
                                                   *controls.KVM)}  # fmt: skip
    for made in plans_of("spike-ins", list(validation.backends), emulated=validation.emulated):
        began = time.monotonic()
        control = known[made.name.removeprefix("spike-in ")]
        try:
            with surroundings(validation, made) as around, pinned_away(made):
                recovered = spikein.run(control, made, next_folder(validation), around)
        except HvctError as error:
            validation.note("spike-ins", control.title, False, error.message, began)
            continue
        for one in recovered:
            good, said = judge(one)
            title = f"{one.arm}: {control.title}, {one.injection.metric}"
            validation.note("spike-ins", title, good, said, began)


RUN: dict[str, Callable[[Validation], None]] = {
    "host": check_host,
    "kvm": check_kvm,
    "arms": check_arms,
    "identity": check_identity,
    "network": check_network,
    "spike-ins": check_spike_ins,
}


# -- measuring -----------------------------------------------------------------------------


def next_folder(validation: Validation) -> Path:
    """Of the next run directory."""
    validation.count += 1
    return validation.folder / f"run-{validation.count}"


@contextlib.contextmanager
def surroundings(validation: Validation, made: Plan) -> Iterator[Surroundings]:
    """What a campaign of this plan needs, with progress on the terminal."""
    with open_progress(made, sys.stderr) as progress:
        prepared: dict[str, Image] = {
            name: images.prepare(name, told_to(progress))
            for name in dict.fromkeys(workload.image for workload in made.workloads)
        }
        progress.close()
        used = {arm: validation.backends[arm] for arm in made.arms}
        yield Surroundings(used, prepared, validation.context, validation.cache, progress)


def measured(validation: Validation, made: Plan) -> store.StoredRun:
    """A whole campaign with its receipts, in a run directory that is thrown away.

    Raises:
        HvctError: an arm could not be prepared.
    """
    directory = next_folder(validation)
    run_store = store.RunStore.create(directory)
    record: dict[str, Any] = {"plan": store.jsonable(made), "receipts": [], "descriptions": {}}
    run_store.write_run(record)
    with surroundings(validation, made) as s, pinned_away(made):
        campaign = Campaign(
            made, record, run_store, s.backends, s.images, s.context, s.shared_cache, s.progress
        )
        for arm in made.arms:
            for workload in made.workloads:
                s.backends[arm].prepare(campaign.make_spec(workload))
        campaign.execute()
    return store.load(directory)


# -- saying --------------------------------------------------------------------------------


def print_check(check: Check, _seconds: float = 0.0) -> None:
    """What a check found, at once, on standard error: standard output may be JSON."""
    print("\r\033[K" if sys.stderr.isatty() else "", end="", file=sys.stderr)
    print("\n".join(line(check)), file=sys.stderr, flush=True)


def print_to_user(text: str, options: argparse.Namespace) -> None:
    """Beside JSON, on standard error."""
    print(text, file=sys.stderr if options.json else sys.stdout, flush=True)


def waiting(first: str) -> None:
    """Somebody else is measuring."""
    print(f"Waiting for a comparison to end: {first}", file=sys.stderr)


def write(folder: Path, sheet: Sheet) -> None:
    """Both forms of the sheet.

    Raises:
        HostCannot: they cannot be written there.
    """
    try:
        (folder / f"{SHEET}.txt").write_text(sheet.text())
        (folder / f"{SHEET}.json").write_text(json.dumps(sheet.document(), indent=1) + "\n")
    except OSError as error:
        raise oserror("write", folder / SHEET, error) from error
