"""A Docker engine of our own: private data, sockets and processes, no bridge, no firewall rules.

It runs below the peers' worker, in the worker's mount namespace, with its data in memory:
nothing of it is seen by an engine the host may have, and nothing of it stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.context import RUN_VARIABLE
from bench.errors import HostCannot, HvctError
from bench.programs.connection import Connection, Started

START_LIMIT_S = 40.0
ID = "engine"
DATA_SIZE = "50%"  # of the host's memory at most; what it takes is what its images take


def listens(path: Path) -> bool:
    """Whether somebody accepts connections there (asked without the SDK, which keeps sockets)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


class Engine:
    """A running engine. `api` is the Docker SDK's low-level client of it."""

    def __init__(self, connection: Connection, folder: Path, program: Started, api: Any) -> None:
        self.folder, self.program, self.api = folder, program, api
        self._connection = connection
        self._images: dict[str, str] = {}

    @property
    def data(self) -> Path:
        """Its data root, in the worker's mount namespace."""
        return self.folder / "data"

    @classmethod
    def start(cls, connection: Connection, dockerd: str, tag: str, path: str) -> Engine:
        """Start an engine below the worker and wait until it answers.

        Raises:
            HostCannot: the SDK is not installed, or the engine did not come up.
        """
        try:
            from docker import APIClient
            from docker.errors import DockerException
        except ImportError as error:
            raise HostCannot(
                "the Docker SDK for Python is not installed",
                "pip install docker, in hvct's environment",
            ) from error
        folder = connection.folder_of(ID)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"deprecated-key-path": str(folder / "key.json")}
        (folder / "daemon.json").write_text(json.dumps(settings))
        door = folder / "socket"
        argv = (
            *(dockerd, "--config-file", str(folder / "daemon.json"), "--host", f"unix://{door}"),
            *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
            *("--pidfile", str(folder / "pid"), "--storage-driver", "overlay2"),
            *("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs"),
        )
        connection.start(
            ID, argv, {"PATH": path, RUN_VARIABLE: tag}, tmpfs={folder / "data": DATA_SIZE}
        )
        program = connection.started(ID)
        deadline = time.monotonic() + START_LIMIT_S
        while not listens(door):
            if connection.ended(program, 0.05) or time.monotonic() > deadline:
                raise HostCannot(f"dockerd did not start: {program.words}", "leave this arm out")
        try:
            api = APIClient(f"unix://{door}", version="auto", timeout=60)
        except DockerException as error:
            raise HostCannot(f"dockerd does not answer: {error}", "leave this arm out") from error
        return cls(connection, folder, program, api)

    def load(self, digest: str, root: Path) -> str:
        """Import a root file system as an image, once; the image's name.

        Raises:
            HvctError: the engine declined it.
        """
        name = digest.removeprefix("sha256:")[:32] or "nothing"
        if name not in self._images:
            words = ["tar", "--numeric-owner", "--xattrs", "-C", str(root), "-c", "."]
            with subprocess.Popen(words, stdout=subprocess.PIPE) as tar:
                answer = self.api.import_image(src=tar.stdout, repository="hvct", tag=name)
            if tar.returncode != 0 or '"error"' in answer:
                raise HvctError(f"Docker did not take the image: {answer}", "look at its log")
            self._images[name] = f"hvct:{name}"
        return self._images[name]

    def layer(self, image: str) -> Path:
        """Where the engine keeps the files of an image of one layer, in the worker's namespace."""
        return Path(self.api.inspect_image(image)["GraphDriver"]["Data"]["UpperDir"])

    def close(self) -> None:
        """Close the client; the engine ends with the worker."""
        self.api.close()

    @staticmethod
    def sweep() -> None:
        """Remove what every engine makes outside its own roots, if it is nobody else's."""
        for folder in ("/run/docker/plugins", "/run/docker"):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
