"""A simulated backend of known truth, and what the statistics make of it: docs/method.md's tables.

``nox -s simulation`` writes the tables anew; ``tests/test_stats_truth.py`` computes them
with another seed, gates them, and compares them with what is printed.

Every kind draws the logarithms of both arms' values, block by block, with a true ratio of
1; another true ratio only shifts them, so one set of draws serves every question.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.stats import batch

Floats = NDArray[np.float64]

SIZES = (10, 12, 20, 50)
SERIES = 4000
"""Simulated runs of each kind and size."""
SEED = 20261124

MARGIN = math.log1p(0.05)
EFFECT = math.log1p(0.15)
"""The ratio whose detection is called power: 1.15, with a margin of 5 %."""
NOISE = 0.05
"""Spread of one value (log), where a kind does not say otherwise."""


class Drawn(NamedTuple):
    """Logs of both arms, one simulated run a row; +inf is a timeout."""

    arm: Floats
    baseline: Floats


Draw = Callable[[np.random.Generator, int, int], Drawn]


def _both(draw: Callable[[np.random.Generator, int, int], Floats]) -> Draw:
    return lambda rng, runs, n: Drawn(draw(rng, runs, n), draw(rng, runs, n))


def _normal(rng: np.random.Generator, runs: int, n: int) -> Floats:
    return rng.normal(0.0, NOISE, (runs, n))


def _heavy(rng: np.random.Generator, runs: int, n: int) -> Floats:
    return 0.6 * NOISE * rng.standard_t(2.0, (runs, n))


def _two_modes(rng: np.random.Generator, runs: int, n: int) -> Floats:
    slow = rng.random((runs, n)) < 0.3
    return np.where(slow, math.log(1.3), 0.0) + rng.normal(0.0, 0.02, (runs, n))


def _outlier_blocks(rng: np.random.Generator, runs: int, n: int) -> Drawn:
    """One block in ten is hit, both arms by their own factor of up to 4."""
    hit = rng.random((runs, n)) < 0.1
    arm, base = (
        _normal(rng, runs, n) + hit * rng.uniform(0.0, math.log(4.0), (runs, n)) for _ in range(2)
    )
    return Drawn(arm, base)


def _steps(rng: np.random.Generator, runs: int, n: int) -> Floats:
    return np.round(_normal(rng, runs, n) / 0.05) * 0.05


def _timeouts(rng: np.random.Generator, runs: int, n: int) -> Floats:
    return np.where(rng.random((runs, n)) < 0.05, np.inf, _normal(rng, runs, n))


def _one_sided_timeouts(rng: np.random.Generator, runs: int, n: int) -> Drawn:
    return Drawn(_timeouts(rng, runs, n), _normal(rng, runs, n))


def _skewed(rng: np.random.Generator, runs: int, n: int) -> Drawn:
    """One arm has a long tail of slow launches, the other has none."""
    return Drawn(rng.exponential(1.5 * NOISE, (runs, n)), rng.normal(0.0, 0.01, (runs, n)))


def _common_drift(rng: np.random.Generator, runs: int, n: int) -> Drawn:
    slope = np.linspace(0.0, 0.3, n)
    return Drawn(_normal(rng, runs, n) + slope, _normal(rng, runs, n) + slope)


def _own_drift(rng: np.random.Generator, runs: int, n: int) -> Drawn:
    """The ratio itself moves by 20 % from the first block to the last; its middle is the truth."""
    return Drawn(_normal(rng, runs, n) + np.linspace(-0.1, 0.1, n), _normal(rng, runs, n))


def _remembering(memory: float) -> Draw:
    def draw(rng: np.random.Generator, runs: int, n: int) -> Floats:
        noise = _normal(rng, runs, n)
        noise[:, 1:] *= math.sqrt(1.0 - memory**2)
        for block in range(1, n):
            noise[:, block] += memory * noise[:, block - 1]
        return noise

    return _both(draw)


@dataclass(frozen=True)
class Kind:
    """One way in which launches may spread.

    Attributes:
        independent: no block knows of another; symmetric: effects spread equally to both
            sides. The method assumes both, and where both hold what it promises must hold.
            The others show what becomes of it elsewhere.
    """

    title: str
    draw: Draw
    independent: bool = True
    symmetric: bool = True

    @property
    def gated(self) -> bool:
        """Whether all that the method promises must hold."""
        return self.independent and self.symmetric


KINDS: Mapping[str, Kind] = {
    "normal": Kind("log-normal", _both(_normal)),
    "heavy": Kind("heavy tails (t, 2 degrees)", _both(_heavy)),
    "modes": Kind("two modes 30 % apart", _both(_two_modes)),
    "outliers": Kind("outlier blocks, 1 in 10, up to 4×", _outlier_blocks),
    "steps": Kind("coarse steps (ties, zeros)", _both(_steps)),
    "timeouts": Kind("5 % timeouts in both arms", _both(_timeouts)),
    "common": Kind("drift of the host by 35 %, both arms", _common_drift),
    "late": Kind("5 % timeouts in one arm", _one_sided_timeouts, symmetric=False),
    "skewed": Kind("one arm with a long tail only", _skewed, symmetric=False),
    "drifting": Kind("drift of the ratio by 20 %", _own_drift, independent=False),
    "memory-3": Kind("autocorrelation 0.3", _remembering(0.3), independent=False),
    "memory-6": Kind("autocorrelation 0.6", _remembering(0.6), independent=False),
}


@dataclass(frozen=True)
class Row:
    """What the method did with one kind at one size; all are shares of the simulated runs.

    Attributes:
        coverage: the printed 95 % interval holds the truth.
        detected: nothing is different, and "different from 0" is claimed all the same.
        different: the truth lies on the margin, and "different" is claimed.
        equivalent: the truth lies on the margin, and "equivalent" is claimed.
        power: the truth is 1.15, and "different" is claimed.
        power_equivalent: the truth is 1, and "equivalent" is claimed.
    """

    kind: str
    n: int
    coverage: float
    detected: float
    different: float
    equivalent: float
    power: float
    power_equivalent: float


def differences(drawn: Drawn) -> tuple[Floats, Floats]:
    """Lower and upper ends of each pair's difference: apart only where both arms timed out."""
    with np.errstate(invalid="ignore"):
        exact = drawn.arm - drawn.baseline
    neither = np.isnan(exact)
    return np.where(neither, -np.inf, exact), np.where(neither, np.inf, exact)


def truth(kind: Kind) -> float:
    """The pseudomedian of the effects: 0 by symmetry, else of two million draws."""
    if kind.gated:
        return 0.0
    rng = np.random.default_rng(1)
    runs, n = 40_000, 50
    low, high = differences(kind.draw(rng, runs, n))
    first, second = (rng.permuted(x.ravel()) for x in (low, high))
    with np.errstate(invalid="ignore"):
        means = (first + second) / 2.0
    return float(np.median(means[~np.isnan(means)]))


def simulate(name: str, n: int, seed: int = SEED, series: int = SERIES) -> Row:
    """One row: a kind at a size."""
    kind = KINDS[name]
    rng = np.random.default_rng([seed, n, sorted(KINDS).index(name)])
    low, high = batch.limits(*differences(kind.draw(rng, series, n)))
    centre = truth(kind)
    low, high = low - centre, high - centre  # now the truth is 0, and a shift moves both ends

    def share(holds: NDArray[np.bool_]) -> float:
        return float(np.mean(holds))

    def beyond(shift: float, margin: float) -> float:
        return share((low + shift > margin) | (high + shift < -margin))

    def within(shift: float) -> float:
        return share((low + shift > -MARGIN) & (high + shift < MARGIN))

    return Row(
        name,
        n,
        coverage=share((low <= 0.0) & (high >= 0.0)),
        detected=beyond(0.0, 0.0),
        different=beyond(MARGIN, MARGIN),
        equivalent=within(MARGIN),
        power=beyond(EFFECT, MARGIN),
        power_equivalent=within(0.0),
    )


def table(seed: int = SEED, series: int = SERIES) -> list[Row]:
    """Every kind at every size."""
    return [simulate(name, n, seed, series) for name in KINDS for n in SIZES]


def markdown(rows: list[Row]) -> str:
    """As docs/method.md prints it."""
    lines = [
        "| blocks spread like | n | coverage | detects nothing | false different | "
        "false equivalent | power different | power equivalent |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kind = KINDS[row.kind]
        title = kind.title if kind.gated else f"*{kind.title}*"
        shares = (
            row.coverage, row.detected, row.different, row.equivalent, row.power,
            row.power_equivalent,
        )  # fmt: skip
        cells = " | ".join(f"{100 * value:.1f}" for value in shares)
        lines.append(f"| {title} | {row.n} | {cells} |")
    return "\n".join(lines)


BEGIN, END = "<!-- simulation: nox -s simulation -->", "<!-- end of simulation -->"


def insert(document: str, text: str) -> str:
    """The document with its table replaced.

    Raises:
        ValueError: it has no place for one.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN!r} … {END!r}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(insert(page.read_text(), markdown(table())))
