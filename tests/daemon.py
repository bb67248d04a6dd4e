"""A libvirtd of a test's own: its folders over the system's, in namespaces of its own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hv.daemon import configured, uri_of


@dataclass(frozen=True)
class Daemon:
    """One that answers at `uri`."""

    uri: str
    process: subprocess.Popen[bytes]


def domains(uri: str) -> list[str]:
    """Every domain it knows, running or not."""
    import libvirt

    connection = libvirt.open(uri)
    try:
        return [domain.name() for domain in connection.listAllDomains()]
    finally:
        connection.close()


def await_no_domains(uri: str, seconds: float = 5.0) -> list[str]:
    """What it still knows after a while: it learns of an end a moment later."""
    deadline = time.monotonic() + seconds
    while (left := domains(uri)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@contextlib.contextmanager
def libvirtd(folder: Path, log: Path) -> Iterator[Daemon]:
    """Start one, and end it; skips the test where that is not possible here.

    Args:
        folder: for its socket (whose path is short) and its configuration.
    """
    if shutil.which("libvirtd") is None:
        pytest.skip("libvirtd is not installed")
    folder.mkdir(exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["unshare", "-mn", *configured(folder)], stdout=output, stderr=output
        )
    try:
        wire = folder / "libvirt-sock"
        for _ in range(1000):
            if wire.exists() or process.poll() is not None:
                break
            time.sleep(0.01)
        if not wire.exists():
            pytest.skip(f"libvirtd did not start: {log.read_text()}")
        yield Daemon(uri_of(folder), process)
    finally:
        process.terminate()
        process.wait(10)
