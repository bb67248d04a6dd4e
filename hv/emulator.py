"""The `<emulator>` libvirt executes: joins our cgroup, then becomes QEMU.

Entering before exec is the only way to have every page charged: moving a started QEMU
misses 60 MB. libvirt also runs it to learn what QEMU can do; without the variable set it
joins nothing.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.cache import cache_dir, lock, workspace
from bench.checks.distributions import how_to_install
from bench.checks.programs import programs_of
from bench.checks.tree import Tree
from bench.command import run
from bench.errors import HostCannot
from hv.architecture import here

JOIN_VARIABLE = "HVCT_JOIN"
"""Colon-separated `Cgroup.join_files` that QEMU enters before it is executed."""


_SCRIPT = """\
#!/bin/sh
# Enter the instance's control groups, then become QEMU.
IFS=:
for file in ${{{variable}-}}; do
    echo 0 >"$file" || exit 1
done
unset IFS {variable}
# It must not outlive the process that reaps it.
exec {setpriv}{qemu} "$@"
"""


@dataclass(frozen=True)
class Emulator:
    """QEMU on this host and the wrapper around it.

    Attributes:
        identity: changes when another QEMU is installed; part of every cache key.
    """

    qemu: Path
    wrapper: Path
    version: str
    identity: str


def emulator() -> Emulator:
    """Find QEMU and make its wrapper, at a path that stays while QEMU stays the same.

    Raises:
        HostCannot: QEMU is not installed.
    """
    program = here().qemu
    found = shutil.which(program)
    if found is None:
        remedy = how_to_install(Tree(), programs_of(here().name)[0].packages)
        raise HostCannot(f"{program} is not installed", remedy)
    qemu = Path(found).resolve()
    said = run([qemu, "--version"]).decode().splitlines()[0]
    version = said.partition("version ")[2].split()[0]
    status = qemu.stat()
    setpriv = shutil.which("setpriv")
    guard = f"{setpriv} --pdeathsig KILL -- " if setpriv else ""
    script = _SCRIPT.format(variable=JOIN_VARIABLE, setpriv=guard, qemu=shlex.quote(str(qemu)))
    seen = f"{qemu}\0{said}\0{status.st_size}\0{status.st_mtime_ns}\0{script}"
    identity = hashlib.sha256(seen.encode()).hexdigest()[:16]
    wrapper = cache_dir("qemu") / f"qemu-{identity}"
    with lock("qemu"):
        if not wrapper.exists():
            with workspace("qemu") as folder:
                made = folder / "wrapper"
                made.write_text(script)
                made.chmod(0o755)
                os.replace(made, wrapper)
    return Emulator(qemu, wrapper, version, identity)
