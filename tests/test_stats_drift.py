"""Trends and change points in run order: found where they are, rarely where they are not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from bench.stats import drift
from reports.analysis import analyse
from reports.data import read

RUNS = 400


def share(p_values: list[float]) -> float:
    """How many are at most 5 %."""
    return sum(p <= 0.05 for p in p_values) / len(p_values)


@pytest.mark.parametrize("n", [10, 12, 50])
def test_still_series_rarely_seem_to_move(n: int) -> None:
    """Five in a hundred, for heavy tails as well: both questions are asked of ranks."""
    rng = np.random.default_rng(n)
    series = [rng.standard_t(2, n).tolist() for _ in range(RUNS)]
    limit = 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / RUNS)
    assert share([drift.trend_p(one) for one in series]) <= limit
    found = [drift.change(one) for one in series]
    assert share([one.p_value for one in found if one is not None]) <= limit


def test_a_step_is_found_where_it_is() -> None:
    """After block 20 of 40 everything takes 20 % longer."""
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(1.0, 0.05, 20), rng.normal(1.2, 0.05, 20)]).tolist()
    (found,) = drift.changes(values, 0.01)
    assert found.at == 20 and found.p_value == pytest.approx(1 / 2000)
    assert (found.before, found.after) == pytest.approx((1.0, 1.2), abs=0.03)


def test_two_steps_are_two_changes() -> None:
    """Up and up again: both places, in order."""
    rng = np.random.default_rng(4)
    values = np.concatenate([rng.normal(m, 0.03, 15) for m in (1.0, 1.5, 2.0)]).tolist()
    assert [one.at for one in drift.changes(values, 0.01)] == [15, 30]


def test_a_slope_is_a_trend() -> None:
    """Rising and falling alike, whatever the unit."""
    rng = np.random.default_rng(5)
    noise = rng.normal(0.0, 1.0, 30)
    assert drift.trend_p((noise + np.linspace(0, 4, 30)).tolist()) < 0.01
    assert drift.trend_p((1e9 * (noise - np.linspace(0, 4, 30))).tolist()) < 0.01


def test_timeouts_rank_last() -> None:
    """A host that gets worse until trials time out has moved."""
    values = [1.0 + i / 100 for i in range(8)] + [math.inf] * 8
    found = drift.change(values)
    assert found is not None and found.at == 8 and found.p_value < 0.01


def test_the_permutation_agrees_with_scipy() -> None:
    """The trend's p is that of Spearman's correlation with the place."""
    from scipy.stats import spearmanr

    rng = np.random.default_rng(6)
    for _ in range(5):
        values = (rng.normal(0, 1, 40) + np.linspace(0, 1.0, 40)).tolist()
        expected = spearmanr(range(40), values).pvalue
        assert drift.trend_p(values) == pytest.approx(expected, abs=0.04)
    long = (rng.normal(0, 1, 2000) + np.linspace(0, 0.15, 2000)).tolist()
    assert drift.trend_p(long) == pytest.approx(spearmanr(range(2000), long).pvalue, rel=0.05)
    assert drift.change(long) is not None


def test_constant_and_short_series_have_not_moved() -> None:
    """Nothing to rank, or too little."""
    assert drift.trend_p([1.0] * 12) == 1.0
    flat = drift.change([1.0] * 12)
    assert flat is not None and flat.p_value == 1.0
    assert drift.change([1.0] * 7) is None and drift.changes([1.0, 2.0], 0.05) == []


def step(arms: set[str]) -> Any:
    """Half as long again from block 10 on, in these arms."""

    def change(line: dict[str, Any]) -> None:
        if line["arm"] in arms and line["block"] >= 10:
            synthetic.scale_arm(line, line["arm"], 1.5)

    return change


def test_a_drift_of_the_host_is_told_from_one_of_the_ratio(tmp_path: Path) -> None:
    """Both arms together: information, since it cancels. One arm alone: a warning."""
    common = analyse(
        read(synthetic.write_run(tmp_path / "both", kind="kvm", blocks=20,
                                 change=step({"vm", "container"})))
    )  # fmt: skip
    # A difference (memory) grows with both of its sides; a ratio does not.
    ratios = [f for f in common.findings if f["message"].startswith("start-up")]
    assert {f["level"] for f in ratios if f["code"] == "drift"} == {"info"}
    own = analyse(
        read(synthetic.write_run(tmp_path / "one", kind="kvm", blocks=20, change=step({"vm"})))
    )
    warned = [f for f in own.findings if f["code"] == "drift" and f["level"] == "warning"]
    assert warned and all("from block 10 on" in f["message"] for f in warned)
    assert any("×" in f["message"] for f in warned)
    rows = {(r["title"], r["of"]): r for r in own.robustness["moved"]}
    row = rows["start-up to ready of redis", "vm (KVM) ÷ container"]
    assert row["drifts"] and row["changes"][0]["at"].startswith("2026-11-23 20:")


def test_a_still_run_has_no_drift(tmp_path: Path) -> None:
    """The ordinary synthetic run."""
    run = analyse(read(synthetic.write_run(tmp_path / "run", kind="kvm", blocks=20)))
    assert run.robustness["moved"] and not any(r["drifts"] for r in run.robustness["moved"])
