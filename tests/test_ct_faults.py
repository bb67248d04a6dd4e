"""Nothing stays behind: killed launchers, killed harnesses, and hundreds of launches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faults
import pytest
from launching import make, soon, until

from bench.cgroupfs import layout
from bench.context import RunContext
from bench.errors import HvctError, LaunchFailed
from bench.journal import open_run
from bench.model import Event, Image
from ct.backend import ContainerBackend, LauncherBackend
from ct.launcher.build import launcher_path
from ct.process import ProcessBackend
from ct.steps import Step
from ct.worker import Worker

pytestmark = pytest.mark.root
CHECKOUT = Path(__file__).resolve().parent.parent


def groups(tag: str) -> list[str]:
    """Instances' control groups of a run."""
    return [
        str(path)
        for mount in layout().mounts
        if (top := mount / "hvct" / tag).is_dir()
        for path in top.iterdir()
        if path.is_dir()
    ]


def mounts(tag: str) -> list[str]:
    """Mounts of a run in the host's namespace."""
    text = Path("/proc/self/mountinfo").read_text()
    return [line for line in text.splitlines() if f"/{tag}/" in line]


@pytest.mark.parametrize("arm", [ContainerBackend, ProcessBackend])
def test_two_hundred_launches_leak_nothing(
    arm: type[LauncherBackend], busybox: Image, tmp_path: Path
) -> None:
    """No descriptor here or in the launcher, no mount, no control group, no link stays."""
    with open_run(tmp_path, network=True) as context, arm(context) as backend:
        counts = []
        for number in range(200):
            bridge = number % 10 == 0
            with backend.launch(make(context, busybox, "true", bridge=bridge)) as instance:
                assert instance.wait(Event.EXITED, soon())
            assert instance.wait_network_released(soon())
            if number in (20, 199):
                worker = f"/proc/{backend.worker.pid}"
                counts.append(
                    (
                        len(os.listdir("/proc/self/fd")),
                        len(os.listdir(f"{worker}/fd")),
                        len(Path(f"{worker}/mountinfo").read_text().splitlines()),
                        len(mounts(context.tag)),
                    )
                )
        assert counts[0] == counts[1]
        assert counts[1][3] == 0
        assert not groups(context.tag)
        tag = context.tag
    assert not faults.marked(tag)


@pytest.mark.parametrize("arm", [ContainerBackend, ProcessBackend])
def test_a_killed_launcher_is_said_and_replaced(
    arm: type[LauncherBackend], busybox: Image, tmp_path: Path
) -> None:
    """SIGKILL to the launcher: instances die, that is said, and the next launch has a new one."""
    with open_run(tmp_path) as context, arm(context) as backend:
        with backend.launch(make(context, busybox, "sh", "-c", "sleep 300 & sleep 300")) as one:
            assert one.wait(Event.STARTED, soon())
            os.kill(backend.worker.pid, signal.SIGKILL)
            with pytest.raises(LaunchFailed) as caught:
                one.wait(Event.EXITED, soon())
            assert "launcher" in caught.value.message and caught.value.hint
        assert not groups(context.tag)
        assert until(lambda: not faults.marked(context.tag))
        with backend.launch(make(context, busybox, "echo", "again")) as two:
            assert two.wait(Event.EXITED, soon())
            assert two.stdout == b"again\n"


def test_a_launcher_that_was_killed_takes_no_image_of_another_arm(
    context: RunContext, busybox: Image
) -> None:
    """Two arms of one name in one run: what the one mounted is there when the other's went."""
    with ContainerBackend(context) as one, ContainerBackend(context, user=True) as two:
        assert one.name == two.name
        for arm in (one, two):
            arm.prepare(make(context, busybox, "true"))
        assert one.worker.directory != two.worker.directory
        launcher = one.worker
        os.kill(launcher.pid, signal.SIGKILL)
        assert until(lambda: not launcher.alive)
        for arm in (one, two):
            with arm.launch(make(context, busybox, "echo", "on")) as instance:
                assert instance.wait(Event.EXITED, soon())
                assert instance.stdout == b"on\n"


HARNESS = """
import sys, time
from pathlib import Path
from bench.image.busybox import busybox_image
from bench.journal import open_run
from bench.model import Event, InstanceSpec, NetworkMode
from ct.backend import ContainerBackend
from ct.process import ProcessBackend
image = busybox_image()
with open_run(Path(sys.argv[1]), network=True) as context:
    print(context.tag, flush=True)
    with ContainerBackend(context) as one, ProcessBackend(context) as two:
        number, kept = 0, []
        while True:
            for backend in (one, two):
                number += 1
                address = context.network.address(number) if backend is one else None
                spec = InstanceSpec(
                    context.instance(number), image,
                    ("sh", "-c", "(setsid sleep 300 &); sleep 300"),
                    env=(("PATH", "/bin"),),
                    network=NetworkMode.BRIDGE if address else NetworkMode.NONE,
                    address=address,
                )
                kept.append(backend.launch(spec))
                if len(kept) > 6:
                    kept.pop(0).release()
            print(number, flush=True)
"""


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.3])
def test_a_killed_harness_leaves_nothing(after_s: float, tmp_path: Path) -> None:
    """SIGKILL to the harness in the midst of launching: everything is gone within 5 s."""
    with subprocess.Popen(
        [sys.executable, "-c", HARNESS, str(tmp_path)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    ) as harness:
        assert harness.stdout is not None
        tag = harness.stdout.readline().strip()
        assert harness.stdout.readline().strip()  # the first two instances are there
        time.sleep(after_s)
        harness.kill()
    assert until(lambda: not faults.marked(tag)), faults.marked(tag)
    assert until(lambda: not groups(tag)), groups(tag)
    assert not mounts(tag)
    assert until(lambda: not [name for name in os.listdir("/sys/class/net") if tag in name])
    assert until(lambda: not Path("/run/hvct", tag).exists())


def test_the_launcher_survives_nonsense(tmp_path: Path) -> None:
    """An unknown step, a missing argument or descriptor is refused; the launcher goes on."""
    agent = tmp_path / "agent"
    agent.write_bytes(b"not a program")
    with open_run(tmp_path) as context:
        worker = Worker.start(context, launcher_path(), agent, "ct-nonsense")
        try:
            for step in (
                Step("reboot"),
                Step("mount", ("only-one",)),
                Step("mkdir", tuple("1234567")),
                Step("seccomp", ("zz",)),
                Step("join", ("no/such/file",)),
                Step("enter", ("99", "0")),
                Step("link", ("00",)),
                Step("affinity", ("x",)),
            ):
                with pytest.raises(HvctError):
                    worker.setup((step,))
            with pytest.raises(HvctError):
                worker.setup([Step("detach")] * 1000)
            worker._socket.send(b"no record")
            worker._socket.send(b"\0")
            assert worker.setup(()) == -1
            assert worker.alive
        finally:
            worker.close()
