"""A/A calibration: what an arm shows against itself, kept per host, and only ever stricter."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from bench import calibration, findings, plan, schedule, store, workloads
from bench.cli import main
from bench.errors import BadInput
from bench.image import store as images
from bench.model import Better, Scale
from bench.schedule import TWIN
from bench.stats.noise import Noise, Place, analyse
from bench.stats.pairs import PairedSeries
from bench.stats.verdict import Verdict
from reports.analysis import analyse as analyse_run
from reports.data import read

ARMS = ("vm", "container", "process")
DIGESTS = {"default": synthetic.run_record()["images"]["default"]["digest"]}
Change = Callable[[dict[str, Any], str], None]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches what this host really keeps."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state of mine"))


def calibrated(folder: Path, blocks: int = 24, change: Change | None = None) -> store.StoredRun:
    """A calibration of redis as `hvct calibrate` stores it; `change` gets the arm before."""
    names = ("redis", "redis" + TWIN)
    record = synthetic.run_record(kind="kvm", blocks=blocks, workloads=names)
    record["plan"] |= {"experiment": schedule.AGAINST_ITSELF, "primary": [], "seed": 3}
    twin = {**synthetic.workload("redis"), "name": names[1]}
    record["plan"]["workloads"] = [synthetic.workload("redis"), twin]
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record))
    random, before, lines = np.random.default_rng(5), "", []
    for slot in schedule.against_itself(ARMS, ["redis"], blocks, 3):
        line = synthetic.trial(random, slot.arm, "redis", slot.block, slot.position, "kvm")
        line["workload"] = slot.workload
        if change is not None:
            change(line, before)
        lines.append(json.dumps(line))
        before = slot.arm
    (folder / "trials.jsonl").write_text("\n".join(lines) + "\n")
    return store.load(folder)


def of(found: list[Noise], arm: str, metric: str = "startup_ready") -> Noise:
    """One arm's noise in one metric."""
    return next(one for one in found if (one.arm, one.metric) == (arm, metric))


def scaled(line: dict[str, Any], factor: float) -> None:
    """All figures of one trial, whatever its arm."""
    synthetic.scale_arm(line, line["arm"], factor)


# -- the design ----------------------------------------------------------------------------


def test_every_arm_stands_twice_in_a_block_and_in_balance() -> None:
    """Six treatments: the second trial of an arm comes before the first as often as after."""
    slots = schedule.against_itself(ARMS, ["redis", "hello"], 12, seed=3)
    assert len(slots) == 12 * 2 * 6
    first = Counter[str]()
    for block in range(12):
        own = [s for s in slots if s.block == block and s.workload.startswith("redis")]
        assert Counter(s.arm for s in own) == dict.fromkeys(ARMS, 2)
        for arm in ARMS:
            first[arm] += next(s for s in own if s.arm == arm).workload == "redis"
    assert all(4 <= count <= 8 for count in first.values()), first
    names = ("redis", "redis" + TWIN, "hello", "hello" + TWIN)
    assert schedule.of_plan(schedule.AGAINST_ITSELF, ARMS, names, 12, 3) == slots
    assert schedule.of_plan("startup, work", ARMS, names, 12, 3) == schedule.build(
        ARMS, names, 12, 3
    )


def test_a_plan_of_too_few_blocks_is_refused() -> None:
    """Five blocks give no interval, so no floor."""
    with pytest.raises(BadInput, match="5 blocks"):
        calibration.plan_of(workloads.quick_suite()[:1], ARMS, 5)
    made = calibration.plan_of(workloads.quick_suite()[:2], ARMS, 6)
    assert [w.name for w in made.workloads] == ["hello", "hello~2", "redis", "redis~2"]
    assert made.primary == ()


# -- what is found -------------------------------------------------------------------------


def against_itself(values: np.ndarray, places: dict[int, Place] | None = None) -> Noise:
    """Noise of a series whose logarithmic differences are these."""
    rows = [(n, "ok", math.exp(value), "ok", 1.0) for n, value in enumerate(values.tolist())]
    series = PairedSeries("t", "w", "vm", "vm", "s", Scale.RATIO, Better.LOWER, 0.0, 0.0, rows)
    here = places or {n: Place((n % 2, 1 - n % 2), ("", "")) for n in range(len(rows))}
    found = analyse(series, here)
    assert found is not None
    return found


def test_the_detectable_effect_is_what_a_normal_spread_gives() -> None:
    """Spread 10 %, n = 20 and 50: (1.96 + 0.84) standard errors, less than a fifth off."""
    rng = np.random.default_rng(1)
    found = against_itself(rng.normal(0.0, 0.1, 200))
    for n in (20, 50):
        expected = math.expm1((1.96 + 0.84) * 0.1 / math.sqrt(n))
        assert found.detectable[n] == pytest.approx(expected, rel=0.2)
    sizes = [found.detectable[n] or 0.0 for n in (10, 12, 20, 50)]
    assert sizes == sorted(sizes, reverse=True)


def test_an_arm_seldom_differs_from_itself() -> None:
    """Of 150 A/A intervals about one in twenty leaves out nothing, and the floor is its end."""
    rng = np.random.default_rng(2)
    found = [against_itself(rng.standard_t(3, 12) * 0.05) for _ in range(150)]
    assert 1 <= sum(one.false_alarm for one in found) <= 17
    for one in found:
        assert one.floor is not None and one.floor >= abs(one.low) - 1e-12
        assert one.floor >= one.high


def test_few_pairs_give_no_floor() -> None:
    """Five pairs have no interval; twelve have one."""
    rng = np.random.default_rng(3)
    few = against_itself(rng.normal(0, 0.1, 5))
    assert few.floor is None and set(few.detectable.values()) == {None}
    assert against_itself(rng.normal(0, 0.1, 12)).floor is not None


def test_a_later_place_that_costs_is_found(tmp_path: Path) -> None:
    """Each place later in the block takes 6 % longer: found, and its size with it."""
    found = calibration.noise(
        calibrated(tmp_path / "run", change=lambda line, _: scaled(line, 1.06 ** line["position"]))
    )
    one = of(found, "container")
    assert one.position == pytest.approx(0.06, abs=0.02) and one.position_p < 0.01
    still = of(calibration.noise(calibrated(tmp_path / "still")), "container")
    assert still.position_p > 0.01 and abs(still.position) < 0.03


def test_who_ran_before_is_found(tmp_path: Path) -> None:
    """What follows a VM takes 30 % longer: the interval of that effect holds 1.3."""

    def slow_after_vm(line: dict[str, Any], before: str) -> None:
        if before == "vm":
            scaled(line, 1.3)

    found = calibration.noise(calibrated(tmp_path / "run", blocks=36, change=slow_after_vm))
    follows = {item.arm: item for item in of(found, "container").follows}
    assert follows["vm"].shown and follows["vm"].low < 0.3 < follows["vm"].high
    assert follows["vm"].estimate == pytest.approx(0.3, abs=0.05)


def test_failed_trials_take_their_pairs_out(tmp_path: Path) -> None:
    """Counted, not hidden."""

    def fail(line: dict[str, Any], _: str) -> None:
        if line["block"] < 3 and line["arm"] == "vm" and line["workload"].endswith(TWIN):
            synthetic.spoil(line, "failed", "exit status 1")

    one = of(calibration.noise(calibrated(tmp_path / "run", change=fail)), "vm")
    assert (one.n, one.n_blocks) == (21, 24)


def test_only_a_calibration_is_one(tmp_path: Path) -> None:
    """An ordinary run says what to do instead."""
    with pytest.raises(BadInput, match="no calibration"):
        calibration.noise(store.load(synthetic.write_run(tmp_path / "run")))


# -- what is kept --------------------------------------------------------------------------


def keep(folder: Path, **options: Any) -> dict[str, Any]:
    """Calibrate, keep, and return the host's facts."""
    stored = calibrated(folder, **options)
    calibration.keep(stored, calibration.noise(stored))
    facts: dict[str, Any] = stored.run["host"]
    return facts


def test_floors_are_of_the_same_work_on_the_same_host(tmp_path: Path) -> None:
    """The workload by what it does, whatever its name; another one has no floor."""
    facts = keep(tmp_path / "run")
    redis = synthetic.workload("redis")
    named = calibration.floors(
        facts, [{**redis, "name": "mine"}], ("container", "process"), DIGESTS
    )
    assert {(row["workload"], row["arm"]) for row in named["floors"]} == {
        ("mine", "container"), ("mine", "process"),
    }  # fmt: skip
    assert calibration.floors(facts, [{**redis, "timeout_s": 1.0}], ARMS, DIGESTS)["floors"] == []


def test_floors_are_of_the_same_image(tmp_path: Path) -> None:
    """By its digest, whatever its name; another of that name has none, nor one not there yet."""
    facts = keep(tmp_path / "run")
    redis = synthetic.workload("redis")
    renamed = [{**redis, "image": "mine:1"}]
    assert calibration.floors(facts, renamed, ARMS, {"mine:1": DIGESTS["default"]})["floors"]
    rebuilt = {"default": "sha256:" + "0" * 64}
    assert calibration.floors(facts, [redis], ARMS, rebuilt)["floors"] == []
    assert calibration.floors(facts, [redis], ARMS, {})["floors"] == []


def test_a_tuned_host_does_not_erase_the_host_as_it_comes(tmp_path: Path) -> None:
    """Two fingerprints, two files; each finds its own, and a third finds neither."""
    plain = keep(tmp_path / "plain")
    stored = calibrated(tmp_path / "tuned", blocks=12)
    stored.run["host"]["cpu"]["governor"] = "performance"
    calibration.keep(stored, calibration.noise(stored))
    tuned = stored.run["host"]
    assert [entry["blocks"] for entry in calibration.known(plain).entries] == [24]
    assert [entry["blocks"] for entry in calibration.known(tuned).entries] == [12]
    assert len(list(calibration.place().iterdir())) == 2
    third = {**tuned, "cpu": {**tuned["cpu"], "governor": "powersave"}}
    (why,) = calibration.known(third).expired
    assert why.startswith("cpu.governor: ") and why.endswith("against powersave")


def test_a_changed_host_is_not_calibrated(tmp_path: Path) -> None:
    """Another kernel: nothing counts, and the reason is said."""
    facts = keep(tmp_path / "run")
    changed = {**facts, "kernel": {**facts["kernel"], "release": "6.19.0"}}
    found = calibration.known(changed)
    assert found.entries == () and found.expired == ("kernel.release: 6.18.5-cloud against 6.19.0",)
    assert calibration.known({**facts, "boot_id": "another"}).entries, "a reboot changes nothing"


def test_another_workload_is_added_and_the_same_one_replaced(tmp_path: Path) -> None:
    """One entry for each workload, the newest."""
    keep(tmp_path / "one")
    facts = keep(tmp_path / "two", blocks=12)
    (entry,) = calibration.known(facts).entries
    assert entry["blocks"] == 12
    stored = calibrated(tmp_path / "three")
    for item in stored.run["plan"]["workloads"]:
        item["timeout_s"] = 5.0
    calibration.keep(stored, calibration.noise(stored))
    assert len(calibration.known(facts).entries) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 9, "entries": [], "host": {}}'])
def test_a_damaged_file_is_no_calibration(tmp_path: Path, damage: str) -> None:
    """Verdicts then go without a floor, and nothing fails."""
    calibration.place().mkdir(parents=True)
    (calibration.place() / "0123456789abcdef.json").write_text(damage)
    assert calibration.known({}).entries == ()


# -- what it does to verdicts --------------------------------------------------------------


def report_with(folder: Path, floor: float) -> dict[tuple[str, str], str]:
    """Verdicts of a run that knows this floor for redis and nginx."""
    record = synthetic.run_record(kind="kvm", blocks=20)
    record["plan"]["margins"] |= {"startup_started": 0.10}
    record["calibration"] = {
        "created": "2026-11-24T00:00:00+00:00",
        "expired": [],
        "floors": [
            {"metric": metric, "workload": name, "arm": "container", "floor": floor, "n": 12}
            for metric, name in (
                ("startup_ready", "redis"), ("startup_started", "minimal"),
                ("work_per_cpu_second", "xz"),
            )
        ],
    }  # fmt: skip
    run = analyse_run(read(synthetic.write_run(folder, record=record)))
    return {(c.metric, c.workload): c.verdict for c in run.comparisons if c.primary}


def test_a_floor_only_makes_verdicts_stricter(tmp_path: Path) -> None:
    """Higher floors turn verdicts into `undecided`, one by one, and never the other way."""
    counts = []
    before = report_with(tmp_path / "none", 0.0)
    for n, floor in enumerate((0.01, 0.3, 5.0, 1e6)):
        now = report_with(tmp_path / str(n), floor)
        for key, verdict in now.items():
            assert verdict in (before[key], Verdict.UNDECIDED, Verdict.EQUIVALENT), (key, floor)
            if verdict == Verdict.EQUIVALENT:
                assert before[key] in (Verdict.EQUIVALENT, Verdict.DETECTABLE_INSIDE_MARGIN)
        counts.append(sum(verdict == Verdict.UNDECIDED for verdict in now.values()))
        before = now
    assert counts == sorted(counts) and counts[0] < counts[-1] == 3


def test_the_report_says_what_is_known_of_the_noise(tmp_path: Path) -> None:
    """A floor above the margin is a warning; no calibration, or an expired one, a note."""
    record = synthetic.run_record(kind="kvm", blocks=12)
    floor = {"metric": "startup_ready", "workload": "redis", "arm": "vm", "floor": 0.2, "n": 9}
    for kept, code in (
        ({"floors": [floor], "expired": [], "created": "x"}, "floor-above-margin"),
        ({"floors": [], "expired": ["kernel.release: 6 against 7"]}, "not-calibrated"),
    ):
        record["calibration"] = kept
        run = analyse_run(read(synthetic.write_run(tmp_path / code, record=dict(record))))
        (finding,) = [f for f in run.findings if f["code"] == code]
        assert "4.0 times" in finding["message"] or "6 against 7" in finding["message"]


# -- the command ---------------------------------------------------------------------------


def test_it_says_beforehand_how_long_and_what_not(capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run needs no root and touches nothing."""
    assert main(["calibrate", "hello", "--arms", "container,process", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 arms against itself, 1 workload, 12 blocks: 48 trials, about" in said
    assert "It cannot show:" in said and "reboots" in said and "tails" in said


def test_a_plan_is_calibrated_with_its_own_work_and_arms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its blocks are its own affair; a preset and an image are work as well."""
    path = tmp_path / "mine.toml"
    path.write_text(
        'blocks = 50\narms = ["container", "process"]\n'
        '[[workload]]\nname = "mine"\nimage = "busybox"\nargv = ["true"]\n'
        '[[workload]]\nname = "two"\nimage = "busybox"\nargv = ["sleep", "1"]\n'
    )
    assert main(["calibrate", "--plan", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 arms against itself, 2 workloads, 12 blocks: 96 trials" in said
    assert main(["calibrate", "startup", "--arms", "process", "--blocks", "6", "--dry-run"]) == 0
    assert "1 arms against itself, 1 workload, 6 blocks" in capsys.readouterr().out
    words = ["calibrate", "--image", "busybox", "--dry-run", "--", "true"]
    assert main(words) == 0 and "3 arms against itself, 1 workload" in capsys.readouterr().out
    assert main(["calibrate", "hello", "--plan", str(path), "--dry-run"]) == 2


def test_a_plan_too_small_for_its_margin_is_warned_of() -> None:
    """By what was calibrated for the most blocks that are not more than the plan's."""
    record = synthetic.run_record(kind="kvm", blocks=19)
    sizes = {"10": 0.2, "12": 0.08, "20": 0.01, "50": None}
    row = {"metric": "startup_ready", "workload": "redis", "arm": "vm", "floor": 0.0, "n": 9}
    record["calibration"] = {"floors": [{**row, "detectable": sizes}], "expired": []}
    (found,) = findings.beyond_detection(record)
    assert found.code == "plan-too-small" and "1.6 times the margin" in found.message
    record["plan"]["blocks"] = 20
    assert list(findings.beyond_detection(record)) == []
    record["plan"]["blocks"] = 60
    assert list(findings.beyond_detection(record)) == [], "not known"
    record["plan"]["blocks"] = 8
    assert list(findings.beyond_detection(record)) == [], "fewer than were looked at"


@pytest.mark.root
@pytest.mark.alone
def test_a_host_is_calibrated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured, kept, shown again from the run, and known to the next comparison."""
    if os.geteuid() != 0:
        pytest.skip("measuring needs root")
    monkeypatch.chdir(tmp_path)
    words = ["calibrate", "hello", "--arms", "container", "--wait"]
    assert main([*words, "--blocks", "6", "--output", "a run", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["calibrate", "--show", "a run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["arm"] for row in rows} == {"container"}
    started = [row for row in rows if row["metric"] == "startup_started"]
    assert [row["n"] for row in started] == [6] and started[0]["floor"] > 0
    assert main(["calibrate", "--show", "a run"]) == 0
    assert "against itself" in capsys.readouterr().out
    chosen = plan.quick((workloads.builtin("hello"),), arms=("container", "process"), blocks=6)
    facts = store.load(Path("a run")).run["host"]
    plain = [store.jsonable(dataclasses.replace(one, title="")) for one in chosen.workloads]
    digests = images.digests(["busybox"])
    assert len(calibration.floors(facts, plain, chosen.arms, digests)["floors"]) > 5
    assert main(["archive", "a run"]) == 0
    capsys.readouterr()
    assert main(["calibrate", "--show", "a run.hvct.tar.gz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows
