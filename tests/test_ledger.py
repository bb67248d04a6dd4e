"""The memory ledger and the cost model, from stored steps of known truth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from known_costs import COSTS, GIB, MIB, ROUNDS, STEPS, step_of, write

from bench import ledger
from bench import steps as step_file
from bench.errors import BadInput, HostCannot
from bench.standing import fitting
from bench.steps import Step


def trial(arm: str, workload: str, block: int, **samples: float) -> dict[str, Any]:
    """A stored trial with these samples."""
    return {
        "arm": arm, "workload": workload, "block": block, "outcome": "ok",
        "samples": [{"metric": name, "value": value} for name, value in samples.items()],
    }  # fmt: skip


RUN: dict[str, Any] = {
    "id": "r", "created": "2026-11-24T00:00:00+00:00", "hvct_version": "0",
    "plan": {
        "arms": ["vm", "container"],
        "workloads": [
            {"name": "idle", "work_units": 0.0, "work_unit_name": "work"},
            {"name": "xz", "work_units": 2.0, "work_unit_name": "MiB"},
        ],
    },
    "costs": COSTS,
}  # fmt: skip
TRIALS = [
    *(trial(arm, "idle", n, cpu_life=0.02 + 0.001 * n, startup_ready=0.5) for arm in STEPS
      for n in range(ROUNDS)),
    *(trial(arm, "xz", n, cpu_window=3.0 + 0.2 * n) for arm in STEPS for n in range(ROUNDS)),
]  # fmt: skip


def model_of(folder: Path) -> ledger.CostModel:
    """Its cost model."""
    found = ledger.cost_model(folder, RUN, TRIALS)
    assert found is not None
    return found


def near(found: ledger.Estimate | None, truth: float, tolerance: float) -> bool:
    """Whether an estimate is about the truth, with the truth in its interval."""
    assert found is not None and found.low is not None and found.high is not None
    return abs(found.mean - truth) < tolerance and found.low <= truth <= found.high


def test_a_ledger_of_known_truth_closes(tmp_path: Path) -> None:
    """Every part of it comes out, they add up to the host's loss, and nothing is left over."""
    container = model_of(write(tmp_path)).arms[1]
    parts = {part.name: part.bytes for part in container.ledger}
    for name, mib in {"anon": 7, "shmem": 1, "kernel": 0.5, "kernel_beyond": 0.5, "helpers": 1,
                      "harness": 0.25, "file": 3, "pss": 12}.items():  # fmt: skip
        assert near(parts[name], mib * MIB, 0.01 * MIB), name
    counted = sum(part.bytes.mean for part in container.ledger if part.counted)
    assert counted == pytest.approx(container.explained.mean)
    assert near(container.host_delta, 10.25 * MIB, 0.01 * MIB)
    assert near(container.unexplained, 0, 0.01 * MIB) and container.closes


def test_what_nobody_accounts_for_is_shown_as_unexplained(tmp_path: Path) -> None:
    """Memory that the host lost and no part names is a figure of its own, and it does not close."""
    vm = model_of(write(tmp_path)).arms[0]
    assert near(vm.unexplained, 8.75 * MIB, 0.01 * MIB) and not vm.closes
    parts = {part.name: part.bytes.mean / MIB for part in vm.ledger}
    assert parts["guest"] == pytest.approx(80) and parts["vmm"] == pytest.approx(20)
    assert "anon" not in parts


def test_the_ledger_of_a_vm_closes_where_all_it_takes_is_named(tmp_path: Path) -> None:
    """The same VM without what nobody accounts for: guest and VMM are its private memory."""

    def named(step: Step) -> Step:
        beyond = (8.75 if step.arm == "vm" else 0.0) * step.instances * MIB
        return dataclasses.replace(step, available_bytes=step.available_bytes + beyond)

    vm = model_of(write(tmp_path, named)).arms[0]
    assert near(vm.unexplained, 0, 0.01 * MIB) and vm.closes
    parts = {part.name: part.bytes.mean / MIB for part in vm.ledger if part.counted}
    assert parts["guest"] + parts["vmm"] == pytest.approx(100)
    assert sum(parts.values()) * MIB == pytest.approx(vm.explained.mean)


def test_the_cost_model_holds_fixed_marginal_and_active_costs(tmp_path: Path) -> None:
    """Means with intervals; emulated guests are called so; the harness is no instance's cost."""
    model = model_of(write(tmp_path))
    vm, container = model.arms
    assert (vm.label, vm.emulated, container.emulated) == ("vm (TCG)", True, False)
    assert container.marginal_memory_bytes.mean == pytest.approx(10 * MIB, rel=1e-3)
    assert container.marginal_cpus.mean == pytest.approx(0.01)
    assert container.fixed_memory_bytes.mean == pytest.approx(40 * MIB)
    assert container.fixed_cpus.mean == pytest.approx(0.002)
    assert container.shared_memory_bytes.mean == 55 * MIB
    assert container.active_cpu_s and container.active_cpu_s.mean == pytest.approx(1.65)
    assert container.start_cpu_s and container.start_cpu_s.mean == pytest.approx(0.0215)
    assert container.start_cpu_s.n == container.passes == ROUNDS


def test_a_pass_cut_short_does_not_count_and_its_repetition_does(tmp_path: Path) -> None:
    """Interrupted after two steps, or ended by a failure: the whole pass is measured anew."""
    for position, n in enumerate((10, 0)):
        step_file.append(tmp_path, step_of("container", 0, position, n, drift=5000.0))
    failed = dataclasses.replace(step_of("vm", 0, 0, 20), error="it died")
    step_file.append(tmp_path, failed)
    again = write(tmp_path, lambda step: dataclasses.replace(step, attempt=2))
    model = model_of(again)
    assert model.incomplete == 2
    assert model.arms[1].passes == ROUNDS and model.arms[1].closes


def test_a_line_cut_off_by_a_kill_spoils_only_itself(tmp_path: Path) -> None:
    """The next step is written on a line of its own."""
    (tmp_path / step_file.STEPS_FILE).write_text('{"format": 1, "rou')
    step_file.append(tmp_path, step_of("vm", 0, 0, 5))
    assert [step.instances for step in step_file.read_steps(tmp_path)] == [5]


@pytest.mark.parametrize(
    "line",
    ['{"format": 2}', "[]", '{"format": 1, "round": 0}',
     '{"format": 1, "round": 0, "attempt": 1, "arm": "vm", "position": 0, "instances": "x"}'],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path: Path, line: str) -> None:
    """What is whole and yet no step is not guessed at."""
    (tmp_path / step_file.STEPS_FILE).write_text(line + "\n")
    with pytest.raises(BadInput, match="line 1 is no step"):
        step_file.read_steps(tmp_path)


def test_later_instances_that_cost_more_are_noticed(tmp_path: Path) -> None:
    """A slope over all steps would hide it."""

    def crooked(step: Step) -> Step:
        more = max(0, step.instances - 25) * 2 * MIB
        return dataclasses.replace(step, anon_bytes=step.anon_bytes + more)

    container = model_of(write(tmp_path, crooked)).arms[1]
    assert container.bend is not None and container.bend.excludes_zero
    assert container.bend.mean == pytest.approx(2 * MIB, rel=0.01)


def test_a_run_without_steps_has_no_costs(tmp_path: Path) -> None:
    """Most runs are none of this."""
    assert ledger.cost_model(tmp_path, RUN, TRIALS) is None


def test_the_cost_model_is_json_by_its_published_schema(tmp_path: Path) -> None:
    """What a planner reads is what the schema in docs/ says."""
    import jsonschema

    document = json.loads(json.dumps(model_of(write(tmp_path)).as_json()))
    published = Path(__file__).resolve().parent.parent / "docs" / "cost-model-schema.json"
    schema = json.loads(published.read_text())
    jsonschema.validate(document, schema)
    del document["arms"][0]["marginal_cpus"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def test_steps_shrink_with_the_host_s_memory_and_say_why() -> None:
    """All that fits is kept; less room shrinks them in proportion; too little is refused."""
    assert fitting((0, 5, 10, 20), 100 * MIB, 20 * GIB) == ((0, 5, 10, 20), "")
    steps, why = fitting((0, 5, 10, 20), 100 * MIB, 1000 * MIB)
    assert steps == (0, 2, 4, 8)
    assert why == "0, 2, 4, 8 instead of 0, 5, 10, 20: one holds 100 MiB and 1000 MiB may be used"
    assert "addresses" in fitting((0, 300), MIB, 20 * GIB, most=253)[1]
    with pytest.raises(HostCannot, match="not even two"):
        fitting((0, 5), 600 * MIB, 1000 * MIB)
