"""A Docker engine of the tests' own: another implementation to compare with.

Debian's, by full path (a `docker` elsewhere in PATH may be anything), with its own data,
socket, process ids and cgroup parent, without a bridge and without a firewall rule.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.image.index import host_architecture

DAEMON = "/usr/sbin/dockerd"
CLIENT = "/usr/bin/docker"
START_S = 30.0
END_S = 30.0
CGROUP_ROOT = Path("/sys/fs/cgroup")


def missing() -> str:
    """Why there can be no engine here, "" when there can."""
    for program in (DAEMON, CLIENT, "/usr/bin/docker-init"):
        if not os.access(program, os.X_OK):
            return f"{program} is missing: install the package docker.io"
    return "" if os.geteuid() == 0 else "a Docker engine needs root"


@dataclass(frozen=True)
class Engine:
    """One running engine: its folder, which everything of it is below, and its cgroup parent."""

    root: Path
    cgroup: str
    environment: dict[str, str]

    def docker(
        self, *arguments: str, stdin: bytes = b"", timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run Docker's own client; the caller looks at the exit status."""
        argv = [CLIENT, "-H", f"unix://{self.root}/socket", *arguments]
        return subprocess.run(
            argv, input=stdin, capture_output=True, timeout=timeout_s, env=self.environment
        )

    def ask(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """What the client printed; it must succeed."""
        done = self.docker(*arguments, timeout_s=timeout_s)
        assert done.returncode == 0, (arguments, done.stderr.decode(errors="replace"))
        return done.stdout.decode().strip()

    def load(self, archive: Path) -> None:
        """Load a `docker save` archive."""
        self.ask("load", "-q", "-i", str(archive))


@contextmanager
def private_engine() -> Iterator[Engine]:
    """Start an engine, and end it with everything it made."""
    # Not below pytest's folder: a socket's path has at most 107 characters.
    root = Path(tempfile.mkdtemp(prefix="hvct-docker-"))
    engine = Engine(root, f"/{root.name}", os.environ | {"DOCKER_CONFIG": str(root / "client")})
    (root / "daemon.json").write_text(json.dumps({"deprecated-key-path": f"{root}/key.json"}))
    argv = [
        # Ends with us, however we end.
        *("setpriv", "--pdeathsig", "TERM", DAEMON, "--config-file", f"{root}/daemon.json"),
        *("--host", f"unix://{root}/socket", "--pidfile", f"{root}/pid"),
        *("--data-root", f"{root}/data", "--exec-root", f"{root}/exec"),
        *("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"),
        *("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", engine.cgroup),
    ]
    try:
        with (root / "log").open("wb") as log:
            daemon = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_up(engine, daemon)
            yield engine
        finally:
            _end(engine, daemon)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _wait_up(engine: Engine, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while engine.docker("version").returncode != 0:
        assert daemon.poll() is None and time.monotonic() < deadline, (
            engine.root / "log"
        ).read_text()[-2000:]
        time.sleep(0.05)


def _end(engine: Engine, daemon: subprocess.Popen[bytes]) -> None:
    if daemon.poll() is None:
        if containers := engine.docker("ps", "-aq").stdout.decode().split():
            engine.docker("rm", "-f", "-v", *containers)
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        target = line.split(" ")[4]
        if target.startswith(f"{engine.root}/"):
            subprocess.run(["umount", "-l", target], check=True)
    for folder in (CGROUP_ROOT, *CGROUP_ROOT.iterdir()):
        parent = folder / engine.cgroup[1:]
        if parent.is_dir():
            parent.rmdir()
    for folder in ("/run/docker/plugins", "/run/docker"):  # whatever --exec-root says
        with contextlib.suppress(OSError):  # somebody else's engine uses it
            os.rmdir(folder)


# --- images -----------------------------------------------------------------------------


def layer_of(tree: Path) -> bytes:
    """A folder as a layer, everything owned by root unless its name says otherwise."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(tree.rglob("*")):
            archive.add(path, arcname=str(path.relative_to(tree)), recursive=False)
    return made.getvalue()


def save_archive(path: Path, tag: str, layers: Sequence[bytes], config: dict[str, Any]) -> Path:
    """What `docker save` writes: one image of these layers and this configuration."""
    digests = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
    settings = json.dumps(
        {
            "architecture": host_architecture(),
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": digests},
            "history": [{"created": "2024-01-01T00:00:00Z"} for _ in layers],
        }
    ).encode()
    name = hashlib.sha256(settings).hexdigest()
    members = {f"{name}.json": settings}
    members |= {
        f"{digest[7:]}/layer.tar": layer for digest, layer in zip(digests, layers, strict=True)
    }
    manifest = {
        "Config": f"{name}.json",
        "RepoTags": [tag],
        "Layers": [f"{digest[7:]}/layer.tar" for digest in digests],
    }
    members["manifest.json"] = json.dumps([manifest]).encode()
    with tarfile.open(path, "w") as archive:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
