"""The main job from its plan to its report: the quick suite and the documented plan, in every arm.

One block, too few for a verdict, which `hvct compare` would refuse: so the plan is made here
and handed to what the command hands it to. That is seven boots, and seven for the receipts.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
import pytest

from bench import plan, plan_file, store, workloads
from bench.commands import compare, measuring
from bench.commands.arguments import parse
from bench.model import Gap, Image, Workload
from bench.plan import Plan

pytestmark = [pytest.mark.root, pytest.mark.vm]

ARMS = ("vm", "container", "process")
SERVERS = ("redis", "nginx", "kv")  # reached from the host over the bridge


@dataclass(frozen=True)
class Measured:
    """A run that was measured and reported on."""

    chosen: Plan
    directory: Path
    code: int
    trials: list[dict[str, Any]]
    report: dict[str, Any]

    def trial(self, block: int, arm: str, workload: str) -> dict[str, Any]:
        """The trial of this place in the run."""
        (found,) = (
            trial
            for trial in self.trials
            if (trial["block"], trial["arm"], trial["workload"]) == (block, arm, workload)
        )
        return found

    def value(self, block: int, arm: str, workload: str, metric: str) -> float:
        """What one trial gave for a metric."""
        (sample,) = (
            sample
            for sample in self.trial(block, arm, workload)["samples"]
            if sample["metric"] == metric
        )
        return float(sample["value"])


def measure(chosen: Plan, directory: Path) -> Measured:
    """Measure a plan as `hvct compare` does, but without a gap, and write its report.

    Of one block no figure is judged; what is seen here does not depend on a quiet host.
    """
    chosen = dataclasses.replace(chosen, gap=Gap.NONE)
    options = parse(["compare", "--wait", "--quiet", "--output", str(directory)])
    with faults.nothing_left(), measuring.alone(True, directory):
        described = measuring.describe_run(chosen, directory, options)
        run_store = store.RunStore.create(directory)
        run_store.write_run(described)
        code = measuring.measure(chosen, described, run_store, options, compare.finish)
    report = json.loads((directory / "report.json").read_text())["runs"][0]
    return Measured(chosen, directory, code, store.load(directory).trials, report)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, default_image: Image) -> Measured:
    """One block of the quick suite."""
    chosen = plan.quick(workloads.quick_suite(), blocks=1)
    assert chosen.arms == ARMS and len(chosen.workloads) == 5
    return measure(chosen, tmp_path_factory.mktemp("quick") / "run")


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory, default_image: Image) -> Measured:
    """One block of the example in docs/plan.md, in the arms it names."""
    folder = tmp_path_factory.mktemp("documented")
    text = (Path(__file__).parent.parent / "docs" / "plan.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (folder / "plan.toml").write_text(example)
    chosen = dataclasses.replace(plan_file.from_toml(folder / "plan.toml"), blocks=1)
    assert chosen.arms == ARMS and len(chosen.workloads) == 2
    return measure(chosen, folder / "run")


def assert_whole(run: Measured) -> None:
    """Every trial went well, was alike in every arm, and servers answered over the network."""
    assert run.code == 0
    outcomes = Counter((trial["outcome"], trial["error"]) for trial in run.trials)
    blocks, of_workloads = run.chosen.blocks, run.chosen.workloads
    assert outcomes == {("ok", None): blocks * len(of_workloads) * len(ARMS)}
    for workload in of_workloads:
        for arm in ARMS:
            for block in range(blocks):
                assert_ready(workload, run.trial(block, arm, workload.name))
    pairs = run.report["identity"]["pairs"]
    assert [(pair["arm"], pair["baseline"]) for pair in pairs] == [
        ("vm", "container"),
        ("container", "process"),
    ]
    for pair in pairs:
        assert pair["compared"] == pair["identical"] == blocks * len(of_workloads), pair
        assert (pair["missing"], pair["refused"]) == (0, []), pair


def assert_ready(workload: Workload, trial: dict[str, Any]) -> None:
    """Marks in order, and the idle memory of what was held."""
    marks = trial["timeline"]
    assert marks["requested"] == 0 < marks["started"] < marks["exited"] <= marks["released"]
    assert ("kernel" in marks) == (trial["arm"] == "vm")
    if workload.until == "ready":
        assert marks["started"] < marks["ready"] < marks["stop_requested"], trial
        assert trial["usage"]["memory"]["pss_bytes"] > 0
    if workload.name in SERVERS:
        assert "startup_ready" in {sample["metric"] for sample in trial["samples"]}


def test_the_quick_suite_runs_in_every_arm(quick: Measured) -> None:
    """Redis and nginx answer, 64 MiB are touched, xz packs: as VM, container and process."""
    assert_whole(quick)


def test_the_documented_plan_runs_in_every_arm(documented: Measured) -> None:
    """docs/plan.md's example, with the virtual machine it names."""
    assert_whole(documented)
    assert all(documented.value(0, arm, "sum", "sums") > 0 for arm in ARMS)


def test_work_is_counted_in_every_arm(quick: Measured) -> None:
    """xz gives work per host CPU second, and it spent CPU time inside the window."""
    for arm in ARMS:
        assert quick.value(0, arm, "xz", "work_per_cpu_second") > 0
        assert quick.value(0, arm, "xz", "cpu_window") > 0


@pytest.mark.parametrize("run", ["quick", "documented"])
def test_the_report_is_there_in_every_form(run: str, request: pytest.FixtureRequest) -> None:
    """HTML below 5 MiB that names every workload and arm, a PDF, JSON."""
    made: Measured = request.getfixturevalue(run)
    page = (made.directory / "report.html").read_bytes()
    assert len(page) < 5 << 20
    for workload in made.chosen.workloads:
        assert workload.title.encode() in page
    assert (made.directory / "report.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arm", "baseline", "workload", "metric"),
    [
        ("vm", "container", "nginx", "startup_ready"),
        ("container", "process", "redis", "startup_ready"),
        ("vm", "container", "touch64", "memory_pss"),
    ],
)
def test_a_figure_is_what_the_stored_trials_give(
    quick: Measured, arm: str, baseline: str, workload: str, metric: str
) -> None:
    """Of one pair the estimate is that pair's ratio, or its difference."""
    (row,) = (
        row
        for row in quick.report["comparisons"]
        if (row["arm"], row["baseline"]) == (arm, baseline)
        and (row["workload"], row["metric"]) == (workload, metric)
    )
    first = quick.value(0, arm, workload, metric)
    second = quick.value(0, baseline, workload, metric)
    wanted = first / second if row["effect"]["scale"] == "ratio" else first - second
    assert row["effect"]["estimate"] == pytest.approx(wanted, rel=1e-9)
    assert (row["n"], row["failed"], row["timeouts"]) == (1, 0, 0)
