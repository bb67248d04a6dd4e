"""The program of the guest with cgroup v2 (see v2_guest): prepares it, then runs tests there.

All libraries are imported once and every group of tests runs in a fork: an import takes
seconds under emulation. `run` does the tests named, then each mutation with the tests that
must notice it; `accounting` measures what a control group costs; `collect` only imports all
of that, for the bytecode.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PLACE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PLACE), str(PLACE / "tests"), str(PLACE / "site")]

SCRATCH = Path("/scratch")
UNIFIED = Path("/sys/fs/cgroup")
SWAP_MIB = 64

# Neighbours that the kernel has and that take the value: nothing fails at once.
MUTATIONS = {
    "memory.max": "memory.low",
    "memory.swap.max": "memory.swap.high",
    "cpu.max": "cpu.weight.nice",
    "pids.max": "cgroup.max.descendants",
    "cpuset.cpus": "cpuset.mems",
}


def prepare() -> dict[str, str]:
    """Mount the hierarchy, switch swap on, lay out the cache; what is to be told of the guest."""
    _run("mount", "-t", "cgroup2", "cgroup2", str(UNIFIED))
    swap = SCRATCH / "swap"
    swap.write_bytes(bytes(SWAP_MIB << 20))
    swap.chmod(0o600)
    _run("mkswap", str(swap))
    _run("busybox", "swapon", str(swap))
    # Where ctypes looks, on the writable layer.
    for library in (PLACE / "site/lib").iterdir():
        shutil.copy(library, "/usr/lib")
    _run("/sbin/ldconfig")
    shutil.copytree(PLACE / "images", SCRATCH / "cache/hvct/images")
    # On a real disk: a tmpfs has no direct I/O.
    (SCRATCH / "tmp").mkdir()
    os.environ |= {
        "TMPDIR": str(SCRATCH / "tmp"),
        "XDG_CACHE_HOME": str(SCRATCH / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path[:3]),
    }
    os.umask(0o022)
    return {
        "uname -r": _run("uname", "-r"),
        "stat -fc %T /sys/fs/cgroup": _run("stat", "-fc", "%T", str(UNIFIED)),
        "controllers": (UNIFIED / "cgroup.controllers").read_text().strip(),
        "nproc": _run("nproc"),
    }


def _run(*argv: str) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def load() -> None:
    """Import what the tests will, once for all forks."""
    import psutil  # noqa: F401
    import pyroute2.netlink.rtnl.ifinfmsg  # noqa: F401
    import pyseccomp  # noqa: F401
    import pytest  # noqa: F401

    import bench.network  # noqa: F401
    import ct.backend
    import ct.process  # noqa: F401


class Recorder:
    """A pytest plugin: the outcome of each test, with its reason and seconds."""

    def __init__(self) -> None:
        self.outcomes: dict[str, tuple[str, str, float]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called for set-up, call and teardown; the worst of them stands."""
        outcome, reason, seconds = self.outcomes.get(report.nodeid, ("passed", "", 0.0))
        if report.outcome != "passed" and outcome == "passed":
            outcome, reason = report.outcome, str(report.longrepr).strip().split("\n")[-1]
        self.outcomes[report.nodeid] = (outcome, reason, round(seconds + report.duration, 2))


def pytest_in_a_fork(tests: Sequence[str], *options: str, broken: str = "") -> dict[str, Any]:
    """Outcome of each test, and pytest's own exit code, from a child of this process.

    Args:
        broken: the limit file whose name is wrong in the child.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 70
        try:
            if broken:
                break_name(broken, MUTATIONS[broken])
            import pytest

            recorder = Recorder()
            fixed = ("-c", f"{PLACE}/pyproject.toml", "--rootdir", str(PLACE), "-o", "addopts=")
            ways = (
                "--import-mode=importlib",
                "-p",
                "no:cacheprovider",
                "-q",
                "--tb=line" if broken else "--tb=short",
            )
            code = pytest.main([*fixed, *ways, *options, *tests], plugins=[recorder])
            with os.fdopen(writer, "w") as wire:
                json.dump({"code": int(code), "outcomes": recorder.outcomes}, wire)
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as wire:
        said = wire.read()
    os.waitpid(child, 0)
    return dict(json.loads(said or '{"code": 70, "outcomes": {}}'))


def break_name(right: str, wrong: str) -> None:
    """Have `bench.cgroup` write its limits as if its source named another file."""
    from bench import cgroup

    text = textwrap.dedent(inspect.getsource(cgroup.Cgroup._settings))
    if text.count(f'/{right}"') != 1:
        raise ValueError(f"the code that sets limits does not name {right} exactly once")
    scope = dict(vars(cgroup))
    exec(text.replace(f'/{right}"', f'/{wrong}"'), scope)
    cgroup.Cgroup._settings = scope["_settings"]  # type: ignore[method-assign]


def accounting(pairs: int) -> dict[str, list[float]]:
    """Seconds from request to the workload's exec, with a control group and without, in pairs."""
    from bench.image.busybox import busybox_image
    from bench.journal import open_run
    from bench.model import Event, InstanceSpec
    from ct.backend import ContainerBackend

    image = busybox_image()
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    order = random.Random(20)
    with open_run(SCRATCH / "run") as context, ContainerBackend(context) as arm:
        for number in range(2 * pairs + 4):
            if number % 2 == 0:
                both = order.sample((True, False), 2)
            on = both[number % 2]
            name = context.instance(number + 1)
            spec = InstanceSpec(name, image, ("true",), env=(("PATH", "/bin"),), accounting=on)
            time.sleep(0.02)
            with arm.launch(spec) as instance:
                instance.wait(Event.EXITED, time.monotonic_ns() + 10**10)
            took = instance.timeline.between(Event.REQUESTED, Event.STARTED)
            if number >= 4 and took is not None:  # what is paid once is paid before
                seconds["on" if on else "off"].append(took)
    return seconds


def guard(name: str) -> str:
    """The test that must notice a wrong name of this limit file."""
    return f"tests/v2_limits.py::test_{name.replace('.', '_')}[ContainerBackend]"


def main(what: str, *arguments: str) -> int:
    """Do it, and print one line of JSON."""
    began = time.monotonic()
    if what == "collect":
        load()
        found = pytest_in_a_fork(arguments, "--collect-only", "-qq")
        return int(found["code"])
    facts = prepare()
    for name, value in facts.items():
        print(f"{name}: {value}", flush=True)
    load()
    result: dict[str, Any] = {"facts": facts}
    print(f"prepared in {time.monotonic() - began:.1f} s", flush=True)
    if what == "run":
        result["tests"] = pytest_in_a_fork(arguments)
        result["mutations"] = {
            name: pytest_in_a_fork([guard(name)], broken=name) for name in MUTATIONS
        }
    elif what == "accounting":
        result["pairs"] = accounting(int(arguments[0]))
    result["seconds"] = round(time.monotonic() - began, 1)
    print("result: " + json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    os.chdir(PLACE)
    sys.exit(main(*sys.argv[1:]))
