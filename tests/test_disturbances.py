"""What else went on: rates between two snapshots, and waiting until the host is quiet."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time

import pytest
from launching import enter

from bench import cgroup, disturbances
from bench.disturbances import Snapshot, between, unmet, unrest, wait_quiet

TAG = f"d{os.getpid() % 10000:04d}"
BURN = "import time\nwhile time.process_time() < 0.6: pass"


def snapshot(second: float, **cpu_s: float) -> Snapshot:
    """A snapshot with these CPU seconds."""
    return Snapshot(round(second * 1e9), cpu_s, charged_s=0.0, harness_s=0.0)


def test_rates_are_per_second_and_in_cpus() -> None:
    """Half a second of work and 50 ms stolen in one second are 0.5 and 0.05 CPUs."""
    seen = between(snapshot(10.0, user=1.0, steal=0.0), snapshot(11.0, user=1.5, steal=0.05))
    assert seen["busy_cpus"] == pytest.approx(0.5)
    assert seen["steal_cpus"] == pytest.approx(0.05)
    assert seen["window_s"] == pytest.approx(1.0)


def test_work_of_the_instance_and_of_the_harness_is_not_foreign() -> None:
    """Only what is left counts as other load, and never less than nothing."""
    before = Snapshot(0, {"user": 0.0}, charged_s=1.0, harness_s=2.0)
    after = Snapshot(10**9, {"user": 1.0}, charged_s=1.4, harness_s=2.1)
    assert between(before, after)["other_cpus"] == pytest.approx(0.5)
    more = Snapshot(10**9, {"user": 1.0}, charged_s=3.0, harness_s=2.1)
    assert between(before, more)["other_cpus"] == 0.0


def test_two_snapshots_at_once_do_not_divide_by_zero() -> None:
    """An empty window has rates of zero."""
    one = Snapshot.take()
    assert between(one, one)["other_cpus"] == 0.0


def test_a_snapshot_of_this_host_has_every_reading() -> None:
    """Steal, pressure, swapping, context switches and levels are all there."""
    seen = between(Snapshot.take(), Snapshot.take(helpers=[os.getpid()]))
    assert {"steal_cpus", "other_cpus", "context_switches_per_s", "pswpin_per_s",
            "procs_running", "dirty_bytes", "writeback_bytes"} <= seen.keys()  # fmt: skip
    if os.path.exists("/proc/pressure/cpu"):
        assert {"psi_cpu", "psi_memory", "psi_io_full"} <= seen.keys()


@pytest.mark.root
@pytest.mark.alone
def test_a_burning_instance_is_charged_and_not_other_load() -> None:
    """The same work counts as the instance's when its group is named, else as foreign."""
    group = cgroup.Cgroup.create(TAG, "one")
    try:
        before = Snapshot.take(group)
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BURN],
            preexec_fn=functools.partial(enter, group),
        )
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # reaped: it would be harness
        after = Snapshot.take(group)
        child.wait()
        seen = between(before, after)
        charged_s = seen["instance_cpus"] * seen["window_s"]
        assert charged_s == pytest.approx(0.6, abs=0.05)
        unnamed = between(before, Snapshot(after.stamp_ns, after.cpu_s, before.charged_s,
                                           after.harness_s))  # fmt: skip
        difference_s = (unnamed["other_cpus"] - seen["other_cpus"]) * seen["window_s"]
        assert difference_s == pytest.approx(charged_s, abs=0.1)
    finally:
        group.remove()
        cgroup.remove_all(TAG)


def test_limits_of_quiet_say_what_and_how_much() -> None:
    """Each reading has its limit; load that is meant to be there is allowed."""
    quiet = {"other_cpus": 0.0, "steal_cpus": 0.0, "psi_io_full": 0.0, "writeback_bytes": 0.0}
    assert unrest(quiet) == []
    assert unrest({}) == []
    count = os.cpu_count() or 1
    (reason,) = unrest({**quiet, "other_cpus": 0.5 * count})
    assert reason.startswith("other programs use ")
    assert unrest({**quiet, "other_cpus": 0.5 * count}, expected_cpus=0.4 * count) == []
    assert len(unrest({**quiet, "psi_io_full": 0.5, "writeback_bytes": 1e9})) == 2
    for name, value in {"psi_cpu": 0.5, "psi_memory": 0.2, "dirty_bytes": 1e9}.items():
        assert list(unmet({**quiet, name: value})) == [name]
    assert list(unmet({**quiet, "procs_running": count + 1})) == ["procs_running"]
    assert unmet({**quiet, "procs_running": count + 1}, expected_cpus=1.0) == {}


def test_settling_ends_by_the_deadline_and_flags_a_busy_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A host that never is quiet does not stop the run: the trial is marked."""
    monkeypatch.setitem(disturbances.LIMITS, "other_cpus", (-1.0, False))
    began = time.monotonic_ns()
    seen = wait_quiet(began + 400_000_000, gap_s=0.01)
    assert seen["settle_flagged"] == 1.0
    assert {"settle_s", "settle_other_cpus", "settle_steal_cpus"} <= seen.keys()
    assert seen["settle_unmet_other_cpus"] == 1.0, "which condition it was is stored"
    assert not any(name in seen for name in disturbances.LIMITS), "trial readings would be lost"


def test_settling_keeps_the_gap_and_stops_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without unrest only the gap and one window are waited for."""
    monkeypatch.setattr(disturbances, "LIMITS", {"other_cpus": (1e9, False)})
    seen = wait_quiet(gap_s=0.05)
    assert seen["settle_flagged"] == seen["settle_unmet_other_cpus"] == 0.0
    assert seen["settle_s"] >= 0.05 + disturbances.WINDOW_S
