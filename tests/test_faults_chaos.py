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

pytestmark = [pytest.mark.root, pytest.mark.vm]
SHORT_ROUNDS = 2


def test_whatever_happens_nothing_stays_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within 5 s or after the next command nothing is left; the run goes on and is valid."""
    seed = int(os.environ.get("HVCT_CHAOS_SEED") or secrets.randbelow(10**6))
    rounds = int(os.environ.get("HVCT_CHAOS_ROUNDS") or SHORT_ROUNDS)
    first = int(os.environ.get("HVCT_CHAOS_FIRST") or 0)
    only = os.environ.get("HVCT_CHAOS_ROUND")
    machines = os.environ.get("HVCT_CHAOS_MACHINES") == "1"
    log = chaos.Log()
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
        except AssertionError as failure:
            raise AssertionError(f"{game}\nreplay it: {replay}\n{failure}") from failure
    with capsys.disabled():
        print(f"\n{log}")
