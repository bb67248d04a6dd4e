"""Whatever a killed run left is undone by the next command, and nothing else is touched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import faults
import pytest
from launching import until

from bench import cache, cgroup, cgroupfs, cleanup, journal, loops, network
from bench.context import runtime_root
from bench.errors import BadInput, HostCannot

pytestmark = [pytest.mark.root, pytest.mark.undoes]

QEMU = shutil.which(f"qemu-system-{os.uname().machine}") or ""

# A run that has made one of everything, and then waits to be killed.
RUN = """
import os, subprocess, sys, time
from pathlib import Path
from bench.cgroup import Cgroup
from bench.journal import open_run
with open_run(Path(sys.argv[1]), network=True) as context:
    here = context.runtime_dir
    group = Cgroup.create(context.tag, "one")
    quiet = {"stdout": subprocess.DEVNULL}
    member = subprocess.Popen(["sleep", "300"], **quiet)
    group.join(member.pid)
    marked = subprocess.Popen(["sleep", "300"], start_new_session=True, **quiet,
                              env={**os.environ, "HVCT_RUN": context.tag})
    (here / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", here / "mnt"], check=True)
    (here / "mnt" / "inner").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", here / "mnt" / "inner"], check=True)
    (here / "disk").write_bytes(bytes(1 << 20))
    if os.path.exists("/dev/loop-control"):
        subprocess.run(["losetup", "-f", here / "disk"], check=True)
    subprocess.run(["ip", "link", "add", context.tag + "-1", "type", "veth",
                    "peer", "name", "p" + context.tag], check=True)
    print(context.tag, member.pid, marked.pid, *context.cleanup, sep="\\n", flush=True)
    print(flush=True)
    if len(sys.argv) < 3:
        time.sleep(300)
"""


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder, and a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "run"


class Left:
    """A run in another process, and what can be seen of it on the host."""

    def __init__(self, run_dir: Path, *arguments: str) -> None:
        argv = [sys.executable, "-c", RUN, str(run_dir), *arguments]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self.process.stdout
        lines = list(iter(lambda: self.process.stdout.readline().decode().strip(), ""))  # type: ignore[union-attr]
        assert len(lines) > 3, "the run did not come up"
        self.tag, self.member, self.marked = lines[0], int(lines[1]), int(lines[2])
        self.cleanup = lines[3:]

    def kill(self) -> None:
        """SIGKILL the owner, as a power cut or the kernel's OOM killer would."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def traces(self) -> list[str]:
        """Everything of it that is still there."""
        tops = [str(mount / "hvct" / self.tag) for mount in cgroupfs.layout().mounts]
        seen = [path for path in tops if os.path.exists(path)]
        seen += network.links_of(self.tag)
        seen += [point for point in cleanup._mounts_below(runtime_root() / self.tag)]
        seen += [str(dev) for dev, file in loops.in_use() if self.tag in file.parts]
        seen += [str(path) for path in runtime_root().glob(f"*{self.tag}*")]
        seen += [f"process {pid}" for pid in (self.member, self.marked) if _runs(pid)]
        return seen


@contextlib.contextmanager
def left(run_dir: Path) -> Iterator[Left]:
    """A run that is dead and cleaned up at the end, whatever the test found."""
    run = Left(run_dir)
    try:
        yield run
    finally:
        run.kill()
        cleanup.clean(run.tag)


def _runs(pid: int) -> bool:
    return journal.start_ticks(pid) >= 0


def _await_gone(run: Left) -> list[str]:
    until(lambda: not run.traces())
    return run.traces()


def test_a_killed_run_is_undone_by_the_next_command(run_dir: Path) -> None:
    """No process, mount, loop device, group, link, folder or record of it is left."""
    with left(run_dir) as run:
        assert len(run.traces()) >= 10
        run.kill()
        assert _runs(run.member) and _runs(run.marked)
        done = cleanup.clean_dead()
        assert any(str(run.marked) in line for line in done)
        assert _await_gone(run) == []
        assert cleanup.clean(run.tag) == []


def test_a_dry_run_names_everything_and_changes_nothing(run_dir: Path) -> None:
    """`--dry-run` says what the real one then does."""
    with left(run_dir) as run:
        run.kill()
        before = run.traces()
        named = cleanup.clean(run.tag, dry_run=True)
        assert run.traces() == before
        assert cleanup.clean(run.tag) == named
        assert _await_gone(run) == []


def test_a_live_run_is_left_alone(run_dir: Path) -> None:
    """Cleaning never touches a run whose owner lives, and says who that is."""
    with left(run_dir) as run:
        before = run.traces()
        cleanup.clean_dead()
        with pytest.raises(HostCannot, match=str(run.process.pid)):
            cleanup.clean(run.tag)
        assert run.traces() == before


def test_a_run_that_ends_by_itself_leaves_nothing(run_dir: Path) -> None:
    """Leaving the context undoes what the instances left, too."""
    run = Left(run_dir, "end")
    run.process.communicate(timeout=30)
    assert run.process.returncode == 0
    assert _await_gone(run) == []


def test_the_helpers_program_cleans_up_after_its_harness(run_dir: Path, tmp_path: Path) -> None:
    """What launcher and worker run works from any folder, and does not kill its own caller."""
    with left(run_dir) as run:
        helper = subprocess.Popen(
            ["sh", "-c", 'read x; "$@" && echo cleaned', "helper", *run.cleanup],
            env={**os.environ, "HVCT_RUN": run.tag},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        run.process.kill()  # not reaped: the helper sees a zombie
        out, _ = helper.communicate(b"\n", timeout=30)
        assert helper.returncode == 0 and out.endswith(b"cleaned\n")
        assert _await_gone(run) == []


def test_a_cleaner_inside_the_runs_group_survives(run_dir: Path) -> None:
    """A cleaner that was started from within the group steps out before emptying it."""
    with left(run_dir) as run:
        run.kill()
        procs = [m / "hvct" / run.tag / "one" / "cgroup.procs" for m in cgroupfs.layout().mounts]
        done = subprocess.run(
            run.cleanup,
            preexec_fn=lambda: [path.write_text("0") for path in procs] and None,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert _await_gone(run) == []


def test_processes_are_known_by_their_mark_and_never_by_name(run_dir: Path) -> None:
    """A process with the same name, or with another run's mark, is not killed."""
    foreign = subprocess.Popen(["sleep", "300"], env={"HVCT_RUN": "r0000"})
    try:
        with left(run_dir) as run:
            run.kill()
            cleanup.clean(run.tag)
            assert foreign.poll() is None
    finally:
        foreign.kill()
        assert foreign.wait() == -signal.SIGKILL


@contextlib.contextmanager
def questioned(tag: str) -> Iterator[int]:
    """A QEMU as libvirt starts it to ask what it can do: with no environment; its process id."""
    folder = runtime_root() / tag / "libvirt-1"
    folder.mkdir()
    pid_file = folder / "qmp.pid"
    words = ["-S", "-no-user-config", "-nodefaults", "-nographic", "-machine", "none,accel=tcg"]
    monitor = f"unix:{folder}/qmp.monitor,server=on,wait=off"
    subprocess.run(
        [QEMU, *words, "-qmp", monitor, "-pidfile", pid_file, "-daemonize"], env={}, check=True
    )
    pid = int(pid_file.read_text())
    handle = os.pidfd_open(pid)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)


@pytest.mark.skipif(not QEMU, reason="QEMU is not installed")
def test_a_qemu_that_is_only_questioned_goes_with_its_run(run_dir: Path) -> None:
    """It bears no mark: its own run's cleaner knows it by its pid file, and no other does.

    Nor is whoever else has a file of that folder open killed.
    """
    with (
        left(run_dir / "one") as run,
        left(run_dir / "other") as other,
        questioned(run.tag) as asked,
        questioned(other.tag) as others,
    ):
        assert not Path(f"/proc/{asked}/environ").read_bytes().strip(b"\0")
        log = runtime_root() / run.tag / "libvirt-1" / "log"
        log.touch()
        with subprocess.Popen(["tail", "-f", log], env={}) as reader:
            try:
                run.kill()
                done = cleanup.clean(run.tag)
                assert [line for line in done if line.startswith(f"process {asked} (qemu")]
                assert until(lambda: not _runs(asked))
                assert _runs(others) and reader.poll() is None
            finally:
                reader.kill()
        other.kill()
        cleanup.clean(other.tag)
        assert until(lambda: not _runs(others))


def test_two_cleaners_at_once_do_not_disturb_each_other(run_dir: Path) -> None:
    """Launcher, worker and the next command may come at the same moment."""
    with left(run_dir) as run:
        run.kill()
        cleaners = [subprocess.Popen(run.cleanup, stdout=subprocess.DEVNULL) for _ in range(3)]
        assert [cleaner.wait(timeout=30) for cleaner in cleaners] == [0, 0, 0]
        assert _await_gone(run) == []


@pytest.mark.parametrize("tag", ["", "..", "r1/../x", "R3F9A", "toolongatag"])
def test_what_is_no_tag_is_refused(tag: str) -> None:
    """Names come from the command line and become paths: only tags do."""
    with pytest.raises(BadInput):
        cleanup.clean(tag)


def test_half_made_files_of_dead_makers_go_and_others_stay(run_dir: Path) -> None:
    """A cache draft is removed when its maker is dead or it is over a day old."""
    del run_dir
    maker = subprocess.Popen(["true"])
    maker.wait()
    drafts = cache.cache_dir("tmp")
    dead, own = drafts / f"image-p{maker.pid}-abc", drafts / f"image-p{os.getpid()}-abc"
    fresh, old = drafts / "other", drafts / "older"
    for folder in (dead, own, fresh, old):
        folder.mkdir()
        (folder / "part").write_text("x")
    os.utime(old, (0, 0))
    cleanup.clean()
    assert {path.name for path in drafts.iterdir()} == {own.name, fresh.name}
    with cache.workspace("image") as place:
        cleanup.clean()
        assert place.is_dir()


def test_the_record_is_there_before_the_first_change_and_gone_after_the_last(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure in the middle of opening a run leaves neither record nor folder."""

    def fail(tag: str) -> None:
        records = [json.loads(path.read_text()) for path in runtime_root().glob("r*.json")]
        assert [r["tag"] for r in records if r["pid"] == os.getpid()] == [tag]
        raise HostCannot("no bridge here")

    monkeypatch.setattr(network, "RunNetwork", fail)
    with pytest.raises(HostCannot, match="no bridge"), journal.open_run(run_dir, network=True):
        raise AssertionError("the run was opened")
    assert [asdict(record) for record in journal.live() if record.pid == os.getpid()] == []


def test_groups_and_bridge_without_a_journal_are_found(run_dir: Path) -> None:
    """What a run left whose journal went with its /run: empty groups and bridge are removed.

    A group that holds a process belongs to a run that is alive somewhere: it stays.
    """
    lost, alive = "rfff0", "rfff1"
    group = cgroup.Cgroup.create(alive, "one")
    with subprocess.Popen(["sleep", "60"]) as inhabitant:
        try:
            group.join(inhabitant.pid)
            empty = cgroup.Cgroup.create(lost, "one")
            subprocess.run(["ip", "link", "add", f"hvct{lost}", "type", "bridge"], check=True)
            done = "\n".join(cleanup.clean())
            assert lost in done
            assert alive not in done
            assert not any(path.exists() for path in empty.directories)
            assert not Path("/sys/class/net", f"hvct{lost}").exists()
        finally:
            inhabitant.kill()
            group.remove()
            cgroup.remove_all(alive)
            cgroup.remove_all(lost)


def test_a_run_in_another_root_is_not_nobodys(tmp_path: Path) -> None:
    """Where its journal is in a /run of its own, its bridge stays as long as somebody is in there.

    Before its first instance a run has no process in its groups, and may take a while to it.
    """
    tag = "rfff2"
    script = f"mount -t tmpfs none {runtime_root()}; touch {runtime_root()}/{tag}.json"
    before = faults.hidden(script)
    bridge = Path("/sys/class/net", f"hvct{tag}")
    with subprocess.Popen([*before, "sleep", "60"]) as inhabitant:
        try:
            assert until(lambda: tag in cleanup.elsewhere())
            subprocess.run(["ip", "link", "add", bridge.name, "type", "bridge"], check=True)
            assert tag not in "\n".join(cleanup.clean()) and bridge.exists()
        finally:
            inhabitant.kill()
            inhabitant.wait()
            done = "\n".join(cleanup.clean())
    assert tag in done and not bridge.exists()
