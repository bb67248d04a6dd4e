"""Through a libvirtd: ``--libvirt-uri``, and the arm that starts one of its own."""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from daemon import await_no_domains, domains, libvirtd

from bench.context import RunContext
from bench.errors import LaunchFailed
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec, Limits, MemoryBasis
from hv.backend import VmBackend
from hv.daemon import DaemonBackend

pytestmark = [pytest.mark.root, pytest.mark.vm]
LIMITS = Limits(memory_bytes=128 << 20, memory_basis=MemoryBasis.NOMINAL)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[RunContext]:
    """A journaled run whose virtual machines a private libvirtd starts."""
    with (
        open_run(tmp_path) as run,
        libvirtd(run.runtime_dir / "daemon", tmp_path / "libvirtd.log") as daemon,
    ):
        yield dataclasses.replace(run, libvirt_uri=daemon.uri)


def test_a_daemon_runs_the_same_guest(context: RunContext, busybox: Image) -> None:
    """Echo, accounting, and an end that leaves nothing; then QEMU killed, and said."""

    def make(number: int, *argv: str) -> InstanceSpec:
        return InstanceSpec(
            context.instance(number), busybox, argv, env=(("PATH", "/bin"),), limits=LIMITS
        )

    deadline_ns = time.monotonic_ns() + 60_000_000_000
    with VmBackend(context) as backend:
        with backend.launch(make(1, "echo", "by a daemon")) as instance:
            assert instance.wait(Event.EXITED, deadline_ns)
            pid = instance.link.pid
            assert instance.cgroup is not None and instance.cgroup.pids() == (pid,)
            assert domains(context.libvirt_uri) == [f"hvct-{instance.spec.id}"]
            final = instance.release()
        assert instance.stdout == b"by a daemon\n"
        assert await_no_domains(context.libvirt_uri) == []
        assert final["cgroup_cpu_s"] > 0.1
        assert str(instance.describe()["libvirt_uri"]).startswith("qemu+unix")
        with backend.launch(make(2, "sleep", "60")) as instance:
            assert instance.wait(Event.STARTED, deadline_ns)
            os.kill(instance.link.pid, signal.SIGKILL)
            with pytest.raises(Exception, match="QEMU ended"):
                instance.wait(Event.EXITED, deadline_ns)
        assert not any(directory.exists() for directory in instance.cgroup.directories)  # type: ignore[union-attr]
        assert await_no_domains(context.libvirt_uri) == []


def test_a_daemon_of_its_own_that_is_killed(tmp_path: Path, busybox: Image) -> None:
    """Its guest ends and is said to have ended; the next launch has another daemon."""
    deadline_ns = time.monotonic_ns() + 60_000_000_000
    with open_run(tmp_path) as run, DaemonBackend(run) as backend:
        found = backend.probe()
        if not found.usable:
            pytest.skip(f"{found.reason}; {found.remedy}")
        made = InstanceSpec(run.instance(1), busybox, ("sleep", "60"), limits=LIMITS)
        with backend.launch(made) as instance:
            assert instance.wait(Event.INIT, deadline_ns)
            first = backend.helpers()
            os.kill(first[-1], signal.SIGKILL)
            with pytest.raises(LaunchFailed):
                instance.wait(Event.EXITED, deadline_ns)
        assert backend.connection.alive
        assert not set(first) & set(backend.helpers())


def test_without_a_libvirtd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed: the arm is unusable, and the package is named."""
    monkeypatch.setattr("hv.daemon.PATH", "/nonexistent")
    with open_run(tmp_path) as run, DaemonBackend(run) as backend:
        found = backend.probe()
    assert not found.usable and found.reason == "libvirtd is not installed"
    assert "libvirt-daemon" in found.remedy


def test_a_harness_killed_beside_its_daemon(tmp_path: Path) -> None:
    """SIGKILL: guest, daemon and both workers are gone, with everything they made."""
    before = faults.traces()
    run = faults.Harness("run", "--arm", "vm:daemon", "busybox", "--", "sleep", "300")
    run.until(lambda: any("/qemu-system" in line for line in run.processes().values()))
    assert any("libvirtd" in line for line in run.processes().values())
    run.kill()
    run.end()
    assert faults.await_gone(before) == []


@pytest.mark.undoes
def test_clean_where_the_daemon_hangs(tmp_path: Path) -> None:
    """Harness and worker gone, the daemon stopped: `hvct clean` goes on, nothing is left."""
    before = faults.traces()
    with (
        tempfile.TemporaryDirectory(prefix="lv") as folder,
        libvirtd(Path(folder), tmp_path / "libvirtd.log") as daemon,
    ):
        words = ("run", "--arm", "vm", "--libvirt-uri", daemon.uri, "busybox", "--", "sleep", "300")
        run = faults.Harness(*words)
        run.until(lambda: any("/qemu-system" in line for line in run.processes().values()))
        tag = run.tag
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            run.kill()
            for pid, line in faults.marked(tag).items():
                if "/qemu-system" not in line:
                    os.kill(pid, signal.SIGKILL)
            run.end()
            done = faults.hvct("clean", timeout_s=30)
            assert done.code == 0 and not done.err, done
            assert faults.await_gone(before) == []
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        assert await_no_domains(daemon.uri) == []


def test_a_killed_harness_leaves_no_domain(tmp_path: Path) -> None:
    """SIGKILL to the harness alone: the daemon, which outlives it, knows no domain afterwards."""
    before = faults.traces()
    with (
        tempfile.TemporaryDirectory(prefix="lv") as folder,
        libvirtd(Path(folder), tmp_path / "libvirtd.log") as daemon,
    ):
        words = ("run", "--arm", "vm", "--libvirt-uri", daemon.uri, "busybox", "--", "sleep", "300")
        run = faults.Harness(*words)
        run.until(lambda: any("/qemu-system" in line for line in run.processes().values()))
        assert len(domains(daemon.uri)) == 1
        run.kill()
        run.end()
        assert faults.await_gone(before) == []
        assert await_no_domains(daemon.uri) == []
