"""The numbers of a report: from stored trials to figures, verdicts and sentences."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bench.errors import BadInput, HvctError
from reports import pytest_benchmark, report
from reports.analysis import analyse
from reports.data import read
from reports.model import Comparison, RunReport


def _synthetic() -> ModuleType:
    """The generator beside this file; tests are no package."""
    path = Path(__file__).with_name("synthetic.py")
    spec = importlib.util.spec_from_file_location("synthetic", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


synthetic = _synthetic()


def analysed(folder: Path, **options: Any) -> RunReport:
    """A synthetic run, read and analysed."""
    return analyse(read(synthetic.write_run(folder, **options)))


def comparison(run: RunReport, metric: str, workload: str, arm: str) -> Comparison:
    """One comparison of an arm with its baseline."""
    return next(
        c for c in run.comparisons if (c.metric, c.workload, c.arm) == (metric, workload, arm)
    )


def ratio(run: RunReport, metric: str, workload: str, arm: str) -> float:
    """The estimated ratio of that comparison."""
    effect = comparison(run, metric, workload, arm).effect
    assert effect is not None and effect.estimate is not None
    return effect.estimate


def test_figures_follow_from_the_trials_by_hand(tmp_path: Path) -> None:
    """Median, ratio and difference are those computed independently from trials.jsonl."""
    folder = synthetic.write_run(tmp_path / "run")
    values: dict[tuple[str, str], dict[int, float]] = {}
    for line in (folder / "trials.jsonl").read_text().splitlines():
        trial = json.loads(line)
        if trial["workload"] == "redis":
            for sample in trial["samples"]:
                key = (trial["arm"], sample["metric"])
                values.setdefault(key, {})[trial["block"]] = sample["value"]
    run = analyse(read(folder))
    container, process = (values[(arm, "startup_ready")] for arm in ("container", "process"))
    logs = [math.log(container[block] / process[block]) for block in container]
    walsh = [(a + b) / 2 for i, a in enumerate(logs) for b in logs[i:]]
    assert ratio(run, "startup_ready", "redis", "container") == pytest.approx(
        math.exp(np.median(walsh))
    )
    level = next(
        s for s in run.summaries if (s.metric, s.workload, s.arm) == ("memory_pss", "redis", "vm")
    )
    assert level.median == pytest.approx(np.median([*values[("vm", "memory_pss")].values()]))
    assert level.n == 10


@pytest.mark.parametrize("arm", ["vm", "container"])
def test_doubling_an_arm_doubles_its_ratios(tmp_path: Path, arm: str) -> None:
    """A copy with one arm's values doubled has twice the ratio, in every time metric."""
    plain = analysed(tmp_path / "plain")
    doubled = analysed(
        tmp_path / "doubled", change=lambda line: synthetic.scale_arm(line, arm, 2.0)
    )
    for metric in ("startup_ready", "startup_started"):
        for workload in ("redis", "minimal"):
            before = ratio(plain, metric, workload, arm)
            assert ratio(doubled, metric, workload, arm) == pytest.approx(2 * before)


def test_emulated_figures_are_printed_and_never_judged(tmp_path: Path) -> None:
    """Under TCG every VM comparison has figures, the verdict `emulated`, and no p-value."""
    run = analysed(tmp_path / "run")
    machine = [c for c in run.comparisons if c.arm == "vm"]
    assert machine and {c.verdict for c in machine} == {"emulated"}
    assert all(c.p is None and not c.judged and not c.primary for c in machine)
    assert all("vm (TCG)" in c.pair for c in machine)
    assert all(h.text.startswith("Under emulation") for h in run.headlines if "VM" in h.text)
    assert run.banner_head == "TCG, not KVM." and "cmpxchg16b" in run.banner


def test_the_primary_family_is_container_against_process_under_emulation(tmp_path: Path) -> None:
    """With an emulated VM the judged pair is container ÷ process, else vm ÷ container."""
    emulated = analysed(tmp_path / "tcg")
    assert {(c.arm, c.baseline) for c in emulated.comparisons if c.primary} == {
        ("container", "process")
    }
    real = analysed(tmp_path / "kvm", kind="kvm", blocks=12)
    judged = [c for c in real.comparisons if c.primary]
    assert {(c.arm, c.baseline) for c in judged} == {("vm", "container")}
    assert len(judged) == real.family_size == 5
    assert {c.verdict for c in judged} == {"different", "equivalent"}
    assert "vm (KVM)" in {arm.label for arm in real.arms}


def spoiler(arm: str, workload: str, blocks: set[int], outcome: str) -> Callable[[Any], None]:
    """A change that spoils the trials of one arm and workload in some blocks."""

    def change(line: dict[str, Any]) -> None:
        if (line["arm"], line["workload"]) == (arm, workload) and line["block"] in blocks:
            synthetic.spoil(line, outcome, f"made to end as {outcome}")

    return change


def test_a_failed_trial_is_counted_and_never_a_zero(tmp_path: Path) -> None:
    """A failure takes its pair out: n falls, the failure is listed, no value of it counts."""
    run = analysed(tmp_path / "run", change=spoiler("container", "redis", {4}, "failed"))
    row = comparison(run, "startup_ready", "redis", "container")
    assert (row.n, row.planned, row.failed) == (9, 10, 1)
    level = next(
        s
        for s in run.summaries
        if (s.metric, s.workload, s.arm) == ("startup_ready", "redis", "container")
    )
    assert (level.n, level.failed) == (9, 1)
    assert level.minimum is not None and level.minimum > 0
    assert [(f.block, f.outcome, f.error) for f in run.failures] == [
        (4, "failed", "made to end as failed")
    ]
    assert run.counts["failed"] == 1


def test_many_failures_leave_no_verdict(tmp_path: Path) -> None:
    """Above 10 % of trials without a value the primary metric has no verdict, and says why."""
    run = analysed(tmp_path / "run", change=spoiler("container", "redis", {1, 4, 7}, "failed"))
    row = comparison(run, "startup_ready", "redis", "container")
    assert row.verdict == "no verdict" and "3 of 10" in row.reason


def test_a_timeout_counts_as_longer_than_any_other(tmp_path: Path) -> None:
    """A timeout opens the interval upwards for what it never reached, and only for that."""
    run = analysed(tmp_path / "run", change=spoiler("vm", "nginx", {3}, "timeout"))
    ready = comparison(run, "startup_ready", "nginx", "vm")
    started = comparison(run, "startup_started", "nginx", "vm")
    assert ready.n == started.n == 10 and ready.timeouts == 1
    assert ready.effect is not None and started.effect is not None
    assert ready.effect.high is None and "∞" in ready.effect.text
    assert started.effect.high is not None  # that mark was reached in time
    memory = comparison(run, "memory_current", "nginx", "vm")
    assert memory.n == 9


def test_a_refused_arm_is_said_and_not_compared(tmp_path: Path) -> None:
    """An arm that declines a workload gets the verdict `refused`, without figures."""
    run = analysed(tmp_path / "run", change=spoiler("process", "nginx", set(range(10)), "refused"))
    row = comparison(run, "startup_ready", "nginx", "container")
    assert row.verdict == "refused" and row.effect is None
    assert run.counts["refused"] == 10


def test_a_different_receipt_refuses_the_comparison(tmp_path: Path) -> None:
    """When an arm ran another program, its comparisons are refused and the field is named."""

    def change(line: dict[str, Any]) -> None:
        if line["arm"] == "container" and line["workload"] == "xz" and line["block"] == 0:
            line["receipt"]["program"] = "/usr/bin/other"

    run = analysed(tmp_path / "run", change=change)
    row = comparison(run, "work_per_cpu_second", "xz", "container")
    assert row.verdict == "refused" and "program" in row.reason
    assert comparison(run, "startup_ready", "redis", "container").verdict == "different"
    answer = next(a for a in run.answers if a.question == "Was it the same work?")
    assert any("container and process are not compared for xz" in li for li in answer.lines)


@pytest.mark.parametrize(
    ("counts", "refused"), [((40.0, 41.0), False), ((40.0, 80.0), True), ((9.0, 0.0), True)]
)
def test_disk_work_that_was_not_equally_durable_is_refused(
    tmp_path: Path, counts: tuple[float, float], refused: bool
) -> None:
    """Unequal flushes refuse the workload's disk and work figures, not its start-up or memory."""

    def change(line: dict[str, Any]) -> None:
        if line["workload"] == "xz":
            count = {"container": counts[0], "process": counts[1]}.get(line["arm"], counts[0])
            line["samples"].append({"metric": "disk_flushes", "value": count, "unit": "flushes"})

    run = analysed(tmp_path / "run", change=change)
    for metric in ("disk_flushes", "cpu_window", "work_per_cpu_second", "run_wall"):
        row = comparison(run, metric, "xz", "container")
        assert (row.verdict == "refused") == refused, metric
        assert ("not equally durable" in row.reason) == refused, metric
        assert row.effect is not None, "the figures stay"
        assert comparison(run, metric, "xz", "vm").verdict == "emulated", "its flushes agree"
    for metric, workload in (
        ("startup_ready", "xz"),
        ("memory_pss", "xz"),
        ("run_wall", "minimal"),
    ):
        assert comparison(run, metric, workload, "container").verdict != "refused"


def test_what_a_variant_does_is_shown_beside_the_arm_it_varies(tmp_path: Path) -> None:
    """vm:freepage stands against container and against vm; that is described, never judged."""
    run = analysed(tmp_path / "run", kind="kvm", arms=("vm", "vm:freepage", "container"))
    assert sorted((arm, base) for arm, base, _ in run.pairs) == [
        ("vm", "container"),
        ("vm:freepage", "container"),
        ("vm:freepage", "vm"),
    ]
    beside = [c for c in run.comparisons if (c.arm, c.baseline) == ("vm:freepage", "vm")]
    assert {c.metric for c in beside} >= {"memory_current", "startup_ready"}
    assert not any(c.primary or c.judged for c in beside)
    assert {(c.arm, c.baseline) for c in run.comparisons if c.primary} == {("vm", "container")}


def test_iterations_inside_an_instance_are_one_number_of_its_trial(tmp_path: Path) -> None:
    """Three of each trial, one far off: levels, pairs and exported rounds take the median."""

    def iterate(line: dict[str, Any]) -> None:
        line["samples"] = [
            {**sample, "value": sample["value"] * factor}
            for sample in line["samples"]
            for factor in ((1.0,) if sample["metric"] != "run_wall" else (0.5, 1.0, 40.0))
        ]

    plain, repeated = tmp_path / "plain", tmp_path / "repeated"
    before = analysed(plain)
    after = analysed(repeated, change=iterate)
    one, other = (comparison(run, "run_wall", "xz", "container") for run in (before, after))
    assert (other.n, other.effect) == (one.n, one.effect)
    levels = [
        next(s for s in run.summaries if (s.metric, s.workload, s.arm) == ("run_wall", "xz", "vm"))
        for run in (before, after)
    ]
    assert levels[0] == levels[1]
    (raw,) = [s for s in after.series if (s.metric, s.workload, s.arm) == ("run_wall", "xz", "vm")]
    assert raw.n == 30, "the appendix has all of them"
    rounds = [
        next(
            item["stats"]["data"]
            for item in json.loads(pytest_benchmark.text([read(folder)]))["benchmarks"]
            if item["name"] == "run_wall[xz-vm (TCG)]"
        )
        for folder in (plain, repeated)
    ]
    assert rounds[0] == pytest.approx(rounds[1]) and len(rounds[1]) == 10


def test_a_run_cut_short_says_so(tmp_path: Path) -> None:
    """Blocks that are not complete are left out, counted, and a finding."""
    folder = synthetic.write_run(tmp_path / "run")
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join(lines[:-20]) + '{"format": 1, "blo')
    run = analyse(read(folder))
    assert run.counts["blocks"] == 8
    assert run.counts["excluded"] == 10 and run.counts["damaged_lines"] == 1
    codes = {item["code"] for item in run.findings}
    assert {"run-incomplete", "damaged-lines", "block-cut-short"} <= codes


def test_a_run_without_trials_still_reports(tmp_path: Path) -> None:
    """A run that was interrupted before its first block gives a report that says so."""
    folder = synthetic.write_run(tmp_path / "run")
    (folder / "trials.jsonl").unlink()
    with pytest.raises(HvctError, match="the run holds no trial"):
        report.build([folder], ("html", "json"))
    assert "0 of 10 blocks are complete" in (folder / "report.html").read_text()


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change run.json by hand."""
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))


def line_edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the first trial by hand."""
    lines = (folder / "trials.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    change(first)
    (folder / "trials.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")


HAND_EDITS: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda f: (f / "run.json").write_text("{"),
    "no run": lambda f: (f / "run.json").unlink(),
    "no plan": lambda f: edit(f, lambda r: r.pop("plan")),
    "another format": lambda f: edit(f, lambda r: r.update(format=99)),
    "metrics are a list": lambda f: edit(f, lambda r: r.update(metrics=[])),
    "a metric is a text": lambda f: edit(f, lambda r: r["metrics"].update(startup_ready="x")),
    "a scale unknown": lambda f: edit(
        f, lambda r: r["metrics"]["startup_ready"].update(scale="log")
    ),
    "a margin is a text": lambda f: edit(
        f, lambda r: r["metrics"]["startup_ready"].update(margin="5 %")
    ),
    "a negative margin": lambda f: edit(
        f, lambda r: r["plan"].update(margins={"startup_ready": -1})
    ),
    "alpha is 7": lambda f: edit(f, lambda r: r["plan"].update(alpha=7)),
    "an arm unknown": lambda f: edit(f, lambda r: r["plan"]["arms"].append("lambda")),
    "no arms": lambda f: edit(f, lambda r: r["plan"].update(arms=[])),
    "workloads are texts": lambda f: edit(f, lambda r: r["plan"].update(workloads=["redis"])),
    "primary is no pair": lambda f: edit(f, lambda r: r["plan"].update(primary=["redis"])),
    "findings are texts": lambda f: edit(f, lambda r: r.update(findings=["x"])),
    "receipts are numbers": lambda f: edit(f, lambda r: r.update(receipts=[7])),
    "blocks is a text": lambda f: edit(f, lambda r: r["plan"].update(blocks="ten")),
    "an unknown arm in a trial": lambda f: line_edit(f, lambda t: t.update(arm="lambda")),
    "an unknown outcome": lambda f: line_edit(f, lambda t: t.update(outcome="great")),
    "a value is a text": lambda f: line_edit(f, lambda t: t["samples"][0].update(value="1 s")),
    "a value is true": lambda f: line_edit(f, lambda t: t["samples"][0].update(value=True)),
    "a value is not finite": lambda f: line_edit(
        f, lambda t: t["samples"][0].update(value=math.nan)
    ),
    "a value is too large": lambda f: line_edit(f, lambda t: t["samples"][0].update(value=10**400)),
    "a sample is a number": lambda f: line_edit(f, lambda t: t.update(samples=[7])),
    "a sample without a name": lambda f: line_edit(f, lambda t: t["samples"][0].pop("metric")),
    "timeline is a list": lambda f: line_edit(f, lambda t: t.update(timeline=[1])),
    "a mark is a text": lambda f: line_edit(f, lambda t: t["timeline"].update(init="soon")),
    "a receipt is a list": lambda f: line_edit(f, lambda t: t.update(receipt=[1])),
    "no outcome": lambda f: line_edit(f, lambda t: t.pop("outcome")),
}


@pytest.mark.parametrize("name", HAND_EDITS)
def test_a_run_changed_by_hand_is_bad_input(tmp_path: Path, name: str) -> None:
    """Every way of damaging a run directory ends in one line, a hint, and nothing written."""
    folder = synthetic.write_run(tmp_path / "run", blocks=2)
    HAND_EDITS[name](folder)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(BadInput) as caught:
        report.build([folder], ("html", "json"))
    assert "\n" not in caught.value.message and caught.value.hint
    assert sorted(path.name for path in folder.iterdir()) == before


def test_json_holds_only_json(tmp_path: Path) -> None:
    """report.json has no NaN and no infinity, even when an arm timed out throughout."""
    folder = synthetic.write_run(
        tmp_path / "run", change=spoiler("vm", "redis", set(range(10)), "timeout")
    )

    def refuse(text: str) -> None:
        raise AssertionError(text)

    data = json.loads(report.as_json([folder]), parse_constant=refuse)
    assert data["format"] == 2 and data["runs"][0]["counts"]["timeout"] == 10
