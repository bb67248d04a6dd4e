"""A bare distribution root, as hvct is set up in one: shared by tests of packaging."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cache import cache_dir, lock, publish, workspace
from bench.command import run
from bench.image.debian import host_sources

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = str(Path("/srv", "my hvct"))  # a space in it, since scripts and shebangs break there
NOT_SOURCE = (".git", ".venv", ".hvct", ".nox", "runs", "build", "dist", "*.egg-info",
              "__pycache__", ".*_cache", ".hypothesis", ".benchmarks")  # fmt: skip
# As on a machine: / is a mount point of its own (chroot would forbid user namespaces), and
# process 1, this shell, waits for orphans.
ENTER = """
set -e
root=$1; folder=$2; shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
cd "$root"
pivot_root . .
umount -l .
cd "$folder"
set +e
"$@"
exit $?
"""

# The way people try a bare root: / is then no mount point, and whoever mounts must see to that.
PLAIN_CHROOT = """
set -e
root=$1; folder=$2; shift 2
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
set +e
chroot "$root" /bin/sh -c 'cd "$1" && shift && exec "$@"' sh "$folder" "$@"
exit $?
"""


def this_suite() -> str:
    """The name of the distribution release of this host."""
    release = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )
    return release.get("VERSION_CODENAME", "").strip('"')


def bare_root_archive(suite: str) -> Path:
    """A minimal root of a distribution release as a tar file, made once."""
    final = cache_dir("tests") / f"minbase-{suite}.tar"
    with lock("minbase"):
        if not final.exists():
            with workspace("minbase") as room:
                run(["mmdebstrap", "--quiet", "--variant=minbase", suite, room / "root.tar"])
                publish(room / "root.tar", final)
    return final


class BareRoot:
    """A bare root, able to reach the package registries this host reaches, and only that.

    Every command runs in mount and PID namespaces of its own, so that killing
    it leaves nothing behind, as a power cut would.
    """

    def __init__(self, path: Path, suite: str = "") -> None:
        self.path = path
        suite = suite or this_suite()
        run(["tar", "-C", path, "-xf", bare_root_archive(suite)])
        assert not list(path.glob("usr/bin/python*")), "the bare root is not bare"
        self.folder = path / FOLDER.lstrip("/")
        shutil.copytree(CHECKOUT, self.folder, ignore=shutil.ignore_patterns(*NOT_SOURCE))
        self.environment = self._lend_registries()
        if suite != this_suite():
            self._change_suite(suite)

    def _lend_registries(self) -> dict[str, str]:
        """Copy what decides where packages come from; nothing of it is known to the project."""
        shutil.rmtree(self.path / "etc/apt")
        for name in ("apt", "pip.conf", "xdg/pip", "resolv.conf", "hosts"):
            source, target = Path("/etc", name), self.path / "etc" / name
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            elif source.exists():
                shutil.copyfile(source, target)
        # Not at its usual place: installing ca-certificates writes that one anew.
        bundle = Path(os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt"))
        lent = {
            "HOME": "/root",
            "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TERM": "dumb",
        }
        if bundle.exists():
            shutil.copyfile(bundle, self.path / "etc/lent-certificates.crt")
            for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
                lent[name] = "/etc/lent-certificates.crt"
        for name, value in os.environ.items():
            if name.startswith("PIP_") or name.lower().endswith("_proxy"):
                lent.setdefault(name, value)
        return lent

    def _change_suite(self, suite: str) -> None:
        """Have apt take this release's packages from where it takes those of the host's."""
        (self.path / "etc/apt/sources.list").unlink(missing_ok=True)
        folder = self.path / "etc/apt/sources.list.d"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path in host_sources(Path("/etc/apt"), this_suite(), folder):
            path.write_text(path.read_text().replace(this_suite(), suite))

    def start(self, *argv: str, folder: str = FOLDER, enter: str = ENTER) -> subprocess.Popen[str]:
        """Start a command inside; killing it kills all it started."""
        inside = ["sh", "-c", enter, "sh", str(self.path), folder, *argv]
        return subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", *inside],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, started: subprocess.Popen[str], timeout_s: float = 600) -> tuple[str, str]:
        """Its output and error output; fails the test when it failed."""
        try:
            out, err = started.communicate(timeout=timeout_s)
        finally:
            started.kill()
        assert started.returncode == 0, f"status {started.returncode}\n{out}\n{err}"
        return out, err

    def kill_when(self, started: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
        """SIGKILL it, and all it started, as soon as the condition holds."""
        deadline = time.monotonic() + 300
        while not reached():
            if started.poll() is not None or time.monotonic() > deadline:
                started.kill()
                pytest.fail(f"ended before it could be interrupted: {started.communicate()}")
            time.sleep(0.05)
        started.kill()
        started.communicate()

    def log(self) -> str:
        """What the set-up wrote into its log so far."""
        path = self.folder / ".hvct/setup.log"
        return path.read_text(errors="replace") if path.exists() else ""
