"""The workloads of which controls are made (`bench.controls`): each does one thing, so much."""

from __future__ import annotations

import dataclasses

from bench.model import (
    Better,
    Limits,
    MetricRule,
    NetworkMode,
    Readiness,
    ReadyKind,
    Scale,
    Workload,
)
from bench.scratch import LEAST_BYTES

MIB = 1 << 20
PYTHON = ("python3", "-I", "-S", "-c")
ROUND_TRIPS = 400
PORT = 7007
ROUND_TRIP = "round_trip"
_F_SETPIPE_SZ = 1031  # linux/fcntl.h; Python's fcntl module names it from 3.10 on, where built


def sleeper(name: str, sleep_s: float) -> Workload:
    """Prints a line, which makes it ready, after sleeping; both variants run the same programs."""
    argv = ("sh", "-c", f"usleep {round(sleep_s * 1e6)}; echo up")
    title = f"ready after {sleep_s:g} s"
    return Workload(name, title, "busybox", argv, ready=Readiness(ReadyKind.OUTPUT))


def toucher(name: str, touched_bytes: int) -> Workload:
    """Touches so much private memory and stays."""
    code = (
        f"import signal; block = bytearray({touched_bytes}); "
        f"block[::4096] = b'x' * {touched_bytes // 4096}; "
        "print('touched', flush=True); signal.pause()"
    )
    return Workload(
        name,
        f"{touched_bytes >> 20} MiB touched",
        "default",
        (*PYTHON, code),
        ready=Readiness(ReadyKind.LINE, pattern="^touched$"),
        until="ready",
        hold_s=0.1,
    )


def holder(
    name: str, anon_bytes: int, shmem_bytes: int, pipe_bytes: int, file_bytes: int
) -> Workload:
    """Holds so much of four kinds of memory at once.

    Private; in /dev/shm; in pipes (the kernel's); in a file of its scratch disk (page cache:
    whatever else an instance writes lies in a tmpfs, and the image is there before).
    """
    code = (
        "import fcntl, os, signal; chunk = b'x' * 65536; "
        f"block = bytearray({anon_bytes}); "
        f"block[::4096] = b'x' * {anon_bytes // 4096}; "
        "file = open('/dev/shm/held', 'wb', 0); "
        f"[file.write(chunk) for _ in range({shmem_bytes // 65536})]; "
        f"pipes = [os.pipe() for _ in range({pipe_bytes >> 20})]; "
        f"[fcntl.fcntl(w, {_F_SETPIPE_SZ}, 1 << 20) for _, w in pipes]; "
        "[os.write(w, chunk) for _, w in pipes for _ in range(16)]; "
        "disk = open('/scratch/held', 'wb', 0); "
        f"[disk.write(chunk) for _ in range({file_bytes // 65536})]; os.fsync(disk.fileno()); "
        "print('touched', flush=True); signal.pause()"
    )
    parts = (anon_bytes, "private"), (shmem_bytes, "shared"), (pipe_bytes, "kernel")
    title = ", ".join(f"{size >> 20} MiB {kind}" for size, kind in (*parts, (file_bytes, "file")))
    return dataclasses.replace(
        toucher(name, 0),
        title=title,
        argv=(*PYTHON, code),
        limits=Limits(scratch_bytes=LEAST_BYTES),
    )


def echoer(name: str, late_s: float) -> Workload:
    """Two processes exchange messages over loopback TCP; each reply comes so much late.

    The delay is spent looking at the clock: a sleep would be late by the timer's slack.
    """
    code = (
        "import os, socket, time; now = time.perf_counter\n"
        "listener = socket.create_server(('127.0.0.1', 0)); address = listener.getsockname()\n"
        "if os.fork() == 0:\n"
        " peer = listener.accept()[0]\n"
        " while peer.recv(1):\n"
        "  began = now()\n"
        f"  while now() - began < {late_s}: pass\n"
        "  peer.send(b'x')\n"
        " os._exit(0)\n"
        "own = socket.create_connection(address)\n"
        "own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); times = []\n"
        f"for _ in range({ROUND_TRIPS}):\n"
        " began = now(); own.send(b'x'); own.recv(1); times.append(now() - began)\n"
        f"print('round_trip', sorted(times)[{ROUND_TRIPS // 2}]); own.close(); os.wait()"
    )
    rule = MetricRule(
        ROUND_TRIP, "s", Scale.DIFFERENCE, Better.LOWER, regex=r"round_trip ([\d.e-]+)"
    )
    return Workload(
        name, f"replies {late_s * 1e3:g} ms late", "default", (*PYTHON[:1], "-c", code),
        metrics=(rule,),
    )  # fmt: skip


def answerer(name: str, late_s: float) -> Workload:
    """A server on the run's bridge, each of whose replies comes so much late.

    The host asks, so that the instance's own link is in the way. As in `echoer` the delay is
    spent looking at the clock.
    """
    code = (
        "import socket, time; now = time.perf_counter\n"
        f"listener = socket.create_server(('', {PORT}))\n"
        "while True:\n"
        " peer = listener.accept()[0]\n"
        " peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
        " try:\n"
        "  while peer.recv(1):\n"
        "   began = now()\n"
        f"   while now() - began < {late_s}: pass\n"
        "   peer.send(b'x')\n"
        " except OSError: pass\n"  # a probe that was given up
        " peer.close()"
    )
    return Workload(
        name,
        f"answers {late_s * 1e3:g} ms late over the network",
        "default",
        (*PYTHON[:1], "-c", code),
        ready=Readiness(ReadyKind.REPLY, port=PORT, send=b"x", expect=b"x"),
        until="ready",
        network=NetworkMode.BRIDGE,
        exchanges=ROUND_TRIPS,
    )


def syncer(name: str, flushes: int) -> Workload:
    """Makes a block durable so many times, with one flush of the scratch disk each.

    The block is there before, so that fdatasync has no metadata to commit: one flush for the
    data and none for the journal (ext4).
    """
    code = (
        "import os; fd = os.open('/scratch/file', os.O_RDWR | os.O_CREAT)\n"
        "os.pwrite(fd, bytes(4096), 0); os.fsync(fd)\n"
        f"for number in range({flushes}):\n"
        " os.pwrite(fd, b'%4096d' % number, 0); os.fdatasync(fd)"
    )
    return Workload(
        name, f"a block made durable {flushes} times", "default", (*PYTHON, code),
        limits=Limits(scratch_bytes=LEAST_BYTES),
    )  # fmt: skip


def burner(name: str, cpu_s: float) -> Workload:
    """Uses so much CPU time, by its own process clock, and ends.

    It sleeps first, so that on a single CPU the news of its start is out before the work.
    """
    code = f"import time\nwhile time.process_time() < {cpu_s}: pass"
    argv = ("sh", "-c", 'sleep 0.05; exec "$@"', "sh", *PYTHON, code)
    return Workload(name, f"{cpu_s:g} CPU seconds", "default", argv)


def counter(name: str, before_s: float, after_s: float, rounds: int) -> Workload:
    """Sleeps, prints a line, sleeps, and counts: fixed work, whatever the guest's clocks say."""
    argv = (
        *("sh", "-c"),
        f"usleep {round(before_s * 1e6)}; echo up; usleep {round(after_s * 1e6)}; "
        f"i=0; while [ $i -lt {rounds} ]; do i=$((i+1)); done",
    )
    ready = Readiness(ReadyKind.OUTPUT)
    return Workload(
        name, f"ready after {before_s:g} s, {rounds} rounds", "busybox", argv, ready=ready
    )
