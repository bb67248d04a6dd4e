"""How long judging takes: 20 metrics of 50 blocks (target 2 s), and one of 6,667 blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.model import Better, Scale
from bench.stats import signed_rank
from bench.stats.family import compare_family
from bench.stats.pairs import PairedSeries


def family(metrics: int, blocks: int, step: float) -> list[PairedSeries]:
    """Ratios around 1.5; with a step the values are quantised, so that there are ties."""
    rng = np.random.default_rng(1)
    found = []
    for index in range(metrics):
        base = np.exp(rng.normal(0, 0.1, blocks))
        arm = 1.5 * base * np.exp(rng.normal(0, 0.05, blocks))
        if step:
            base, arm = np.round(base / step) * step, np.round(arm / step) * step
        rows = [(b, "ok", float(arm[b]), "ok", float(base[b])) for b in range(blocks)]
        found.append(
            PairedSeries(
                metric=f"m{index}",
                workload="w",
                arm="vm",
                baseline="container",
                unit="s",
                scale=Scale.RATIO,
                better=Better.LOWER,
                margin=0.05,
                resolution=step,
                values=rows,
                primary=index < 8,
            )
        )
    return found


@pytest.mark.parametrize(
    ("metrics", "blocks", "step", "target_s"),
    [(20, 50, 0.0, 2.0), (20, 50, 0.1, 2.0), (1, 6667, 0.0, 0.15)],
    ids=["20 x 50", "20 x 50, tied", "1 x 6667"],
)
def test_judging(
    timed: Callable[..., Any], metrics: int, blocks: int, step: float, target_s: float
) -> None:
    """From paired values to verdicts; with no null distribution known beforehand."""
    timed(
        f"verdicts of {metrics} metrics, {blocks} blocks{', many ties' if step else ''}",
        target_s,
        compare_family,
        family(metrics, blocks, step),
        setup=signed_rank._tail_counts.cache_clear,
        rounds=6,
    )
