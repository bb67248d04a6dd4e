"""The chart of a memory ledger: what can be named, against what the host lost."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bench.ledger import CostModel
from reports.costs import PART_ORDER, text
from reports.drawing import (
    FAINT,
    INK,
    PAPER,
    PHASE_INKS,
    PHASE_SHADES,
    Canvas,
    Chart,
    bytes_axis,
    legend,
    tag,
)
from reports.model import RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reports.drawing import Grid

SHORT = {
    "guest": "guest RAM", "vmm": "QEMU", "anon": "anonymous", "shmem": "tmpfs", "kernel": "kernel",
    "kernel_beyond": "kernel beyond", "helpers": "helper", "harness": "hvct",
}  # fmt: skip
"""Names of parts that fit a legend."""


def ledger(run: RunReport) -> Chart | None:
    """A stacked bar per arm, what is unexplained at its end, and the host's loss above it."""
    model = run.costs
    if model is None or not model.arms:
        return None
    return Chart(
        "The memory ledger of one more instance",
        "Each bar stacks the parts of the table above, mean by mean; the hatched end is what is "
        "unexplained. The diamond is what went missing on the host, with its 95 % interval: the "
        "ledger closes where the plain part of the bar ends inside it. Every arm has its own axis.",
        Canvas([0.42] * len(model.arms), left_in=0.15, right_in=0.3, above_in=0.36),
        partial(_draw, model),
    )


def _draw(model: CostModel, figure: Figure, grid: Grid) -> None:
    from matplotlib.patches import Patch

    there = {part.name for arm in model.arms for part in arm.ledger}
    used = [name for name in PART_ORDER if name in SHORT and name in there]
    for (axes,), arm in zip(grid, model.arms, strict=True):
        parts = {part.name: part for part in arm.ledger if part.counted}
        left = 0.0
        for name in used:
            if name not in parts or parts[name].bytes.mean <= 0.0:
                continue
            size = parts[name].bytes.mean
            shade = used.index(name) % len(PHASE_SHADES)
            (bar,) = axes.barh(0, size, left=left, height=0.5, edgecolor=FAINT, lw=0.5,
                               color=PHASE_SHADES[shade], hatch=_hatch(used, name))  # fmt: skip
            tag(bar, None, "", f"{arm.label}, {parts[name].title}: "
                f"{text(parts[name].bytes, 'bytes')}")  # fmt: skip
            if size / max(arm.host_delta.mean, arm.explained.mean) > 0.014 * len(SHORT[name]):
                axes.text(left + size / 2, 0, SHORT[name], ha="center", va="center", fontsize=6,
                          color=PAPER if PHASE_INKS[shade] else INK)  # fmt: skip
            left += size
        rest = arm.unexplained.mean
        (bar,) = axes.barh(0, rest, left=left if rest > 0 else left + rest, height=0.5,
                           color=PAPER, edgecolor=INK, lw=0.6, hatch="xxx")  # fmt: skip
        if rest < 0:
            bar.set_x(left + rest)
            bar.set_width(-rest)
        tag(bar, None, "", f"{arm.label}, unexplained: {text(arm.unexplained, 'bytes')}")
        lost = arm.host_delta
        ends = [end if end is not None else lost.mean for end in (lost.low, lost.high)]
        (line,) = axes.plot(ends, [-0.5, -0.5], color=INK, lw=1.2, marker="|", ms=4, ls="-")
        (point,) = axes.plot([lost.mean], [-0.5], color=INK, marker="D", ms=3.4, ls="")
        tag(line, None, "", f"{arm.label}, missing on the host: {text(lost, 'bytes')}")
        tag(point, None, "", f"{arm.label}, missing on the host: {text(lost, 'bytes')}")
        high = max(left + max(rest, 0.0), *ends) * 1.04
        axes.set_ylim(0.45, -0.85)
        axes.set_xlim(min(0.0, *ends), high)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        bytes_axis(axes, high)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        closes = "closes" if arm.closes else "does not close"
        axes.set_title(f"{arm.label}: the ledger {closes}")
    keys = [
        Patch(facecolor=PHASE_SHADES[n % len(PHASE_SHADES)], edgecolor=FAINT, lw=0.5,
              label=SHORT[name], hatch=_hatch(used, name))
        for n, name in enumerate(used)
    ]  # fmt: skip
    keys.append(Patch(facecolor=PAPER, edgecolor=INK, lw=0.6, hatch="xxx", label="unexplained"))
    legend(figure, keys, 5)


def _hatch(used: list[str], name: str) -> str:
    """There are fewer shades than parts."""
    return "" if used.index(name) < len(PHASE_SHADES) else "//"
