"""`hvct selfcheck`: known effects put in, and what is said when they come out, or do not."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench import controls, spikein
from bench.cli import main
from bench.commands import selfcheck
from bench.controls import Control
from bench.model import Scale
from bench.spikein import Recovery
from bench.store import StoredRun


def recovered(control: Control, effect: float, *, spread: float, lost: int = 0) -> Recovery:
    """What is said of a control's first injection when the measurements hold this effect."""
    injection = control.injections[0]
    rng = np.random.default_rng(1)
    ratio = injection.scale is Scale.RATIO
    trials: list[dict[str, Any]] = []
    for block in range(control.blocks):
        base = 1.0 + float(rng.normal(0, spread))
        spiked = 1.0 * effect if ratio else 1.0 + effect
        spiked += float(rng.normal(0, spread))
        for workload, value in ((control.base, base), (control.spiked, spiked)):
            missing = block < lost and workload is control.spiked
            trials.append(
                {
                    "arm": "container", "block": block, "workload": workload.name,
                    "outcome": "failed" if missing else "ok",
                    "samples": [] if missing else [{"metric": injection.metric, "value": value}],
                }
            )  # fmt: skip
    stored = StoredRun(Path("nowhere"), {}, trials)
    return spikein.recovery(stored, control, injection, "container")


@pytest.mark.parametrize("control", controls.NATIVE, ids=lambda control: control.name)
def test_an_effect_is_right_only_where_it_came_out(control: Control) -> None:
    """The truth is found; nothing, and twice as much, are not: the check can fail."""
    injection = control.injections[0]
    middle = (injection.low + injection.high) / 2.0
    ratio = injection.scale is Scale.RATIO
    size = middle - 1.0 if ratio else middle
    spread = size / 50.0
    assert selfcheck.right(recovered(control, middle, spread=spread))
    assert not selfcheck.right(recovered(control, 1.0 if ratio else 0.0, spread=spread))
    assert not selfcheck.right(
        recovered(control, middle**2 if ratio else 2 * middle, spread=spread)
    )
    assert not selfcheck.right(recovered(control, middle, spread=20 * size)), "too wide to tell"
    assert not selfcheck.right(recovered(control, middle, spread=spread, lost=4)), "pairs lost"


def test_what_is_resolved_is_half_the_interval() -> None:
    """In the metric's unit, or as a margin; nothing where the interval has no end."""
    one = recovered(controls.START, 0.005, spread=0.0002)
    low, high = one.printed
    assert one.resolves == pytest.approx((high - low) / 2.0)
    cpu = recovered(controls.CPU, 1.1, spread=0.002)
    low, high = cpu.printed
    assert cpu.resolves == pytest.approx(math.sqrt(high / low) - 1.0)
    none = recovered(controls.START, 0.005, spread=0.0002, lost=11)
    assert none.resolves == math.inf and selfcheck.plain(none)["resolves"] is None


def test_a_missed_effect_is_said_plainly(tmp_path: Path) -> None:
    """The table marks it, and the conclusion warns of that metric."""
    good = recovered(controls.START, 0.0051, spread=0.0001)
    bad = recovered(controls.START, 0.02, spread=0.0001)
    with (tmp_path / "out").open("w") as out:
        selfcheck.tell(Console(file=out, width=200), [good, bad])
    said = (tmp_path / "out").read_text()
    assert "MISSED" in said and "1 of 2 effects were not found" in said
    with (tmp_path / "out").open("w") as out:
        selfcheck.tell(Console(file=out, width=200), [good])
    assert "Every effect that was put in came out." in (tmp_path / "out").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arms", "docker"], "no arm 'docker'"),
        (["--controls", "entropy", "--arms", "process"], "no control 'entropy'"),
        (["--blocks", "3"], "3 blocks give no interval"),
    ],
)
def test_what_there_is_not_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input, with what there is; before anything else is looked at."""
    assert main(["selfcheck", "--quiet", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.root
@pytest.mark.alone
def test_a_late_reply_is_recovered(capsys: pytest.CaptureFixture[str]) -> None:
    """On the real path: 0.2 ms on each round trip, read by the workload's own metric."""
    if os.geteuid() != 0:
        pytest.skip("measuring needs root")
    words = ["selfcheck", "--arms", "container,process", "--controls", "latency", "--json"]
    code = main([*words, "--quiet", "--wait"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in rows] == ["container", "process"]
    for found in rows:
        assert found["metric"] == "round_trip" and found["blocks"] == controls.LATENCY.blocks
        assert found["right"] and code == 0, found
        assert found["resolves"] < 0.2e-3
