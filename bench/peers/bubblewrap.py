"""bwrap, the sandbox below Flatpak: no control group; it loads the filter it is given."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from bench.agent.confinement import CAPABILITY_MASK
from bench.agent.seccomp import seccomp_program
from bench.model import InstanceSpec, Security
from bench.peers.backend import AGENT, Command, PeerBackend, hosts_of
from bench.peers.capabilities import capability_names, held

FILTER = 5  # the descriptor after channel and agent


class BubblewrapBackend(PeerBackend):
    """The same namespaces, capabilities and filter as our container, set up by bwrap."""

    name = "bwrap"
    package = "bubblewrap"
    own_group = False

    def command(self, spec: InstanceSpec, folder: Path, group: str) -> Command:
        """One command line; the agent is PID 1 (``--as-pid-1``)."""
        words = [self.program(), "--die-with-parent", "--as-pid-1"]
        words += [f"--unshare-{kind}" for kind in ("pid", "net", "ipc", "uts", "cgroup")]
        words += ["--hostname", spec.hostname, "--bind", str(folder / "fs" / "root"), "/"]
        words += ["--proc", "/proc", "--ro-bind", "/sys", "/sys", "--dev", "/dev"]
        words += ["--perms", "1777", "--size", str(spec.limits.shm_bytes), "--tmpfs", "/dev/shm"]
        if spec.security is not Security.SAME:
            words += ["--cap-drop", "ALL"]
            for name in capability_names(CAPABILITY_MASK & held()):
                words += ["--cap-add", name]
            words += ["--seccomp", str(FILTER)]
        return Command(
            (*words, "--", *AGENT),
            (
                ("mkdir", "/proc"),
                ("mkdir", "/sys"),
                ("mkdir", "/dev"),
                ("write", "/etc/hosts", hosts_of(spec)),
            ),
        )

    @contextlib.contextmanager
    def _descriptors(self, spec: InstanceSpec, channel: socket.socket) -> Iterator[tuple[int, ...]]:
        if spec.security is Security.SAME:
            yield (channel.fileno(), self._agent)
            return
        filter_ = os.memfd_create("filter", os.MFD_CLOEXEC)
        try:
            os.write(filter_, seccomp_program())
            os.lseek(filter_, 0, os.SEEK_SET)
            yield (channel.fileno(), self._agent, filter_)
        finally:
            os.close(filter_)
