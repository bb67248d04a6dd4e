"""What instances cost, in words and tables: of `bench.ledger`, for terminal and page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.ledger import ArmCosts, CostModel
from bench.numbers import format_estimate
from bench.stats.slope import Estimate
from reports.model import RunReport

PART_ORDER = ("guest", "vmm", "anon", "shmem", "kernel", "kernel_beyond", "helpers", "harness",
              "file", "pss")  # fmt: skip
Rows = list[tuple[str, list[str]]]


def price_rows(model: CostModel) -> Rows:
    """Fixed, marginal, start and active costs: a title, and each arm's figure."""
    work = f"work: host CPU for a {model.work_unit} of {model.work}"
    found: list[tuple[str, str, Callable[[ArmCosts], Estimate | None]]] = [
        ("each more: memory", "bytes", lambda arm: arm.marginal_memory_bytes),
        ("each more: CPU when idle", "CPU", lambda arm: arm.marginal_cpus),
        ("each start and end: host CPU", "s", lambda arm: arm.start_cpu_s),
        ("each start: time until ready", "s", lambda arm: arm.start_s),
        (work, "s", lambda arm: arm.active_cpu_s),
        ("fixed: launcher or worker", "bytes", lambda arm: arm.fixed_memory_bytes),
        ("fixed: CPU of it", "CPU", lambda arm: arm.fixed_cpus),
        ("shared: page cache, once", "bytes", lambda arm: arm.shared_memory_bytes),
    ]
    return [(title, [text(of(arm), unit) for arm in model.arms]) for title, unit, of in found]


def ledger_rows(model: CostModel) -> Rows:
    """The parts, their sum, what the host lost and what is unexplained."""
    titles = {part.name: (part.title, part.counted) for arm in model.arms for part in arm.ledger}
    parts = {name: titles[name] for name in PART_ORDER if name in titles}

    def row(name: str) -> list[str]:
        each = ({part.name: part.bytes for part in arm.ledger} for arm in model.arms)
        return [text(own[name], "bytes") if name in own else "–" for own in each]

    counted = [(title, row(name)) for name, (title, counts) in parts.items() if counts]
    beside = [(f"not in the sum: {title}", row(name))
              for name, (title, counts) in parts.items() if not counts]  # fmt: skip
    totals = [
        ("sum of these", [text(arm.explained, "bytes") for arm in model.arms]),
        ("missing on the host (MemAvailable)",
         [text(arm.host_delta, "bytes") for arm in model.arms]),
        ("unexplained", [text(arm.unexplained, "bytes") for arm in model.arms]),
    ]  # fmt: skip
    return [*counted, *totals, *beside]


def remarks(model: CostModel) -> list[str]:
    """What a reader must know besides."""
    said = []
    for arm in model.arms:
        standing = ", ".join(map(str, arm.steps))
        said.append(f"{arm.label}: {arm.passes} passes over {standing} instances.")
        if arm.shrunk:
            said.append(f"{arm.label}: {arm.shrunk}.")
        if arm.unexplained.low is None:
            said.append(f"{arm.label}: too few passes for intervals.")
        elif not arm.closes:
            said.append(
                f"{arm.label}: its ledger does not close: the interval of "
                "what is unexplained leaves out zero, by more than can be told."
            )
        if arm.bend is not None and arm.bend.excludes_zero:
            said.append(
                f"{arm.label}: the later ones add {text(arm.bend, 'bytes', signed=True)} each to "
                "what the first add: there is no one price for all of them."
            )
        if arm.emulated:
            said.append(f"{arm.label}: under emulation; it is what an emulator costs.")
    if model.incomplete:
        said.append(f"Passes cut short, which do not count: {model.incomplete}.")
    return said


def text(one: Estimate | None, unit: str, *, signed: bool = False) -> str:
    """A mean with its interval."""
    if one is None:
        return "not known"
    return format_estimate(one.mean, one.low, one.high, unit, signed=signed)


def sentences(model: CostModel | None) -> list[str]:
    """What one more instance takes, for the first page."""
    if model is None:
        return []
    return [
        f"One more idle instance of {model.workload} takes "
        f"{text(arm.marginal_memory_bytes, 'bytes')} as {arm.label}"
        f"{', under emulation' if arm.emulated else ''}; {text(arm.unexplained, 'bytes')} of what "
        "the host loses besides is unexplained."
        for arm in model.arms
    ]


def section(run: RunReport) -> dict[str, Any] | None:
    """The page's section; None for a run that holds no costs."""
    model = run.costs
    if model is None:
        return None
    places = [arm.name for arm in run.arms]
    return {
        "workload": run.workload(model.workload).title,
        "arms": [(places.index(arm.arm), arm.label) for arm in model.arms],
        "prices": price_rows(model),
        "ledger": ledger_rows(model),
        "remarks": remarks(model),
    }
