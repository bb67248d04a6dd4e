"""The process that runs other people's programs, in a mount namespace of its own.

It runs beside the harness as ct's launcher does: child subreaper, so whatever a program leaves
behind becomes its child; all mounts are in its namespace and go with it. When the socket to
the harness closes, however the harness died, it kills every descendant and runs the cleanup
command. It imports nothing of ours, so that it is small: each start forks it.

One SOCK_SEQPACKET socket carries JSON, one object a packet. Requests: ``mount`` {image,
folder}; ``start`` {id, argv, env, folder, layer, tmpfs, join, cradle} with the descriptors that the
program gets as 3, 4, …; ``discard`` {id}; ``quit``. Answers: ``mounted``; ``spawned`` {id,
accepted_ns, ns, pid}; ``ended`` {id, ns, status, user_s, system_s, max_rss_kib}; ``gone``
{id}; ``failed`` {id, message}.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x20000
CLONE_INTO_CGROUP = 0x200000000
SYS_CLONE3 = 435  # on every architecture
MS_RDONLY, MS_NODEV, MS_REC, MS_SLAVE = 1, 4, 0x4000, 0x80000
MNT_DETACH = 2
END_LIMIT_S = 15.0
POLITE_S = 5.0  # for an engine to end by itself after SIGTERM

libc = ctypes.CDLL(None, use_errno=True)
holding = ctypes.PyDLL(None, use_errno=True)  # calls with the lock held: a fork is one


def check(result: int, call: str, path: str) -> None:
    """Raise what a system call set errno to."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call} {path}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """The system call of that name."""
    words = (source, target, kind)
    result = libc.mount(*(word.encode() for word in words), ctypes.c_ulong(flags), data.encode())
    check(result, "mount", target)


def mount_image(image: str, folder: str) -> dict[str, object]:
    """Mount an image as ct does: the file itself past its page cache, else a loop device."""
    os.makedirs(folder, exist_ok=True)
    flags = MS_RDONLY | MS_NODEV
    try:
        mount(image, folder, "erofs", flags, "directio")
        return {"path_taken": "file"}
    except OSError:
        words = ["losetup", "--find", "--show", "--read-only", "--direct-io=on", image]
        device = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    try:
        mount(device, folder, "erofs", flags)
    finally:
        subprocess.run(["losetup", "--detach", device], check=False)  # it goes with the mount
    return {"path_taken": "loop", "detail": device}


class Program:
    """One program that was started, and the folder that goes with it."""

    def __init__(self, id: str, folder: str) -> None:
        self.id, self.folder, self.pid = id, folder, 0
        self.ended = False
        self.mounts: list[str] = []


class Worker:
    """One thread, one poll loop."""

    def __init__(self, control: int) -> None:
        self.control = socket.socket(fileno=control)
        self.programs: dict[str, Program] = {}
        self.dismissed = False
        self.wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Handle requests and ends until the harness goes."""
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(self.wake, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poller.poll()}
            if self.wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.wake, 512)
                self.reap()
            if self.control.fileno() in ready:
                data, descriptors, _, _ = socket.recv_fds(self.control, 1 << 20, 16)
                if not data:
                    return
                request = json.loads(data)
                if request["op"] == "quit":
                    self.dismissed = True
                    return
                self.answer(request, descriptors)

    def answer(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """Do one request; a failure is an answer."""
        now = time.monotonic_ns()
        id = request.get("id", "")
        try:
            if request["op"] == "mount":
                found = mount_image(request["image"], request["folder"])
                self.send({"event": "mounted", "id": id, **found})
            elif request["op"] == "start":
                self.start(request, descriptors, now)
            elif request["op"] == "discard":
                self.discard(id)
        except (OSError, subprocess.CalledProcessError) as error:
            self.discard(id, told=False)
            message = getattr(error, "stderr", "") or getattr(error, "strerror", "") or str(error)
            self.send({"event": "failed", "id": id, "message": message.strip()})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def start(self, request: dict[str, Any], descriptors: list[int], now: int) -> None:
        """Lay a writable layer over the image where one is asked for, and start the program."""
        program = Program(request["id"], request["folder"])
        self.programs[program.id] = program
        os.makedirs(program.folder, exist_ok=True)
        for target, size in request["tmpfs"].items():
            os.makedirs(target, exist_ok=True)
            mount("tmpfs", target, "tmpfs", 0, f"size={size},mode=711")
            program.mounts.append(target)
        if request["layer"]:
            lay(program, **request["layer"])
        argv, env = request["argv"], request["env"]
        # Searched with our own PATH: the program's environment is what its container sees.
        path = shutil.which(argv[0])
        if path is None:
            raise FileNotFoundError(2, f"{argv[0]} is not installed")
        log = os.path.join(program.folder, "log")
        actions: list[Any] = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        # Above what they become: a dup2 must not overwrite one that is still to be passed.
        high = [copy_of(descriptor) for descriptor in descriptors]
        actions += [(os.POSIX_SPAWN_DUP2, old, new) for new, old in enumerate(high, 3)]
        try:
            if request["join"] or request["cradle"]:
                groups = (request["cradle"], request["join"])
                program.pid = fork_into(groups, path, argv, env, high, log)
            else:
                program.pid = os.posix_spawn(
                    path, argv, env, file_actions=actions, setsigdef=range(1, 32), setsid=True
                )
        finally:
            for descriptor in high:
                os.close(descriptor)
        stamp = time.monotonic_ns()
        self.send(
            {
                "event": "spawned",
                "id": program.id,
                "accepted_ns": now,
                "ns": stamp,
                "pid": program.pid,
            }
        )

    def reap(self) -> None:
        """Take in every child that has ended, ours or an orphan."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for program in self.programs.values():
                if program.pid == pid:
                    program.ended = True
                    self.send(
                        {
                            "event": "ended",
                            "id": program.id,
                            "ns": time.monotonic_ns(),
                            "status": status,
                            "user_s": usage.ru_utime,
                            "system_s": usage.ru_stime,
                            "max_rss_kib": usage.ru_maxrss,
                        }
                    )

    def discard(self, id: str, *, told: bool = True) -> None:
        """Kill the program if it still runs, take its mounts and its folder away."""
        program = self.programs.get(id)
        if program is not None:
            deadline = time.monotonic() + END_LIMIT_S
            while program.pid and not program.ended and time.monotonic() < deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(program.pid, signal.SIGKILL)
                select.select([self.wake], [], [], 0.1)
                with contextlib.suppress(BlockingIOError):
                    os.read(self.wake, 512)
                self.reap()
            for point in reversed(program.mounts):
                libc.umount2(point.encode(), MNT_DETACH)
            shutil.rmtree(program.folder, ignore_errors=True)
            del self.programs[id]
        if told:
            self.send({"event": "gone", "id": id})

    def send(self, message: dict[str, object]) -> None:
        """To the harness; if that has gone, the loop will see it."""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps(message).encode())

    def finish(self) -> None:
        """End everything below us: engines politely first, since they have things to undo."""
        for pid in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if self.dismissed else signal.SIGKILL)
        polite = time.monotonic() + (POLITE_S if self.dismissed else 0.0)
        deadline = time.monotonic() + END_LIMIT_S
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                return
            if time.monotonic() > polite:
                for pid in children():  # orphans become ours, and have their turn
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)


def copy_of(descriptor: int) -> int:
    """A copy at 64 or above, closed by exec."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)


def born_in(directory: str) -> int:
    """Fork, the child in a group of the unified hierarchy: it cannot move there without waiting."""
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    arguments = (ctypes.c_uint64 * 11)(CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD)
    arguments[10] = group
    try:
        pid = int(holding.syscall(SYS_CLONE3, arguments, ctypes.sizeof(arguments)))
        if pid < 0:
            raise OSError(ctypes.get_errno(), f"cannot make a process in {directory}")
        return pid
    finally:
        os.close(group)


def fork_into(
    groups: tuple[str, list[str]],
    path: str,
    argv: list[str],
    env: dict[str, str],
    passed: list[int],
    log: str,
) -> int:
    """Fork, enter control groups, exec: for programs that cannot do the second by themselves."""
    cradle, rest = groups
    pid = born_in(cradle) if cradle else os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for group in rest:
            descriptor = os.open(group, os.O_WRONLY | os.O_CLOEXEC)
            os.write(descriptor, b"0")
            os.close(descriptor)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
        os.dup2(1, 2)
        for new, old in enumerate(passed, 3):
            os.dup2(old, new)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.execve(path, argv, env)
    except BaseException as error:
        os.write(2, f"{error}\n".encode())
    finally:
        os._exit(127)


def lay(program: Program, lower: str, size: int, inodes: int, plan: list[list[Any]]) -> None:
    """A tmpfs with the overlay's upper layer, what the program finds in it, and the overlay.

    Files go into the empty upper layer, where no symbolic link of the image can lead astray.
    """
    base = os.path.join(program.folder, "fs")
    os.makedirs(base)
    mount("tmpfs", base, "tmpfs", MS_NODEV, f"size={size},nr_inodes={inodes},mode=755")
    program.mounts.append(base)
    upper, work, root = (os.path.join(base, name) for name in ("upper", "work", "root"))
    for folder in (upper, work, root):
        os.mkdir(folder)
    for do, *arguments in plan:
        if do == "mkdir":
            make_folder(upper, lower, arguments[0])
        elif do == "write":
            make_folder(upper, lower, os.path.dirname(arguments[0]))
            with open(upper + arguments[0], "w") as file:
                file.write(arguments[1])
    options = f"lowerdir={lower},upperdir={upper},workdir={work},xino=off"
    mount("overlay", root, "overlay", MS_NODEV, options)
    program.mounts.append(root)
    for do, *arguments in plan:
        path = root + arguments[0]
        if do == "mount":
            _, source, kind, flags, data = arguments
            mount(source, path, kind, flags, data)
            program.mounts.append(path)
        elif do == "mknod":
            os.mknod(path, arguments[1], os.makedev(arguments[2], arguments[3]))
            os.chmod(path, 0o666)
        elif do == "symlink":
            os.symlink(arguments[1], path)
        elif do == "mkdir":
            os.makedirs(path, exist_ok=True)


def make_folder(upper: str, lower: str, path: str) -> None:
    """A folder of the upper layer, with the rights it has in the image."""
    made = upper
    for name in path.strip("/").split("/"):
        made = os.path.join(made, name)
        if os.path.isdir(made):
            continue
        os.mkdir(made)
        with contextlib.suppress(OSError):
            below = os.lstat(lower + made[len(upper) :])
            if stat.S_ISDIR(below.st_mode):
                os.chmod(made, stat.S_IMODE(below.st_mode))
                os.chown(made, below.st_uid, below.st_gid)


def children() -> list[int]:
    """Process ids of our children, dead ones included."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children") as listed:
            found += map(int, listed.read().split())
    return found


def main() -> None:
    """``worker.py CONTROL CLEANUP``: a descriptor, and the cleanup command as JSON."""
    control, cleanup = int(sys.argv[1]), json.loads(sys.argv[2])
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    check(libc.unshare(CLONE_NEWNS), "unshare", "mount namespace")
    mount("none", "/", "none", MS_SLAVE | MS_REC)
    worker = Worker(control)
    worker.send({"event": "ready", "id": ""})
    try:
        worker.serve()
    finally:
        worker.finish()
    if not worker.dismissed and cleanup:
        subprocess.run(cleanup, stdin=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    main()
