"""The bare process: what the same workload costs with no isolation at all.

The same launcher, root file system, agent and control group as a container, but only a
mount namespace; so it sees the host's processes, network and name, and the agent is not
PID 1 (it is child subreaper instead). These are declared differences.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from bench.errors import Refused
from bench.model import InstanceSpec
from ct import rootfs, steps
from ct.backend import CLONE_NEWNS, HOST_LOOPBACK, LauncherBackend
from ct.instance import LauncherInstance
from ct.rootfs import Lower
from ct.steps import Plan, Steps
from ct.wire import readable

LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
QUIT_TIMEOUT_S = 2.0


class ProcessInstance(LauncherInstance):
    """A bare process: what it leaves behind is found by its control group."""

    def _begin(self) -> None:
        # Whoever is in its mount namespace is its own: the only mark where there is no cgroup.
        self._namespace = "" if self.cgroup else mount_namespace(self.launched.pid)

    def check_listener(self, port: int) -> None:
        """Make sure that what listens on `port` is in this instance.

        Raises:
            Refused: it is somebody else's.
        """
        inodes = listening_inodes(port)
        if not any(sockets_of(pid) & inodes for pid in self._pids()):
            raise Refused(
                f"port {port} is open on this host, but the workload is not who listens there",
                f"end what uses port {port} (ss -ltnp), or use another port",
            )

    def _pids(self) -> tuple[int, ...]:
        return self.cgroup.pids() if self.cgroup else descendants(self.launched.pid)

    def _end(self) -> None:
        """No pid namespace does it for us: the agent's children first, then the agent."""
        if self.cgroup:
            self.cgroup.kill()
            super()._end()
            return
        self._session.close()  # the agent then kills everything it started
        readable(self.launched.pidfd, QUIT_TIMEOUT_S)
        super()._end()
        while self._namespace and (left := inhabitants(self._namespace)):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)


class ProcessBackend(LauncherBackend):
    """Bare processes with the image as their root."""

    name = "process"
    instance_class = ProcessInstance
    uses_bridge = False

    def check(self, spec: InstanceSpec) -> None:
        """The workload's port is the host's: it must be free."""
        super().check(spec)
        if spec.listen_port and listening_inodes(spec.listen_port):
            raise Refused(
                f"port {spec.listen_port} is already in use on this host",
                f"end what uses it (ss -ltnp 'sport = :{spec.listen_port}')",
            )

    def plan(self, spec: InstanceSpec, lower: Lower, disk: Steps = steps.NOTHING) -> Plan:
        """The same root file system, and nothing else."""
        return Plan(
            CLONE_NEWNS,
            (
                rootfs.root_steps(lower, spec.limits),
                rootfs.kernel_steps(unified=False),
                rootfs.device_steps(spec.limits.shm_bytes, bind=False, own_ipc=False),
                disk,
                rootfs.hosts_steps(spec),
                rootfs.DETACH,
            ),
        )

    def connect_host(self, spec: InstanceSpec) -> str:
        """Its network is the host's."""
        return HOST_LOOPBACK


def listening_inodes(port: int) -> set[int]:
    """Inodes of the TCP sockets that listen on a port in our network namespace."""
    found = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # no IPv6
            for line in Path("/proc/net", name).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                    found.add(int(words[9]))
    return found


def sockets_of(pid: int) -> set[int]:
    """Inodes of the sockets a process holds; empty when it is gone."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(entry.path)
                if target.startswith("socket:["):
                    found.add(int(target[8:-1]))
    return found


def mount_namespace(pid: int) -> str:
    """The name of a process's mount namespace, "" when it is gone."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/mnt")
    return ""


def inhabitants(namespace: str) -> list[int]:
    """Processes in a mount namespace; zombies have none."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in pids if mount_namespace(pid) == namespace]


def descendants(pid: int) -> tuple[int, ...]:
    """A process and all below it, by /proc."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{task}/children").read_text()
            for child in text.split():
                found += descendants(int(child))
    return tuple(found)
