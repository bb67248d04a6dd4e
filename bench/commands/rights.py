"""Who may do what: the one place that asks for root, and for a root that can be mounted on."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from bench.arms import Arm
from bench.errors import HostCannot

REENTERED = "HVCT_OWN_ROOT"
ROOTLESS = {
    "container:rootless": "no limits, no accounting, no user but root inside",
    "vm": "no accounting, not pinned by a control group",
}
"""Arms that users without root can have, and what is left out then."""

# A tmpfs first, made private: nothing below it shows outside, even where mounts are shared.
ENTER = """
set -e
room=$1; folder=$2; shift 2
mkdir -p "$room"
mount -t tmpfs -o mode=755 hvct "$room"
mount --make-private "$room"
mkdir "$room/root"
mount --rbind / "$room/root"
mount --make-rprivate "$room/root"
cd "$room/root"
exec chroot . /bin/sh -c 'cd "$1" && shift && exec "$@"' hvct "$folder" "$@"
"""


def need_root(what: str = "measuring", why: str = "namespaces, cgroups, a bridge") -> None:
    """Namespaces, cgroups and the bridge need root, and a root directory that is a mount.

    In a plain chroot ``/`` is no mount point, and neither pivot_root(2) nor private
    propagation is to be had. Then this program starts anew in a mount namespace of its
    own whose ``/`` is the same directory, mounted.

    Args:
        what: what cannot be done without.
        why: what of it is root's alone.

    Raises:
        HostCannot: we are somebody else, or there is no way to such a root.
    """
    if os.geteuid() != 0:
        raise HostCannot(f"{what} needs root ({why})", "run it with sudo")
    if root_is_mounted():
        return
    unshare = shutil.which("unshare")
    if unshare is None or os.environ.get(REENTERED):
        raise HostCannot(
            "/ is no mount point here, as in a plain chroot",
            "mount the folder on itself (mount --bind DIR DIR) before you change into it",
        )
    room = f"/run/hvct-root-{os.getpid()}"
    argv = [unshare, "--mount", "--propagation", "unchanged", "/bin/sh", "-c", ENTER, "hvct"]
    os.execve(  # the environment as it is, and a mark against coming here twice
        unshare,
        [*argv, room, os.getcwd(), sys.executable, *_program(), *sys.argv[1:]],
        {**os.environ, REENTERED: "1"},
    )


def need_rights(arm: Arm, network: str) -> str:
    """Root, or an arm that does without, reduced; returns what is left out then, else "".

    Raises:
        HostCannot: what was asked for needs root, and we are somebody else.
    """
    if os.geteuid() == 0:
        need_root()
        return ""
    if arm.name not in ROOTLESS:
        raise HostCannot(
            f"{arm.name} needs root (namespaces, cgroups, a bridge)",
            f"run it with sudo, or use --arm {' or '.join(ROOTLESS)}",
        )
    if network == "bridge":
        raise HostCannot("a bridge needs root", "run it with sudo, or without --network")
    return ROOTLESS[arm.name]


def default_arm() -> str:
    """The container that this user can have."""
    return "container" if os.geteuid() == 0 else "container:rootless"


def _program() -> tuple[str, ...]:
    """How this program was started: the console script, or ``python -m bench.cli``."""
    module = sys.argv[0].endswith("cli.py")
    return ("-m", "bench.cli") if module else (os.path.abspath(sys.argv[0]),)


def root_is_mounted() -> bool:
    """Whether our root directory is the root of a mount; unknown counts as yes."""
    try:
        table = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return True
    return any(line.split()[4] == "/" for line in table.splitlines() if line)
