"""Whoever is killed, and whenever: nothing stays on the host, and what was measured stays valid."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import faults
import pytest

pytestmark = [pytest.mark.root, pytest.mark.undoes]

SWEEP_S = (0.1, 0.3, 1.0, 2.0, 4.0, 6.0)
BOTH = ("vm", "container")  # a process has the container's launcher
ENDED_WITHIN_S = 5.0


@pytest.mark.vm
def test_a_harness_killed_at_any_time(tmp_path: Path) -> None:
    """SIGKILL after 0.1 to 6 s: nothing is left, trials stay as they were, the run goes on."""
    directory = tmp_path / "run"
    before = faults.traces()
    kept = b""
    for after_s in SWEEP_S:
        begun = (directory / "run.json").exists()
        faults.await_turn()
        run = faults.Harness(
            *(faults.resuming(directory) if begun else faults.comparison(tmp_path, BOTH))
        )
        time.sleep(after_s)
        run.kill()
        done = run.end()
        assert done.code == -signal.SIGKILL, done
        faults.assert_gone(before)
        stored = directory / "trials.jsonl"
        now = stored.read_bytes() if stored.exists() else b""
        assert now.startswith(kept)
        kept = now
    done = faults.hvct(*faults.resuming(directory))
    assert done.code == 0, done
    assert (directory / "trials.jsonl").read_bytes().startswith(kept)
    faults.assert_complete(directory, blocks_cut=len(SWEEP_S))
    faults.assert_gone(before)


@pytest.mark.vm
def test_worker_and_launcher_killed(tmp_path: Path) -> None:
    """SIGKILL to the worker, then to the launchers: said in the trials, replaced, none left."""
    directory = tmp_path / "run"
    before = faults.traces()
    faults.await_turn()
    run = faults.Harness(*faults.comparison(tmp_path, BOTH, sleep_s=1.0))

    def count() -> int:
        return len(faults.trials(directory))

    def lines(word: str) -> list[int]:
        return [pid for pid, line in run.processes().items() if word in line]

    try:
        run.until(lambda: count() >= 1)
        for helper, instance in (("hv/worker.py", "/qemu-system"), ("launcher-", "hvct-agent")):
            run.until(lambda name=instance: bool(lines(name)))  # type: ignore[misc]
            time.sleep(0.3)  # in the midst of a trial
            now = count()
            for pid in lines(helper):
                os.kill(pid, signal.SIGKILL)
            run.until(lambda now=now: count() >= now + 3)  # type: ignore[misc]
        run.interrupt()
    finally:
        done = run.end()
    assert done.code == 130 and "Traceback" not in done.err, done
    found = faults.trials(directory)
    failed = [trial for trial in found if trial["outcome"] != "ok"]
    assert [trial["arm"] == "vm" for trial in failed] == [True, False], failed
    assert "VM worker has ended" in failed[0]["error"]
    assert "launcher has ended" in failed[1]["error"]
    faults.assert_gone(before)


@pytest.mark.vm
def test_harness_worker_and_launcher_killed_at_once(tmp_path: Path) -> None:
    """Where nobody is left to clean up, the next command does."""
    before = faults.traces()
    run = faults.Harness(*faults.comparison(tmp_path, sleep_s=5.0))
    run.until(lambda: any("/qemu-system" in line for line in run.processes().values()))
    helpers = [pid for pid, line in run.processes().items() if "/qemu-system" not in line]
    assert len(helpers) >= 3
    os.kill(run.process.pid, signal.SIGKILL)
    for pid in helpers:
        os.kill(pid, signal.SIGKILL)
    run.end()
    assert faults.hvct("clean").code == 0
    assert faults.await_gone(before, 1.0) == []
    assert faults.hvct("clean").out == "nothing was left\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0.0, 0.5, 1.8])
def test_an_interrupt_ends_it_cleanly(after_s: float, number: int, tmp_path: Path) -> None:
    """Ctrl-C and `kill`: the right status within seconds, how to go on, and nothing is left."""
    directory = tmp_path / "run"
    before = faults.traces()
    faults.await_turn()
    native = ("container", "process")
    # With the wait between two trials, which is among what may be interrupted.
    run = faults.Harness(*faults.comparison(tmp_path, native, sleep_s=0.5, gap="quiet"))
    run.until(lambda: run.catches(signal.SIGTERM))  # before that it is Python, not yet hvct
    time.sleep(after_s)
    run.interrupt(number)
    done = run.end(ENDED_WITHIN_S)
    assert done.code == 128 + number and "Traceback" not in done.err, done
    assert "interrupted" in done.err
    if (directory / "run.json").exists():
        assert f"hvct resume {directory}" in done.err
    assert faults.left(before) == []


def test_a_second_interrupt_does_no_harm(tmp_path: Path) -> None:
    """Impatience in the midst of undoing: it ends at once, and nothing is left all the same."""
    before = faults.traces()
    run = faults.Harness(*faults.comparison(tmp_path, ("container", "process"), sleep_s=1.0))
    run.until(lambda: any("hvct-agent" in line for line in run.processes().values()))
    run.interrupt()
    time.sleep(0.02)
    run.interrupt()
    done = run.end(ENDED_WITHIN_S)
    # The second may come when Python has nothing left to do but to end.
    assert done.code in (130, -signal.SIGINT) and "Traceback" not in done.err, done
    assert f"hvct resume {tmp_path / 'run'}" in done.err
    faults.assert_gone(before)


@pytest.mark.vm
def test_an_interrupt_while_a_guest_boots(tmp_path: Path) -> None:
    """The guest is gone with the command, which does not wait for it to be up."""
    before = faults.traces()
    run = faults.Harness("run", "--arm", "vm", "busybox", "--", "sleep", "60")
    run.until(lambda: any("/qemu-system" in line for line in run.processes().values()))
    run.interrupt()
    done = run.end(ENDED_WITHIN_S)
    assert done.code == 130 and "Traceback" not in done.err, done
    assert faults.left(before) == []


@pytest.mark.parametrize("arm", ["process", pytest.param("vm", marks=pytest.mark.vm)])
def test_a_single_run_killed(arm: str, tmp_path: Path) -> None:
    """SIGKILL to `hvct run`: its instance dies with it, and nothing is left, /tmp included."""
    before = faults.traces()
    env = {"TMPDIR": str(tmp_path)}
    run = faults.Harness("run", "--arm", arm, "busybox", "--", "sleep", "60", env=env)
    sign = "/qemu-system" if arm == "vm" else "hvct-agent"
    run.until(lambda: any(sign in line for line in run.processes().values()))
    run.kill()
    run.end()
    assert faults.await_gone(before) == []
    assert list(tmp_path.iterdir()) == []


def test_namespaces_of_an_instance_are_seen_and_go_with_it() -> None:
    """Those that the workload's process holds belong to its run, and end when it is killed."""
    before = faults.traces()
    run = faults.Harness("run", "--arm", "container", "busybox", "--", "sleep", "60")

    def kinds() -> set[str]:
        return {
            what.split(" ")[1].partition(":")[0]
            for what, tag in faults.namespaces().items()
            if what not in before and tag == run.tag
        }

    try:
        run.until(lambda: kinds() == {"net", "mnt", "pid", "ipc", "uts"})
    finally:
        run.kill()
        run.end()
    assert faults.await_gone(before) == []


def test_an_interrupted_run_is_resumed_where_it_was(tmp_path: Path) -> None:
    """Only the block that was cut short is done again, and no trial is lost or changed."""
    directory = tmp_path / "run"
    run = faults.Harness(*faults.comparison(tmp_path, ("container", "process"), sleep_s=0.3))
    try:
        run.until(lambda: len(faults.trials(directory)) >= 5)
        run.interrupt()
    finally:
        done = run.end(ENDED_WITHIN_S)
    assert done.code == 130, done
    kept = (directory / "trials.jsonl").read_bytes()
    done = faults.hvct(*faults.resuming(directory))
    assert done.code == 0, done
    assert (directory / "trials.jsonl").read_bytes().startswith(kept)
    faults.assert_complete(directory, blocks_cut=1)
    done = faults.hvct(*faults.resuming(directory))
    assert done.code == 0 and len(faults.trials(directory)) <= 13


def test_two_comparisons_at_once(tmp_path: Path) -> None:
    """The second exits 3 and names the first; with --wait it says so, queues, and then runs."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    native = ("container", "process")
    # Long enough for two other commands to find it running.
    first = faults.Harness(*faults.comparison(folders[0], native, sleep_s=0.5))
    try:
        first.until(lambda: bool(first.tag))
        queued = faults.comparison(folders[1], native)
        refused = faults.hvct(*(word for word in queued if word != "--wait"))
        refused.says(3, f"process {first.process.pid}, {folders[0] / 'run'}", "--wait")
        assert not (folders[1] / "run").exists()
        second = faults.Harness(*queued)
        time.sleep(0.5)
        assert not (folders[1] / "run").exists() or first.process.poll() is not None
    finally:
        done = first.end(120)
    assert done.code == 0, done
    done = second.end(200)
    assert done.code == 0 and "Waiting for another comparison" in done.err, done
    faults.assert_complete(folders[1] / "run", blocks_cut=0)
