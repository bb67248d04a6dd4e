"""The built-in workloads: each runs natively in its image, as it will in every arm."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

from bench import plan, workloads
from bench.errors import BadInput
from bench.model import Image, ReadyKind, Workload

ENTER = """\
set -e
mount -t tmpfs none "$2"
mkdir "$2/image" "$2/upper" "$2/work" "$2/root"
mount -t erofs -o loop,ro "$1" "$2/image"
mount -t overlay none -o "lowerdir=$2/image,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount --rbind /dev "$2/root/dev"
mount -t proc none "$2/root/proc"
ip link set lo up
root="$2/root"; shift 2
exec chroot "$root" "$@"
"""

PROBE = """\
import json, socket, subprocess, sys, time, urllib.request
spec = json.loads(sys.argv[1])
process = subprocess.Popen(spec["argv"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
reply, end = "", time.monotonic() + 20
while not reply and time.monotonic() < end and process.poll() is None:
    try:
        if spec["kind"] == "line":
            reply = process.stdout.readline().decode()
        elif spec["kind"] == "http":
            url = "http://127.0.0.1:%d%s" % (spec["port"], spec["path"])
            reply = str(urllib.request.urlopen(url, timeout=2).status)
        else:
            with socket.create_connection(("127.0.0.1", spec["port"]), 2) as link:
                link.sendall(spec["send"].encode())
                reply = link.recv(100).decode()
    except OSError:
        time.sleep(0.02)
time.sleep(spec["hold"])
alive = process.poll() is None
memory = open("/proc/%d/status" % process.pid).read() if alive else ""
process.terminate()
process.wait(5)
print(json.dumps({"reply": reply, "alive": alive, "memory": memory}))
"""


def inside(image: Image, where: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the image, under namespaces that vanish with it."""
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net"]
    return subprocess.run(
        [*words, "sh", "-c", ENTER, "sh", image.path, where, *argv],
        env=dict(image.config.env), capture_output=True, text=True, timeout=90,
    )  # fmt: skip


def choose(workload: Workload, busybox: Image, default_image: Image) -> Image:
    """The image a workload names."""
    return {"busybox": busybox, "default": default_image}[workload.image]


@pytest.mark.root
@pytest.mark.parametrize("name", ["hello", "xz"])
def test_those_that_end(name: str, busybox: Image, default_image: Image, tmp_path: Path) -> None:
    """They end with the expected status, and with the same output every time."""
    workload = workloads.builtin(name)
    assert workload.argv is not None
    image = choose(workload, busybox, default_image)
    done = [inside(image, tmp_path, *workload.argv) for _ in range(2)]
    assert [run.returncode for run in done] == [workload.expect_status] * 2, done[0].stderr
    assert done[0].stdout == done[1].stdout
    assert bool(workload.work_units) == bool(done[0].stdout)


@pytest.mark.root
@pytest.mark.parametrize("name", ["redis", "nginx", "touch64"])
def test_those_that_serve(name: str, busybox: Image, default_image: Image, tmp_path: Path) -> None:
    """They give the reply that means ready, stay up while they are held, and can be stopped."""
    workload = workloads.builtin(name)
    ready = workload.ready
    spec = {
        "argv": workload.argv,
        "kind": ready.kind,
        "port": ready.port,
        "path": ready.path,
        "send": ready.send.decode(),
        "hold": workload.hold_s,
    }
    image = choose(workload, busybox, default_image)
    done = inside(image, tmp_path, "python3", "-c", PROBE, json.dumps(spec))
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["alive"], done
    if ready.kind is ReadyKind.HTTP:
        assert seen["reply"] == "200"
    elif ready.kind is ReadyKind.LINE:
        assert seen["reply"] == "touched\n"
        (line,) = [line for line in seen["memory"].splitlines() if line.startswith("RssAnon")]
        assert 64 << 10 <= int(line.split()[1]) < 80 << 10, "KiB, touched and still held"
    else:
        assert ready.expect.decode() in seen["reply"]


def test_quick_suite_is_a_valid_plan() -> None:
    """The five workloads make a plan as they stand, in the order of the report."""
    made = plan.quick(workloads.quick_suite(), seed=1)
    assert [one.name for one in made.workloads] == ["hello", "redis", "nginx", "touch64", "xz"]
    assert len({one.title for one in made.workloads}) == 5


def test_unknown_workload() -> None:
    """An unknown name is bad input that lists the known ones."""
    with pytest.raises(BadInput, match="no workload 'mysql'") as caught:
        workloads.builtin("mysql")
    assert "redis" in caught.value.hint


def test_workload_from_an_image() -> None:
    """An image and a command make a workload; no command means the image's own."""
    made = workloads.from_image("shop/app:1", ["--", "sh", "-c", "exit 0"])
    assert (made.name, made.image, made.argv) == (
        "shop-app-1",
        "shop/app:1",
        ("sh", "-c", "exit 0"),
    )
    assert workloads.from_image("busybox").argv is None
    assert workloads.from_image("busybox", []).argv is None
    plan.quick([dataclasses.replace(made)], seed=1)
