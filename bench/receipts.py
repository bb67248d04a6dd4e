"""The untimed trial that proves what runs: content digests of program, loader and libraries.

Which files a program needs is asked of its own loader inside an instance (``ld.so
--list``), once; their bytes are then read from inside every arm and hashed here, with
the loader's cache and preload files, so each arm answers with what it would execute.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
import time
from collections.abc import Sequence
from typing import Any

from bench.backend import Backend, Instance
from bench.errors import HvctError, LaunchFailed
from bench.model import Event, InstanceSpec, NetworkMode, OutputMode, ReceiptLevel, Workload

LIMIT_NS = 120_000_000_000
_PT_INTERP = 3


def take_receipt(
    backend: Backend, workload: Workload, spec: InstanceSpec, libraries: Sequence[str]
) -> tuple[dict[str, Any], dict[str, object]]:
    """Run the workload once, untimed, and return its full receipt and what was set up.

    Args:
        libraries: further files to hash, from `loaded_files`.

    Raises:
        HvctError: it could not be launched, or sent no receipt.
    """
    limit_ns = max(LIMIT_NS, int(workload.timeout_s * 1e9))  # what is in time in a trial, is here
    with backend.launch(spec) as instance:
        if not instance.wait(Event.STARTED, time.monotonic_ns() + limit_ns):
            raise LaunchFailed(f"the workload was not started within {limit_ns / 1e9:g} s")
        description = instance.describe()
        # As long as a measured trial runs, so that it warms up what they use.
        if workload.until == "exit":
            instance.wait(Event.EXITED, time.monotonic_ns() + int(workload.timeout_s * 1e9))
        if instance.exit is None:
            instance.stop(1.0)
        receipt = dict(instance.receipt)
        if not receipt:
            raise HvctError("the agent sent no receipt")
        paths = [str(receipt.get("program", spec.argv[0])), *libraries]
        receipt["content"] = [_digest(instance, path) for path in dict.fromkeys(paths)]
    receipt["image"] = spec.image.digest
    return receipt, description


def loaded_files(backend: Backend, spec: InstanceSpec) -> list[str]:
    """Interpreter, loader, shared libraries and loader configuration of a spec's program.

    Runs the program's own loader with ``--list`` in an instance of `backend`.

    Raises:
        HvctError: the program cannot be read or its loader does not answer.
    """
    plain = dataclasses.replace(
        spec,
        id=spec.id + "l",
        network=NetworkMode.NONE,
        address=None,
        listen_port=0,
        output=OutputMode.SPOOL,
        receipt=ReceiptLevel.CHEAP,
    )
    files: list[str] = []
    program = spec.argv[0]
    for _ in range(3):  # a script names an interpreter, which may be a script again
        with backend.launch(plain) as instance:
            if not instance.wait(Event.STARTED, time.monotonic_ns() + LIMIT_NS):
                raise LaunchFailed("the program was not started within 120 s")
            instance.stop(1.0)
            program = str(instance.receipt.get("program", program))
            head = instance.fetch(program)
        if head[:2] != b"#!":
            break
        words = head[2:256].split(b"\n")[0].decode("utf-8", "replace").split()
        if not words:
            return files
        files.append(words[0])
        plain = dataclasses.replace(plain, argv=(words[0], "-c", ""))
    loader = elf_interpreter(head)
    if not loader:
        return files
    asking = dataclasses.replace(plain, id=spec.id + "m", argv=(loader, "--list", program))
    with backend.launch(asking) as instance:
        if not instance.wait(Event.EXITED, time.monotonic_ns() + LIMIT_NS):
            raise LaunchFailed("the loader did not list the libraries within 120 s")
        found = re.findall(r"(/\S+) \(0x[0-9a-f]+\)", instance.stdout.decode("utf-8", "replace"))
    return [*files, *sorted({loader, *found}), "/etc/ld.so.cache", "/etc/ld.so.preload"]


def _digest(instance: Instance, path: str) -> str:
    try:
        return f"{path} {hashlib.sha256(instance.fetch(path)).hexdigest()}"
    except LaunchFailed:
        raise
    except HvctError as error:  # most images have no ld.so.preload: both arms must say so
        return f"{path} ({error.message})"


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
