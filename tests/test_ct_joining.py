"""How a container gets into its groups and its network, and what is left where it fails to."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import make, soon, until

from bench import cgroup, cgroupfs
from bench.context import RunContext
from bench.model import Event, Image, NetworkMode
from ct.backend import ContainerBackend, LauncherBackend
from ct.process import ProcessBackend
from ct.wire import StepFailed

pytestmark = pytest.mark.root


@pytest.fixture
def container(context: RunContext) -> Iterator[ContainerBackend]:
    """The arm."""
    with ContainerBackend(context) as arm:
        yield arm


def namespace(pid: int | str) -> str:
    """The name of a process's network namespace."""
    return os.readlink(f"/proc/{pid}/ns/net")


@pytest.mark.parametrize("arm", [ContainerBackend, ProcessBackend])
def test_it_is_in_its_group_of_every_hierarchy(
    context: RunContext, busybox: Image, arm: type[LauncherBackend]
) -> None:
    """Whatever the way in: a thread's file in v1's hierarchies, birth in the unified one."""
    with arm(context) as backend:
        made = make(context, busybox, "sleep", "60")
        with backend.launch(made) as instance:
            assert instance.wait(Event.STARTED, soon())
            own = f"/hvct/{context.tag}/{made.id}"
            lines = Path(f"/proc/{instance.launched.pid}/cgroup").read_text().split()
            groups = {line.split(":")[1]: line.split(":")[2] for line in lines}
            layout = cgroupfs.layout()
            if layout.version == 1:
                for controller in layout.controllers:
                    assert groups[controller] == own
            if layout.version == 2 or layout.unified:
                assert groups[""] == own
            way = str(instance.describe()["join"])
            assert ("clone3" in way) == ("" in groups and groups[""] == own)
            assert (cgroup.SELF_MOVE in way) == (layout.version == 1)


def test_the_launcher_is_at_home_again(
    context: RunContext, container: ContainerBackend, busybox: Image
) -> None:
    """Each container has a network of its own, with lo up; the launcher's is the host's."""
    home, seen = namespace("self"), set()
    for _ in range(5):
        with container.launch(make(context, busybox, "sh", "-c", "ip -o link; sleep 60")) as one:
            assert one.wait(Event.STARTED, soon())
            seen.add(namespace(one.launched.pid))
            assert namespace(container.worker.pid) == home
    assert home not in seen
    made = make(context, busybox, "true", network=NetworkMode.HOST)
    with container.launch(made) as shared:
        assert namespace(shared.launched.pid) == home
        assert shared.wait(Event.EXITED, soon())


@pytest.mark.parametrize("late", [False, True])
def test_a_step_of_the_network_that_fails_is_named(
    context: RunContext, container: ContainerBackend, busybox: Image, late: bool
) -> None:
    """Nothing is left, and the launcher is at home."""
    home = namespace("self")
    made = make(context, busybox, "sleep", "60", bridge=True)
    assert made.address is not None
    with container.launch(made) as first:
        assert first.wait(Event.STARTED, soon())
        container.worker.setup(())  # it has closed what came with the first request
        fds = len(os.listdir(f"/proc/{container.worker.pid}/fd"))
        other = make(context, busybox, "true", bridge=True)
        assert other.address is not None
        # Either the link's name is taken, or its address cannot be given.
        wrong = {"ip": "0.0.0.300"} if late else {"link": made.address.link}
        bad = dataclasses.replace(other, address=dataclasses.replace(other.address, **wrong))
        with pytest.raises(StepFailed, match="interface" if late else "link"):
            container.launch(bad)
        assert namespace(container.worker.pid) == home
        container.worker.setup(())
        assert len(os.listdir(f"/proc/{container.worker.pid}/fd")) == fds
        with container.launch(make(context, busybox, "true", bridge=True)) as again:
            assert again.wait(Event.EXITED, soon())
    links = {made.address.link, other.address.link}  # the kernel takes them away later
    assert until(lambda: not links & {name for _, name in socket.if_nameindex()})
