"""``--libvirt-uri``: the same code against a daemon, started for the test on its own socket."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.context import RunContext
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec, Limits, MemoryBasis
from hv.backend import VmBackend

pytestmark = [pytest.mark.root, pytest.mark.vm]
LIMITS = Limits(memory_bytes=128 << 20, memory_basis=MemoryBasis.NOMINAL)

# Folders of its own over the system's, in mount and network namespaces of its own.
SCRIPT = """
set -e
for folder in /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /run/libvirt; do
    mkdir -p "$folder"
    mount -t tmpfs tmpfs "$folder"
done
for name in passwd group; do
    cp "/etc/$name" "$1/$name"
    grep -q ^libvirt-qemu: "/etc/$name" || cat "$1/$name.more" >> "$1/$name"
    mount --bind "$1/$name" "/etc/$name"
done
cp "$1/qemu.conf" /etc/libvirt/qemu.conf
exec libvirtd --config "$1/libvirtd.conf" --pid-file "$1/pid"
"""
QEMU_CONF = """
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
stdio_handler = "file"
cgroup_controllers = [ ]
namespaces = [ ]
"""


@pytest.fixture
def context(tmp_path: Path) -> Iterator[RunContext]:
    """A journaled run whose virtual machines a private libvirtd starts."""
    if shutil.which("libvirtd") is None:
        pytest.skip("libvirtd is not installed")
    with open_run(tmp_path) as run:
        folder = run.runtime_dir / "daemon"
        folder.mkdir()
        (folder / "qemu.conf").write_text(QEMU_CONF)
        (folder / "passwd.more").write_text("libvirt-qemu:x:64055:64055::/:/bin/false\n")
        (folder / "group.more").write_text("libvirt-qemu:x:64055:\n")
        (folder / "libvirtd.conf").write_text(
            f'unix_sock_dir = "{folder}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
        )
        with (tmp_path / "libvirtd.log").open("wb") as log:
            daemon = subprocess.Popen(
                ["unshare", "-mn", "sh", "-c", SCRIPT, "sh", str(folder)], stdout=log, stderr=log
            )
        try:
            wire = folder / "libvirt-sock"
            for _ in range(1000):
                if wire.exists() or daemon.poll() is not None:
                    break
                time.sleep(0.01)
            if not wire.exists():
                pytest.skip(f"libvirtd did not start: {(tmp_path / 'libvirtd.log').read_text()}")
            yield dataclasses.replace(run, libvirt_uri=f"qemu+unix:///system?socket={wire}")
        finally:
            daemon.terminate()
            daemon.wait(10)


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
            final = instance.release()
        assert instance.stdout == b"by a daemon\n"
        assert final["cgroup_cpu_s"] > 0.1
        assert str(instance.describe()["libvirt_uri"]).startswith("qemu+unix")
        with backend.launch(make(2, "sleep", "60")) as instance:
            assert instance.wait(Event.STARTED, deadline_ns)
            os.kill(instance.link.pid, signal.SIGKILL)
            with pytest.raises(Exception, match="QEMU ended"):
                instance.wait(Event.EXITED, deadline_ns)
        assert not any(directory.exists() for directory in instance.cgroup.directories)  # type: ignore[union-attr]
