"""Which trial runs when: seeded random complete blocks, balanced for position and predecessor.

Every block holds one trial of every arm for every workload. Within a workload the arms
follow a row of a Williams design (E. J. Williams, Aust. J. Sci. Res. A 2, 1949), so that
over the rows every arm stands equally often at each position and after each other arm;
which block gets which row, and the order of the workloads, are drawn from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

AGAINST_ITSELF = "calibration"
"""The experiment whose blocks hold every arm twice (`against_itself`)."""

TWIN = "~2"
"""Ends the name of a workload that is another one once more."""


@dataclass(frozen=True)
class Slot:
    """One place in the schedule. `position` counts from 0 within the block."""

    block: int
    position: int
    workload: str
    arm: str


def williams(count: int) -> list[list[int]]:
    """Rows of a Williams design for `count` treatments (twice as many rows when it is odd).

    Over all rows each treatment is equally often at each position and equally often
    directly after each other treatment.
    """
    if count < 1:
        return []
    first: list[int] = []
    low, high = 0, count - 1
    while low <= high:
        first.append(low)
        low += 1
        if low <= high:
            first.append(high)
            high -= 1
    rows = [[(value + shift) % count for value in first] for shift in range(count)]
    if count % 2:
        rows += [row[::-1] for row in rows]
    return rows


def of_plan(
    experiment: str, arms: Sequence[str], workloads: Sequence[str], blocks: int, seed: int
) -> list[Slot]:
    """The schedule that belongs to an experiment."""
    if experiment != AGAINST_ITSELF:
        return build(arms, workloads, blocks, seed)
    once = [name for name in workloads if not name.endswith(TWIN)]
    return against_itself(arms, once, blocks, seed)


def against_itself(
    arms: Sequence[str], workloads: Sequence[str], blocks: int, seed: int
) -> list[Slot]:
    """Blocks in which every arm stands twice, the second time with the workload's twin.

    Balanced over twice as many treatments, so that the two trials of an arm stand as often
    before as after each other, and each after every arm.
    """
    twice = [f"{arm}{mark}" for arm in arms for mark in ("", TWIN)]
    return [
        Slot(
            slot.block,
            slot.position,
            slot.workload + (TWIN if slot.arm.endswith(TWIN) else ""),
            slot.arm.removesuffix(TWIN),
        )
        for slot in build(twice, workloads, blocks, seed)
    ]


def build(arms: Sequence[str], workloads: Sequence[str], blocks: int, seed: int) -> list[Slot]:
    """The whole schedule, in the order it is run."""
    draw = random.Random(seed)
    design = williams(len(arms))
    rows: dict[str, list[list[int]]] = {}
    for workload in workloads:
        chosen: list[list[int]] = []
        while len(chosen) < blocks:
            chosen += draw.sample(design, len(design))
        rows[workload] = chosen
    slots = []
    for block in range(blocks):
        order = draw.sample(list(workloads), len(workloads))
        position = 0
        for workload in order:
            for index in rows[workload][block]:
                slots.append(Slot(block, position, workload, arms[index]))
                position += 1
    return slots
