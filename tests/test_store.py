"""The run directory: nothing lost, nothing half-written, nothing believed unread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import store
from bench.errors import BadInput, HvctError
from bench.model import Outcome, Sample, Trial

RUN = {"plan": {"arms": ["a", "b"], "workloads": [{"name": "w"}], "blocks": 2}}


def trial(block: int, arm: str, attempt: int = 1) -> Trial:
    """A successful trial with one sample."""
    return Trial(block, 0, arm, "w", Outcome.OK, samples=[Sample("m", 1.5, "s")], attempt=attempt)


def make(tmp_path: Path) -> store.RunStore:
    """A run directory with two arms and one workload."""
    made = store.RunStore.create(tmp_path / "run")
    made.write_run(RUN)
    return made


def test_trials_come_back_as_written(tmp_path: Path) -> None:
    """One line per trial, with format, samples and outcome."""
    made = make(tmp_path)
    made.append(trial(0, "a"))
    made.append(trial(0, "b"))
    loaded = store.load(made.directory)
    assert [item["arm"] for item in loaded.trials] == ["a", "b"]
    assert loaded.trials[0]["samples"] == [{"metric": "m", "value": 1.5, "unit": "s"}]
    assert loaded.complete_blocks() == {0}


def test_a_block_cut_short_is_kept_and_excluded(tmp_path: Path) -> None:
    """Its trials stay in the file; the rerun attempt is what counts."""
    made = make(tmp_path)
    made.append(trial(0, "a"))
    assert store.load(made.directory).trials == []
    assert store.attempts(made.directory) == {0: 1}
    made.append(trial(0, "b", attempt=2))
    made.append(trial(0, "a", attempt=2))
    loaded = store.load(made.directory)
    assert [item["attempt"] for item in loaded.trials] == [2, 2]
    assert [item["attempt"] for item in loaded.excluded] == [1]


def test_a_line_cut_by_a_kill_spoils_only_itself(tmp_path: Path) -> None:
    """The next trial goes on a fresh line, the damaged one is counted."""
    made = make(tmp_path)
    made.append(trial(0, "a"))
    path = made.directory / store.TRIALS_FILE
    path.write_bytes(path.read_bytes()[:-20])
    made.append(trial(0, "a", attempt=2))
    made.append(trial(0, "b", attempt=2))
    loaded = store.load(made.directory)
    assert loaded.damaged_lines == 1
    assert len(loaded.trials) == 2


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """A write that fails is undone and says how to go on."""
    made = make(tmp_path)
    path = made.directory / store.TRIALS_FILE
    path.symlink_to("/dev/full")
    with pytest.raises(HvctError) as caught:
        made.append(trial(0, "a"))
    assert "hvct resume" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 1}', '{"format": 99, "plan": {"arms": [], "workloads": []}}',
     '{"format": 1, "plan": {"arms": 3, "workloads": []}}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_run_file_is_bad_input(tmp_path: Path, text: str) -> None:
    """Whatever was done to it by hand, the answer is one line and a hint."""
    (tmp_path / store.RUN_FILE).write_text(text)
    with pytest.raises(BadInput) as caught:
        store.load(tmp_path)
    assert caught.value.hint


def test_a_trial_line_without_its_keys_is_bad_input(tmp_path: Path) -> None:
    """A line that is JSON but no trial is named by its number."""
    made = make(tmp_path)
    (made.directory / store.TRIALS_FILE).write_text(json.dumps({"block": "x"}) + "\n")
    with pytest.raises(BadInput, match="line 1"):
        store.load(made.directory)


def test_a_run_directory_is_never_overwritten(tmp_path: Path) -> None:
    """Creating a run where one is says how to resume it."""
    make(tmp_path)
    with pytest.raises(BadInput) as caught:
        make(tmp_path)
    assert "hvct resume" in caught.value.hint
