"""What many tests share: images, built once and kept in the normal cache, and agents."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import Engine, missing, private_engine

from bench.agent import build
from bench.agent.session import AgentSession, run_record
from bench.command import run
from bench.context import RunContext
from bench.errors import HostCannot
from bench.image import store
from bench.journal import open_run
from bench.model import Image, ImageConfig, InstanceSpec

pytest.register_assert_rewrite("chaos", "faults")  # they say what was not so


def pytest_configure() -> None:
    """Started in the background, or by nohup, we ignore what tests send: Ctrl-C and a hang-up."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


LONGEST = ("test_packaging_bare.py", "test_cgroup_v2.py")
"""Of the files whose tests run beside each other: begun last, they would be waited for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def _prepared(name: str) -> Image:
    try:
        return store.prepare(name)
    except HostCannot as error:
        pytest.skip(f"{error.message}; {error.hint}")


@pytest.fixture(scope="session")
def busybox() -> Image:
    """The tiny image."""
    return _prepared("busybox")


@pytest.fixture(scope="session")
def default_image() -> Image:
    """The image with the workloads' programs; building it takes half a minute, once."""
    return _prepared("default")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run with a bridge, which leaves nothing."""
    import faults  # not before it is registered, above

    folder = tmp_path_factory.mktemp("run")
    with faults.nothing_left(), open_run(folder, network=True) as opened:
        yield opened


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip builds it, from a copy: building in place reuses what older builds left."""
    checkout = Path(__file__).resolve().parent.parent
    room = tmp_path_factory.mktemp("wheel")
    source = room / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(checkout / name, source)
    for name in ("bench", "ct", "hv", "reports", "tests"):
        shutil.copytree(
            checkout / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", room, source])
    (built,) = room.glob("hvct-*.whl")
    return built


@pytest.fixture(scope="session")
def docker() -> Iterator[Engine]:
    """A Docker engine of the session's own."""
    if reason := missing():
        pytest.skip(reason)
    with private_engine() as engine:
        yield engine


class Agents:
    """Starts agents, each on one end of a socket pair, and ends them."""

    def __init__(self, program: Path, pid1: bool, log: Path) -> None:
        self._program, self._pid1, self._log = program, pid1, log
        self._running: list[tuple[socket.socket, subprocess.Popen[bytes]]] = []

    def start(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        """Our end of the channel, and the process (of ``unshare`` where it is PID 1)."""
        ours, theirs = socket.socketpair()
        # -m and -p: a /proc of its own, and PID 1.
        before = ["unshare", "-mpf", "--mount-proc", "--kill-child"] if self._pid1 else []
        with self._log.open("ab") as log, theirs:
            argv = [*before, str(self._program), f"--channel={theirs.fileno()}"]
            process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stderr=log)
        self._running.append((ours, process))
        return ours, process

    @property
    def last(self) -> subprocess.Popen[bytes]:
        """The process started last."""
        return self._running[-1][1]

    def forget(self) -> subprocess.Popen[bytes]:
        """The same, no longer to be ended by us."""
        return self._running.pop()[1]

    def launch(self, *argv: str, shared_clock: bool = True, **fields: Any) -> AgentSession:
        """Start an agent and send it RUN for a command; keywords are InstanceSpec's."""
        session = AgentSession(self.start()[0], shared_clock=shared_clock)
        image = Image("none", "", Path("/"), 0, "", "amd64", ImageConfig(), "")
        path = ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        spec = InstanceSpec(id="t", image=image, argv=argv, env=(path,))
        session.send_run(run_record(dataclasses.replace(spec, **fields)))
        return session

    def end(self) -> None:
        """Close every channel; every agent must end by itself, and have complained of nothing."""
        for ours, _ in self._running:
            ours.close()
        try:
            for _, process in self._running:
                assert process.wait(10) == 0
        finally:
            for _, process in self._running:
                process.kill()
                process.wait()
        assert not self._log.exists() or self._log.read_text() == ""


@pytest.fixture(scope="session")
def sanitized_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent built with the address and undefined-behaviour sanitizers."""
    compiler = shutil.which("clang") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("neither clang nor gcc is installed")
    made = tmp_path_factory.mktemp("sanitized") / "agent"
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
    sources = sorted(map(str, Path(build.__file__).parent.glob("*.c")))
    run([compiler, *build.FLAGS, *sanitize, "-o", made, *sources])
    return made


@pytest.fixture(params=["process", pytest.param("pid 1", marks=pytest.mark.root), "sanitized"])
def agents(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Agents]:
    """Agents as a plain process, as PID 1 of a namespace, and built with sanitizers."""
    if request.param == "pid 1" and os.geteuid() != 0:
        pytest.skip("a PID namespace needs root")
    sanitized = request.param == "sanitized"
    program = request.getfixturevalue("sanitized_agent") if sanitized else build.agent_path()
    started = Agents(program, request.param == "pid 1", tmp_path / "agent.log")
    yield started
    started.end()
