"""Several runs as one: the run is the unit, its spread is found, and nothing unlike is merged."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from bench.stats.levels import (
    Components,
    Nested,
    blocks_per_run,
    components,
    iterations_per_instance,
    nested,
)
from bench.stats.student import Student
from reports import report
from reports.data import read
from reports.merged import merge
from reports.model import Merged, MergedRow

RUNS = 300


def layout(
    rng: np.random.Generator, runs: int, blocks: int, between: float, within: float
) -> list[list[float]]:
    """Effects of each run's blocks, with known spreads."""
    return [rng.normal(rng.normal(0, between), within, blocks).tolist() for _ in range(runs)]


def test_both_spreads_are_recovered() -> None:
    """40 runs of 10 blocks, 5 % between runs and 10 % between blocks, to a fifth on average."""
    rng = np.random.default_rng(1)
    found = [components(layout(rng, 40, 10, 0.05, 0.10)) for _ in range(50)]
    assert np.mean([one.between_runs for one in found if one]) == pytest.approx(0.05, rel=0.2)
    assert np.mean([one.between_blocks for one in found if one]) == pytest.approx(0.10, rel=0.05)


def test_components_agree_with_the_textbook() -> None:
    """Balanced one-way layout by hand: (MSB - MSW) / blocks, and MSW."""
    by_run = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [8.0, 9.0, 10.0]]
    means = [2.0, 5.0, 9.0]
    ms_between = 3 * float(np.var(means, ddof=1))
    found = components(by_run)
    assert found is not None and found.between_blocks == pytest.approx(1.0)
    assert found.between_runs == pytest.approx(math.sqrt((ms_between - 1.0) / 3))
    assert 0.9 < found.share_of_runs < 1.0
    assert (found.runs, found.blocks) == (3, 9)


def test_unequal_runs_are_allowed_and_one_run_is_not_enough() -> None:
    """Runs cut short count with the blocks they have."""
    rng = np.random.default_rng(2)
    by_run = [rng.normal(rng.normal(0, 0.2), 0.05, n).tolist() for n in (5, 12, 20, 8, 9, 30)]
    found = components(by_run)
    assert found is not None and 0.05 < found.between_runs < 0.5
    assert components(by_run[:1]) is None and components([[1.0], [2.0]]) is None


def test_runs_that_do_not_differ_are_said_not_to() -> None:
    """No spread between runs: often exactly 0, and then more blocks serve as well."""
    rng = np.random.default_rng(3)
    found = [components(layout(rng, 5, 10, 0.0, 0.1)) for _ in range(100)]
    assert sum(one is not None and one.between_runs == 0.0 for one in found) > 40
    assert blocks_per_run(Components(0.0, 0.1, 5, 50), 60.0, 10.0) is None


def test_what_costs_little_and_spreads_much_is_repeated_most() -> None:
    """Kalibera and Jones: sqrt(cost ratio) times the ratio of spreads."""
    equal = Components(0.1, 0.1, 5, 50)
    assert blocks_per_run(equal, 90.0, 10.0) == 3
    assert blocks_per_run(Components(0.1, 0.3, 5, 50), 90.0, 10.0) == 9
    assert blocks_per_run(Components(0.001, 0.3, 5, 50), 90.0, 10.0) is None, "over 200"


def test_three_spreads_are_recovered_from_unequal_layouts() -> None:
    """Runs, blocks and iterations of known spread, in all sizes: to a tenth on average."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(60):
        by_run = []
        for _ in range(20):
            run = rng.normal(0, 0.3)
            blocks = [run + rng.normal(0, 0.2) for _ in range(rng.integers(4, 12))]
            by_run.append([rng.normal(b, 0.1, rng.integers(1, 7)).tolist() for b in blocks])
        found.append(nested(by_run))
    spreads = np.array(
        [[o.between_runs, o.between_blocks, o.between_iterations] for o in found if o]
    )
    assert len(spreads) == 60
    assert np.sqrt((spreads**2).mean(axis=0)) == pytest.approx([0.3, 0.2, 0.1], rel=0.1)


def test_iterations_need_to_be_there() -> None:
    """One in each block, or one block: nothing can be told apart; one run has no spread of runs."""
    assert nested([[[1.0], [2.0]], [[3.0], [4.0]]]) is None
    assert nested([[[1.0, 2.0]]]) is None and nested([]) is None
    one = nested([[[1.0, 1.2], [2.0, 2.2], [3.0, 3.2]]])
    assert one is not None and one.between_runs == 0.0 and one.between_blocks > 0.9
    assert (one.runs, one.blocks, one.iterations) == (1, 3, 6)
    assert one.share_of_iterations == pytest.approx(0.02 / (0.02 + one.between_blocks**2))


def test_cheap_iterations_that_spread_are_repeated() -> None:
    """The rule of blocks, one level below; at least one."""
    assert iterations_per_instance(Nested(0, 0.1, 0.1, 1, 9, 45), 90.0, 10.0) == 3
    assert iterations_per_instance(Nested(0, 0.1, 0.001, 1, 9, 45), 90.0, 10.0) == 1
    assert iterations_per_instance(Nested(0, 0.0, 0.1, 1, 9, 45), 90.0, 10.0) is None


def test_intervals_over_runs_hold_the_truth_where_pooled_ones_do_not() -> None:
    """Runs that differ: Student's interval over 5 runs covers, one over all 50 blocks does not."""
    from bench.stats import signed_rank

    rng, test = np.random.default_rng(4), Student()
    over_runs = pooled = 0
    for _ in range(RUNS):
        by_run = layout(rng, 5, 10, 0.05, 0.05)
        centres = np.array([signed_rank.pseudomedian(values) for values in by_run])
        over_runs += test.lower_limit(centres, 0.025) <= 0 <= test.upper_limit(centres, 0.025)
        low, high = signed_rank.interval(np.concatenate(by_run))
        pooled += low <= 0.0 <= high
    assert over_runs / RUNS >= 0.95 - 3.5 * math.sqrt(0.05 * 0.95 / RUNS)
    assert pooled / RUNS < 0.85


# -- in the report -------------------------------------------------------------------------


def runs(
    folder: Path,
    count: int,
    change: Callable[[dict[str, Any], int], None] | None = None,
    **options: Any,
) -> list[Path]:
    """Several runs of one host, each after another boot unless `change` says otherwise."""
    made = []
    for n in range(count):
        record = synthetic.run_record(run_id=f"run-{n}", kind="kvm", blocks=12, **options)
        record["host"]["boot_id"] = f"boot-{n}"
        if change is not None:
            change(record, n)
        made.append(synthetic.write_run(folder / f"run {n}", seed=n + 1, record=record))
    return made


def merged(folders: list[Path]) -> tuple[Merged, ...]:
    """As a report has it."""
    return merge([read(folder) for folder in folders])


def row(one: Merged, metric: str, workload: str) -> MergedRow:
    """One comparison of a statement."""
    return next(r for r in one.rows if (r.metric, r.workload) == (metric, workload))


def test_three_boots_speak_of_the_host(tmp_path: Path) -> None:
    """Judged with the run as the unit: n is 3, whatever the blocks."""
    (found,) = merged(runs(tmp_path, 3))
    assert found.scope == "on this host" and "enough to speak of this host" in found.note
    redis = row(found, "startup_ready", "redis")
    assert (redis.n, redis.blocks, redis.judged) == (3, 36, True)
    assert redis.verdict == "different" and redis.low is not None
    assert redis.estimate is not None and redis.low < redis.estimate
    assert "between runs" in redis.spread_text and "between blocks" in redis.spread_text


def test_runs_of_one_boot_or_two_runs_are_only_described(tmp_path: Path) -> None:
    """The note names what is lacking."""

    def same_boot(record: dict[str, Any], n: int) -> None:
        record["host"]["boot_id"] = "boot"

    (one_boot,) = merged(runs(tmp_path / "boot", 3, same_boot))
    assert "only 1 boot of the host" in one_boot.note
    (two,) = merged(runs(tmp_path / "two", 2))
    assert "1 more" in two.note
    for found in (one_boot, two):
        assert not any(r.judged for r in found.rows) and found.rows


def test_iterations_inside_instances_are_in_the_advice(tmp_path: Path) -> None:
    """Four of each trial, which spread more than instances do: the advice says so, and how many."""
    rng = np.random.default_rng(6)

    def iterate(line: dict[str, Any]) -> None:
        line["samples"] = [
            {**sample, "value": sample["value"] * factor}
            for sample in line["samples"]
            for factor in (
                np.exp(rng.normal(0, 0.2, 4)).tolist()
                if sample["metric"] == "work_per_cpu_second"
                else (1.0,)
            )
        ]

    folders = []
    for n in range(3):
        record = synthetic.run_record(run_id=f"run-{n}", kind="kvm", blocks=12)
        record["host"]["boot_id"] = f"boot-{n}"
        folders.append(
            synthetic.write_run(tmp_path / f"r{n}", seed=n, record=record, change=iterate)
        )
    (found,) = merged(folders)
    xz = row(found, "work_per_cpu_second", "xz")
    assert "of the variance in vm is between iterations of one instance" in xz.advice
    assert "iteration" not in row(found, "startup_ready", "redis").advice


def test_runs_that_differ_widen_the_interval(tmp_path: Path) -> None:
    """The same blocks, but each run's VM has a factor of its own: the share of runs shows it."""
    steady = row(merged(runs(tmp_path / "steady", 4))[0], "startup_ready", "redis")
    factors = (1.0, 1.4, 0.8, 1.2)
    folders = []
    for n, factor in enumerate(factors):
        record = synthetic.run_record(run_id=f"run-{n}", kind="kvm", blocks=12)
        record["host"]["boot_id"] = f"boot-{n}"

        def change(line: dict[str, Any], factor: float = factor) -> None:
            synthetic.scale_arm(line, "vm", factor)

        folders.append(
            synthetic.write_run(tmp_path / f"run {n}", seed=n, record=record, change=change)
        )
    wide = row(merged(folders)[0], "startup_ready", "redis")
    for one in (steady, wide):
        assert one.low is not None and one.high is not None
    assert wide.high / wide.low > 2 * steady.high / steady.low  # type: ignore[operator]
    assert wide.between == pytest.approx(np.std(np.log(factors), ddof=1), rel=0.3)
    assert "of the variance is between runs" in wide.advice


def test_unlike_runs_are_not_merged(tmp_path: Path) -> None:
    """Another image is another thing; another host another group, and three hosts a row each."""

    def other_image(record: dict[str, Any], n: int) -> None:
        record["images"]["default"]["digest"] = f"sha256:{n}"

    assert merged(runs(tmp_path / "images", 3, other_image)) == ()

    def other_host(record: dict[str, Any], n: int) -> None:
        record["host"]["cpu"]["model"] = f"CPU {n % 3}"

    found = merged(runs(tmp_path / "hosts", 6, other_host))
    assert [one.scope for one in found] == ["on this host"] * 3 + ["on 3 hosts"]
    over = row(found[-1], "startup_ready", "redis")
    assert (over.n, found[-1].units) == (3, "hosts") and over.judged


def test_the_page_and_the_json_carry_it(tmp_path: Path) -> None:
    """`hvct report RUN RUN RUN` says it in both; one run has nothing to merge."""
    folders = runs(tmp_path, 3, workloads=("redis",))
    written = report.build(folders, ("html", "json"), tmp_path / "out")
    page = written["html"].read_text()
    assert "The runs as one: on this host" in page and "enough to speak of this host" in page
    (found,) = merged(folders)
    assert all(r.text in page for r in found.rows)
    assert '"merged"' in written["json"].read_text()
    assert merged(folders[:1]) == ()
