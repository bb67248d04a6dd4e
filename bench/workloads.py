"""The built-in workloads of the quick suite: pure data."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.errors import BadInput
from bench.model import NetworkMode, Readiness, ReadyKind, Workload

XZ_INPUT_BYTES = 2 << 20
TOUCHED_BYTES = 64 << 20

HELLO = Workload(
    name="hello",
    title="a minimal command",
    image="busybox",
    argv=("/bin/true",),
)

REDIS = Workload(
    name="redis",
    title="redis to PING",
    image="default",
    argv=(
        *("redis-server", "--save", "", "--appendonly", "no"),
        *("--bind", "0.0.0.0", "--protected-mode", "no"),
    ),
    ready=Readiness(ReadyKind.REPLY, port=6379, send=b"PING\r\n", expect=b"+PONG"),
    until="ready",
    hold_s=0.5,
    network=NetworkMode.BRIDGE,
)

NGINX = Workload(
    name="nginx",
    title="nginx to HTTP 200",
    image="default",
    # Port 8080, one worker, no access log: the image's own /etc/nginx/nginx.conf.
    argv=("nginx", "-e", "stderr", "-g", "daemon off;"),
    ready=Readiness(ReadyKind.HTTP, port=8080, path="/"),
    until="ready",
    hold_s=0.3,
    network=NetworkMode.BRIDGE,
)

TOUCH64 = Workload(
    name="touch64",
    title="64 MiB touched",
    image="default",
    argv=(
        *("python3", "-I", "-S", "-c"),
        # One byte in every page: a fresh bytearray alone is all the zero page.
        f"import signal; block = bytearray({TOUCHED_BYTES}); "
        f"block[::4096] = b'x' * {TOUCHED_BYTES // 4096}; "
        "print('touched', flush=True); signal.pause()",
    ),
    ready=Readiness(ReadyKind.LINE, pattern="^touched$"),
    until="ready",
    hold_s=0.3,
)

XZ = Workload(
    name="xz",
    title=f"xz of {XZ_INPUT_BYTES >> 20} MiB of text",
    image="default",
    # The text is Python's own library in the image: real, always the same, never all zeros.
    # The digest of the result, on stdout, shows that every arm did the same work.
    argv=(
        *("sh", "-euc"),
        f"cat /usr/lib/python3*/*.py | head -c {XZ_INPUT_BYTES} >/tmp/input; "
        f'test "$(stat -c %s /tmp/input)" = {XZ_INPUT_BYTES}; '
        "xz -6 --threads=1 --stdout /tmp/input >/tmp/input.xz; sha256sum /tmp/input.xz",
    ),
    timeout_s=120.0,
    work_units=XZ_INPUT_BYTES / (1 << 20),
    work_unit_name="MiB",
)

QUICK = (HELLO, REDIS, NGINX, TOUCH64, XZ)


def quick_suite() -> tuple[Workload, ...]:
    """The five workloads of ``hvct compare`` without arguments, in the report's order."""
    return QUICK


PRESETS = {"startup": (HELLO,)}
"""Names for several workloads, or for a purpose."""


def named(names: Sequence[str]) -> tuple[Workload, ...]:
    """The built-in workloads of these names, presets spelt out.

    Raises:
        BadInput: there is none of a name.
    """
    return tuple(workload for name in names for workload in PRESETS.get(name) or (builtin(name),))


def builtin(name: str) -> Workload:
    """The built-in workload of this name.

    Raises:
        BadInput: there is none.
    """
    for workload in QUICK:
        if workload.name == name:
            return workload
    known = ", ".join([*(workload.name for workload in QUICK), *PRESETS])
    raise BadInput(
        f"there is no workload {name!r}", f"choose from {known}, or describe your own in a plan"
    )


def from_image(image: str, argv: Sequence[str] | None = None) -> Workload:
    """A workload out of an image and a command; without one, what the image itself runs."""
    words = tuple(argv or ())
    words = words[1:] if words[:1] == ("--",) else words
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", image).strip("-._")[:40] or "image"
    return Workload(
        name=name,
        title=f"{image}: {' '.join(words)}"[:60] if words else image,
        image=image,
        argv=words or None,
    )
