"""A container in a network namespace that waited for it is a container like any other."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import make, soon, until

from bench import arms, registry
from bench.context import RunContext
from bench.errors import Refused
from bench.identity import FieldClass, differences
from bench.model import Event, Image, NetworkMode, Security
from ct import steps
from ct.backend import CLONE_NEWNET, ContainerBackend
from ct.pooled import MAKE, PooledBackend
from ct.steps import Step
from ct.wire import StepFailed

pytestmark = pytest.mark.root


@pytest.fixture
def backend(context: RunContext) -> Iterator[PooledBackend]:
    """The arm."""
    with registry.make(arms.ARMS["container:pooled"], context) as arm:
        assert isinstance(arm, PooledBackend)
        yield arm


def namespace(pid: int | str) -> str:
    """The name of a process's network namespace."""
    return os.readlink(f"/proc/{pid}/ns/net")


@pytest.mark.parametrize("security", list(Security))
@pytest.mark.parametrize("bridge", [False, True])
def test_it_is_a_container(
    context: RunContext, backend: PooledBackend, busybox: Image, security: Security, bridge: bool
) -> None:
    """The same interfaces, output and receipt; the group is joined as in the arm container."""
    seen, joined = [], []
    script = "ip -o link | sed 's/ether.*//; s/@[^:]*//; s/^[0-9]*//'; ls /sys/class/net; exit 7"
    with ContainerBackend(context) as container:
        for arm in (container, backend):
            made = make(context, busybox, "sh", "-c", script, security=security, bridge=bridge)
            arm.prepare(made)
            with arm.launch(made) as instance:
                assert instance.wait(Event.EXITED, soon())
                facts = instance.describe()
                assert instance.exit is not None and instance.exit.code == 7
                seen.append((instance.stdout, dict(instance.receipt)))
                joined.append(facts["join"])
            assert instance.wait_network_released(soon())
    assert seen[0][0] == seen[1][0] and b"LOOPBACK,UP" in seen[0][0]
    assert joined[0] == joined[1]
    pair = ("container:pooled", "container")
    assert [
        difference
        for difference in differences(seen[1][1], seen[0][1], pair, security.value)
        if difference.field_class is FieldClass.MUST_MATCH
    ] == []
    assert not int(str(facts["namespaces"]), 16) & CLONE_NEWNET
    assert any(" enter " in name for name in dict(facts["steps_us"]))  # type: ignore[call-overload]


def test_each_has_its_own(context: RunContext, backend: PooledBackend, busybox: Image) -> None:
    """No two share a namespace, nor does one that has served serve again; none is the host's."""
    home = namespace("self")
    seen = set()
    with contextlib.ExitStack() as kept:
        for _ in range(4):
            one, two = (backend.launch(make(context, busybox, "sleep", "60")) for _ in range(2))
            with one, two:
                for instance in (one, two):
                    # Held open, its number is nobody else's.
                    path = f"/proc/{instance.launched.pid}/ns/net"
                    kept.callback(os.close, os.open(path, os.O_RDONLY))
                    seen.add(namespace(instance.launched.pid))
    assert len(seen) == 8 and home not in seen
    backend.worker.setup(())  # it is making another
    assert namespace(backend.worker.pid) == home


def test_the_bridge_reaches_it_and_its_link_goes(
    context: RunContext, backend: PooledBackend, busybox: Image
) -> None:
    """The link is made in the namespace that waited, and goes when the instance does."""
    assert context.network is not None
    for _ in range(3):
        made = make(context, busybox, "nc", "-l", "-p", "7", "-e", "cat", bridge=True)
        assert made.address is not None
        with backend.launch(made) as instance:
            assert instance.wait(Event.STARTED, soon())
            ping = ["ping", "-c", "1", "-W", "5", made.address.host_ip]
            assert instance.execute(ping, 10.0).code == 0
            assert Path("/sys/class/net", made.address.link).exists()
        assert instance.wait_network_released(soon())
        assert made.address.link not in [name for _, name in socket.if_nameindex()]


def test_one_after_another_without_a_pool(
    context: RunContext, backend: PooledBackend, busybox: Image
) -> None:
    """More at once than wait: each has a namespace, and those for whom one was reserved too."""
    first = make(context, busybox, "sleep", "60")
    backend.reserve([first] * 3)
    assert len(backend._pool) == 3
    running = [backend.launch(make(context, busybox, "sleep", "60")) for _ in range(5)]
    assert not backend._pool
    names = {namespace(instance.launched.pid) for instance in running}
    for instance in running:
        instance.release()
    assert len(names) == 5
    assert len(backend._pool) == 1


def test_the_hosts_network_is_refused(
    context: RunContext, backend: PooledBackend, busybox: Image
) -> None:
    """There is no namespace to be pooled."""
    with pytest.raises(Refused):
        backend.launch(make(context, busybox, "true", network=NetworkMode.HOST))


def test_what_fails_leaves_the_launcher_at_home(
    context: RunContext, backend: PooledBackend, busybox: Image
) -> None:
    """A step that fails after the launcher left its namespace, or in the child: it is back."""
    home, worker = namespace("self"), backend.worker
    with pytest.raises(StepFailed, match="mkdir"):
        worker.setup((steps.unshare(CLONE_NEWNET), Step("mkdir", ("/proc/no", "0"))))
    assert namespace(worker.pid) == home
    worker.setup(())  # answered after all of the one before has been closed
    many = [len(os.listdir(f"/proc/{pid}/fd")) for pid in ("self", worker.pid)]
    for later in (Step("mkdir", ("/proc/no", "0")), Step("enter", ("99", "0"))):
        with pytest.raises(StepFailed, match=later.do):
            worker.setup((*MAKE, later))
        assert namespace(worker.pid) == home
    worker.setup(())
    assert [len(os.listdir(f"/proc/{pid}/fd")) for pid in ("self", worker.pid)] == many
    made = make(context, busybox, "true")
    with pytest.raises(StepFailed, match="hostname"):
        backend.launch(dataclasses.replace(made, hostname="x" * 80))
    worker.setup(())  # it is making another namespace
    assert namespace(worker.pid) == home
    with backend.launch(made) as instance:
        assert instance.wait(Event.EXITED, soon())


def test_many_launches_leak_nothing(
    context: RunContext, backend: PooledBackend, busybox: Image
) -> None:
    """Sixty launches, every tenth with a link: no descriptor stays in either process."""
    counts = []
    for number in range(60):
        with backend.launch(make(context, busybox, "true", bridge=number % 10 == 0)) as instance:
            assert instance.wait(Event.EXITED, soon())
        assert instance.wait_network_released(soon())
        if number in (5, 59):
            worker = backend.worker
            worker.setup(())  # the namespace that is being made has arrived
            counts.append(
                (
                    len(os.listdir("/proc/self/fd")),
                    len(os.listdir(f"/proc/{worker.pid}/fd")),
                    len(backend._pool),
                    len(worker._early),
                    len(worker._expected),
                    len(worker._exited),
                )
            )
    assert counts[0] == counts[1]
    assert counts[1][2:] == (1, 1, 1, 0)


def test_a_launcher_that_was_killed_is_replaced(
    context: RunContext, backend: PooledBackend, busybox: Image
) -> None:
    """Namespaces go with their launcher; the next launch has another, and one of its own."""
    with backend.launch(make(context, busybox, "true")) as instance:
        assert instance.wait(Event.EXITED, soon())
    before = len(os.listdir("/proc/self/fd"))
    pid = backend.worker.pid
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: not backend._worker.alive)  # type: ignore[union-attr]
    with backend.launch(make(context, busybox, "echo", "again")) as instance:
        assert instance.wait(Event.EXITED, soon())
        assert instance.stdout == b"again\n"
    assert backend.worker.pid != pid
    backend.worker.setup(())
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the namespace that waits
