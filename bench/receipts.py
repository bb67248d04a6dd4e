"""The untimed trial that proves what runs: content digests of program, loader and libraries.

Which files a program needs is asked of its own loader inside the instance (``ld.so
--list``), and the bytes are read from inside and hashed here, so both arms answer with
what they would really execute.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
import time
from typing import Any

from bench.backend import Backend, Instance
from bench.errors import HvctError, LaunchFailed
from bench.model import Event, InstanceSpec, NetworkMode, OutputMode, ReceiptLevel, Workload

LIMIT_NS = 120_000_000_000
_PT_INTERP = 3


def take_receipt(
    backend: Backend, workload: Workload, spec: InstanceSpec
) -> tuple[dict[str, Any], dict[str, object]]:
    """Run the workload once, untimed, and return its full receipt and what was set up.

    Raises:
        HvctError: it could not be launched, or sent no receipt.
    """
    with backend.launch(spec) as instance:
        deadline = time.monotonic_ns() + LIMIT_NS
        if not instance.wait(Event.STARTED, deadline):
            raise LaunchFailed("the workload was not started within 120 s")
        description = instance.describe()
        # Long enough to have exercised what the measured trials will do, servers included.
        if workload.until == "exit":
            instance.wait(Event.EXITED, time.monotonic_ns() + int(workload.timeout_s * 1e9))
        if instance.exit is None:
            instance.stop(1.0)
        receipt = dict(instance.receipt)
        program = str(receipt.get("program", spec.argv[0]))
        loader, is_script = _fetch_head(instance, program)
        contents = [_digest(instance, path) for path in _unique([program, loader])]
    if not receipt:
        raise HvctError("the agent sent no receipt")
    libraries: list[str] = []
    if loader and not is_script:
        libraries = _libraries(backend, spec, loader, program)
    receipt["content"] = [*contents, *libraries]
    receipt["image"] = spec.image.digest
    return receipt, description


def _unique(paths: list[str]) -> list[str]:
    return [path for path in dict.fromkeys(paths) if path]


def _digest(instance: Instance, path: str) -> str:
    return f"{path} {hashlib.sha256(instance.fetch(path)).hexdigest()}"


def _fetch_head(instance: Instance, program: str) -> tuple[str, bool]:
    """The program's interpreter: an ELF loader, or what a script's first line names."""
    data = instance.fetch(program)
    if data[:2] == b"#!":
        words = data[2:256].split(b"\n")[0].split()
        return (words[0].decode("utf-8", "replace") if words else ""), True
    return elf_interpreter(data), False


def elf_interpreter(data: bytes) -> str:
    """PT_INTERP of a 64-bit little-endian ELF file, "" for a static program (elf(5))."""
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
        return ""
    offset, size, count = (
        struct.unpack_from("<Q", data, 32)[0],
        *struct.unpack_from("<HH", data, 54),
    )
    for index in range(count):
        start = offset + index * size
        if start + 56 > len(data):
            return ""
        kind, _, place = struct.unpack_from("<IIQ", data, start)
        if kind == _PT_INTERP:
            (length,) = struct.unpack_from("<Q", data, start + 32)
            return data[place : place + length].rstrip(b"\0").decode("utf-8", "replace")
    return ""


def _libraries(backend: Backend, spec: InstanceSpec, loader: str, program: str) -> list[str]:
    """Digests of the shared libraries, as the program's own loader resolves them inside."""
    asking = dataclasses.replace(
        spec,
        id=spec.id + "l",
        argv=(loader, "--list", program),
        network=NetworkMode.NONE,
        address=None,
        listen_port=0,
        output=OutputMode.SPOOL,
        receipt=ReceiptLevel.CHEAP,
    )
    with backend.launch(asking) as instance:
        if not instance.wait(Event.EXITED, time.monotonic_ns() + LIMIT_NS):
            raise LaunchFailed("the loader did not list the libraries within 120 s")
        found = re.findall(r"(/\S+) \(0x[0-9a-f]+\)", instance.stdout.decode("utf-8", "replace"))
        return [_digest(instance, path) for path in sorted(set(found)) if path != loader]
