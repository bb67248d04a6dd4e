"""Random faults at random moments; the long form is `nox -s chaos`.

``HVCT_CHAOS_ROUNDS`` rounds of ``HVCT_CHAOS_SEED`` (by default a new one each time, which is
printed), from ``HVCT_CHAOS_FIRST`` on, or only ``HVCT_CHAOS_ROUND``; with virtual machines in
one round of three where ``HVCT_CHAOS_MACHINES`` is 1.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import chaos
import pytest

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.undoes]
SHORT_ROUNDS = 2


LIBVIRTD = (372, 1)
"""Seed and round in which libvirtd is killed, then harness and helpers: virtual machines by it."""


def test_a_daemon_that_is_killed_and_then_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on when libvirtd is back, at most the current block is lost, nothing stays."""
    game = chaos.draw(*LIBVIRTD, machines=True)
    assert game.daemon and "vm" in game.arms
    assert [blow.fault for blow in game.blows] == [chaos.Fault.DAEMON, chaos.Fault.ONE_BY_ONE]
    log = chaos.Log()
    try:
        chaos.play(game, tmp_path, log)
    finally:
        with capsys.disabled():
            print(f"\n  {game}\n{log}")
    assert log.struck.get(chaos.Fault.DAEMON.value) == 1, "it came too late"


def test_whatever_happens_nothing_stays_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within 5 s or after the next command nothing is left; the run goes on and is valid."""
    seed = int(os.environ.get("HVCT_CHAOS_SEED") or secrets.randbelow(10**6))
    rounds = int(os.environ.get("HVCT_CHAOS_ROUNDS") or SHORT_ROUNDS)
    first = int(os.environ.get("HVCT_CHAOS_FIRST") or 0)
    only = os.environ.get("HVCT_CHAOS_ROUND")
    machines = os.environ.get("HVCT_CHAOS_MACHINES") == "1"
    log, failures = chaos.Log(), list[str]()
    numbers = [int(only)] if only else range(first, first + rounds)
    for number in numbers:
        game = chaos.draw(seed, number, machines=machines)
        with capsys.disabled():
            print(f"\n  {game}", end="", flush=True)
        folder = tmp_path / str(number)
        folder.mkdir()
        replay = f"HVCT_CHAOS_SEED={seed} HVCT_CHAOS_ROUND={number}"
        replay += f" HVCT_CHAOS_MACHINES={int(machines)} nox -s chaos"
        try:
            chaos.play(game, folder, log)
        except AssertionError as failure:  # the other rounds are worth having
            failures.append(f"{game}\nreplay it: {replay}\n{failure}")
            with capsys.disabled():
                print(f": failed\n{failure}", end="", flush=True)
    with capsys.disabled():
        print(f"\n{log}")
    assert not failures, "\n\n".join(failures)
