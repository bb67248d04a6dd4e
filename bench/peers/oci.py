"""runc and crun: the OCI runtimes below container engines, given a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.agent.confinement import CAPABILITY_MASK, MASKED, READ_ONLY
from bench.agent.seccomp import DENIED, NAMESPACE_FLAGS
from bench.context import RUN_VARIABLE
from bench.errors import HvctError
from bench.model import InstanceSpec, Security
from bench.peers.backend import (
    AGENT,
    PATH,
    Command,
    PeerBackend,
    hosts_of,
)
from bench.peers.capabilities import capability_names, held

NAMESPACES = ("pid", "mount", "network", "ipc", "uts", "cgroup")
PERIOD_US = 100_000
EPERM, ENOSYS = 1, 38


class OciBackend(PeerBackend):
    """``run`` in the foreground, with the limits and confinement that our container has."""

    own_group = True

    def command(self, spec: InstanceSpec, folder: Path, group: str) -> Command:
        """A bundle, and one command line; state stays in the instance's folder."""
        words = (self.program(), "--root", str(folder / "state"), "run", "--preserve-fds", "2")
        bundle = bundle_of(spec, folder, group, self.context.tag)
        return Command(
            (*words, "--bundle", str(folder), spec.id),
            files={"config.json": json.dumps(bundle), "hosts": hosts_of(spec)},
        )


class RuncBackend(OciBackend):
    """The reference runtime, below Docker and podman."""

    name = "runc"
    package = "runc"


class CrunBackend(OciBackend):
    """The runtime in C, podman's first choice."""

    name = "crun"
    package = "crun"

    def remedy(self, error: HvctError) -> str:
        """Where it finds the hierarchies mixed it declines."""
        if "cgroup" in error.message:
            return (
                "boot with one cgroup version (systemd.unified_cgroup_hierarchy=1), or leave it out"
            )
        return super().remedy(error)


def bundle_of(spec: InstanceSpec, folder: Path, group: str, tag: str) -> dict[str, Any]:
    """The OCI configuration of an instance."""
    same = spec.security is Security.SAME
    capabilities = capability_names(CAPABILITY_MASK & held())
    linux: dict[str, Any] = {
        "cgroupsPath": group,
        "namespaces": [{"type": kind} for kind in NAMESPACES],
        "resources": resources_of(spec),
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
    }
    if not same:
        linux["seccomp"] = seccomp_rules()
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": AGENT,
            "cwd": "/",
            "env": [f"PATH={PATH}", f"{RUN_VARIABLE}={tag}"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {kind: capabilities for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": not same,
        },
        "root": {"path": str(folder / "fs" / "root")},
        "hostname": spec.hostname,
        "mounts": mounts_of(spec, folder),
        "linux": linux,
    }


def resources_of(spec: InstanceSpec) -> dict[str, Any]:
    """The limits of the specification, as the runtime sets them."""
    limits = spec.limits
    found: dict[str, Any] = {"pids": {"limit": limits.pids}}
    if limits.memory_bytes is not None:
        both = limits.memory_bytes + limits.swap_bytes
        found["memory"] = {"limit": limits.memory_bytes, "swap": both}
    cpu: dict[str, Any] = {}
    if spec.cpu_set:
        cpu["cpus"] = ",".join(map(str, spec.cpu_set))
    if spec.cpu_quota is not None:
        cpu |= {"quota": round(spec.cpu_quota * PERIOD_US), "period": PERIOD_US}
    if cpu:
        found["cpu"] = cpu
    return found


def mounts_of(spec: InstanceSpec, folder: Path) -> list[dict[str, Any]]:
    """What our containers have mounted."""
    quiet = ["nosuid", "noexec", "nodev"]

    def of(path: str, kind: str, *options: str) -> dict[str, Any]:
        return {"destination": path, "type": kind, "source": kind, "options": list(options)}

    return [
        of("/proc", "proc", *quiet),
        of("/dev", "tmpfs", "nosuid", "noexec", "mode=755", "size=64k"),
        of("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
        of("/dev/shm", "tmpfs", *quiet, "mode=1777", f"size={spec.limits.shm_bytes}"),
        of("/dev/mqueue", "mqueue", *quiet),
        of("/sys", "sysfs", *quiet, "ro"),
        {
            "destination": "/etc/hosts",
            "type": "bind",
            "source": str(folder / "hosts"),
            "options": ["bind"],
        },
    ]


def seccomp_rules() -> dict[str, Any]:
    """Our filter in the runtimes' words."""
    namespaces = [
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": EPERM,
            "args": [{"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}],
        }
        for bit in range(32)
        if (flag := 1 << bit) & NAMESPACE_FLAGS
    ]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": list(DENIED), "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
            *namespaces,
        ],
    }
