"""systemd-nspawn, systemd's own containers: no daemon asked, agent and channel bound into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.agent.build import agent_path
from bench.agent.confinement import CAPABILITY_MASK
from bench.cgroup import SELF_MOVE, Cgroup
from bench.cgroup_tree import make_elsewhere
from bench.cgroupfs import ROOT
from bench.context import RUN_VARIABLE
from bench.model import InstanceSpec, Security
from bench.peers.backend import (
    INSIDE,
    PATH,
    SOCKET_AGENT,
    Command,
    PeerBackend,
    hosts_of,
    installed,
)
from bench.peers.capabilities import NAMES, capability_names, held
from bench.programs.connection import Connection

PLACE = "place"
STATE = Path("/run/systemd/nspawn")  # compiled into it


class NspawnBackend(PeerBackend):
    """Its own process stays in the instance's group, and tidies up when the agent has ended.

    Not asked of it: a unit or a scope, since systemd need not be running; a user namespace;
    settings of the host about containers.
    """

    name = "nspawn"
    package = "systemd-container"
    own_group = False
    tidies_up = True
    passes_descriptors = False
    _agents: Connection | None = None  # the worker that has been given the agent's file

    def program(self) -> str:
        """It is called by its full name."""
        return installed("systemd-nspawn")

    @property
    def connection(self) -> Connection:
        """The worker, with places in memory for the agent's file and for what nspawn keeps.

        The run's folder may be mounted without the right to execute.
        """
        connection = super().connection
        if self._agents is not connection:
            folder = connection.folder_of(PLACE) / "agent"
            places = {folder: "16m", STATE: "1m"}
            # Until it is discarded, which it never is, its mounts stay.
            connection.start(PLACE, ["true"], {"PATH": PATH}, tmpfs=places)
            connection.started(PLACE)
            agent = connection.seen(folder) / "agent"
            agent.write_bytes(agent_path().read_bytes())
            agent.chmod(0o555)
            self._agents = connection
        return connection

    def joined(self, cgroup: Cgroup) -> Sequence[str]:
        """Where versions are mixed, a group in systemd's own hierarchy as well.

        There nspawn makes groups for itself and for what it runs, below the one it is in.
        """
        own = ROOT / "systemd"
        if cgroup.where.version == 2 or not (own / "cgroup.procs").exists():
            return super().joined(cgroup)
        made = make_elsewhere(own, cgroup.tag, cgroup.name)
        return (*super().joined(cgroup), str(made / SELF_MOVE))

    def command(self, spec: InstanceSpec, folder: Path, group: str) -> Command:
        """One command line. Its filter of system calls is its own, and stays but under `same`."""
        same = spec.security is Security.SAME
        kept = held() if same else CAPABILITY_MASK & held()
        names = capability_names(kept)
        dropped = [name for name in capability_names((1 << len(NAMES)) - 1) if name not in names]
        agent = folder.parent / PLACE / "agent" / "agent"
        words = [self.program(), "--quiet", "--register=no", "--keep-unit", "--settings=no"]
        words += [f"--directory={folder / 'fs' / 'root'}", f"--machine={spec.id}"]
        words += [f"--hostname={spec.hostname}", "--private-network", "--console=pipe"]
        words += ["--resolv-conf=off", "--timezone=off", "--link-journal=no"]
        words += [f"--no-new-privileges={'no' if same else 'yes'}"]
        words += [f"--capability={','.join(names)}", f"--drop-capability={','.join(dropped)}"]
        words += [f"--tmpfs=/dev/shm:mode=1777,size={spec.limits.shm_bytes}"]
        words += [
            f"--bind-ro={agent}:{INSIDE}/agent",
            f"--bind={folder / 'channel'}:{INSIDE}/channel",
        ]
        words += [f"--setenv={RUN_VARIABLE}={self.context.tag}"]
        env = {"SYSTEMD_NSPAWN_TMPFS_TMP": "0", **({"SYSTEMD_SECCOMP": "0"} if same else {})}
        plan = (
            ("mkdir", "/usr"),  # without it nspawn takes the root for no system
            ("write", "/etc/hosts", hosts_of(spec)),
        )
        return Command((*words, *SOCKET_AGENT), plan, env=env)
