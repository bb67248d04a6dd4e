"""The built-in workloads, those of the quick suite first: pure data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from bench.errors import BadInput, no_such
from bench.model import (
    Healthcheck,
    ImageConfig,
    NetworkMode,
    Readiness,
    ReadyKind,
    Workload,
)
from bench.readiness import check_interval_s

XZ_INPUT_BYTES = 2 << 20
TOUCHED_BYTES = 64 << 20
ELASTIC_HOLD_S = 10.0  # a guest reports its free pages some 2 s after they were freed
SERVER_HOLD_S = 0.5  # of a server out of any image: as long as redis of the quick suite
SERVER_TIMEOUT_S = 180.0  # a database makes its files first, and that may be under emulation

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

IDLE = Workload(
    name="idle",
    title="a command that waits",
    image="busybox",
    argv=("sh", "-c", "echo up; exec sleep 1000000"),
    ready=Readiness(ReadyKind.LINE, pattern="^up$"),
    until="ready",
    hold_s=0.3,
)

ELASTIC = Workload(
    name="elastic",
    title=f"{TOUCHED_BYTES >> 20} MiB touched and freed, {ELASTIC_HOLD_S:.0f} s later",
    image="default",
    argv=(
        *("python3", "-I", "-S", "-c"),
        # A block of this size is a mapping of its own, which `del` gives back to the kernel.
        f"import signal; block = bytearray({TOUCHED_BYTES}); "
        f"block[::4096] = b'x' * {TOUCHED_BYTES // 4096}; del block; "
        "print('freed', flush=True); signal.pause()",
    ),
    ready=Readiness(ReadyKind.LINE, pattern="^freed$"),
    until="ready",
    hold_s=ELASTIC_HOLD_S,
    elastic=True,
)

QUICK = (HELLO, REDIS, NGINX, TOUCH64, XZ)


def quick_suite() -> tuple[Workload, ...]:
    """The five workloads of ``hvct compare`` without arguments, in the report's order."""
    return QUICK


MORE = (IDLE, ELASTIC)
"""Built in, but not in the quick suite."""

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
    for workload in (*QUICK, *MORE):
        if workload.name == name:
            return workload
    known = [*(workload.name for workload in (*QUICK, *MORE)), *PRESETS]
    raise no_such("workload", name, known, ", or describe your own in a plan")


def from_image(
    image: str,
    argv: Sequence[str] | None = None,
    config: ImageConfig | None = None,
    *,
    ready: str = "auto",
    env: Sequence[tuple[str, str]] = (),
    entrypoint: str | None = None,
) -> Workload:
    """A workload out of an image and a command; without one, what the image itself runs.

    Args:
        config: what the image says of itself; None where it says nothing.
        ready: ``auto``, ``exit``, ``health``, ``output``, ``tcp:PORT``, ``http:PORT/PATH`` or
            ``line:REGEX``. By itself an image with a health check or a TCP port is a server,
            unless a command is given.
        entrypoint: instead of the image's own.

    Raises:
        BadInput: `ready` is none of these, or asks for what the image does not have.
    """
    said = config or ImageConfig()
    words = tuple(argv or ())
    words = words[1:] if words[:1] == ("--",) else words
    first = (entrypoint,) if entrypoint else said.entrypoint if words else ()
    ports = tcp_ports(said)
    rule = _own_rule(said, ports) if ready == "auto" and not words else _rule(ready, said, ports)
    serves = rule.kind is not ReadyKind.STARTED
    return Workload(
        name=workload_name(image),
        title=f"{image}: {' '.join(words)}"[:60] if words else image,
        image=image,
        argv=(*first, *words) or None,
        env=tuple(env),
        ready=rule,
        until="ready" if serves else "exit",
        hold_s=SERVER_HOLD_S if serves else 0.0,
        timeout_s=SERVER_TIMEOUT_S if serves else Workload.timeout_s,
        network=NetworkMode.BRIDGE if rule.port or (serves and ports) else NetworkMode.NONE,
    )


def workload_name(image: str) -> str:
    """A short name for an image's workload: ``127.0.0.1:5000/shop/app:1`` gives ``shop-app-1``."""
    short = re.sub(r"^(?:[^/]*[.:][^/]*|localhost)/|@.*", "", image)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", short).strip("-._")[:40] or "image"


def tcp_ports(config: ImageConfig) -> list[int]:
    """The TCP ports an image exposes, in order; ``8000-8002/tcp`` is three."""
    found: set[int] = set()
    for text in config.exposed_ports:
        if shape := re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?(?:/tcp)?", text):
            low, high = int(shape[1]), int(shape[2] or shape[1])
            found.update(port for port in range(low, min(high, low + 1000) + 1) if port < 65536)
    return sorted(found - {0})


def _own_rule(config: ImageConfig, ports: Sequence[int]) -> Readiness:
    if config.healthcheck is not None:
        return Readiness(ReadyKind.HEALTH, port=ports[0] if ports else 0)
    return Readiness(ReadyKind.TCP, port=ports[0]) if ports else Readiness()


def _rule(text: str, config: ImageConfig, ports: Sequence[int]) -> Readiness:
    kind, _, rest = text.partition(":")
    port, _, path = rest.partition("/")
    if text in ("auto", "exit"):
        return Readiness()
    if text == "output":
        return Readiness(ReadyKind.OUTPUT)
    if text == "health":
        if config.healthcheck is None:
            raise BadInput("the image declares no health check", "use another --ready")
        return _own_rule(config, ports)
    if kind == "line" and rest:
        return Readiness(ReadyKind.LINE, pattern=rest)
    if kind in ("tcp", "http") and port.isdigit() and 0 < int(port) < 65536:
        if kind == "http":
            return Readiness(ReadyKind.HTTP, port=int(port), path=f"/{path}")
        if not path:
            return Readiness(ReadyKind.TCP, port=int(port))
    raise BadInput(
        f"--ready {text!r} is no rule of readiness",
        "use auto, exit, health, output, tcp:PORT, http:PORT/PATH or line:REGEX",
    )


def said_ready(workload: Workload, check: Healthcheck | None = None) -> str:
    """In words, when a workload counts as ready.

    Args:
        check: its health check as it will be run, where it is ready by one.
    """
    ready = workload.ready
    if ready.kind is ReadyKind.HEALTH:
        if check is None:
            return "when its health check, run inside, ends with status 0"
        every = f"every {check_interval_s(check):g} s"
        return f"when {shlex.join(check.command)}, run inside {every}, ends with status 0"
    return {
        ReadyKind.STARTED: "at the start of its program; it runs until it ends",
        ReadyKind.OUTPUT: "at the first byte of its output",
        ReadyKind.LINE: f"at the first line of output that matches {ready.pattern}",
        ReadyKind.TCP: f"when TCP port {ready.port} takes a connection",
        ReadyKind.REPLY: f"when port {ready.port} gives the reply",
        ReadyKind.HTTP: f"when HTTP port {ready.port} answers {ready.path} with 200",
    }[ready.kind]
