"""So many instances standing idle, as stored: ``steps.jsonl``, one line a step, appended.

Format history:
    1: first version.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.arms import ARMS
from bench.errors import BadInput, HostCannot, oserror

STEPS_FILE = "steps.jsonl"
FORMAT = 1

EXPERIMENT = "costs"
"""The experiment of a plan whose first workload is held, and whose second is work."""

PAGE_BYTES = float(os.sysconf("SC_PAGE_SIZE"))
"""The smallest difference that the kernel's counters show."""


def is_guest(arm: str) -> bool:
    """Whether an arm's instances are virtual machines."""
    return ARMS[arm].guest


@dataclass(frozen=True)
class Step:
    """So many instances of one arm standing idle, and what was read. Sums are in bytes.

    Attributes:
        round, attempt: a pass is a round of one arm; one cut short is measured anew, whole.
        available_bytes: the host's MemAvailable, with the free pages that CPUs keep to themselves.
        kernel_bytes: the host's kernel memory that cannot be reclaimed, whoever caused it.
        anon_bytes … pss_bytes: sums over the instances.
        guest_bytes: of `anon_bytes` what backs the RAM of guests; None where there is no guest.
        helpers_bytes, harness_bytes: private memory of launcher or worker, and of hvct itself.
        helpers_pss_bytes: PSS of launcher or worker.
        shared_bytes: page cache of what this arm reads, image and programs, held once for all.
        window_s, cpu_s, helpers_cpu_s: idle time watched, and CPU time in it.
        error: why the pass ended here, "" where it did not.
    """

    round: int
    attempt: int
    arm: str
    position: int
    instances: int
    available_bytes: float = 0.0
    kernel_bytes: float = 0.0
    anon_bytes: float = 0.0
    shmem_bytes: float = 0.0
    charged_kernel_bytes: float = 0.0
    file_bytes: float = 0.0
    pss_bytes: float = 0.0
    guest_bytes: float | None = None
    helpers_bytes: float = 0.0
    helpers_pss_bytes: float = 0.0
    harness_bytes: float = 0.0
    shared_bytes: float = 0.0
    window_s: float = 0.0
    cpu_s: float = 0.0
    helpers_cpu_s: float = 0.0
    wall_time: str = ""
    error: str = ""


def append(directory: Path, step: Step) -> None:
    """Add one step and flush it to disk; a line cut off by a kill spoils nothing but itself.

    Raises:
        HostCannot: it cannot be written.
    """
    path = directory / STEPS_FILE
    try:
        with path.open("ab+") as handle:
            end = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, end - 1))
            cut = end > 0 and handle.read(1) != b"\n"
            line = json.dumps({"format": FORMAT, **asdict(step)}, allow_nan=False)
            handle.write((b"\n" if cut else b"") + line.encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise HostCannot(oserror("write", path, error).message, "make room there") from error


def read_steps(directory: Path) -> list[Step]:
    """Every stored step; none where the run has no such file.

    Raises:
        BadInput: a whole line is none.
    """
    path = directory / STEPS_FILE
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadInput(oserror("read", path, error).message, "check its permissions") from error
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut off when the run was killed
        try:
            if entry.pop("format") != FORMAT:
                raise ValueError(f"this version reads format {FORMAT}")
            step = Step(**entry)
            figures = [value for key, value in entry.items() if key.endswith(("_bytes", "_s"))]
            if not all(math.isfinite(value) for value in figures if value is not None):
                raise ValueError("a number is not finite")
            if not all(isinstance(n, int) for n in (step.round, step.attempt, step.instances)):
                raise TypeError("a count is no whole number")
            if not step.error and not step.window_s > 0:
                raise ValueError("it took no time")
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise BadInput(
                f"{path}: line {number} is no step ({error})",
                "the file was changed by hand; restore it from a copy",
            ) from error
        steps.append(step)
    return steps


def passes(
    steps: Sequence[Step], wanted: Mapping[str, Sequence[int]]
) -> tuple[dict[tuple[str, int], list[Step]], int]:
    """(arm, round) → the steps of its first complete attempt; and how many were cut short.

    Args:
        wanted: the numbers of instances of each arm's steps.
    """
    attempts: dict[tuple[str, int, int], list[Step]] = {}
    for step in steps:
        attempts.setdefault((step.arm, step.round, step.attempt), []).append(step)
    complete: dict[tuple[str, int], list[Step]] = {}
    short = 0
    for (arm, number, _), own in sorted(attempts.items()):
        good = [step for step in own if not step.error]
        if sorted(step.instances for step in good) == sorted(wanted.get(arm, ())):
            complete.setdefault((arm, number), good)
        else:
            short += 1
    return complete, short
