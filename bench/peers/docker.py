"""Docker, through its SDK: a private engine, one container per instance, no network."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.agent.build import agent_path
from bench.agent.launch_record import run_record
from bench.context import RUN_VARIABLE
from bench.errors import HvctError
from bench.model import Event, Image, InstanceSpec, Security, Timeline
from bench.peers.backend import (
    INSIDE,
    PATH,
    SOCKET_AGENT,
    Command,
    PeerBackend,
    agent_filter,
    group_of,
    installed,
    listening,
)
from bench.peers.docker_engine import Engine
from bench.peers.instance import PeerInstance

PERIOD_US = 100_000
JOIN_LIMIT_S = 60.0


class DockerBackend(PeerBackend):
    """Containers of a private engine, as it makes them by default but for the limits.

    The engine unpacks the image into a storage of its own (overlay2), so files have other
    inode numbers and the writable layer has no limit: declared differences.
    """

    name = "docker"
    package = "docker.io"
    own_group = True
    _engine: Engine | None = None

    def program(self) -> str:
        """The daemon; the client is not needed."""
        return installed("dockerd")

    @property
    def engine(self) -> Engine:
        """The engine, started on first use, and again after somebody killed the worker."""
        connection = self.connection
        if self._engine is None:
            self._engine = Engine.start(connection, self.program(), self.context.tag, PATH)
            # Into its data: a folder in /run may be mounted without the right to execute.
            agent = connection.seen(self._engine.folder) / "data" / "hvct-agent"
            agent.write_bytes(agent_path().read_bytes())
            agent.chmod(0o555)
        return self._engine

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        super()._close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        started = self._engine is not None
        super().__exit__(kind, error, trace)
        if started:
            Engine.sweep()

    def command(self, spec: InstanceSpec, folder: Path, group: str) -> Command:
        """Nothing is executed: the engine is asked."""
        raise NotImplementedError

    def prepare(self, spec: InstanceSpec) -> None:
        """Start the engine and have it take the image: once per run, in no trial."""
        self.check(spec)
        self.image(spec.image)

    def image(self, image: Image) -> str:
        """The image's name in the engine."""
        engine = self.engine  # first: a new worker has mounted nothing
        return engine.load(image.digest, self.connection.seen(self.lower(image)[0]))

    def image_root(self, image: Image) -> Path:
        """The image's files as the engine keeps them."""
        return self.connection.seen(self.engine.layer(self.image(image)))

    def launch(self, spec: InstanceSpec) -> PeerInstance:
        """Ask for a container and return; the agent will connect."""
        self.check(spec)
        image, engine, connection = self.image(spec.image), self.engine, self.connection
        timeline = Timeline()
        with contextlib.ExitStack() as undo:
            cgroup = group_of(self.context.tag, spec, limited=False)
            undo.callback(cgroup.remove)
            timeline.mark(Event.REQUESTED, time.monotonic_ns())
            channel = connection.folder_of(spec.id)
            undo.callback(shutil.rmtree, channel, ignore_errors=True)
            listener = undo.enter_context(listening(channel))
            asked = _Asked(engine.api, timeline)
            asked.start(image, spec, self._settings(spec, channel), self.context.tag)
            instance = PeerInstance(
                spec,
                timeline,
                connection,
                None,
                cgroup,
                listener,
                run_record(spec, seccomp=agent_filter(spec)),
                asked.remove,
                asked.trouble,
                facts={
                    "program": self.name,
                    "storage": "overlay2, in memory",
                    "join": "cgroup.procs, by the engine's runtime",
                },
            )
            undo.pop_all()
        return instance

    def _settings(self, spec: InstanceSpec, channel: Path) -> dict[str, Any]:
        """The container's host configuration, in the SDK's words."""
        limits = spec.limits
        agent = f"{self.engine.data}/hvct-agent"
        settings: dict[str, Any] = {
            "network_mode": "none",
            "cgroup_parent": f"/hvct/{self.context.tag}/{spec.id}",
            "binds": [f"{agent}:{INSIDE}/agent:ro", f"{channel}:{INSIDE}/channel:ro"],
            "pids_limit": limits.pids,
            "shm_size": limits.shm_bytes,
        }
        if limits.memory_bytes is not None:
            settings["mem_limit"] = limits.memory_bytes
            settings["memswap_limit"] = limits.memory_bytes + limits.swap_bytes
        if spec.cpu_set:
            settings["cpuset_cpus"] = ",".join(map(str, spec.cpu_set))
        if spec.cpu_quota is not None:
            settings |= {"cpu_period": PERIOD_US, "cpu_quota": round(spec.cpu_quota * PERIOD_US)}
        if spec.security is Security.SAME:  # the agent confines the workload, in every arm alike
            settings["security_opt"] = ["seccomp=unconfined", "apparmor=unconfined"]
        return settings


class _Asked:
    """One container, asked for in a thread: the agent connects before the engine has answered."""

    def __init__(self, api: Any, timeline: Timeline) -> None:
        self.api, self.timeline = api, timeline
        self.container = ""
        self.failure = ""
        self._thread = threading.Thread(daemon=True)

    def start(self, image: str, spec: InstanceSpec, settings: dict[str, Any], tag: str) -> None:
        """Create and start it, as `docker run` does."""

        def ask() -> None:
            try:
                made = self.api.create_container(
                    image,
                    entrypoint=[SOCKET_AGENT[0]],
                    command=[*SOCKET_AGENT[1:]],
                    environment={RUN_VARIABLE: tag},
                    hostname=spec.hostname,
                    user="0:0",
                    host_config=self.api.create_host_config(**settings),
                )
                self.container = made["Id"]
                self.timeline.mark(Event.ACCEPTED, time.monotonic_ns())
                self.api.start(self.container)
            except Exception as error:  # the SDK, requests and urllib3 each have their own
                self.failure = f"docker: {' '.join(str(error).split())[:400]}"

        self._thread = threading.Thread(target=ask, daemon=True)
        self._thread.start()

    def trouble(self) -> str:
        """Why there is no container, or none any more; "" while all is well."""
        if self.failure or not self.container or self._thread.is_alive():
            return self.failure
        with contextlib.suppress(Exception):  # the engine is gone: the channel says so too
            state = self.api.inspect_container(self.container)["State"]
            if not state["Running"]:
                said = f": {state['Error']}" if state["Error"] else ""
                return f"docker: the container ended with status {state['ExitCode']}{said}"
        return ""

    def remove(self) -> None:
        """Have the engine remove it, as `docker run --rm` does.

        Raises:
            HvctError: it did not.
        """
        self._thread.join(JOIN_LIMIT_S)
        if not self.container:
            return
        try:
            self.api.remove_container(self.container, force=True, v=True)
        except Exception as error:
            raise HvctError(
                f"docker did not remove a container: {error}", "run hvct clean"
            ) from error
