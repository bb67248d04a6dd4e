"""The schedule: complete, balanced, and the same for the same seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from bench import schedule


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_a_williams_design_balances_position_and_predecessor(count: int) -> None:
    """Each treatment is equally often at each position and after each other one."""
    rows = schedule.williams(count)
    places = Counter((place, value) for row in rows for place, value in enumerate(row))
    follows = Counter(pair for row in rows for pair in pairwise(row))
    assert len(set(places.values())) == 1
    assert len(places) == count * count
    assert len(set(follows.values())) <= 1
    assert len(follows) == count * (count - 1)


def test_every_block_is_complete() -> None:
    """One trial of every arm for every workload, each at its own position."""
    slots = schedule.build(["vm", "container", "process"], ["a", "b"], 7, seed=3)
    for block in range(7):
        mine = [slot for slot in slots if slot.block == block]
        assert len({(slot.arm, slot.workload) for slot in mine}) == len(mine) == 6
        assert [slot.position for slot in mine] == list(range(6))


def test_the_seed_decides_the_order() -> None:
    """The same seed gives the same order, another one another."""
    arms, workloads = ["vm", "container", "process"], ["a", "b", "c"]
    assert schedule.build(arms, workloads, 10, 1) == schedule.build(arms, workloads, 10, 1)
    assert schedule.build(arms, workloads, 10, 1) != schedule.build(arms, workloads, 10, 2)


def test_six_blocks_use_every_row_once() -> None:
    """With three arms the positions balance exactly over six blocks."""
    slots = schedule.build(["x", "y", "z"], ["w"], 6, seed=9)
    assert set(Counter((slot.position, slot.arm) for slot in slots).values()) == {2}
