"""The instance's root: the image below a tmpfs, /proc, /sys and /dev, as a plan of steps.

The image file is mounted once per run in the launcher's own mount namespace, so that it
goes with the launcher. It is read past the page cache of the file itself (``directio``):
otherwise the host would hold it twice and every figure about memory would be wrong.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.errors import HvctError, LaunchFailed
from bench.model import Image, InstanceSpec, Limits
from ct import steps
from ct.steps import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, Steps
from ct.wire import StepFailed
from ct.worker import Worker

SCRATCH = "scratch"  # each instance's own tmpfs; a folder in the launcher's directory
ROOT = f"{SCRATCH}/root"
DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
DEVPTS = "newinstance,ptmxmode=0666,mode=0620,gid=5"
LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
    "/dev/ptmx": "pts/ptmx",
}


DETACH = Steps([steps.detach()])


@dataclass(frozen=True)
class Lower:
    """An image as it is mounted: the folder, and how its file is read.

    Attributes:
        folder: relative to the launcher's directory.
        path_taken: ``file`` (the file itself, ``directio``) or ``loop`` (a loop device).
        direct_io: read back from the kernel; False means the page cache holds it twice,
            and figures about memory must not be believed.
    """

    folder: str
    path_taken: str
    direct_io: bool
    detail: str = ""


def mount_image(worker: Worker, image: Image) -> Lower:
    """Mount an image in the launcher's namespace and read back how that was done.

    Raises:
        LaunchFailed: neither way works.
    """
    folder = "image-" + image.digest.removeprefix("sha256:")[:16]
    (worker.directory / folder).mkdir(exist_ok=True)
    flags = MS_RDONLY | MS_NODEV
    if not image.path.is_file():
        raise LaunchFailed(f"the image file {image.path} is gone", "prepare the image again")
    try:
        worker.setup((steps.mount(str(image.path), folder, "erofs", flags, "directio"),))
    except StepFailed as by_file:
        try:
            loop = worker.setup((steps.loop_mount(str(image.path), folder, "erofs", flags),))
        except StepFailed as by_loop:
            raise LaunchFailed(
                f"image {image.name} cannot be mounted: as a file {by_file.reason}, "
                f"through a loop device {by_loop.reason}",
                "load the kernel modules: modprobe -a erofs loop",
            ) from by_loop
        direct = Path(f"/sys/block/loop{loop}/loop/dio").read_text().strip() == "1"
        return Lower(folder, "loop", direct, f"/dev/loop{loop}")
    options = _mount_options(worker, folder)
    return Lower(folder, "file", "directio" in options.split(","), options)


def _mount_options(worker: Worker, folder: str) -> str:
    """The super options of a mount, as the kernel shows them in the launcher's namespace."""
    target = os.path.realpath(worker.directory / folder)
    for line in Path(f"/proc/{worker.pid}/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split(" ")[4].encode().decode("unicode_escape") == target:
            return right.split(" ")[2]
    raise HvctError(f"the mount {target} is not there")


@cache
def root_steps(lower: Lower, limits: Limits) -> Steps:
    """A fresh writable layer over the image, and into it."""
    size = f"size={limits.writable_bytes},nr_inodes={limits.writable_inodes},mode=755"
    # xino=off, as in a guest: a file's inode number is the image's own, the same in every arm.
    layers = f"lowerdir={lower.folder},upperdir={SCRATCH}/upper,workdir={SCRATCH}/work,xino=off"
    return Steps(
        (
            steps.mount("tmpfs", SCRATCH, "tmpfs", MS_NODEV, size),
            steps.mkdir(f"{SCRATCH}/upper"),
            steps.mkdir(f"{SCRATCH}/work"),
            steps.mkdir(ROOT),
            # No device node of the image works: there is no device control group.
            steps.mount("overlay", ROOT, "overlay", MS_NODEV, layers),
            steps.pivot(ROOT),
        )
    )


@cache
def kernel_steps(*, unified: bool) -> Steps:
    """/proc and a read-only /sys; on cgroup v2 the instance's own group, read-only."""
    quiet = MS_NOSUID | MS_NODEV | MS_NOEXEC
    plan = [
        steps.mkdir("/proc"),
        steps.mount("proc", "/proc", "proc", quiet),
        steps.mkdir("/sys"),
        steps.mount("sysfs", "/sys", "sysfs", quiet | MS_RDONLY),
    ]
    if unified:
        plan.append(steps.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", quiet | MS_RDONLY))
    return Steps(plan)


@cache
def device_steps(shm_bytes: int, *, bind: bool, own_ipc: bool) -> Steps:
    """A fresh /dev: the basic nodes (bound from the host's where they cannot be made)."""
    quiet = MS_NOSUID | MS_NOEXEC
    plan = [
        steps.mkdir("/dev"),
        # Not MS_NODEV: this is where device nodes are allowed.
        steps.mount("tmpfs", "/dev", "tmpfs", quiet, "mode=755,size=64k"),
    ]
    for name, (major, minor) in DEVICES.items():
        if bind:
            plan.append(steps.write(f"/dev/{name}", ""))
            plan.append(steps.mount(f"dev/{name}", f"/dev/{name}", "", MS_BIND))
        else:
            plan.append(steps.mknod(f"/dev/{name}", major, minor))
    plan += [steps.symlink(target, path) for path, target in LINKS.items()]
    plan += [
        steps.mkdir("/dev/pts"),
        steps.mount("devpts", "/dev/pts", "devpts", quiet, DEVPTS),
        steps.mkdir("/dev/shm"),
        steps.mount(
            "shm",
            "/dev/shm",
            "tmpfs",
            quiet | MS_NODEV,
            f"mode=1777,size={shm_bytes}",
        ),
    ]
    if own_ipc:
        plan.append(steps.mkdir("/dev/mqueue"))
        plan.append(steps.mount("mqueue", "/dev/mqueue", "mqueue", quiet | MS_NODEV))
    return Steps(plan)


def hosts_steps(spec: InstanceSpec) -> Steps:
    """/etc/hosts with the instance's own name, and its machine-id; no more of /etc is touched."""
    own = spec.address.ip if spec.address else "127.0.1.1"
    text = f"127.0.0.1\tlocalhost\n::1\tlocalhost\n{own}\t{spec.hostname}\n"
    own_id = steps.write("/etc/machine-id", f"{spec.machine_id}\n")
    return Steps((steps.mkdir("/etc"), steps.write("/etc/hosts", text), own_id))
