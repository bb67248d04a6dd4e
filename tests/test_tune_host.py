"""Tuning on a real kernel: cpusets of version 1, the command line, and a comparison that is killed.

The machine's own settings are only read: files are mounted over the kernel's in a mount
namespace, and the tasks that are moved are the test's own.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import cgroupfs, hostchange, settings
from bench.checks import interference
from bench.checks.tree import Tree
from bench.hostchange import Change, Kind
from bench.settings import Cpus

PYTHON = shlex.quote(sys.executable)  # a checkout may lie in a folder with a space in its name
CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.mark.root
@pytest.mark.alone
def test_on_version_1_tasks_move_to_a_cpuset_and_back(tmp_path: Path) -> None:
    """All tasks of the cpuset but those tied to a CPU, also those forked meanwhile."""
    layout = cgroupfs.layout()
    if layout.version != 1 or "cpuset" not in layout.controllers:
        pytest.skip("this host has no cpusets of version 1")
    mount = layout.controllers["cpuset"]
    top = mount / f"hvct-test-{os.getpid()}"
    top.mkdir()
    tasks: list[subprocess.Popen[bytes]] = []
    try:
        for name in ("cpuset.cpus", "cpuset.mems"):
            (top / name).write_text((mount / name).read_text())
        whole = interference.cpus_of_list((top / "cpuset.cpus").read_text())
        if len(whole) < 2:
            pytest.skip("this host has one CPU")
        first = min(whole)
        for cpus in (whole, whole, {max(whole)}):
            tasks.append(subprocess.Popen(["sleep", "60"]))
            (top / "tasks").write_text(str(tasks[-1].pid))
            os.sched_setaffinity(tasks[-1].pid, cpus)
        change = Change("cpuset", Kind.OTHERS, f"{top}/hvct-others", "none", str(first))
        assert change.make(Tree())
        for task, allowed in zip(tasks, ({first}, {first}, {max(whole)}), strict=True):
            assert os.sched_getaffinity(task.pid) == allowed
        assert change.undo(Tree())
        assert not (top / "hvct-others").exists()
        for task, allowed in zip(tasks, (whole, whole, {max(whole)}), strict=True):
            assert os.sched_getaffinity(task.pid) == allowed
    finally:
        for task in tasks:
            task.kill()
            task.wait()
        hostchange.gather_back(top)


ROOM = """set -e
mkdir -p /run/hvct
mount -t tmpfs none /run/hvct
mount --bind "$1" /sys/kernel/mm/ksm/run
shift
exec sh -c "$@"
"""


def in_a_room(
    ksm: Path, script: str, *arguments: str, limit_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a shell script where that file is the kernel's and nobody else's runs are seen."""
    argv = ["unshare", "--mount", "sh", "-c", ROOM, "sh", str(ksm), script, "sh", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=limit_s, cwd=CHECKOUT)


@pytest.mark.root
@pytest.mark.alone
def test_the_command_shows_applies_and_resets(tmp_path: Path) -> None:
    """From the command line: a dry run changes nothing, apply does, reset undoes it."""
    ksm = tmp_path / "run"
    ksm.write_text("1\n")
    done = in_a_room(
        ksm,
        f'set -e; tune() {{ {PYTHON} -m bench.cli tune "$@"; }}; file=/sys/kernel/mm/ksm/run\n'
        "tune apply --only ksm --dry-run; cat $file; tune apply --only ksm; cat $file\n"
        'tune show --only ksm --json >"$1/shown"; tune apply --only ksm 2>&1 || echo status $?\n'
        "tune reset; cat $file; tune reset; ls -A /run/hvct",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "would be changed: /sys/kernel/mm/ksm/run: 1 → 2",
        "1",
        "changed: /sys/kernel/mm/ksm/run: 1 → 2",
        "undo it with: hvct tune reset",
        "2",
        "nothing has to be changed",
        "/sys/kernel/mm/ksm/run is 1 again",
        "1",
        "nothing was changed",
        "tuning.lock",
    ]
    shown = json.loads((tmp_path / "shown").read_text())
    assert shown["in_force"]["settings"] == ["ksm"]
    (row,) = shown["settings"]
    assert (row["state"], row["now"], row["code"]) == ("as wanted", "2", "memory.ksm")


TUNED = {
    "costs": "idle --arms container,process --rounds 3 --steps 0,1 --hold 0.1 --no-report "
    "--output {folder}/run",
    "selfcheck": "--arms process --controls memory --blocks 6",
}


@pytest.mark.root
@pytest.mark.alone
@pytest.mark.parametrize("name", TUNED)
def test_what_measures_is_tuned_for_its_time(name: str, tmp_path: Path) -> None:
    """`--tune-only` holds while hvct costs or selfcheck measures, and no longer."""
    ksm = tmp_path / "ksm"
    ksm.write_text("1\n")
    words = TUNED[name].format(folder=shlex.quote(str(tmp_path)))
    script = (
        f'{PYTHON} -m bench.cli {name} {words} --tune-only ksm >"$1" 2>"$2" & pid=$!\n'
        'until grep -q ^Tuned "$2" || ! kill -0 $pid; do sleep 0.02; done\n'
        "cat /sys/kernel/mm/ksm/run; wait $pid; echo status $?\n"
        "cat /sys/kernel/mm/ksm/run; ls /run/hvct"
    )
    done = in_a_room(ksm, script, str(tmp_path / "out"), str(tmp_path / "err"), limit_s=300)
    told = (tmp_path / "out").read_text() + (tmp_path / "err").read_text()
    during, status, code, after, *left = done.stdout.split()
    assert (during, status, after) == ("2", "status", "1"), told + done.stderr
    assert "tuning" not in left and "Tuned: ksm; undone at the end" in told
    if name == "costs":
        assert code == "0", told
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert record["tuning"]["settings"] == ["ksm"] and record["options"]["tune"] == ["ksm"]
    else:
        assert code in "01" and "memory" in told, told  # found or not: that is another test's


@pytest.mark.root
@pytest.mark.alone
def test_a_comparison_killed_while_tuned_is_undone(tmp_path: Path) -> None:
    """`compare --tune-only` changes it; after kill -9 the next command restores it."""
    ksm = tmp_path / "run"
    ksm.write_text("1\n")
    script = (
        f"{PYTHON} -m bench.cli compare hello --arms process,container --tune-only ksm "
        '--no-report --output "$1" 2>"$2" & pid=$!\n'
        'until grep -q ^Tuned "$2" || ! kill -0 $pid; do sleep 0.02; done\n'
        "cat /sys/kernel/mm/ksm/run; kill -9 $pid; wait $pid 2>/dev/null\n"
        # What every command does first. (`hvct clean` would also look for runs of others here.)
        f"{PYTHON} -c 'from bench.cleanup import clean_dead; clean_dead()'\n"
        "ls /run/hvct; cat /sys/kernel/mm/ksm/run"
    )
    done = in_a_room(ksm, script, str(tmp_path / "out"), str(tmp_path / "err"))
    told = (tmp_path / "err").read_text()
    assert done.stdout.split()[0] == "2", told + done.stderr
    assert done.stdout.split()[-1] == "1" and "tuning" not in done.stdout.split(), done.stdout


def test_this_host_is_only_read() -> None:
    """`tune show` works on a real host without root, and says what each setting does."""
    began = time.monotonic()
    rows = settings.survey(Tree(), Cpus((1,), (0,)))
    assert [row.setting.name for row in rows] == list(settings.NAMES)
    assert time.monotonic() - began < 30
    changes = [change for row in rows for change in row.changes]
    assert all(change.current(Tree()) is not None for change in changes)
