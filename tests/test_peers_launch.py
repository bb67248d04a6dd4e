"""Peers as arms: the same work, seen by the same agent, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest

from bench import arms, registry
from bench.backend import Backend
from bench.cgroup_tree import elsewhere
from bench.context import RunContext
from bench.errors import HvctError, LaunchFailed, Refused
from bench.identity import FieldClass, differences
from bench.journal import open_run
from bench.model import Event, Ids, Image, InstanceSpec, Limits, NetworkMode, Security

pytestmark = pytest.mark.root
ENV = (("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"), ("A", "two words"))
NUMBERS = iter(range(1, 100000))
PEERS = ("runc", "crun", "bwrap", "unshare", "nspawn", "docker", "podman")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run."""
    with faults.nothing_left(), open_run(tmp_path_factory.mktemp("a run")) as run:
        yield run


@pytest.fixture(scope="module")
def container(context: RunContext) -> Iterator[Backend]:
    """Our own arm, which the peers are held against."""
    with registry.make(arms.ARMS["container"], context) as backend:
        yield backend


@pytest.fixture(scope="module", params=PEERS)
def peer(request: pytest.FixtureRequest, context: RunContext) -> Iterator[Backend]:
    """Each peer that works here."""
    with registry.make(arms.ARMS[request.param], context) as backend:
        found = backend.probe()
        if not found.usable:
            pytest.skip(f"{request.param}: {found.reason}; {found.remedy}")
        assert found.version.startswith(request.param)
        yield backend


def soon(seconds: float = 20.0) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


def make(context: RunContext, image: Image, *argv: str, **changes: object) -> InstanceSpec:
    """A specification."""
    id = context.instance(next(NUMBERS))
    return InstanceSpec(id, image, argv, env=ENV, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("security", list(Security))
def test_the_same_work_as_in_our_container(
    context: RunContext, container: Backend, peer: Backend, busybox: Image, security: Security
) -> None:
    """Output, exit status and every receipt field that must match are those of our container."""
    script = "echo $A; id; pwd; umask; hostname; echo x >/y; echo e >&2"
    if peer.name != "docker":  # it writes a longer one, and limits no writable layer
        script += "; cat /etc/hosts; df -k / | awk '/%/ {print $1, $2}'"
    if peer.name == "unshare":
        script = script.replace("hostname", "true")
    argv = ("sh", "-c", f"{script}; exit 7")
    ids = Ids(1000, 1000, (5,)) if security is Security.SAME else Ids()
    seen = []
    for backend in (container, peer):
        made = make(context, busybox, *argv, security=security, ids=ids, workdir="/tmp")
        backend.prepare(made)
        with backend.launch(made) as instance:
            assert instance.wait(Event.EXITED, soon())
            marks = instance.timeline.seconds()
            receipt = dict(instance.receipt)
            assert instance.exit is not None
            seen.append((instance.stdout, instance.stderr, instance.exit.code, receipt))
            final = instance.release()
        order = ["requested", "accepted", "spawned", "init", "started", "exited"]
        if backend.name == "docker":  # which process it is, is the engine's affair
            order.remove("spawned")
        assert [name for name in marks if name in order] == order
        assert final["cgroup_cpu_s"] > 0 and final["peak_bytes"] > 0
    ours, theirs = seen
    assert theirs[:3] == ours[:3]
    pair = (peer.name, "container")
    broken = [
        difference
        for difference in differences(theirs[3], ours[3], pair, security.value)
        if difference.field_class is FieldClass.MUST_MATCH
    ]
    assert broken == []


def test_limits_hold(context: RunContext, peer: Backend, busybox: Image) -> None:
    """Memory, processes and CPUs are limited; out of memory is said to be that."""
    limits = Limits(memory_bytes=32 << 20, pids=20)
    script = "grep Cpus_allowed_list /proc/self/status; for i in $(seq 40); do sleep 5 & done"
    made = make(context, busybox, "sh", "-c", script, limits=limits, cpu_set=(1,))
    peer.prepare(made)
    with peer.launch(made) as instance:
        assert instance.wait(Event.EXITED, soon())
        assert instance.stdout.split() == [b"Cpus_allowed_list:", b"1"]
        assert b"fork" in instance.stderr
    # tail keeps an endless last line in memory.
    hungry = make(context, busybox, "sh", "-c", "tail /dev/zero", limits=limits)
    with peer.launch(hungry) as instance:
        assert instance.wait(Event.EXITED, soon())
        assert instance.exit is not None and instance.exit.code != 0
        assert instance.oom_kills() >= 1


def test_what_it_cannot_do_is_refused(context: RunContext, peer: Backend, busybox: Image) -> None:
    """A network, a terminal: declined before anything is made."""
    for change in ({"network": NetworkMode.HOST}, {"tty": True}):
        with pytest.raises(Refused) as caught:
            peer.launch(make(context, busybox, "true", **change))  # type: ignore[arg-type]
        assert caught.value.hint


def test_an_end_that_the_agent_cannot_tell(
    context: RunContext, peer: Backend, busybox: Image
) -> None:
    """The agent killed: said in one line, with how the peer's program ended."""
    made = make(context, busybox, "sleep", "60")
    with peer.launch(made) as instance:
        assert instance.wait(Event.STARTED, soon())
        assert instance.cgroup is not None  # type: ignore[attr-defined]
        pids = instance.cgroup.pids()  # type: ignore[attr-defined]
        names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids}
        for pid in pids:
            if names[pid] != "conmon":  # podman waits for that one
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        with pytest.raises(LaunchFailed, match=peer.name):
            instance.wait(Event.EXITED, soon())


def test_nothing_of_an_instance_stays(context: RunContext, peer: Backend, busybox: Image) -> None:
    """After the release: no process, group, folder or mount, whatever the workload left."""
    made = make(context, busybox, "sh", "-c", "(setsid sleep 300 &); sleep 300")
    with peer.launch(made) as instance:
        assert instance.wait(Event.STARTED, soon())
        while len(instance.cgroup.pids()) < 3:  # type: ignore[attr-defined]
            time.sleep(0.01)  # it is there, and has yet to leave its child behind
        groups = instance.cgroup.directories  # type: ignore[attr-defined]
        deadline = soon(5)
        instance.release()
        assert instance.timeline.between(Event.STARTED, Event.RELEASED) is not None
    assert not any(group.exists() for group in groups)
    assert not any((top / made.id).exists() for top in elsewhere(context.tag))
    (worker,) = peer.helpers()
    assert made.id not in Path(f"/proc/{worker}/mountinfo").read_text()
    assert not any(path.name == made.id for path in context.runtime_dir.rglob("*"))
    below = Path(f"/proc/{worker}/task/{worker}/children")
    engine = 1 if peer.name == "docker" else 0
    # What the peer left behind is the worker's to reap, at once.
    while len(below.read_text().split()) > engine:
        assert time.monotonic_ns() < deadline
        time.sleep(0.01)


def test_an_absent_peer_is_named(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed: unusable, with the package as the remedy."""
    monkeypatch.setattr("bench.peers.backend.PATH", "/nonexistent")
    for name in PEERS:
        with registry.make(arms.ARMS[name], context) as backend:
            found = backend.probe()
        assert not found.usable and "not installed" in found.reason
        assert found.remedy.startswith("apt-get install ")


def test_crun_where_cgroup_versions_are_mixed(context: RunContext) -> None:
    """It declines, in its own words; what to do about it is said."""
    with registry.make(arms.ARMS["crun"], context) as backend:
        found = backend.probe()
    if found.usable or "not installed" in found.reason:
        pytest.skip(f"crun works here, or is absent: {found.version or found.reason}")
    assert "cgroups in hybrid mode not supported" in found.reason
    assert "systemd.unified_cgroup_hierarchy=1" in found.remedy
    assert found.version


def test_a_worker_that_was_killed_is_replaced(context: RunContext, busybox: Image) -> None:
    """What ran in it has failed; the next launch starts another, which mounts the image anew."""
    with registry.make(arms.ARMS["bwrap"], context) as backend:
        if not backend.probe().usable:
            pytest.skip("bwrap does not work here")
        with backend.launch(make(context, busybox, "sleep", "60")) as instance:
            assert instance.wait(Event.STARTED, soon())
            os.kill(backend.helpers()[0], 9)
            with pytest.raises(HvctError):
                instance.wait(Event.EXITED, soon())
        with backend.launch(make(context, busybox, "true")) as instance:
            assert instance.wait(Event.EXITED, soon())


def test_a_harness_killed_among_peers(tmp_path: Path) -> None:
    """SIGKILL in the midst of a run: the worker ends what the peers hold, and cleans up.

    No arm of ours takes part: its helper would clean up as well.
    """
    programs = {
        "runc": "runc",
        "bwrap": "bwrap",
        "nspawn": "systemd-nspawn",
        "docker": "dockerd",
    }
    chosen = [name for name, program in programs.items() if shutil.which(program)]
    if len(chosen) < 2:
        pytest.skip(f"of {list(programs.values())} fewer than two are installed")
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"blocks = 10\narms = {json.dumps(chosen)}\nseed = 4\n"
        '[[workload]]\nname = "w"\nimage = "busybox"\nargv = ["sleep", "0.3"]\n'
        '[[primary]]\nmetric = "startup_started"\nworkload = "w"\n'
    )
    before = faults.traces()
    words = ("compare", "--wait", "--no-report", "--plan", plan, "--output", tmp_path / "run")
    run = faults.Harness(*words)
    run.until(lambda: bool(faults.trials(tmp_path / "run")))
    tag = run.tag
    run.kill()
    run.end()
    assert faults.await_gone(before) == []
    assert elsewhere(tag) == []
    first = faults.trials(tmp_path / "run")[0]
    assert first["outcome"] == "ok", first


def test_all_that_works_is_compared_and_the_rest_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--arms all``: what cannot run here is left out before anything is settled, and said so.

    It still is when the run was interrupted and resumed.
    """
    directory = tmp_path / "run"
    (tmp_path / "bin").mkdir()
    for folder in reversed(os.environ["PATH"].split(":")):
        for path in Path(folder).glob("*"):
            if not path.name.startswith("qemu-system"):  # no machine boots: that would take long
                (tmp_path / "bin" / path.name).unlink(missing_ok=True)
                (tmp_path / "bin" / path.name).symlink_to(path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    words = ("compare", "startup", "--arms", "all", "--blocks", "10", "--wait", "--no-report")
    run = faults.Harness(*words, "--output", directory)
    run.until(lambda: bool(faults.trials(directory)))
    run.interrupt()
    run.end()
    stored = json.loads((directory / "run.json").read_text())
    left_out = set(arms.ARMS) - set(stored["plan"]["arms"])
    named = {item["code"].rpartition(".")[2] for item in stored["findings"] if is_left_out(item)}
    assert left_out == named and "vm" in named
    assert {"container", "process"} <= set(stored["plan"]["arms"])
    assert stored["registration"]["settings"]["arms"] == stored["plan"]["arms"]
    again = faults.Harness("resume", "--wait", "--no-report", directory)
    before = len(faults.trials(directory))
    again.until(lambda: len(faults.trials(directory)) > before)
    again.interrupt()
    again.end()
    after = json.loads((directory / "run.json").read_text())
    assert [item for item in after["findings"] if is_left_out(item)] == [
        item for item in stored["findings"] if is_left_out(item)
    ]


def is_left_out(finding: dict[str, str]) -> bool:
    """Whether a stored finding is about an arm that was left out."""
    return finding["code"].startswith("arm.left-out.")
