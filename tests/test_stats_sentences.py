"""Sentences: scope, effect, verdict; under emulation nothing about virtualisation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from bench.model import Scale
from bench.stats.sentences import (
    effect_text,
    level_text,
    margin_text,
    sentence,
    verdict_text,
)
from bench.stats.verdict import ArmLevel, Claims, Comparison, Verdict

MIB = float(1 << 20)

STARTUP = Comparison(
    metric="startup_ready",
    workload="this workload",
    arm="vm",
    baseline="container",
    scale=Scale.RATIO,
    unit="s",
    n_pairs=12,
    n_blocks=12,
    n_failed_arm=0,
    n_failed_baseline=0,
    n_timeouts=0,
    n_below=0,
    estimate=84.2,
    bound=None,
    low=79.1,
    high=90.3,
    p_value=0.0005,
    p_adjusted=0.002,
    claims=Claims(),
    family_size=4,
    verdict=Verdict.DIFFERENT,
    margin=0.05,
    resolution=0.001,
    floor=0.0,
    needed_n=None,
    failure_p=None,
    reason="the interval lies beyond the margin",
    arm_level=ArmLevel(1.94, 1.9, 2.0, 12),
    baseline_level=ArmLevel(0.0005, 0.0004, 0.0006, 12),
    timeout=60.0,
    title="start-up to ready",
    phrase="to become ready",
)


def changed(**settings: Any) -> Comparison:
    """The start-up comparison with other values."""
    return dataclasses.replace(STARTUP, **settings)


def test_the_sentence_of_a_ratio_of_times() -> None:
    """The sentence that the design exists for."""
    assert sentence(STARTUP) == (
        "in this run on this host, as a VM this workload takes 84× [79, 90] as long "
        "to become ready as in a container (different by more than 5 %)"
    )


def test_the_sentences_of_memory() -> None:
    """More, less, or on both sides of zero; never a double negative."""
    memory = changed(
        scale=Scale.DIFFERENCE, unit="bytes", margin=2 * MIB, phrase="", title="idle memory"
    )
    more = dataclasses.replace(memory, estimate=118 * MIB, low=116 * MIB, high=121 * MIB)
    assert "holds 118 [116, 121] MiB more (idle memory) than in a container" in sentence(more)
    less = dataclasses.replace(memory, estimate=-3 * MIB, low=-4.2 * MIB, high=-2 * MIB)
    assert "holds 3 [2, 4] MiB less (idle memory) than in a container" in sentence(less)
    either = dataclasses.replace(memory, estimate=0.2 * MIB, low=-0.1 * MIB, high=0.5 * MIB)
    assert "differs by +0.2 [−0.1, 0.5] MiB (idle memory) from a container" in sentence(either)
    assert margin_text(more) == "2 MiB"


def test_the_sentence_of_a_rate() -> None:
    """More is better: work is done, not taken."""
    rate = changed(
        estimate=0.93,
        low=0.92,
        high=0.94,
        unit="work/s",
        higher_is_better=True,
        phrase="work per host CPU second",
        baseline="process",
    )
    assert "does 0.93× [0.92, 0.94] as much work per host CPU second as a bare process" in sentence(
        rate
    )


def test_an_emulated_sentence_begins_so_and_concludes_nothing() -> None:
    """Whatever the numbers, virtualisation is not mentioned and no verdict given."""
    text = sentence(changed(verdict=Verdict.EMULATED, arm="vm (TCG)", p_value=None))
    assert text.startswith("under emulation, ")
    assert "as a VM (TCG) this workload takes 84× [79, 90]" in text
    assert text.endswith("this describes an emulator, no verdict")
    assert "virtualisation" not in text and "different" not in text


@pytest.mark.parametrize(
    ("verdict", "ending"),
    [
        (Verdict.EQUIVALENT, "(equivalent within 5 %)"),
        (Verdict.DETECTABLE_INSIDE_MARGIN, "(detectable, but within 5 %)"),
        (Verdict.UNDECIDED, "(undecided for 5 %: because; about 40 blocks would be needed)"),
        (Verdict.NO_VERDICT, "(no verdict: because)"),
    ],
)
def test_every_verdict_ends_its_sentence(verdict: Verdict, ending: str) -> None:
    """With the margin it was judged by, or the reason there is none."""
    assert sentence(changed(verdict=verdict, reason="because", needed_n=40)).endswith(ending)


def test_a_refused_comparison_gives_no_figure() -> None:
    """Only what was refused and why."""
    text = sentence(changed(verdict=Verdict.REFUSED, reason="argv differs"))
    assert text.endswith("start-up to ready of this workload is not compared: argv differs")
    assert "84" not in text


def test_what_is_only_bounded_is_written_as_a_bound() -> None:
    """Timeouts: more than; below the resolution: less than; nothing: a dash."""
    beyond = changed(estimate=math.inf, bound=60.0, high=math.inf)
    assert effect_text(beyond) == "> 60×"
    assert "takes > 60× as long" in sentence(beyond)
    assert effect_text(changed(estimate=0.0, bound=0.033, low=0.0, high=0.04)) == "< 0.033×"
    nothing = changed(estimate=None, low=None, high=None, verdict=Verdict.NO_VERDICT)
    assert effect_text(nothing) == "–"
    assert "has no figure" in sentence(nothing)


def test_each_arms_own_figure() -> None:
    """A value, one below the resolution, a timeout, none."""
    assert level_text(STARTUP, STARTUP.arm_level) == "1.94 s"
    assert level_text(STARTUP, STARTUP.baseline_level) == "< 1 ms"
    assert level_text(STARTUP, ArmLevel(math.inf, None, None, 3)) == "> 60 s"
    assert level_text(STARTUP, ArmLevel()) == "–"


def test_the_verdict_in_full_names_margin_n_and_p() -> None:
    """For a table's note: everything a sceptic asks first."""
    assert verdict_text(STARTUP) == (
        "different: the interval lies beyond the margin "
        "(margin 5 %, n = 12, p = 0.002 after Holm over 4)"
    )
