"""podman: an engine without a daemon, given the prepared root file system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.agent.launch_record import workload_rlimits
from bench.errors import HvctError, Refused
from bench.model import InstanceSpec, Security
from bench.peers.backend import AGENT, Command, PeerBackend, hosts_of, installed
from bench.peers.capabilities import held

PERIOD_US = 100_000
OWN_NPROC = 32768  # what podman gives itself
CAP_SYS_RESOURCE = 24


def least(limit: int, most: int) -> int:
    """The smaller of two limits, -1 being none."""
    return most if limit < 0 else min(limit, most)


class PodmanBackend(PeerBackend):
    """``podman run --rootfs`` in the foreground, with storage of its own for each instance.

    By runc, in control groups made as files: without systemd, and where cgroup versions are
    mixed, podman's own choices do not work.
    """

    name = "podman"
    package = "podman and runc"
    own_group = True
    tidies_up = True

    def program(self) -> str:
        """podman, where runc is there as well."""
        return installed("podman") if installed("runc") else ""

    def check(self, spec: InstanceSpec) -> None:
        """It passes descriptors on to its monitor, and has no filter of ours."""
        super().check(spec)
        if spec.cpu_quota is not None and spec.cpu_quota < 0.01:
            raise Refused("podman takes no smaller quota than 0.01 CPUs", "give it more")

    def remedy(self, error: HvctError) -> str:
        """What podman needs."""
        return f"{super().remedy(error)}; podman info says what it finds"

    def rlimits(self) -> Sequence[tuple[str, int, int]]:
        """Without CAP_SYS_RESOURCE what podman has lowered before it starts anything stays so."""
        limits = workload_rlimits()
        if held() >> CAP_SYS_RESOURCE & 1:
            return limits
        return [
            (name, least(soft, OWN_NPROC), least(hard, OWN_NPROC)) if name == "NPROC" else limit
            for limit in limits
            for name, soft, hard in [limit]
        ]

    def command(self, spec: InstanceSpec, folder: Path, group: str) -> Command:
        """One command line; of the host's settings of podman, none."""
        state = folder.parent / "s"  # podman takes no path of more than 50 characters
        limits = spec.limits
        words = [self.program(), "--cgroup-manager", "cgroupfs", "--runtime", installed("runc")]
        words += ["--runtime-flag", f"root={state / 'runc'}"]
        words += ["--root", str(state / "root"), "--runroot", str(state / "run")]
        words += ["--tmpdir", str(state / "tmp")]
        words += ["--events-backend", "none"]
        words += ["--storage-driver", "vfs", "run", "--rm", "--name", spec.id]
        words += ["--network", "none", "--preserve-fds", "2", "--log-driver", "none", "--no-hosts"]
        words += ["--cgroup-parent", group.rpartition("/")[0], "--hostname", spec.hostname]
        # podman's own defaults may be above what this process may grant.
        for name, _, hard in self.rlimits():
            if name in ("NOFILE", "NPROC"):
                words += ["--ulimit", f"{name.lower()}={hard}:{hard}"]
        words += ["--pids-limit", str(limits.pids), "--user", "0:0"]
        words += ["--shm-size", str(limits.shm_bytes), "--env", f"HVCT_RUN={self.context.tag}"]
        if limits.memory_bytes is not None:
            both = limits.memory_bytes + limits.swap_bytes
            words += ["--memory", str(limits.memory_bytes), "--memory-swap", str(both)]
        if spec.cpu_set:
            words += ["--cpuset-cpus", ",".join(map(str, spec.cpu_set))]
        if spec.cpu_quota is not None:
            words += ["--cpu-period", str(PERIOD_US)]
            words += ["--cpu-quota", str(round(spec.cpu_quota * PERIOD_US))]
        if spec.security is Security.SAME:
            words += [
                "--security-opt",
                "seccomp=unconfined",
                "--security-opt",
                "apparmor=unconfined",
            ]
        words += ["--entrypoint", f'["{AGENT[0]}"]', "--rootfs", str(folder / "fs" / "root")]
        files = {"containers.conf": '[engine]\nlock_type = "file"\n'}
        env = {"CONTAINERS_CONF": str(folder / "containers.conf")}
        plan = (("write", "/etc/hosts", hosts_of(spec)),)
        return Command((*words, *AGENT[1:]), plan, files, env)
