"""Published raw boot times through our statistics: the medians and ratios they are known for.

The series are those of Firecracker's NSDI'20 paper (tests/data/nsdi2020, Apache-2.0).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.model import Better, Outcome, Scale
from bench.stats import quantiles
from bench.stats.family import compare_family
from bench.stats.pairs import Design, Pair, PairedSeries
from bench.stats.verdict import Comparison, Verdict

DATA = Path(__file__).parent / "data" / "nsdi2020"
M5D, HASWELL = "m5d.metal", "rn.haswell"

PUBLISHED = {  # m5d.metal p50, p90, p99, rn.haswell p50; milliseconds
    "serial-fc-api": (160.9, 167.8, 172.5, 126.7),
    "serial-fc-file": (195.8, 205.4, 210.8, 128.5),
    "serial-chv": (102.5, 105.0, 109.7, 65.1),
    "serial-qboot": (213.9, 218.3, 220.7, 159.1),
    "serial-qemu": (243.5, 248.6, 257.5, 190.9),
    "serial-qemu-uvm": (582.0, 585.7, 596.8, 522.4),
    "serial-fc-net-api": (210.9, 227.2, 240.5, 155.7),
    "parallel-50-fc-api": (205.9, 230.3, 246.4, 776.8),
    "parallel-50-qemu": (231.0, 255.6, 279.0, 1471.4),
    "parallel-100-fc-api": (217.2, 241.2, 262.2, 794.6),
    "parallel-100-qemu": (239.9, 266.5, 295.6, 1649.8),
}


def series(host: str, name: str, column: int = 0) -> list[float]:
    """One series, in milliseconds."""
    lines = (DATA / host / f"boot-{name}.dat").read_text().splitlines()
    return [float(line.split()[column]) / (1.0 if column else 1000.0) for line in lines]


def quantile(values: list[float], share: float) -> float:
    """As a report computes it; its interval must hold it."""
    level = quantiles.quantile_interval(values, share)
    assert level is not None and level.low is not None and level.high is not None
    assert level.low <= level.value <= level.high
    return level.value


@pytest.mark.parametrize("name", PUBLISHED)
def test_medians_and_tails_of_the_published_series(name: str) -> None:
    """p50, p90 and (from 300 values on) p99, to the tenth of a millisecond printed elsewhere."""
    p50, p90, p99, other = PUBLISHED[name]
    values = series(M5D, name)
    # Definitions of a quantile differ by a neighbouring value; so far out they lie apart.
    assert quantile(values, 0.5) == pytest.approx(p50, abs=0.11)
    assert quantile(values, 0.9) == pytest.approx(p90, abs=0.11)
    if len(values) >= 300:
        assert quantile(values, 0.99) == pytest.approx(p99, rel=0.005)
    else:
        assert quantiles.quantile_interval(values, 0.99) is None
    assert quantile(series(HASWELL, name), 0.5) == pytest.approx(other, abs=0.11)


def test_the_vmm_own_log_ends_earlier() -> None:
    """Another end point is another figure: 110 ms by Firecracker's log, 161 by the clock."""
    assert quantile(series(M5D, "serial-fc-api", 1), 0.5) == 110.0
    assert quantile(series(HASWELL, "serial-fc-api", 1), 0.5) == 96.0


def against_firecracker(host: str, name: str) -> Comparison:
    """Two groups of boots, nothing of which belongs together in pairs: as between two runs."""
    rows = [
        Pair(number, Outcome.OK, arm, Outcome.OK, base)
        for number, (arm, base) in enumerate(
            zip(series(host, name), series(host, "serial-fc-api"), strict=True)
        )
    ]
    (found,) = compare_family(
        [
            PairedSeries(
                metric="boot", workload="init", arm=name, baseline="serial-fc-api", unit="ms",
                scale=Scale.RATIO, better=Better.LOWER, margin=0.05, resolution=0.0,
                values=rows, primary=True, design=Design.UNPAIRED,
            )
        ]
    )  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("name", "host", "ratio"),
    [
        ("serial-qemu", M5D, 1.51),
        ("serial-qemu", HASWELL, 1.51),
        ("serial-chv", M5D, 0.64),
        ("serial-chv", HASWELL, 0.51),
    ],
)
def test_ratios_of_the_published_series(name: str, host: str, ratio: float) -> None:
    """QEMU is 1.51 times Firecracker on both hosts, Cloud Hypervisor 0.64 and 0.51 times.

    So is the ratio of the medians, and both lie in an interval that 500 boots of each make
    narrower than 1 %, and that holds neither "the same" nor the other host's 0.64 or 0.51.
    """
    found = against_firecracker(host, name)
    medians = quantile(series(host, name), 0.5) / quantile(series(host, "serial-fc-api"), 0.5)
    assert found.estimate is not None and found.low is not None and found.high is not None
    assert round(found.estimate, 2) == round(medians, 2) == ratio
    assert found.low <= found.estimate <= found.high and found.low <= medians <= found.high
    assert found.high / found.low < 1.01 and not found.low <= 1.0 <= found.high
    assert found.verdict is Verdict.DIFFERENT and found.n_pairs == 500


def test_not_every_ratio_travels() -> None:
    """QEMU against Firecracker is the same on both hosts; Cloud Hypervisor's intervals are apart.

    What the intervals show: a ratio carries to another host, or it does not, and only
    measuring there says which.
    """
    qemu, chv = (
        [against_firecracker(host, name) for host in (M5D, HASWELL)]
        for name in ("serial-qemu", "serial-chv")
    )
    estimates = [one.estimate for one in qemu]
    assert estimates[0] == pytest.approx(estimates[1], rel=0.01)
    low, high = chv[0].low, chv[1].high
    assert low is not None and high is not None and low > high * 1.2
