"""`hvct diff`: what changed between two runs, who may be compared, and the exit status."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic

from bench import registration
from bench.cli import main

Change = Callable[[dict[str, Any]], None]


def run(
    folder: Path, seed: int, change: Change | None = None, edit: Change | None = None, **more: Any
) -> Path:
    """A synthetic run; the seed draws its trials."""
    options = {"kind": "kvm", "blocks": 20, "run_id": folder.name, **more}
    record = synthetic.run_record(**options)
    record["host"]["boot_id"] = f"boot {seed}"
    if edit is not None:
        edit(record)
    return Path(synthetic.write_run(folder, seed=seed, change=change, record=record))


def slower(arm: str, factor: float) -> Change:
    """Everything of one arm takes this much longer."""
    return lambda line: synthetic.scale_arm(line, arm, factor)


def as_json(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, dict[str, Any]]:
    """Exit status and document."""
    capsys.readouterr()
    code = main(["diff", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def rows(document: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Changes by arm, workload and metric."""
    return {(c["arm"], c["workload"], c["metric"]): c for c in document["changes"]}


def test_the_same_again_is_no_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs of one truth: exit 0, nothing called different, and the run's margins named."""
    one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    code, document = as_json(capsys, one, two)
    assert code == 0 and document["format"] == 1
    judged = [c for c in document["changes"] if c["claims"]]
    assert len(judged) == 15 and {c["family_size"] for c in judged} == {15}
    assert not any(c["verdict"] == "different" for c in document["changes"])
    assert main(["diff", str(one), str(two)]) == 0
    said = capsys.readouterr().out
    assert "Of 15 judged:" in said and "two boots of the host" in said


def test_a_slower_arm_is_found_and_told_from_a_slower_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """+30 % of the container alone: exit 1, worse, and its effect against process changed too."""
    one = run(tmp_path / "one", 1)
    two = run(tmp_path / "two", 2, slower("container", 1.3))
    code, document = as_json(capsys, one, two)
    found = rows(document)["container", "redis", "startup_ready"]
    assert code == 1 and found["verdict"] == "different" and found["worse"] is True
    assert found["low"] < 1.3 < found["high"]
    assert found["relative_to"] == "process" and found["relative"]["low"] > 1.1
    assert rows(document)["process", "redis", "startup_ready"]["verdict"] != "different"
    assert main(["diff", str(one), str(two)]) == 1
    assert "against process of the same run" in capsys.readouterr().out

    def all_slower(line: dict[str, Any]) -> None:
        synthetic.scale_arm(line, line["arm"], 1.3)

    _, host = as_json(capsys, one, run(tmp_path / "host", 3, all_slower))
    found = rows(host)["container", "redis", "startup_ready"]
    assert found["verdict"] == "different"
    assert found["relative"]["low"] < 1.0 < found["relative"]["high"], "the host, not the arm"


def test_what_became_better_fails_only_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A faster container differs; --only-worse lets it pass; --require-equivalent does not."""
    one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2, slower("container", 0.7))
    assert as_json(capsys, one, two)[0] == 1
    assert as_json(capsys, one, two, "--only-worse")[0] == 0
    assert as_json(capsys, two, one, "--only-worse")[0] == 1
    assert as_json(capsys, one, two, "--only-worse", "--require-equivalent")[0] == 1


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda r: r["images"]["default"].update(digest="sha256:0"), "image default is sha256:0"),
        (lambda r: r["host"]["kernel"].update(release="7.0"), "kernel.release: 6.18.5-cloud"),
        (lambda r: r["plan"]["workloads"][1].update(argv=["other"]), "workload redis is another"),
        (lambda r: r["plan"].update(page_cache="cold"), "the page cache was warm, is cold"),
        (lambda r: r["plan"].update(gap="none"), "the gap was quiet, is none"),
        (lambda r: r["metrics"]["startup_ready"].update(definition="x"), "means something else"),
    ],
)
def test_unlike_runs_are_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], edit: Change, reason: str
) -> None:
    """Another image, host, workload or metric: exit 2; --anyway compares and labels."""
    one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2, edit=edit)
    assert main(["diff", str(one), str(two)]) == 2
    assert reason in capsys.readouterr().err
    code, document = as_json(capsys, one, two, "--anyway")
    assert code == 0 and any(reason in line for line in document["unlike"])


def test_other_arms_and_accelerators_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An arm more, or the VM under TCG."""
    one = run(tmp_path / "one", 1)
    fewer = run(tmp_path / "fewer", 2, arms=("container", "process"))
    assert main(["diff", str(one), str(fewer)]) == 2
    assert "the arms were vm, container, process, are container" in capsys.readouterr().err
    emulated = run(tmp_path / "tcg", 2, kind="tcg")
    assert main(["diff", str(one), str(emulated)]) == 2
    assert "vm ran by kvm, and by tcg" in capsys.readouterr().err


def test_a_run_that_deviates_from_its_registration_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever of the two it is, and not the other; what was changed is said."""
    folders = []
    for n, name in enumerate(("one", "two")):
        record = synthetic.run_record(run_id=name, kind="kvm")
        record["registration"] = registration.register(record)
        if name == "two":
            record["plan"]["alpha"] = 0.06
        folders.append(synthetic.write_run(tmp_path / name, seed=n, record=record))
    _, document = as_json(capsys, *folders)
    said = [note for note in document["notes"] if "registered" in note]
    assert said == ["the second run, two, is not as it was registered: alpha was 0.05, is 0.06"]


def test_emulated_arms_are_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures, no verdict; where nothing else is there, that is no success."""
    one, two = (run(tmp_path / name, seed, kind="tcg") for name, seed in (("a", 1), ("b", 2)))
    _, document = as_json(capsys, one, two)
    verdicts = {arm: c["verdict"] for (arm, w, m), c in rows(document).items()
                if (w, m) == ("redis", "startup_ready")}  # fmt: skip
    assert verdicts["vm (TCG)"] == "emulated" and verdicts["container"] != "emulated"

    def nothing_primary(record: dict[str, Any]) -> None:
        record["plan"]["primary"] = []

    one, two = (run(tmp_path / n, s, edit=nothing_primary) for n, s in (("c", 1), ("d", 2)))
    assert main(["diff", str(one), str(two)]) == 2
    assert "nothing of these runs can be judged" in capsys.readouterr().err


def test_a_run_against_itself_and_a_missing_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are bad input, named."""
    one = run(tmp_path / "one", 1)
    assert main(["diff", str(one), str(one)]) == 2
    assert "one and the same run" in capsys.readouterr().err
    assert main(["diff", str(one), str(tmp_path / "none")]) == 2


def test_false_alarms_of_a_pipeline_are_rare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixteen pairs of runs of one truth: at most one is called different in anything."""
    runs = [run(tmp_path / str(seed), seed, blocks=10, workloads=("redis", "xz"))
            for seed in range(17)]  # fmt: skip
    codes = [as_json(capsys, a, b)[0] for a, b in itertools.pairwise(runs)]
    assert sum(codes) <= 1
