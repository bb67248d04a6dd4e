"""From a workload to the InstanceSpec that every backend gets: image and workload merged."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from pathlib import Path

from bench.agent.frames import FRAME_MAX
from bench.checks.interference import cpus_of_list
from bench.checks.tree import Tree
from bench.context import RunContext
from bench.errors import BadInput
from bench.image.config import signal_number
from bench.image.store import ids_for
from bench.model import (
    Healthcheck,
    Ids,
    Image,
    InstanceSpec,
    NetworkMode,
    OutputMode,
    ReadyKind,
    ReceiptLevel,
    Workload,
)
from bench.plan import LEAST_CPUS
from bench.readiness import OUTPUT_KINDS
from bench.tuning import measured_cpus

OWN_CHECK_S = 0.1  # interval of a health check that a plan gives without one
REST_BYTES = 96 << 10  # of the RUN record: limits, modules, the seccomp filter in hex
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def instance_cpus(cpus: float) -> tuple[tuple[int, ...], float | None]:
    """The host CPUs an instance is pinned to, and its quota where `cpus` is no whole number.

    The last CPUs of those we may use, so that the first stay for harness and probes.

    Raises:
        BadInput: it is no number of CPUs, or the host has fewer.
    """
    usable = usable_cpus()
    if not (math.isfinite(cpus) and cpus >= LEAST_CPUS):
        raise BadInput(f"{cpus:g} is no number of CPUs", f"it is at least {LEAST_CPUS:g}")
    count = math.ceil(cpus)
    if count > len(usable):
        raise BadInput(
            f"{cpus:g} CPUs were asked for, this host has {len(usable)}", "ask for fewer"
        )
    return tuple(usable[-count:]), (cpus if cpus != count else None)


def harness_cpus(taken: tuple[int, ...]) -> tuple[int, ...]:
    """CPUs left for harness, helpers and probes; empty when the instance takes them all.

    Hardware threads that share a core with the instance only where there are no others.
    """
    free = [cpu for cpu in usable_cpus() if cpu not in taken]
    apart = [cpu for cpu in free if not siblings(cpu) & set(taken)]
    return tuple(apart or free)


def siblings(cpu: int) -> set[int]:
    """The CPUs of a CPU's core, itself among them."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        found: set[int] = set()
        for part in text.strip().split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return {cpu}
    return found | {cpu}


def usable_cpus() -> list[int]:
    """CPUs that instances and this process may use: what it was started with, if still online.

    And those that `hvct tune` keeps from all others, ourselves among them: instances live in
    groups to which that does not apply.
    """
    found = _STARTED_WITH | os.sched_getaffinity(0) | set(measured_cpus())
    online = Tree().text("/sys/devices/system/cpu/online")
    return sorted(found & cpus_of_list(online) if online else found)


_STARTED_WITH = os.sched_getaffinity(0)


def argv_of(workload: Workload, image: Image) -> tuple[str, ...]:
    """The final argv: the workload's own, else the image's entrypoint and cmd.

    Raises:
        BadInput: neither names a program.
    """
    if workload.argv is not None:
        argv = workload.argv
    else:
        argv = (*image.config.entrypoint, *image.config.cmd)
    if not argv:
        raise BadInput(
            f"image {image.name} names no program and neither does workload {workload.name}",
            "give it an argv",
        )
    return argv


def environment_of(
    workload: Workload, image: Image, hostname: str, ids: Ids
) -> tuple[tuple[str, str], ...]:
    """The whole environment, as a container engine would set it."""
    merged = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname, "HOME": ids.home or "/"}
    merged.update(image.config.env)
    merged.update(workload.env)
    return tuple(merged.items())


def check_command_size(argv: Iterable[str], env: Iterable[tuple[str, str]]) -> None:
    """Make sure that arguments and environment fit the one frame that carries them.

    Raises:
        BadInput: they do not.
    """
    words = [*argv, *(f"{name}={value}" for name, value in env)]
    size = sum(len(word.encode("utf-8", "surrogateescape")) + len("arg=\0") for word in words)
    if size > FRAME_MAX - REST_BYTES:
        raise BadInput(
            f"arguments and environment are {size / 2**20:.1f} MiB, more than fit 1 MiB",
            "shorten them, in the image or the workload; pass much data on standard input",
        )


def make(
    workload: Workload,
    image: Image,
    context: RunContext,
    number: int,
    *,
    receipt: ReceiptLevel = ReceiptLevel.CHEAP,
) -> InstanceSpec:
    """The specification of the run's n-th instance; the same object for every arm."""
    cpu_set, quota = instance_cpus(workload.limits.cpus)
    hostname = "hvct"
    ids = ids_for(image, workload.user)
    address = None
    if workload.network is NetworkMode.BRIDGE and context.network is not None:
        address = context.network.address(number)
    argv, env = argv_of(workload, image), environment_of(workload, image, hostname, ids)
    check_command_size(argv, env)
    return InstanceSpec(
        id=context.instance(number),
        image=image,
        argv=argv,
        env=env,
        ids=ids,
        workdir=workload.workdir or image.config.workdir or "/",
        hostname=hostname,
        limits=workload.limits,
        cpu_set=cpu_set,
        cpu_quota=quota,
        network=workload.network,
        address=address,
        output=OutputMode.STREAM if workload.ready.kind in OUTPUT_KINDS else OutputMode.SPOOL,
        security=workload.security,
        receipt=receipt,
        listen_port=_listen_port(workload),
        health=health_of(workload, image),
        stop_signal=signal_number(image.config.stop_signal),
    )


def _listen_port(workload: Workload) -> int:
    known = (ReadyKind.TCP, ReadyKind.REPLY, ReadyKind.HTTP, ReadyKind.HEALTH)
    return workload.ready.port if workload.ready.kind in known else 0


def health_of(workload: Workload, image: Image) -> Healthcheck | None:
    """The health check of a workload that is ready by one: its own, else the image's.

    Raises:
        BadInput: there is neither.
    """
    ready, declared = workload.ready, image.config.healthcheck
    if ready.kind is not ReadyKind.HEALTH:
        return None
    command = ready.command or (declared.command if declared else ())
    if not command:
        raise BadInput(
            f"workload {workload.name!r}: image {image.name} declares no health check",
            "give ready.command, or another rule of readiness",
        )
    if ready.command or declared is None:
        declared = Healthcheck(command, interval_s=OWN_CHECK_S)
    return dataclasses.replace(
        declared,
        interval_s=ready.interval_s or declared.interval_s,
        start_interval_s=0.0 if ready.interval_s else declared.start_interval_s,
        timeout_s=ready.timeout_s or declared.timeout_s,
    )


def digest_variant(spec: InstanceSpec) -> InstanceSpec:
    """The same specification with the full receipt, for the untimed trial."""
    return dataclasses.replace(spec, receipt=ReceiptLevel.DIGEST)
