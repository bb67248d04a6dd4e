"""unshare(1) of util-linux: namespaces and nothing else, so the root is made ready for it."""

from __future__ import annotations

from pathlib import Path

from bench.model import InstanceSpec
from bench.peers.backend import AGENT, Command, PeerBackend, hosts_of

NOSUID, NODEV, NOEXEC, RDONLY = 2, 4, 8, 1
DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}


class UnshareBackend(PeerBackend):
    """Six namespaces and a root directory; no name, no link brought up, no confinement.

    It can mount /proc only: our worker mounts what else the root needs, with its layer.
    """

    name = "unshare"
    package = "util-linux"
    own_group = False

    def command(self, spec: InstanceSpec, folder: Path, group: str) -> Command:
        """One command line, and a root with /dev and /sys in it."""
        words = [self.program(), "--fork", "--kill-child", "--mount-proc"]
        words += [f"--{kind}" for kind in ("mount", "pid", "net", "ipc", "uts", "cgroup")]
        quiet = NOSUID | NOEXEC
        shm = f"mode=1777,size={spec.limits.shm_bytes}"
        plan: list[tuple[str | int, ...]] = [
            ("mkdir", "/proc"),
            ("mkdir", "/sys"),
            ("mkdir", "/dev"),
            ("write", "/etc/hosts", hosts_of(spec)),
            ("mount", "/sys", "sysfs", "sysfs", quiet | NODEV | RDONLY, ""),
            ("mount", "/dev", "tmpfs", "tmpfs", quiet, "mode=755,size=64k"),
            *(("mknod", f"/dev/{name}", 0o020666, 1, minor) for name, minor in DEVICES.items()),
            ("mknod", "/dev/tty", 0o020666, 5, 0),
            ("symlink", "/dev/fd", "/proc/self/fd"),
            ("mkdir", "/dev/shm"),
            ("mount", "/dev/shm", "shm", "tmpfs", quiet | NODEV, shm),
        ]
        return Command((*words, f"--root={folder / 'fs' / 'root'}", "--", *AGENT), tuple(plan))
