"""What is written down before a run touches the host, and who may run at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import context, journal
from bench.errors import HostCannot

HOLD = (
    "import sys; from pathlib import Path; from bench import context, journal\n"
    "context.runtime_root = journal.runtime_root = lambda: Path(sys.argv[1])\n"
    "with journal.exclusive(run_dir=Path('first')):\n"
    " print('in', flush=True); sys.stdin.read()\n"
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test's own for journals and locks."""
    for module in (journal, context):
        monkeypatch.setattr(module, "runtime_root", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_a_record_says_who_and_where(root: Path) -> None:
    """A live run is found by everybody, with its folder and its owner."""
    made = journal._write_new(root / "run", "qemu:///system")
    assert journal.live() == [made] and journal.dead() == []
    assert made.run_dir == str(root / "run") and made.pid == os.getpid()
    assert made.libvirt_uri == "qemu:///system"
    assert [path.name for path in root.glob("*.json")] == [f"{made.tag}.json"]
    assert not list(root.glob(".r*")), "the draft stays behind"


def test_tags_are_short_and_unique(root: Path) -> None:
    """Five characters, so that link names fit into 15; no two live runs share one."""
    tags = {journal._write_new(root, "").tag for _ in range(50)}
    assert len(tags) == 50
    assert all(len(tag) == 5 and tag.isalnum() for tag in tags)


def test_a_number_that_was_given_again_is_not_the_owner(root: Path) -> None:
    """A process that has the dead owner's pid but another start time does not keep a run alive."""
    made = journal._write_new(root, "")
    assert made.alive
    assert not replace(made, start_ticks=made.start_ticks - 1).alive


def test_a_zombie_is_dead() -> None:
    """A killed harness that nobody has reaped yet counts as gone."""
    child = subprocess.Popen([sys.executable, "-S", "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.read()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert journal.start_ticks(child.pid) == -1
    child.wait()
    child.stdout.close()
    assert journal.start_ticks(os.getpid()) > 0


def test_records_of_other_versions_and_garbage_do_not_stop_a_command(root: Path) -> None:
    """Unknown keys are ignored, unreadable files skipped."""
    (root / "r0001.json").write_text("{")
    (root / "r0002.json").write_text(
        json.dumps({"tag": "r0002", "pid": 1, "start_ticks": -5, "run_dir": "/x", "new": 1})
    )
    assert [record.tag for record in journal.dead()] == ["r0002"]


def test_the_second_comparison_names_the_first(root: Path) -> None:
    """Two at once would measure each other: exit code 3 with process and folder, --wait queues."""
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdin and first.stdout
    assert first.stdout.readline() == b"in\n"
    with pytest.raises(HostCannot) as caught, journal.exclusive():
        pass
    assert caught.value.exit_code == 3
    assert f"process {first.pid}, {Path.cwd() / 'first'}" in caught.value.message
    assert "--wait" in caught.value.hint
    first.stdin.close()
    with journal.exclusive(wait=True, run_dir=root):
        assert str(os.getpid()) in (root / "compare.lock").read_text()
    first.wait()
    first.stdout.close()
    assert (root / "compare.lock").read_text() == ""


def test_a_killed_comparison_leaves_the_lock_free(root: Path) -> None:
    """The kernel lets go of the lock when its holder dies, however it dies."""
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout
    assert first.stdout.readline() == b"in\n"
    first.kill()
    first.communicate()
    with journal.exclusive():
        pass
