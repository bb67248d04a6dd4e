"""A registry of our own on the loopback interface: Debian's docker-registry, open or locked."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.command import run

USER, PASSWORD = "me", "s3cret pass:word"
# bcrypt of the password, the one form docker-registry takes, cheap to check.
HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuuWqE.ZbojV4lW1JhHwMXr3EQklLDUc6y\n"
ACCEPTED = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"


@dataclass
class Registry:
    """A registry that runs, or can be started again on the same port with the same content."""

    folder: Path
    port: int
    certificates: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """Its name in references."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it was asked so far."""
        return (self.folder / "log").read_text(errors="replace")

    def blob(self, digest: str) -> Path:
        """The file of a blob in its storage."""
        value = digest.removeprefix("sha256:")
        base = self.folder / "store" / "docker/registry/v2/blobs/sha256"
        return base / value[:2] / value / "data"

    def fetched(self, digest: str) -> int:
        """How often a blob was downloaded."""
        return len(re.findall(rf'"GET [^"]*/blobs/{digest} HTTP', self.log))

    def start(self) -> None:
        """Serve, once the port answers."""
        with (self.folder / "log").open("ab") as log:
            argv = ["docker-registry", "serve", self.folder / "config.yml"]
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            with socket.socket() as link:
                if link.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError(self.log)

    def stop(self) -> None:
        """Answer no more."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Not to be reached for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()


@contextmanager
def serving(folder: Path, *, locked: bool = False) -> Iterator[Registry]:
    """A registry with its storage in a folder; `locked`: TLS of its own CA, and one user."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    folder.mkdir()
    with socket.socket() as link:
        link.bind(("127.0.0.1", 0))
        port = link.getsockname()[1]
    http: dict[str, Any] = {"addr": f"127.0.0.1:{port}", "secret": "of tests"}
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "store")}},
        "http": http,
    }
    registry = Registry(folder, port)
    if locked:
        registry.certificates = certificates(folder)
        http["tls"] = {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem")}
        (folder / "htpasswd").write_text(HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    registry.start()
    try:
        yield registry
    finally:
        registry.stop()


def certificates(folder: Path) -> Path:
    """A CA, and a certificate for 127.0.0.1 that it signed; the folder with the CA in it."""
    trusted = folder / "trusted"
    trusted.mkdir()
    new = ("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    made = ("-nodes", "-keyout")
    ca = (*new, "-x509", "-days", "3650", *made, folder / "ca.key", "-subj", "/CN=CA of tests")
    run([*ca, "-out", trusted / "ca.crt"])
    run([*new, *made, folder / "key.pem", "-subj", "/CN=registry", "-out", folder / "asked.csr"])
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    signed = ("openssl", "x509", "-req", "-days", "3650", "-in", folder / "asked.csr")
    by = ("-CA", trusted / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial")
    run([*signed, *by, "-extfile", folder / "names", "-out", folder / "cert.pem"])
    return trusted


def put(layout: Path, registry: Registry, name: str, *options: str) -> None:
    """Copy a layout to an open registry, as it is, with skopeo."""
    to = f"docker://{registry.host}/{name}"
    words = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", *options]
    run([*words, f"oci:{layout}", to])
