"""What instances cost, in words and tables: of `bench.ledger`, for terminal and page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.ledger import ArmCosts, CostModel
from bench.numbers import format_estimate
from bench.stats.slope import Estimate
from bench.steps import Step
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


FROM_TRIALS = {
    "each start and end: host CPU": ("cpu_life", "held"),
    "each start: time until ready": ("startup_ready", "held"),
    "work: ": ("cpu_window", "work"),
}
"""Beginnings of the titles of prices that come from trials, not from steps."""


def section(
    run: RunReport, prefix: str, anchor: Callable[[str, str], str]
) -> dict[str, Any] | None:
    """The page's section; None for a run that holds no costs.

    Args:
        anchor: where the samples of a metric and workload stand.
    """
    model = run.costs
    if model is None:
        return None
    places = [arm.name for arm in run.arms]
    prices, ledger = price_rows(model), ledger_rows(model)
    from_steps = [step_anchor(prefix, places.index(arm.arm)) for arm in model.arms]
    workloads = {"held": model.workload, "work": model.work}

    def raws(title: str) -> list[str]:
        for beginning, (metric, which) in FROM_TRIALS.items():
            if title.startswith(beginning):
                return [anchor(metric, workloads[which])] * len(model.arms)
        return from_steps

    return {
        "price_raws": [raws(title) for title, _ in prices],
        "ledger_raws": [from_steps] * len(ledger),
        "workload": run.workload(model.workload).title,
        "arms": [(places.index(arm.arm), arm.label) for arm in model.arms],
        "prices": prices,
        "ledger": ledger,
        "remarks": remarks(model),
    }


def step_anchor(prefix: str, place: int) -> str:
    """Where the steps of an arm stand."""
    return f"{prefix}steps-{place}"


STEP_COLUMNS: tuple[tuple[str, Callable[[Step], float | None]], ...] = (
    ("Host available", lambda s: s.available_bytes),
    ("Host kernel", lambda s: s.kernel_bytes),
    ("Anonymous", lambda s: s.anon_bytes),
    ("of guest RAM", lambda s: s.guest_bytes),
    ("Shared, tmpfs", lambda s: s.shmem_bytes),
    ("Kernel, charged", lambda s: s.charged_kernel_bytes),
    ("File, charged", lambda s: s.file_bytes),
    ("PSS", lambda s: s.pss_bytes),
    ("Helpers", lambda s: s.helpers_bytes),
    ("hvct", lambda s: s.harness_bytes),
)


def steps(run: RunReport, prefix: str) -> dict[str, Any] | None:
    """The appendix of steps; None for a run that holds none."""
    if not run.steps:
        return None
    found = []
    for place, arm in enumerate(run.arms):
        own = [step for step in run.steps if step.arm == arm.name]
        rows = [
            {
                "name": f"{one.round + 1}"
                + (f", attempt {one.attempt}" if one.attempt > 1 else "")
                + (f", cut short: {one.error}" if one.error else ""),
                "instances": one.instances,
                "texts": [*(_mib(of(one)) for _, of in STEP_COLUMNS), _cpus(one)],
            }
            for one in own
        ]
        if rows:
            found.append({"id": step_anchor(prefix, place), "place": place, "label": arm.label,
                          "rows": rows})  # fmt: skip
    return {"heads": [*(title for title, _ in STEP_COLUMNS), "CPUs"], "arms": found}


def _mib(size: float | None) -> str:
    return "–" if size is None else f"{size / (1 << 20):,.2f}"


def _cpus(step: Step) -> str:
    if not step.window_s > 0:
        return "–"
    return f"{(step.cpu_s + step.helpers_cpu_s) / step.window_s:.4f}"
