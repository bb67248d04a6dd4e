"""A libvirtd of a test's own: its folders over the system's, in namespaces of its own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

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


@dataclass(frozen=True)
class Daemon:
    """One that answers at `uri`."""

    uri: str
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def libvirtd(folder: Path, log: Path) -> Iterator[Daemon]:
    """Start one, and end it; skips the test where that is not possible here.

    Args:
        folder: for its socket (whose path is short) and its configuration.
    """
    if shutil.which("libvirtd") is None:
        pytest.skip("libvirtd is not installed")
    folder.mkdir(exist_ok=True)
    (folder / "qemu.conf").write_text(QEMU_CONF)
    (folder / "passwd.more").write_text("libvirt-qemu:x:64055:64055::/:/bin/false\n")
    (folder / "group.more").write_text("libvirt-qemu:x:64055:\n")
    (folder / "libvirtd.conf").write_text(
        f'unix_sock_dir = "{folder}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
    )
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["unshare", "-mn", "sh", "-c", SCRIPT, "sh", str(folder)], stdout=output, stderr=output
        )
    try:
        wire = folder / "libvirt-sock"
        for _ in range(1000):
            if wire.exists() or process.poll() is not None:
                break
            time.sleep(0.01)
        if not wire.exists():
            pytest.skip(f"libvirtd did not start: {log.read_text()}")
        yield Daemon(f"qemu+unix:///system?socket={wire}", process)
    finally:
        process.terminate()
        process.wait(10)
