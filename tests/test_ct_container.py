"""A container is what it says: its own namespaces, root, network and rights."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launching import ENV, make, soon

from bench.agent.confinement import CAPABILITY_MASK
from bench.context import RunContext
from bench.errors import HvctError, LaunchFailed
from bench.model import Event, Ids, Image, Limits, NetworkMode, OutputMode, Security
from bench.pagecache import resident_fraction
from ct.backend import ContainerBackend
from ct.instance import LauncherInstance

pytestmark = pytest.mark.root
NAMESPACES = ("pid", "mnt", "net", "ipc", "uts", "cgroup")

Run = Callable[..., LauncherInstance]


@pytest.fixture(scope="module", params=["plain", "user"])
def backend(request: pytest.FixtureRequest, context: RunContext) -> Iterator[ContainerBackend]:
    """The arm, without and with a user namespace."""
    with ContainerBackend(context, user=request.param == "user") as arm:
        yield arm


@pytest.fixture
def run(backend: ContainerBackend, context: RunContext, busybox: Image) -> Run:
    """Run a command to its end; returns the released instance."""

    def runner(*argv: str, **changes: object) -> LauncherInstance:
        spec = make(context, busybox, *argv, **changes)
        with backend.launch(spec) as instance:
            assert instance.wait(Event.EXITED, soon())
        return instance

    return runner


def sh(run: Run, script: str, **changes: object) -> str:
    """What a shell script printed; it must succeed."""
    instance = run("sh", "-ec", script, **changes)
    assert instance.exit is not None and instance.exit.code == 0, instance.stderr
    return instance.stdout.decode()


def test_argv_environment_place_and_user_arrive(run: Run) -> None:
    """Arguments byte for byte, exactly the environment, working directory, ids and groups."""
    text = sh(
        run,
        "env | sort; pwd; id -u; id -g; id -G; hostname",
        hostname="named",
        workdir="/tmp",
        ids=Ids(1000, 1001, (1001, 2002)),
        env=(*ENV, ("EMPTY", ""), ("ODD", "a=b c\td")),
    )
    lines = text.splitlines()
    for wanted in ("EMPTY=", "ODD=a=b c\td", "/tmp", "1000", "1001", "1001 2002", "named"):
        assert wanted in lines
    echo = run("printf", "%s|", "a b", "", "ü\udc80", "$HOME", "'")
    assert echo.stdout == "a b||ü\udc80|$HOME|'|".encode("utf-8", "surrogateescape")


def test_exit_status_and_signals_are_told_apart(run: Run) -> None:
    """A status is a status and a signal a signal; standard output and error stay apart."""
    one = run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert one.exit is not None and (one.exit.code, one.exit.signal) == (3, None)
    assert (one.stdout, one.stderr) == (b"out\n", b"err\n")
    two = run("sh", "-c", "kill -9 $$")
    assert two.exit is not None and (two.exit.code, two.exit.signal) == (None, 9)


def test_every_namespace_is_its_own(run: Run, backend: ContainerBackend) -> None:
    """None of its namespaces is the host's, and it sees its own processes only."""
    own = sh(run, "for n in pid mnt net ipc uts cgroup user; do readlink /proc/self/ns/$n; done")
    inside = dict(line.split(":") for line in own.split())
    for name in NAMESPACES:
        assert inside[name] != os.readlink(f"/proc/self/ns/{name}").split(":")[1], name
    user = os.readlink("/proc/self/ns/user").split(":")[1]
    assert (inside["user"] != user) == backend.user
    assert sh(run, "echo /proc/[0-9]*").split() == ["/proc/1", "/proc/2"]
    groups = sh(run, "cat /proc/self/cgroup").split()
    ours = [line for line in groups if line.split(":")[1] in ("memory", "pids", "cpuacct", "")]
    assert ours and all(line.endswith(":/") for line in ours)


def test_image_is_read_only_under_a_bounded_writable_layer(run: Run, busybox: Image) -> None:
    """Writes go to a layer of the asked-for size, vanish with it, and leave the image alone."""
    before = busybox.path.stat()
    changed = sh(
        run, "echo changed > /bin/marker; rm /bin/cat; ls /bin/marker; ls /bin/cat 2>&1 || true"
    )
    assert "/bin/marker\n" in changed and "No such file" in changed
    assert "root" in sh(run, "cat /etc/passwd; test ! -e /bin/marker")
    limits = Limits(writable_bytes=4 << 20, writable_inodes=60)
    full = run(
        "sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=64; stat -c %s /tmp/x", limits=limits
    )
    assert b"No space left" in full.stderr
    assert int(full.stdout) <= 4 << 20
    many = run("sh", "-c", "for i in $(seq 100); do : > /tmp/$i || exit 9; done", limits=limits)
    assert many.exit is not None and many.exit.code != 0
    after = busybox.path.stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


def test_devices_and_hosts(run: Run, busybox: Image) -> None:
    """The basic devices work for everybody, /dev/shm has its size, /etc/hosts its own name."""
    limits = Limits(shm_bytes=3 << 20)
    text = sh(
        run,
        "echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c;"
        "df -k /dev/shm | tail -1 | awk '{print $2}'; ls -l /dev/fd/ > /dev/null;"
        "ls /dev/pts/ptmx /dev/ptmx; cat /etc/hosts /etc/machine-id; umask",
        ids=Ids(1000, 1000),
        limits=limits,
        hostname="byname",
    )
    lines = text.split("\n")
    assert lines[:3] == ["4", "4", "3072"]
    assert any(line.endswith("\tbyname") for line in lines)
    assert any(re.fullmatch("[0-9a-f]{32}", line) for line in lines)
    assert "/dev/sda" not in sh(run, "ls -d /dev/*")


def test_kernel_files_are_masked_or_read_only(run: Run) -> None:
    """What container engines hide is hidden, what they protect is protected."""
    text = sh(
        run,
        "head -c 9 /proc/keys | wc -c;"
        "ls /proc/acpi /sys/firmware 2>/dev/null | grep -c '[^:]$' || true;"
        "echo 1 2>/dev/null > /proc/sys/vm/overcommit_memory || echo protected;"
        "echo b 2>/dev/null > /proc/sysrq-trigger || echo protected;"
        "mkdir /sys/kernel/x 2>/dev/null || echo protected",
    )
    assert text.split() == ["0", "0", "protected", "protected", "protected"]


def status(text: str) -> dict[str, str]:
    """/proc/self/status."""
    return dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)


def test_rights_are_those_of_a_container(run: Run) -> None:
    """Root keeps the usual capabilities, others have none; filter and no_new_privs are on."""
    root = status(sh(run, "cat /proc/self/status"))
    assert root["CapEff"] == root["CapBnd"] == f"{0xA00425FB:016x}"
    assert (root["Seccomp"], root["NoNewPrivs"], root["CapInh"]) == ("2", "1", "0" * 16)
    other = status(sh(run, "cat /proc/self/status", ids=Ids(1000, 1000)))
    assert other["CapEff"] == other["CapPrm"] == other["CapAmb"] == "0" * 16
    denied = sh(
        run,
        "exec 2>&1; mount -t tmpfs x /mnt || true; unshare -U true || true;"
        "mknod /tmp/d c 1 3 || true",
    )
    assert denied.count("not permitted") + denied.count("permission denied") == 3
    threads = sh(run, "sh -c 'echo forked' | cat")
    assert threads == "forked\n"


def test_same_security_is_applied_by_the_agent(run: Run) -> None:
    """With security = same the workload is confined just the same."""
    own = status(sh(run, "cat /proc/self/status", security=Security.SAME))
    assert (own["Seccomp"], own["NoNewPrivs"]) == ("2", "1")
    assert int(own["CapBnd"], 16) == CAPABILITY_MASK


def test_no_network_has_a_loopback_only(run: Run) -> None:
    """Network none: nothing but lo, and lo works."""
    text = sh(
        run,
        "tail -n +3 /proc/net/dev | cut -d: -f1; ping -c1 -W1 127.0.0.1 | grep -c 'bytes from'",
    )
    assert text.split() == ["lo", "1"]


def test_bridge_is_reached_from_the_host(
    backend: ContainerBackend, context: RunContext, busybox: Image
) -> None:
    """A server inside is listening, answers the host by TCP, and its link goes by itself."""
    spec = make(
        context,
        busybox,
        *("sh", "-c", "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 8080 -h /www"),
        bridge=True,
        listen_port=8080,
    )
    assert spec.address is not None and context.network is not None
    with backend.launch(spec) as instance:
        assert instance.connect_host == spec.address.ip
        assert instance.wait(Event.LISTENING, soon())
        instance.check_listener(8080)
        with socket.create_connection((instance.connect_host, 8080), 5) as client:
            client.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(4096), b""))
        assert b"200 OK" in answer and b"hello" in answer
        assert context.network.link_exists(spec.address.link)
        instance.stop(5)
        assert instance.exit is not None and instance.exit.signal == 15
        instance.release()
        assert instance.wait_network_released(soon())
    assert not context.network.link_exists(spec.address.link)
    marks = instance.timeline.marks_ns
    order = [
        *(Event.REQUESTED, Event.ACCEPTED, Event.SPAWNED, Event.INIT, Event.STARTED),
        *(Event.LISTENING, Event.STOP_REQUESTED, Event.EXITED, Event.RELEASED),
        Event.NETWORK_RELEASED,
    ]
    assert [marks[event] for event in order] == sorted(marks[event] for event in order)
    assert len(marks) == len(order)


def test_containers_on_the_bridge_reach_each_other(
    backend: ContainerBackend, context: RunContext, busybox: Image, run: Run
) -> None:
    """Two containers of a run are neighbours on its bridge."""
    server = make(
        context, busybox, "sh", "-c", "echo hi | nc -l -p 7000", bridge=True, listen_port=7000
    )
    with backend.launch(server) as instance:
        assert instance.wait(Event.LISTENING, soon())
        assert sh(run, f"nc {instance.connect_host} 7000 < /dev/null", bridge=True) == "hi\n"


def test_host_network_is_the_hosts(context: RunContext, busybox: Image) -> None:
    """Network host shares the host's interfaces."""
    with (
        ContainerBackend(context) as arm,
        arm.launch(
            make(context, busybox, "readlink", "/proc/self/ns/net", network=NetworkMode.HOST)
        ) as instance,
    ):
        assert instance.wait(Event.EXITED, soon())
        assert instance.stdout.decode().strip() == os.readlink("/proc/self/ns/net")
        assert instance.connect_host == "127.0.0.1"


def test_standard_input_files_and_live_output(
    backend: ContainerBackend, context: RunContext, busybox: Image
) -> None:
    """stdin goes in, output comes out while it runs, a file can be fetched, a signal arrives."""
    script = "cat > /tmp/in; trap 'exit 5' USR1; echo ready; while :; do sleep 0.05; done"
    spec = make(context, busybox, "sh", "-c", script, stdin=True, output=OutputMode.STREAM)
    seen: list[tuple[str, bytes]] = []
    with backend.launch(spec) as instance:
        instance.watch_output(lambda stream, data, stamp: seen.append((stream, data)))
        instance.send_stdin(b"line\n" * 1000)
        instance.send_stdin(b"")
        deadline = soon()
        while not seen and time.monotonic_ns() < deadline:
            instance.pump(0.5)
        assert seen == [("stdout", b"ready\n")]
        assert instance.fetch("/tmp/in") == b"line\n" * 1000
        instance.signal(10)
        assert instance.wait(Event.EXITED, soon())
        assert instance.exit is not None and instance.exit.code == 5


def test_the_image_is_cached_once(
    backend: ContainerBackend, run: Run, busybox: Image, tmp_path: Path
) -> None:
    """Reading a file inside fills the pages of that file, and none of the image file's own."""
    copy = Path(shutil.copy(busybox.path, tmp_path))  # nobody else reads this one
    digest = f"sha256:{id(copy):064x}"
    image = dataclasses.replace(busybox, path=copy, digest=digest)
    os.sync()
    facts = run("true", image=image).describe()
    assert facts["image_direct_io"] is True
    assert facts["image_mount"] in ("file", "loop")
    inside = backend.image_root(image) / "bin/busybox"
    for path in (copy, inside):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    sh(run, "cat /bin/busybox > /dev/null", image=image)
    assert resident_fraction(inside) == 1.0
    assert resident_fraction(copy) < 0.1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("nosuch",), "not found"),
        (("/etc/passwd",), "permission denied"),
        (("/etc",), "permission"),
    ],
)
def test_a_program_that_cannot_run_is_said_in_one_line(
    backend: ContainerBackend, context: RunContext, busybox: Image, argv: tuple[str, ...], said: str
) -> None:
    """No such program, or one that is none: one line, one hint, and never a start."""
    spec = make(context, busybox, *argv)
    with backend.launch(spec) as instance, pytest.raises(LaunchFailed) as caught:
        instance.wait(Event.STARTED, soon())
    assert said in caught.value.message and caught.value.hint
    assert "\n" not in caught.value.message
    assert Event.STARTED not in instance.timeline.marks_ns


def test_a_failed_launch_leaves_nothing(
    backend: ContainerBackend, context: RunContext, busybox: Image
) -> None:
    """A step that fails is named; group and link are gone, and the next launch works."""
    tiny = make(context, busybox, "true", limits=Limits(writable_inodes=2), bridge=True)
    with pytest.raises(LaunchFailed) as caught:
        backend.launch(tiny)
    assert "scratch" in caught.value.message or "mkdir" in caught.value.message
    bad = make(context, busybox, "nul\0byte")
    with pytest.raises(HvctError):
        backend.launch(bad)
    for spec in (tiny, bad):
        assert not list(Path("/sys/fs/cgroup").glob(f"**/hvct/{context.tag}/{spec.id}"))
    assert tiny.address is not None and context.network is not None
    assert context.network.wait_link_gone(tiny.address.link, soon())
    with backend.launch(make(context, busybox, "true")) as instance:
        assert instance.wait(Event.EXITED, soon())


def test_release_is_idempotent(
    backend: ContainerBackend, context: RunContext, busybox: Image
) -> None:
    """Released twice, or while it runs: the same final counters, and no process left."""
    spec = make(context, busybox, "sh", "-c", "sleep 100 & sleep 100")
    instance = backend.launch(spec)
    assert instance.wait(Event.STARTED, soon())
    final = instance.release()
    assert instance.release() is final
    assert final["cgroup_cpu_s"] > 0 and final["peak_bytes"] > 0 and "rusage_user_s" in final
    assert not Path(f"/proc/{instance.launched.pid}").exists()


def test_an_image_that_is_gone_is_said(context: RunContext, busybox: Image) -> None:
    """The image's file was deleted: one line and a hint."""
    gone = dataclasses.replace(busybox, digest="sha256:" + "0" * 64, path=Path("/nowhere.erofs"))
    with ContainerBackend(context) as arm, pytest.raises(LaunchFailed) as caught:
        arm.prepare(make(context, gone, "true"))
    assert "/nowhere.erofs" in caught.value.message and caught.value.hint
