"""Hosts that cannot, through the command line: no root, no libvirt, no KVM, no room on a disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest

from bench.model import Image

pytestmark = pytest.mark.root

NATIVE = ("--arms", "container,process")
QUICKEST = (*NATIVE, "--blocks", "7", "--quiet", "--wait", "--no-report")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a test does, nothing of it stays on the host."""
    with faults.nothing_left():
        yield


@pytest.fixture
def nobody() -> tuple[str, ...]:
    """A command prefix that makes hvct run as another user than root."""
    asked = [*NOBODY, sys.executable, "-c", "import bench.cli"]
    if shutil.which("setpriv") is None or subprocess.run(asked, capture_output=True).returncode:
        pytest.skip("another user cannot reach this Python or this checkout")
    return NOBODY


def test_another_user_is_told_to_be_root(nobody: tuple[str, ...]) -> None:
    """Everything that measures asks for root; what only reads works."""
    home = {"HOME": "/nonexistent", "XDG_CACHE_HOME": ""}
    outside = Path("/")  # the tests' own folders are root's alone
    for line in ("compare hello", "run --arm container busybox -- true", "clean"):
        done = faults.hvct(*line.split(), before=nobody, env=home, cwd=outside)
        done.says(3, "needs root|root", "sudo")
    for line in ("compare hello --dry-run", "list", "run --help"):
        done = faults.hvct(*line.split(), before=nobody, env=home, cwd=outside)
        assert done.code == 0 and not done.err, done
    done = faults.hvct("image", "list", before=nobody, env=home, cwd=outside)
    done.says(3, "Permission denied", "XDG_CACHE_HOME")


def binding() -> list[Path]:
    """The files of libvirt's Python binding."""
    asked = "import libvirt, libvirtmod; print(libvirt.__file__, libvirtmod.__file__, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("libvirt-python is not installed")
    return [Path(line) for line in done.stdout.splitlines()]


def test_without_the_libvirt_binding(tmp_path: Path) -> None:
    """The VM arm says what is missing and how to go on; the other arms work, doctor says why."""
    script = "\n".join(faults.shell("mount", "--bind", "/dev/null", path) for path in binding())
    before = faults.hidden(script)
    done = faults.hvct("compare", "hello", "--wait", "--output", tmp_path / "run", before=before)
    done.says(3, "^hvct: vm: libvirt's Python binding is not installed", "install", "--arms")
    assert not (tmp_path / "run").exists()
    assert faults.hvct("run", "busybox", "--", "echo", "works", before=before).out == "works\n"
    doctor = faults.hvct("doctor", before=before)
    assert doctor.code == 3 and "the libvirt binding for Python is not installed" in doctor.out
    assert "Traceback" not in doctor.err


def test_without_the_libvirt_driver(tmp_path: Path) -> None:
    """The same where the binding is there and the distribution's QEMU driver is not."""
    drivers = list(Path("/usr/lib").glob("*/libvirt/connection-driver"))
    if not drivers:
        pytest.skip("libvirt's drivers are not where Debian has them")
    before = faults.hidden(faults.shell("mount", "-t", "tmpfs", "none", drivers[0]))
    faults.hvct("run", "--arm", "vm", "busybox", "--", "true", before=before).says(
        3, "no connection driver", "libvirt-daemon-driver-qemu"
    )


NO_KVM = """
here=$(mktemp -d)
mount -t tmpfs none "$here"; mkdir "$here/dev"; mount --rbind /dev "$here/dev"
mount -t tmpfs none /dev
for path in "$here"/dev/*; do
    name=${path##*/}
    if [ "$name" = kvm ]; then continue
    elif [ -L "$path" ]; then cp -P "$path" /dev/; continue
    elif [ -d "$path" ]; then mkdir "/dev/$name"; else : >"/dev/$name"; fi
    mount --rbind "$path" "/dev/$name"
done
umount -l "$here"; rmdir "$here"
"""


@pytest.mark.vm
def test_without_kvm_a_vm_is_emulated_and_says_so() -> None:
    """No /dev/kvm is no fault: the guest runs under TCG, and that and the reason are told."""
    before = faults.hidden(NO_KVM)
    done = faults.hvct(
        "run", "--arm", "vm", "--timeline", "busybox", "--", "echo", "hello", before=before
    )
    assert done.code == 0 and done.out == "hello\n", done
    assert "vm (TCG)" in done.err
    doctor = faults.hvct("doctor", before=before)
    assert doctor.code == 0 and "there is no /dev/kvm" in doctor.out, doctor


# --- folders that are full or not to be written ---


def on_tmpfs(folder: Path, options: str, then: str = "true") -> list[str]:
    """Run where a folder is a file system of its own that nobody else sees."""
    mount = faults.shell("mount", "-t", "tmpfs", "-o", options, "none", folder)
    return faults.hidden(f"{mount}\n{then}")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """Exit 3, with the variable that moves it; what needs no cache works."""
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    before = on_tmpfs(tmp_path, "ro")
    for line in ("run busybox -- true", "image build busybox", "doctor"):
        done = faults.hvct(*line.split(), before=before, env=env)
        done.says(3, "Read-only file system|not writable", "XDG_CACHE_HOME")
    done = faults.hvct("compare", "hello", "--dry-run", before=before, env=env)
    assert done.code == 0 and "[[workload]]" in done.out


def test_a_full_cache(busybox: Image, tmp_path: Path) -> None:
    """Exit 3 wherever it runs out of room, at the first image or at the programs after it."""
    env = {"XDG_CACHE_HOME": str(tmp_path / "c")}
    (tmp_path / "c").mkdir()
    command = ("run", "busybox", "--", "true")
    before = on_tmpfs(tmp_path / "c", "size=600k")
    faults.hvct(*command, before=before, env=env).says(3, "is full", "free some space")
    image, entry = busybox.path, busybox.path.parent / "busybox.json"
    size = image.stat().st_size // 1024 + 64
    into = tmp_path / "c" / "hvct" / "images"
    copy = f"mkdir -p {faults.shell(into)}\ncp {faults.shell(image, entry, into)}"
    before = on_tmpfs(tmp_path / "c", f"size={size}k", copy)
    faults.hvct(*command, before=before, env=env).says(3, "No space left", "make room")


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """Exit 2, with the option that chooses another one."""
    before = on_tmpfs(tmp_path, "ro")
    for directory in (tmp_path / "run", Path("/proc/run")):
        done = faults.hvct("compare", "hello", *QUICKEST, "--output", directory, before=before)
        done.says(2, "mkdir", "--output")


def test_a_full_run_directory_is_said_and_resumed(tmp_path: Path) -> None:
    """No room for the description: no folder. No room for a trial: resume after making some."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = (*faults.comparison(tmp_path, ("container", "process"))[:-1], disk / "run", "--quiet")
    done = faults.hvct(*command, before=on_tmpfs(disk, "size=8k"))
    done.says(3, "No space left on device", "make room")
    trials, said, fill, copy = (
        faults.shell(path)
        for path in (disk / "run/trials.jsonl", tmp_path / "said", disk / "fill", tmp_path / "copy")
    )
    fill_up = f"""
{faults.shell(*faults.argv_of(*command))} 2>{said} &
while kill -0 $!; do
    [ -e {trials} ] && [ "$(wc -l <{trials})" -ge 3 ] && break
    sleep 0.02
done
dd if=/dev/zero of={fill} bs=4k 2>/dev/null || true
code=0; wait $! || code=$?
cp {trials} {copy}
[ $code = 3 ] || exit 99
rm {fill}
"""
    before = on_tmpfs(disk, "size=4m", fill_up)
    resume = ("resume", "--wait", "--no-report", "--quiet", disk / "run")
    done = faults.hvct(*resume, before=before)
    assert done.code == 0, done
    # From a file of its own: resuming may have said that it waits for somebody else.
    faults.Done(3, "", (tmp_path / "said").read_text()).says(
        3, "No space left on device", "hvct resume"
    )
    half = (tmp_path / "copy").read_bytes()
    assert half.endswith(b"}\n") and all(json.loads(line) for line in half.splitlines())
