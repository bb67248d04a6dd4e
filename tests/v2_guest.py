"""A guest with cgroup v2 in which our own tests run: what goes into it, and one boot of it.

The image is the default one, which has the host's Python; everything else (the tests, the
checkout, the libraries they import, our compiled programs and the busybox image) goes in as
one more erofs file, fed to the guest's standard input and mounted there through a loop device.
It carries bytecode for the guest's paths: compiling it under emulation would take a minute.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyseccomp

from bench.agent.build import agent_path
from bench.command import run
from bench.context import RunContext
from bench.image.erofs import make_volume
from bench.model import Event, Image, InstanceSpec, Limits, MemoryBasis, OutputMode
from ct.launcher.build import launcher_path
from hv.backend import VmBackend

CHECKOUT = Path(__file__).resolve().parent.parent
PLACE = "/mnt/hvct"  # of the bundle in the guest
DISTRIBUTIONS = (
    *("iniconfig", "packaging", "pluggy", "psutil"),
    *("pygments", "pyroute2", "pyseccomp", "pytest", "pytest-timeout"),
)
CPUS = 2  # of the guest: one of the tests is about the other one
MODULES = ("loop", "bridge", "veth", "ext4")  # the distribution has them as modules
MIB = 1 << 20
MARK = "result: "  # begins the line of the guest's output that is JSON

# The guest has no compiler: this one hands out what the host's has made of the same sources.
COMPILER = """#!/bin/sh
[ "$1" = --version ] && exec echo "made on the host"
while [ "$1" != -o ]; do shift; done
exec cp "{place}/programs/${{2##*/}}" "$2"
"""

START = f"""set -e
cat > /scratch/bundle
# The agent's /dev has no disks and no loop devices.
busybox mount -t devtmpfs none /dev
mkdir -p /dev/shm /dev/pts {PLACE}
busybox mount -t tmpfs none /dev/shm
busybox mount -t devpts none /dev/pts
for applet in losetup mount; do ln -s "$(command -v busybox)" /usr/local/bin/$applet; done
mount -t erofs -o ro,loop /scratch/bundle {PLACE}
exec python3 -I -S {PLACE}/tests/v2_inside.py "$@"
"""


@dataclass(frozen=True)
class Inside:
    """What happened in the guest: everything it printed, and its result as JSON."""

    output: str
    result: dict[str, Any]
    accelerator: str


def make_bundle(folder: Path, busybox: Image, collected: Sequence[str]) -> Path:
    """The erofs file that goes into the guest.

    Args:
        folder: where it is made; nothing else is in it.
        collected: tests whose bytecode it is to have.
    """
    tree = folder / "tree"
    for name in ("bench", "ct", "hv", "tests"):
        shutil.copytree(CHECKOUT / name, tree / name, ignore=_no_bytecode)
    shutil.copy2(CHECKOUT / "pyproject.toml", tree)
    _libraries(tree / "site")
    (tree / "programs").mkdir()
    for name, path in (("agent", agent_path()), ("launcher", launcher_path())):
        shutil.copy2(path, tree / "programs" / name)
    compiler = tree / "programs" / "gcc"
    compiler.write_text(COMPILER.format(place=PLACE))
    compiler.chmod(0o755)
    (tree / "images").mkdir()
    for path in (busybox.path, busybox.path.parent / "busybox.json"):
        shutil.copy2(path, tree / "images")
    _compile(tree, collected)
    return make_volume(tree, folder / "bundle.erofs").path


def _no_bytecode(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__"}


def _libraries(site: Path) -> None:
    """What the tests import, from the environment that runs them, and libseccomp itself."""
    for name in DISTRIBUTIONS:
        for file in importlib.metadata.files(name) or ():
            if file.suffix in (".py", ".so", ".txt", ".json") or "dist-info" in str(file):
                source, target = Path(str(file.locate())), site / file
                if ".." not in file.parts and source.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, target)
    (library,) = {
        Path(line.split()[-1])
        for line in Path("/proc/self/maps").read_text().splitlines()
        if Path(line.split()[-1]).name.startswith("libseccomp.so")
    }
    assert pyseccomp
    (site / "lib").mkdir()
    shutil.copy2(library, site / "lib" / "libseccomp.so.2")


def _compile(tree: Path, collected: Sequence[str]) -> None:
    """Import and collect all of it once, as the guest will, so that the bytecode is there.

    In a mount namespace in which the tree is where the guest has it. Without the
    environment's own packages: what the bundle lacks is found here, not in the guest.
    """
    script = f"""mount -t tmpfs none /mnt
mkdir {PLACE}
mount --bind "$1" {PLACE}
shift
exec "$@"
"""
    argv = [
        *("unshare", "--mount", "sh", "-ec", script, "sh", str(tree)),
        *("/usr/bin/python3", "-I", "-S", f"{PLACE}/tests/v2_inside.py", "collect", *collected),
    ]
    run(argv, timeout_s=60)


def boot(
    context: RunContext,
    image: Image,
    bundle: Path,
    arguments: Iterable[str],
    *,
    limit_s: float,
) -> Inside:
    """Boot the guest, run `v2_inside.py` in it, and return what it said.

    Raises:
        AssertionError: it failed or did not end in time; with its output.
    """
    spec = InstanceSpec(
        context.instance(1),
        image,
        ("sh", "-c", START, "sh", *arguments),
        env=(
            ("PATH", f"{PLACE}/programs:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
        ),
        limits=Limits(
            cpus=CPUS,
            memory_bytes=640 * MIB,
            memory_basis=MemoryBasis.NOMINAL,
            scratch_bytes=192 * MIB,
        ),
        cpu_set=tuple(sorted(os.sched_getaffinity(0))[:CPUS]),
        output=OutputMode.STREAM,
        stdin=True,
        extra_modules=MODULES,
    )
    with VmBackend(context) as backend:
        backend.prepare(spec)
        with backend.launch(spec) as guest:
            deadline_ns = time.monotonic_ns() + int(limit_s * 1e9)
            assert guest.wait(Event.STARTED, deadline_ns), "the guest does not start"
            guest.send_stdin(bundle.read_bytes())
            guest.send_stdin(b"")
            ended = guest.wait(Event.EXITED, deadline_ns)
            output = guest.stdout.decode("utf-8", "replace")
            errors = guest.stderr.decode("utf-8", "replace")
            label = guest.accelerator.label
            status = guest.exit.describe() if guest.exit else "none"
    assert ended and status == "exit status 0", f"{status}\n{output}\n{errors}"
    (line,) = (line for line in output.splitlines() if line.startswith(MARK))
    return Inside(output, json.loads(line.removeprefix(MARK)), label)
