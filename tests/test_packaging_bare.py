"""Set-up on a bare machine: a distribution root without Python, and every way of breaking off."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import synthetic

from bench.cache import cache_dir, lock, publish, workspace
from bench.command import run

pytestmark = [pytest.mark.root, pytest.mark.chroot, pytest.mark.checkout]

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


def bare_root_archive() -> Path:
    """A minimal distribution root as a tar file, made once for this distribution release."""
    release = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )
    suite = release.get("VERSION_CODENAME", "").strip('"')
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

    def __init__(self, path: Path) -> None:
        self.path = path
        run(["tar", "-C", path, "-xf", bare_root_archive()])
        assert not list(path.glob("usr/bin/python*")), "the bare root is not bare"
        self.folder = path / FOLDER.lstrip("/")
        shutil.copytree(CHECKOUT, self.folder, ignore=shutil.ignore_patterns(*NOT_SOURCE))
        self.environment = self._lend_registries()

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


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareRoot]:
    """One bare root for the module: what is expensive, installing, happens once."""
    if os.geteuid() != 0:
        pytest.skip("making a distribution root needs root")
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    path = tmp_path_factory.mktemp("bare") / "root"
    path.mkdir()
    try:
        yield BareRoot(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)  # over 1 GB


def test_set_up_survives_everything(bare: BareRoot) -> None:
    """Killed in the middle of apt, then of pip, then two at once: hvct is set up and answers."""
    stamp = bare.folder / ".hvct/stamp-run"

    first = bare.start("./hvct", "--help")
    bare.kill_when(first, lambda: "\nSetting up " in bare.log())
    assert not stamp.exists()

    second = bare.start("./hvct", "--help")
    libraries = bare.folder / ".venv/lib"
    bare.kill_when(second, lambda: any(libraries.glob("python3*/site-packages/numpy/core")))
    assert not stamp.exists()

    both = [bare.start("./hvct", "--help") for _ in range(2)]
    ends = [bare.finish(each) for each in both]
    assert all("usage" in out.lower() for out, _ in ends)
    assert sum("waiting for it" in err for _, err in ends) == 1
    assert sum("Python packages" in err for _, err in ends) == 1, "both set up"
    assert stamp.exists()
    assert not (bare.path / "usr/sbin/policy-rc.d").exists()


def need_set_up(bare: BareRoot) -> None:
    """Skip what can only follow from the test before."""
    if not (bare.folder / ".hvct/stamp-run").exists():
        pytest.skip("the set-up before this test failed")


@pytest.mark.vm
def test_the_package_list_suffices(bare: BareRoot) -> None:
    """With nothing but the [run] packages every arm runs a command, and a report becomes a PDF."""
    need_set_up(bare)
    for arm in ("process", "container", "vm"):
        out, _ = bare.finish(
            bare.start("./hvct", "run", "--arm", arm, "busybox", "--", "echo", arm)
        )
        assert out == f"{arm}\n"
    synthetic.write_run(bare.folder / "runs/one")
    bare.finish(bare.start("./hvct", "report", "runs/one", "--format", "html,pdf"))
    pdf = bare.folder / "runs/one/report.pdf"
    assert pdf.read_bytes().startswith(b"%PDF")
    assert pdf.stat().st_size > 20_000, "hardly anything is in it"


@pytest.mark.vm
def test_a_plain_chroot_is_root_enough(bare: BareRoot) -> None:
    """Where / is no mount point hvct gives itself one, and every arm runs."""
    need_set_up(bare)
    for arm in ("process", "container", "vm"):
        command = ("./hvct", "run", "--arm", arm, "busybox", "--", "echo", arm)
        out, _ = bare.finish(bare.start(*command, enter=PLAIN_CHROOT))
        assert out == f"{arm}\n"


def test_later_starts_touch_no_package_client(bare: BareRoot) -> None:
    """With the stamp in place it starts without apt, dpkg and pip: they are not even there."""
    need_set_up(bare)
    for client in ("apt-get", "dpkg", "dpkg-query"):
        (bare.path / "usr/bin" / client).unlink()
    shutil.rmtree(next((bare.folder / ".venv/lib").glob("python3*/site-packages/pip")))
    link = bare.path / "usr/local/bin/hvct"
    link.symlink_to(f"{FOLDER}/hvct")
    out, err = bare.finish(bare.start("hvct", "--help", folder="/tmp"), timeout_s=20)
    assert "usage" in out.lower()
    assert err == ""
