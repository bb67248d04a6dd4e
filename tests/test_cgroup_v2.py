"""Limits and accounting on cgroup v2: run inside one guest, whatever the host has."""

from __future__ import annotations

import base64
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec, Limits, MemoryBasis
from hv.backend import VmBackend

pytestmark = [pytest.mark.root, pytest.mark.vm]
MIB = 1 << 20
MODULES = ("__init__", "cgroup", "cgroup_tree", "cgroupfs", "errors", "model")

GUEST = r"""
import base64, json, os, subprocess, sys, time
open("/tmp/bench.zip", "wb").write(base64.b64decode(sys.argv[1]))
sys.path.insert(0, "/tmp/bench.zip")
import ctypes
libc = ctypes.CDLL(None, use_errno=True)  # the image has no mount program
if libc.mount(b"cgroup2", b"/sys/fs/cgroup", b"cgroup2", 0, None) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
from bench.cgroup import Cgroup, CgroupLimits, remove_all, version
from bench.errors import HvctError
MIB = 1 << 20
seen = {"version": version()}

def inside(name, code, **limits):
    group = Cgroup.create("rv200", name, CgroupLimits(**limits))
    fds = group.join_fds()
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             preexec_fn=lambda: [os.write(fd, b"0") for fd in fds])
    return group, child

def end(child):
    out, _ = child.communicate()
    return child.returncode, out.decode()

group, child = inside("burn", "import time\nwhile time.process_time() < 1.0: pass", cpu_quota=0.5)
rusage = os.wait4(child.pid, 0)[2]
usage = group.cpu()
seen["burn"] = [rusage.ru_utime + rusage.ru_stime, usage.total_s, usage.user_s,
                usage.system_s, usage.throttled_s, usage.throttled_periods]
seen["directory_fd"] = group.directory_fd is not None and group.directory_fd == group.directory_fd
seen["pressure"] = sorted(group.pressure())
group.remove()

touch = "b = bytearray(%d)\nfor i in range(0, len(b), 4096): b[i] = 1\n" % (32 * MIB)
group, child = inside("touch", touch + "print(1, flush=True); input()")
child.stdout.readline()
memory, pss = group.memory(), group.process_memory()
seen["touch"] = [memory.anon_bytes, memory.current_bytes, memory.peak_bytes, memory.kernel_bytes,
                 memory.shmem_bytes, memory.file_bytes, pss.pss_anon_bytes]
seen["pids"] = group.pids() == (child.pid,)
group.kill()
seen["killed"] = end(child)[0]
group.remove()

group, child = inside("oom", touch, memory_bytes=16 * MIB)
seen["oom"] = [end(child)[0], group.oom_kills()]
seen["swap"] = open(group.directory("memory") / "memory.max").read().strip()
group.remove()

fork = ("import os, time\nn = 0\ntry:\n while n < 50:\n  if not os.fork(): time.sleep(60)\n"
        "  n += 1\nexcept BlockingIOError: print(n, flush=True)")
group, child = inside("fork", fork, pids=8, cpu_set=(0,))
seen["forks"] = child.stdout.readline().decode().strip()
for directory in group.directories:
    (directory / "inner").mkdir()
group.remove()
end(child)
try:
    Cgroup.create("rv200", "bad", CgroupLimits(cpu_set=(4095,)))
except HvctError as error:
    seen["refused"] = error.message
seen["left"] = os.listdir("/sys/fs/cgroup/hvct/rv200").count("bad")
remove_all("rv200")
seen["gone"] = not os.path.exists("/sys/fs/cgroup/hvct")
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(default_image: Image, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What our own modules saw in a guest whose hierarchy is unified."""
    sources = io.BytesIO()
    with zipfile.ZipFile(sources, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in MODULES:
            archive.write(Path(__file__).parent.parent / f"bench/{name}.py", f"bench/{name}.py")
    with (
        open_run(tmp_path_factory.mktemp("run")) as context,
        VmBackend(context) as backend,
    ):
        spec = InstanceSpec(
            context.instance(1),
            default_image,
            ("python3", "-c", GUEST, base64.b64encode(sources.getvalue()).decode()),
            env=(("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),),
            limits=Limits(memory_bytes=256 * MIB, memory_basis=MemoryBasis.NOMINAL),
        )
        backend.prepare(spec)
        with backend.launch(spec) as guest:
            assert guest.wait(Event.EXITED, time.monotonic_ns() + 120 * 10**9), "it hangs"
            assert guest.exit and guest.exit.code == 0, guest.stderr.decode("utf-8", "replace")
            found: dict[str, Any] = json.loads(guest.stdout)
    return found


def test_version_two_is_recognised(seen: dict[str, Any]) -> None:
    """A unified /sys/fs/cgroup is version 2, and its groups can be cloned into."""
    assert seen["version"] == 2
    assert seen["directory_fd"] is True


def test_cpu_time_and_throttling(seen: dict[str, Any]) -> None:
    """1.0 CPU seconds read as wait4 says within 2 %, and the quota is seen at work."""
    waited, total, user, system, throttled, periods = seen["burn"]
    assert waited >= 1.0  # and more: an emulated exec and exit cost some 40 ms
    assert total == pytest.approx(waited, rel=0.02)
    assert user + system == pytest.approx(total, rel=0.01)
    assert throttled > 0 and periods >= 1


def test_memory_by_name(seen: dict[str, Any]) -> None:
    """32 MiB touched are anonymous memory, within current and peak, and not file or shmem."""
    anon, current, peak, kernel, shmem, _, pss_anon = seen["touch"]
    assert 32 * MIB <= anon < 44 * MIB
    assert anon == pytest.approx(pss_anon, abs=2 * MIB)
    assert current >= anon - MIB and peak >= current - MIB
    assert 0 < kernel < 4 * MIB and shmem < MIB
    assert seen["pids"] is True


def test_limits_hold(seen: dict[str, Any]) -> None:
    """Too much memory is killed and counted, the ninth process is refused."""
    assert seen["oom"] == [-9, 1]
    assert seen["swap"] == str(16 * MIB)
    assert seen["forks"] == "7"


def test_nothing_is_left(seen: dict[str, Any]) -> None:
    """Killed, removed with what lay below, and refused limits leave no group."""
    assert seen["killed"] == -9
    assert "4095" in seen["refused"]
    assert seen["left"] == 0
    assert seen["gone"] is True
