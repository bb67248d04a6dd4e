"""The RUN record: what the agent is told, made from an InstanceSpec alone.

Arms differ only in the ``guest.*`` keys, so that what must be equal is equal by
construction.
"""

from __future__ import annotations

import functools
import resource
from collections.abc import Sequence

from bench.agent.confinement import CAPABILITY_MASK
from bench.model import InstanceSpec, OutputMode, ReceiptLevel, Security

UMASK = "0022"

_MIB = 1 << 20
_WANTED: tuple[tuple[str, int, int], ...] = (
    ("CORE", 0, resource.RLIM_INFINITY),
    ("NOFILE", 1024, 524288),
    ("NPROC", resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    ("SIGPENDING", resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    ("MEMLOCK", 8 * _MIB, 8 * _MIB),
    ("STACK", 8 * _MIB, resource.RLIM_INFINITY),
    ("MSGQUEUE", 819200, 819200),
    ("NICE", 0, 0),
    ("RTPRIO", 0, 0),
)


@functools.cache
def workload_rlimits() -> tuple[tuple[str, int, int], ...]:
    """The workload's (name, soft, hard) in every arm: ours, cut to what this host allows.

    A guest's kernel has other defaults than the host, so every limit that differs is set
    in all arms; a container may not raise the host's hard limits, so a guest may not
    either. -1 is unlimited.
    """

    def least(first: int, second: int) -> int:
        if resource.RLIM_INFINITY in (first, second):
            return second if first == resource.RLIM_INFINITY else first
        return min(first, second)

    limits = []
    for name in sorted({name for name, *_ in _WANTED} | set(_OTHERS)):
        number = resource.__dict__.get(f"RLIMIT_{name}", _NUMBERS.get(name))
        if number is None:
            continue
        _, hard = resource.getrlimit(number)
        wanted = {key: (low, high) for key, low, high in _WANTED}
        low, high = wanted.get(name, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        high = least(high, hard)
        limits.append((name, least(low, high), high))
    return tuple(limits)


_OTHERS = ("CPU", "FSIZE", "DATA", "RSS", "AS", "LOCKS", "RTTIME")
_NUMBERS = {"LOCKS": 10, "RTTIME": 15}  # not named by Python's module


def run_record(
    spec: InstanceSpec,
    guest: Sequence[tuple[str, str]] = (),
    seccomp: bytes = b"",
    rlimits: Sequence[tuple[str, int, int]] | None = None,
) -> list[tuple[str, str]]:
    """The RUN record of an instance.

    Args:
        guest: the ``guest.*`` keys, for a VM.
        seccomp: a BPF program, used under ``security = "same"``.
        rlimits: (name, soft, hard), -1 for unlimited; default ``workload_rlimits()``.
    """

    def text(value: int) -> str:
        return "unlimited" if value == resource.RLIM_INFINITY else str(value)

    pairs: list[tuple[str, str]] = [("arg", word) for word in spec.argv]
    pairs += [("env", f"{name}={value}") for name, value in spec.env]
    pairs += [
        ("cwd", spec.workdir or "/"),
        ("uid", str(spec.ids.uid)),
        ("gid", str(spec.ids.gid)),
        *(("group", str(group)) for group in spec.ids.groups),
        ("umask", UMASK),
        ("output", "stream" if spec.output is OutputMode.STREAM else "spool"),
        ("output_limit", str(spec.output_limit_bytes)),
        ("stdin", "stream" if spec.stdin else "null"),
        ("tty", "1" if spec.tty else "0"),
        ("receipt", "digest" if spec.receipt is ReceiptLevel.DIGEST else "cheap"),
        ("hostname", spec.hostname),
        ("machine_id", spec.machine_id),
    ]
    if spec.listen_port:
        pairs.append(("listen_port", str(spec.listen_port)))
    for name, soft, hard in workload_rlimits() if rlimits is None else rlimits:
        pairs.append(("rlimit", f"{name}:{text(soft)}:{text(hard)}"))
    if spec.security is Security.SAME:
        pairs += [("no_new_privs", "1"), ("caps", f"{CAPABILITY_MASK:x}")]
        if seccomp:
            pairs.append(("seccomp", seccomp.hex()))
    return [*pairs, *guest]
