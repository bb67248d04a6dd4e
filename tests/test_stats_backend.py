"""A simulated backend of known truth, all the way: campaign, store, report, and its statistics.

The tables of docs/method.md draw arrays (`simulation`). Here the same draws are what a backend
does, trial by trial, and the report must say what the arrays say.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import simulation

from bench import schedule, store
from bench.campaign import Campaign
from bench.commands.execution import plan_document
from bench.commands.progress import NoProgress
from bench.context import RunContext
from bench.metrics import table
from bench.model import (
    Accelerator,
    Event,
    ExitStatus,
    Image,
    ImageConfig,
    InstanceSpec,
    Outcome,
    Timeline,
    Workload,
)
from bench.plan import Plan, check
from bench.schedule import Slot
from bench.stats import batch, signed_rank
from bench.trial import run_trial
from reports.analysis import analyse
from reports.data import read

SCALE_S = 0.2
ARMS = ("container", "process")
WORK = Workload("work", "simulated work", "none", ("true",))


class Instance:
    """One launch whose every stamp is drawn; nothing runs, and nothing is waited for."""

    connect_host, stdout, stderr = "", b"", b""
    accelerator, receipt = Accelerator(), dict[str, object]()

    def __init__(self, log_value: float) -> None:
        self.timeline = Timeline()
        self.exit: ExitStatus | None = None
        self._ns = math.inf if math.isinf(log_value) else round(SCALE_S * 1e9 * math.exp(log_value))
        self._began = time.monotonic_ns()
        self.timeline.mark(Event.REQUESTED, self._began)
        self.timeline.mark(Event.STARTED, self._began)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def wait(self, event: Event, _deadline_ns: int) -> bool:
        """It has happened, unless this launch never ends."""
        if event in (Event.ENDED, Event.EXITED):
            if math.isinf(self._ns):
                return False
            self.timeline.mark(event, self._began + int(self._ns))
            self.exit = ExitStatus(0, None)
        return True

    def release(self) -> dict[str, float]:
        """It has no counters."""
        return {}

    def __getattr__(self, name: str) -> Any:
        """What else a trial asks for is there and says nothing (no accounting, no console)."""
        return lambda *_args, **_more: None


class Backend:
    """Launches in the order of the schedule what was drawn for each arm and block."""

    def __init__(self, logs: list[float]) -> None:
        self._logs = iter(logs)

    def helpers(self) -> tuple[int, ...]:
        """None."""
        return ()

    def launch(self, _spec: InstanceSpec) -> Instance:
        """The next one."""
        return Instance(next(self._logs))


class Simulated(Campaign):
    """A campaign of this host's order, store and trials, which waits for no quiet host."""

    def take_receipts(self) -> None:
        """Nothing runs, so nothing can be proved of it."""

    def one(self, slot: Slot, workload: Workload, attempt: int) -> Any:
        """The trial alone: no page is read, no CPU used."""
        wanted = self.make_spec(workload)
        logs = self.run_store.directory / "logs"
        return run_trial(self.backends[slot.arm], slot, workload, wanted, logs, attempt)


def measured(folder: Path, drawn: simulation.Drawn) -> Any:
    """The report of a campaign in which both arms took what was drawn, block by block."""
    n = drawn.arm.shape[1]
    primary = (("run_wall", "work"),)
    # What disturbs this host does not disturb numbers: no block may be left out for it.
    plan = Plan("simulated", ARMS, (WORK,), n, 7, primary, {"run_wall": 0.05}, invalidation={})
    made = check(plan)
    run: dict[str, Any] = {
        "id": "simulated", "created": "", "ended": None, "hvct_version": "", "command": "",
        "plan": plan_document(made), "metrics": store.jsonable(table(made.workloads)),
        "host": {}, "images": {}, "capabilities": [], "findings": [], "receipts": [],
        "descriptions": {},
    }  # fmt: skip
    run_store = store.RunStore.create(folder)
    run_store.write_run(run)
    backends: dict[str, Any] = {
        "container": Backend(drawn.arm[0].tolist()),
        "process": Backend(drawn.baseline[0].tolist()),
    }
    image = Image("none", "sha256:0", folder, 0, "", "amd64", ImageConfig(), "simulated")
    context = RunContext("r0000", folder, folder / "logs")
    nothing: Any = None
    campaign = Simulated(
        made, run, run_store, backends, {"none": image}, context, nothing, NoProgress(made)
    )
    order = schedule.of_plan(made.experiment, ARMS, ["work"], n, made.seed)
    assert [slot.block for slot in order if slot.arm == "process"] == list(range(n))
    campaign.execute()
    return analyse(read(folder))


@pytest.mark.parametrize(("kind", "n", "seed"), [("normal", 12, 1), ("timeouts", 20, 5)])
def test_the_report_of_simulated_trials_says_what_the_arrays_say(
    kind: str, n: int, seed: int, tmp_path: Path
) -> None:
    """Estimate, both ends and the timeouts counted: the same through every layer as by array."""
    drawn = simulation.KINDS[kind].draw(np.random.default_rng(seed), 1, n)
    shifted = simulation.Drawn(drawn.arm + simulation.EFFECT, drawn.baseline)
    report = measured(tmp_path / "run", shifted)
    (row,) = [c for c in report.comparisons if c.metric == "run_wall"]
    low, high = simulation.differences(shifted)
    ends = batch.limits(low, high)
    late = int(np.isinf(shifted.arm).sum() + np.isinf(shifted.baseline).sum())
    assert row.timeouts == late and (late > 0) == (kind == "timeouts")
    assert (row.n, row.primary) == (n, True)
    # Apart only where both arms of a block timed out: then it may be anything.
    least = signed_rank.pseudomedian(low[0], undefined=-math.inf)
    most = signed_rank.pseudomedian(high[0], undefined=math.inf)
    assert row.effect.estimate == pytest.approx(math.exp((least + most) / 2.0))
    assert row.effect.low == pytest.approx(math.exp(ends[0][0]), rel=1e-4)
    assert row.effect.high == pytest.approx(math.exp(ends[1][0]), rel=1e-4)
    outcomes = {Outcome.OK: 2 * n - late, Outcome.TIMEOUT: late}
    assert {o: report.counts[o.value] for o in outcomes} == outcomes
