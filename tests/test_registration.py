"""What was settled before the run, and what becomes of changing it afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic

from bench import registration
from bench.errors import BadInput
from bench.stats.planning import check_reachable, smallest_n
from reports.analysis import analyse
from reports.data import read
from reports.model import RunReport


def registered_run(folder: Path, **changes: Any) -> Path:
    """A synthetic run that registered its settings, as `hvct compare` writes it."""
    record = synthetic.run_record(kind="kvm", blocks=12)
    record["plan"]["invalidation"] = {"steal_cpus": 0.05}
    record["plan"]["workloads"][1]["ready"]["send"] = "PING\r\n"  # no page may hold a \r
    record |= changes
    record["registration"] = registration.register(record)

    def marked(line: dict[str, Any]) -> None:
        line["registration"] = registration.mark(record)

    return Path(synthetic.write_run(folder, record=record, change=marked))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> RunReport:
    """The report after somebody changed run.json."""
    path = folder / "run.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return analyse(read(folder))


def test_a_run_as_registered_has_no_deviation(tmp_path: Path) -> None:
    """The report names the digest and nothing else."""
    run = analyse(read(registered_run(tmp_path / "run")))
    assert len(run.registration["digest"]) == registration.MARK_LENGTH
    assert run.registration["deviations"] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda r: r["plan"]["margins"].update(startup_ready=9.0),
            "startup_ready: margin was 0.05, is 9.0",
        ),
        (lambda r: r["plan"].update(blocks=11), "blocks was 12, is 11"),
        (lambda r: r["plan"]["primary"].pop(), "primary was"),
        (lambda r: r["plan"].update(alpha=0.2), "alpha was 0.05, is 0.2"),
        (lambda r: r["plan"].update(invalidation={}), "invalidation: steal cpus was 0.05, is null"),
        (lambda r: r["plan"]["workloads"][0].update(timeout_s=1.0), "workloads: minimal was"),
        (
            lambda r: r["metrics"]["startup_ready"].update(resolution=1.0),
            "resolution was 1e-06, is 1.0",
        ),
        (lambda r: r["plan"].update(judge_emulated=True), "judge emulated was null, is true"),
    ],
)
def test_a_later_change_is_a_deviation(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    """Whatever verdicts depend on: the report says what it was and what it is, as a problem."""
    run = edit(registered_run(tmp_path / "run"), change)
    assert any(said.replace("_", " ") in line for line in run.registration["deviations"]), (
        run.registration["deviations"]
    )
    assert run.findings[0]["code"] == "plan-deviates" and run.findings[0]["level"] == "problem"


def test_registering_again_afterwards_is_seen(tmp_path: Path) -> None:
    """Every trial carries the first digest: another registration is not that of the trials."""

    def forge(record: dict[str, Any]) -> None:
        record["plan"]["margins"]["startup_ready"] = 0.5
        record["registration"] = registration.register(record)

    run = edit(registered_run(tmp_path / "run"), forge)
    (said,) = run.registration["deviations"]
    assert "180 of 180 trials were measured under another registration" in said


def test_a_rewritten_digest_is_seen(tmp_path: Path) -> None:
    """Settings and digest belong together."""
    run = edit(
        registered_run(tmp_path / "run"),
        lambda record: record["registration"]["settings"].update(blocks=99),
    )
    assert any("do not have the registered digest" in d for d in run.registration["deviations"])


def test_what_no_verdict_depends_on_may_change(tmp_path: Path) -> None:
    """Notes and findings written during the run are no deviation."""
    run = edit(registered_run(tmp_path / "run"), lambda r: r.update(findings=[], ended="later"))
    assert run.registration["deviations"] == []


def test_a_run_from_before_registration_says_so(tmp_path: Path) -> None:
    """No digest, no deviation, and no block left out by a rule nobody fixed."""
    run = analyse(read(synthetic.write_run(tmp_path / "run")))
    assert run.registration == {"digest": "", "deviations": []}
    assert run.counts["blocks_invalid"] == 0


def test_a_plan_that_cannot_reach_a_verdict_names_the_blocks_it_needs() -> None:
    """Eight judged metrics need nine blocks: eight are refused and nine are not."""
    found = check_reachable(8, 8)
    assert found is not None and "at least 9 blocks" in found.remedy
    assert check_reachable(9, 8) is None and smallest_n(0.05, 8) == 9


def disturb(blocks: set[int], factor: float) -> Callable[[dict[str, Any]], None]:
    """Steal in some blocks of redis, in which the VM takes longer."""

    def change(line: dict[str, Any]) -> None:
        if line["workload"] == "redis" and line["block"] in blocks:
            line["disturbances"]["steal_cpus"] = 0.4
            synthetic.scale_arm(line, "vm", factor)

    return change


def record_with_rules() -> dict[str, Any]:
    """A run whose plan leaves out blocks with steal."""
    record: dict[str, Any] = synthetic.run_record(kind="kvm", blocks=14)
    record["plan"]["invalidation"] = {"steal_cpus": 0.05}
    return record


def test_a_disturbed_block_is_left_out_whole_and_shown_both_ways(tmp_path: Path) -> None:
    """The verdict rests on eleven pairs; the same with all fourteen stands beside."""
    folder = synthetic.write_run(
        tmp_path / "run", record=record_with_rules(), change=disturb({2, 5, 9}, 8.0)
    )
    run = analyse(read(folder))
    judged = {(c.metric, c.workload): c for c in run.comparisons if c.primary}
    assert judged["startup_ready", "redis"].n == 11
    assert judged["startup_ready", "nginx"].n == 14, "its trials were not concerned"
    levels = [s for s in run.summaries if (s.metric, s.workload) == ("startup_ready", "redis")]
    assert {s.n for s in levels} == {11}
    assert run.counts["blocks_invalid"] == 3 and run.counts["blocks"] == 14
    ways = {way["title"]: way for way in run.robustness["both_ways"]}
    redis = ways["start-up to ready of redis"]
    assert (redis["n"], redis["n_all"]) == (11, 14) and redis["text"] != redis["text_all"]
    (finding,) = [f for f in run.findings if f["code"] == "blocks-disturbed"]
    assert "in 3 of 14 blocks" in finding["message"] and "do not count" in finding["meaning"]


def test_a_verdict_that_rests_on_the_rule_is_said_to(tmp_path: Path) -> None:
    """Equivalent without the disturbed blocks, undecided with them: a finding."""

    def equal(line: dict[str, Any]) -> None:
        if line["arm"] == "vm":
            for sample in line["samples"]:
                if sample["metric"] == "work_per_cpu_second":
                    sample["value"] *= 1.0 if line["block"] > 4 else 3.0
        if line["workload"] == "xz" and line["block"] <= 4:
            line["disturbances"]["steal_cpus"] = 0.4

    folder = synthetic.write_run(tmp_path / "run", record=record_with_rules(), change=equal)
    run = analyse(read(folder))
    codes = [f["code"] for f in run.findings]
    assert "verdict-depends-on-blocks" in codes
    (way,) = [w for w in run.robustness["both_ways"] if "work" in w["title"]]
    assert not way["same"] and way["n"] == 9


def test_without_a_rule_nothing_is_left_out(tmp_path: Path) -> None:
    """A plan with an empty table of rules counts every block."""
    record = record_with_rules()
    record["plan"]["invalidation"] = {}
    run = analyse(
        read(synthetic.write_run(tmp_path / "run", record=record, change=disturb({2}, 8.0)))
    )
    assert {c.n for c in run.comparisons if c.primary} == {14}
    assert run.robustness["both_ways"] == []


def test_a_rule_about_results_is_no_rule(tmp_path: Path) -> None:
    """Only readings of the host may leave a block out."""
    from bench import plan, workloads

    with pytest.raises(BadInput, match="startup_ready"):
        made = plan.quick(workloads.quick_suite())
        made.invalidation["startup_ready"] = 1.0
        plan.check(made)
