"""A bare process: the same root, agent and control group as a container, and nothing else."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from bench.context import RunContext
from bench.errors import LaunchFailed, Refused
from bench.journal import open_run
from bench.model import Event, Ids, Image, InstanceSpec
from ct.process import ProcessBackend, inhabitants, listening_inodes, mount_namespace

pytestmark = pytest.mark.root
ENV = (("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"),)
NUMBERS = iter(range(1, 100000))


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run."""
    with open_run(tmp_path_factory.mktemp("run")) as run:
        yield run


@pytest.fixture(scope="module")
def backend(context: RunContext) -> Iterator[ProcessBackend]:
    """The arm."""
    with ProcessBackend(context) as arm:
        yield arm


def spec(backend: ProcessBackend, image: Image, *argv: str, **changes: object) -> InstanceSpec:
    """A specification."""
    id = backend.context.instance(next(NUMBERS))
    return InstanceSpec(id, image, argv, env=ENV, **changes)  # type: ignore[arg-type]


def soon(seconds: float = 10.0) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_only_the_mount_namespace_is_its_own(backend: ProcessBackend, busybox: Image) -> None:
    """It has the host's processes, network, name and users, and the image as its root."""
    script = "for n in pid net ipc uts user mnt; do readlink /proc/self/ns/$n; done; ls /linuxrc"
    with backend.launch(spec(backend, busybox, "sh", "-c", script)) as instance:
        assert instance.wait(Event.EXITED, soon())
        lines = instance.stdout.decode().split()
    assert lines.pop() == "/linuxrc"
    inside = dict(line.split(":") for line in lines)
    for name in ("pid", "net", "ipc", "uts", "user"):
        assert inside[name] == os.readlink(f"/proc/self/ns/{name}").split(":")[1], name
    assert inside["mnt"] != os.readlink("/proc/self/ns/mnt").split(":")[1]


def test_user_and_status_are_the_workloads(backend: ProcessBackend, busybox: Image) -> None:
    """User, groups and exit status as in a container."""
    made = spec(backend, busybox, "sh", "-c", "id -u; id -G; exit 7", ids=Ids(1000, 1000, (5,)))
    with backend.launch(made) as instance:
        assert instance.wait(Event.EXITED, soon())
        assert instance.stdout.decode().split() == ["1000", "1000", "5"]
        assert instance.exit is not None and instance.exit.code == 7


def test_a_server_is_reached_on_the_loopback(backend: ProcessBackend, busybox: Image) -> None:
    """Its port is the host's, and the listener is known to be its own."""
    port = free_port()
    made = spec(backend, busybox, "httpd", "-f", "-p", str(port), "-h", "/", listen_port=port)
    with backend.launch(made) as instance:
        assert instance.connect_host == "127.0.0.1"
        assert instance.wait(Event.LISTENING, soon())
        instance.check_listener(port)
        socket.create_connection((instance.connect_host, port), 5).close()
    assert not listening_inodes(port)


def test_a_port_in_use_is_refused(backend: ProcessBackend, busybox: Image) -> None:
    """Somebody else's port: refused before anything is made, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Refused) as caught:
            backend.launch(spec(backend, busybox, "true", listen_port=port))
    assert str(port) in caught.value.message and caught.value.hint


def test_somebody_elses_listener_is_refused(backend: ProcessBackend, busybox: Image) -> None:
    """A port that another process opened meanwhile does not count as the workload's."""
    with (
        backend.launch(spec(backend, busybox, "sleep", "60")) as instance,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        assert instance.wait(Event.STARTED, soon())
        with pytest.raises(Refused):
            instance.check_listener(other.getsockname()[1])


@pytest.mark.parametrize("accounting", [True, False])
def test_orphans_end_with_it(backend: ProcessBackend, busybox: Image, accounting: bool) -> None:
    """Whatever the workload leaves in the background is gone after the release."""
    script = "(setsid sleep 300 &) ; (setsid sh -c 'sleep 300 & sleep 300' &); sleep 300"
    made = spec(backend, busybox, "sh", "-c", script, accounting=accounting)
    with backend.launch(made) as instance:
        assert instance.wait(Event.STARTED, soon())
        time.sleep(0.2)
        namespace = mount_namespace(instance.launched.pid)
        assert len(inhabitants(namespace)) >= 4
        instance.release()
        assert not inhabitants(namespace)


def test_orphans_end_though_the_agent_was_killed(backend: ProcessBackend, busybox: Image) -> None:
    """The agent's death by SIGKILL is a failure in one line, and its children go all the same."""
    made = spec(backend, busybox, "sh", "-c", "sleep 300 & sleep 300", accounting=False)
    with backend.launch(made) as instance:
        assert instance.wait(Event.STARTED, soon())
        namespace = mount_namespace(instance.launched.pid)
        os.kill(instance.launched.pid, 9)
        with pytest.raises(LaunchFailed):
            instance.wait(Event.EXITED, soon())
    assert not inhabitants(namespace)
