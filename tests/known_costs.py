"""Stored steps of known truth: what tests of the ledger and of its report share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import steps as step_file
from bench.model import Accelerator
from bench.steps import Step

MIB = float(1 << 20)
GIB = 1024 * MIB
STEPS = {"vm": (0, 5, 10, 20), "container": (0, 10, 25, 50)}
ROUNDS = 4


def step_of(arm: str, number: int, position: int, n: int, drift: float = 0.0) -> Step:
    """A step of a host that loses exactly 10 MiB for a container and 119 for a VM."""
    guest = arm == "vm"
    anon, shmem, kernel, beyond = (100.0, 4.0, 2.0, 3.0) if guest else (7.0, 1.0, 0.5, 0.5)
    own, harness = 1.0 * n, 0.25 * n
    wobble = 0.01 * ((number * 7 + position * 3) % 5 - 2)  # the same in what is lost and named
    named = (anon + shmem + kernel + beyond) * n + own + harness + wobble
    unexplained = (8.75 if guest else 0.0) * n
    return Step(
        round=number, attempt=1, arm=arm, position=position, instances=n,
        available_bytes=20 * GIB - (named + unexplained + drift) * MIB,
        kernel_bytes=(80 + (kernel + beyond) * n + wobble) * MIB,
        anon_bytes=anon * n * MIB,
        shmem_bytes=shmem * n * MIB,
        charged_kernel_bytes=kernel * n * MIB,
        file_bytes=3 * n * MIB,
        pss_bytes=(anon + 5) * n * MIB,
        guest_bytes=80 * n * MIB if guest else None,
        helpers_bytes=(30 + own) * MIB,
        helpers_pss_bytes=(40 + own) * MIB,
        harness_bytes=(60 + harness) * MIB,
        shared_bytes=55 * MIB,
        window_s=2.0, cpu_s=2.0 * 0.01 * n, helpers_cpu_s=2.0 * 0.002,
    )  # fmt: skip


def write(folder: Path, change: Callable[[Step], Step] = lambda step: step) -> Path:
    """A run directory's steps: every pass of both arms, the host drifting between passes."""
    for number in range(ROUNDS):
        for arm, steps in STEPS.items():
            for position, n in enumerate(sorted(steps, key=lambda k: (k * 7 + number) % 11)):
                drift = 900.0 * number
                step_file.append(folder, change(step_of(arm, number, position, n, drift)))
    return folder


COSTS: dict[str, Any] = {
    "host": "a host",
    "hold_s": 2.0,
    "arms": {
        arm: {
            "steps": list(steps),
            "shrunk": "",
            "accelerator": vars(Accelerator("tcg" if arm == "vm" else "none")),
        }
        for arm, steps in STEPS.items()
    },
}
"""As run.json holds it."""
