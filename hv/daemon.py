"""The arm `vm:daemon`: the same domain through a libvirtd, as most people use libvirt.

The daemon is a private one. The worker of other people's programs runs it, in its mount
namespace, where folders in memory cover those that the host's own libvirt keeps: no network,
pool or domain of the host is seen, and nothing of it stays. QEMU becomes the daemon's child, and
once detached that worker's, which reaps it at once; so its CPU time is known from the control
group alone. Without a defined network libvirtd adds no firewall rule and no link, hence
the network namespace is the host's: the run's bridge is in it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import time
from pathlib import Path
from types import TracebackType

from bench.context import RUN_VARIABLE, RunContext
from bench.errors import HostCannot, HvctError
from bench.model import Capability
from bench.programs import connection as programs
from hv.backend import VmBackend
from hv.connection import AS_ROOT, QEMU_CONF, Connection

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_LIMIT_S = 30.0
ID = "daemon"
MISSING = "apt-get install libvirt-daemon (Debian's name; libvirtd is in it)"

# For a mount namespace of its own. The user is looked up even where another one is configured.
_SCRIPT = """
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


def configured(folder: Path) -> list[str]:
    """Write a daemon's configuration into a folder; the command that starts it there.

    Args:
        folder: for its socket, so its path is short.
    """
    (folder / "qemu.conf").write_text(QEMU_CONF + AS_ROOT)
    (folder / "passwd.more").write_text("libvirt-qemu:x:64055:64055::/:/bin/false\n")
    (folder / "group.more").write_text("libvirt-qemu:x:64055:\n")
    (folder / "libvirtd.conf").write_text(
        f'unix_sock_dir = "{folder}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
    )
    return ["sh", "-c", _SCRIPT, "sh", str(folder)]


def uri_of(folder: Path) -> str:
    """What libvirt's clients call the daemon in this folder."""
    return f"qemu+unix:///system?socket={folder / 'libvirt-sock'}"


class Daemon:
    """A running libvirtd, and the worker that runs it. `close` ends both, and every QEMU."""

    def __init__(
        self, connection: programs.Connection, folder: Path, program: programs.Started
    ) -> None:
        self.uri = uri_of(folder)
        self.program = program
        self._connection = connection

    @classmethod
    def start(cls, context: RunContext) -> Daemon:
        """Start one and wait until it answers.

        Raises:
            HostCannot: it is not installed, or did not come up.
        """
        if shutil.which("libvirtd", path=PATH) is None:
            raise HostCannot("libvirtd is not installed", MISSING)
        connection = programs.Connection.open(context, "libvirtd")
        try:
            folder = connection.folder_of(ID)
            folder.mkdir()
            environment = {"PATH": PATH, RUN_VARIABLE: context.tag}
            connection.start(ID, configured(folder), environment)
            program = connection.started(ID)
            deadline = time.monotonic() + START_LIMIT_S
            while not _answers(folder / "libvirt-sock"):
                ended = connection.ended(program, 0.01)
                if ended or time.monotonic() > deadline:
                    why = "ended" if ended else f"did not answer within {START_LIMIT_S:.0f} s"
                    raise HostCannot(f"libvirtd {why}: {program.words}", "leave this arm out")
        except BaseException:
            connection.close()
            raise
        return cls(connection, folder, program)

    def close(self) -> None:
        """End it with all that it started."""
        self._connection.close()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._connection.alive and not self._connection.ended(self.program, 0.0)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the worker and of the daemon."""
        return (self._connection.process.pid, self.program.pid)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


class DaemonBackend(VmBackend):
    """The arm `vm` with a libvirtd between it and QEMU; all else is the same."""

    _daemon: Daemon | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None

    @property
    def connection(self) -> Connection:
        """libvirt's client and the daemon, started on first use, and again after one has died."""
        if self._daemon is not None and not self._daemon.alive:
            self.__exit__(None, None, None)
        return super().connection

    def reached(self) -> RunContext:
        """By the daemon's socket."""
        if self._daemon is None:
            self._daemon = Daemon.start(self.context)
        return dataclasses.replace(self.context, libvirt_uri=self._daemon.uri)

    def helpers(self) -> tuple[int, ...]:
        """Of libvirt's client, the daemon, and the worker that runs that."""
        return super().helpers() + (() if self._daemon is None else self._daemon.pids)

    def probe(self) -> Capability:
        """Start a daemon, and find the accelerator by running a guest through it."""
        if os.geteuid() != 0:
            why = "not root: libvirtd is given folders of its own by mounting them"
            return Capability(self.name, False, why, "run hvct as root")
        try:
            self.reached()
        except HvctError as error:
            return Capability(self.name, False, error.message, error.hint)
        return super().probe()
