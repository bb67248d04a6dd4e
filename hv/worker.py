"""The process that holds libvirt: starts domains, reaps QEMU, and takes all of it down.

It runs beside the harness (libvirt's embedded driver belongs to one process per root) and
imports libvirt and nothing of ours, hence more than 400 lines in one script. It is child
subreaper, so every QEMU, which libvirt detaches, becomes its child: reaped at once and
with exact rusage. When the socket to the harness closes, however the harness died, it
kills its domains and runs the cleanup command.

One SOCK_SEQPACKET socket carries start requests, of a new domain or (``saved``) of one from a
file; each brings the worker's end of a socket of its own, on which that instance's messages go
(JSON, one per packet) and on which the harness sends ``kill``, ``disk`` to be told the scratch
disk's counters, ``memory`` to be told what the guest says of its own, ``balloon KIB`` to have all
but so much taken from it (or given back), or ``save PATH``, which ends the domain. Its closing
means: kill it.

to the harness, per instance: ``accepted`` {ns}; ``spawned`` {ns, pid} with the channel's
descriptor; ``resumed`` {ns}; ``failed`` {message}; ``disk`` {ns, flush_operations, wr_bytes,
rd_bytes}; ``memory`` {ns, actual, usable: KiB} and ``balloon`` {ns, actual: KiB}, or either with
{message} where it cannot be; ``saved`` {ns, xml}; ``ended`` {ns, status, user_s, system_s,
max_rss_kib}; ``forgotten`` {ns}, always the last.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import grp
import json
import os
import pwd
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import libvirt

PR_SET_CHILD_SUBREAPER = 36
SWEEP_S = 0.02  # between two looks at zombies that are nobody's
CREATE_LIMIT_S = 30.0  # for a libvirt call still under way at the end
DISK_REQUEST = b"disk"
SAVE_REQUEST = b"save "
MEMORY_REQUEST = b"memory"
BALLOON_REQUEST = b"balloon "
BALLOON_LOOK_S = 0.02  # between two looks at what the guest's driver has done
STATISTICS_LIMIT_S = 5.0  # for the guest's driver to say what it has
BALLOON_STALL_S = 3.0  # without a page taken or given: the guest has no more
SCRATCH_TARGET = "vdb"  # as in hv/rootfs.py
COUNTED = ("flush_operations", "wr_bytes", "rd_bytes")
QEMU_COMM = "qemu-"  # qemu-system-…, and before its exec what `hv.emulator` writes, qemu-DIGEST
QEMU_USER = "libvirt-qemu"  # compiled into the distribution's libvirt
CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000


class Domain:
    """One instance as the worker knows it. No dataclass: what that imports holds 1.3 MiB."""

    def __init__(self, name: str, wire: socket.socket, listener: socket.socket, path: str) -> None:
        self.name = name
        self.wire = wire
        self.listener: socket.socket | None = listener
        self.path = path
        self.pid = 0
        self.pidfd = -1
        self.handle: libvirt.virDomain | None = None
        self.creating = True
        self.saving = False
        self.kill_wanted = False
        self.ended = False
        self.stopped = False
        self.forgotten = False


class Worker:
    """The event loop: one thread, one selector; only libvirt's calls run elsewhere."""

    def __init__(self, uri: str, control: int) -> None:
        self.uri = uri
        # A daemon ends the domain when our connection goes; the embedded driver cannot.
        self.flags = 0 if ":///embed" in uri else libvirt.VIR_DOMAIN_START_AUTODESTROY
        self.control = socket.socket(fileno=control)
        self.selector = selectors.DefaultSelector()
        self.domains: dict[str, Domain] = {}
        self.connection: libvirt.virConnect
        self.waiting: list[tuple[dict[str, Any], socket.socket]] = []
        self.suspects: set[int] = set()
        self.sweep_at: float | None = None
        self.dismissed = False
        self.open = True
        # Other threads hand results to the loop as packets on this pair.
        self.inbox, self.outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.results: list[Callable[[], None]] = []

    # -- beginning -------------------------------------------------------------------

    def connect(self, emulator: str, machine: str, kinds: list[str]) -> None:
        """Open libvirt and have it learn what the emulator can do, before anything is timed."""
        libvirt.registerErrorHandler(lambda *_: None, None)  # it prints every error otherwise
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_libvirt_events, daemon=True).start()
        self.connection = libvirt.open(self.uri)
        self.connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None
        )
        with contextlib.suppress(libvirt.libvirtError):  # the embedded driver ends with us alone
            self.connection.registerCloseCallback(self._on_closed, None)
        for kind in kinds:
            with contextlib.suppress(libvirt.libvirtError):
                self.connection.getDomainCapabilities(emulator, os.uname().machine, machine, kind)

    def serve(self) -> None:
        """Handle events until the harness goes."""
        self.selector.register(self.control, selectors.EVENT_READ, self._on_request)
        self.selector.register(self.inbox, selectors.EVENT_READ, self._on_result)
        while self.open:
            self._turn()

    def _turn(self, limit_s: float | None = None) -> None:
        wait = limit_s
        if self.sweep_at is not None:
            left = max(0.0, self.sweep_at - time.monotonic())
            wait = left if wait is None else min(wait, left)
        for key, _ in self.selector.select(wait):
            # An earlier one of this turn may have dropped it, and closed it: then it has no number.
            if self.selector.get_map().get(key.fd) is key:
                key.data()
        if self.sweep_at is not None and time.monotonic() >= self.sweep_at:
            self._sweep()

    # -- requests --------------------------------------------------------------------

    def _on_request(self) -> None:
        data, descriptors, _, _ = socket.recv_fds(self.control, 1 << 20, 1)
        if not data:
            self.open = False
            return
        request = json.loads(data)
        if request["op"] == "quit":
            self.dismissed = True
            self.open = False
            return
        wire = socket.socket(fileno=descriptors[0])
        self._send(wire, {"event": "accepted", "ns": time.monotonic_ns()})
        if request["name"] in self.domains:  # libvirt has not yet forgotten the last of this name
            self.waiting.append((request, wire))
        else:
            self._start(request, wire)

    def _start(self, request: dict[str, Any], wire: socket.socket) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        domain = Domain(request["name"], wire, listener, request["channel"])
        self.domains[domain.name] = domain
        try:
            listener.bind(domain.path)
            os.chmod(domain.path, 0o666 if request.get("shared") else 0o600)
            listener.listen(1)
        except OSError as error:
            self._create_failed(domain, f"bind {domain.path}: {error.strerror}")
            return
        self.selector.register(listener, selectors.EVENT_READ, lambda: self._on_connect(domain))
        self.selector.register(wire, selectors.EVENT_READ, lambda: self._on_wire(domain))
        arguments = (domain, request["xml"], request.get("saved", ""))
        threading.Thread(target=self._create, args=arguments, daemon=True).start()

    def _create(self, domain: Domain, xml: str, saved: str) -> None:
        """In a thread of its own: libvirt answers after 70 ms or more."""
        try:
            if saved:
                self.connection.restoreFlags(saved, xml, libvirt.VIR_DOMAIN_SAVE_RUNNING)
                handle = self.connection.lookupByName(domain.name)
            else:
                handle = self.connection.createXML(xml, self.flags)
        except libvirt.libvirtError as error:
            text = _text_of(error)
            self._post(lambda: self._create_failed(domain, text))
        else:
            self._post(lambda: self._created(domain, handle))

    def _created(self, domain: Domain, handle: libvirt.virDomain) -> None:
        domain.handle = handle
        domain.creating = False
        if domain.stopped:
            self._forgotten(domain)
        elif domain.kill_wanted:
            self._kill(domain)

    def _create_failed(self, domain: Domain, message: str) -> None:
        domain.creating = False
        self._send(domain.wire, {"event": "failed", "message": message})
        self._forgotten(domain)

    # -- QEMU ------------------------------------------------------------------------

    def _on_connect(self, domain: Domain) -> None:
        assert domain.listener is not None
        channel, _ = domain.listener.accept()
        stamp = time.monotonic_ns()
        raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        domain.pid = struct.unpack("3i", raw)[0]
        with contextlib.suppress(ProcessLookupError):
            domain.pidfd = os.pidfd_open(domain.pid)
            self.selector.register(
                domain.pidfd, selectors.EVENT_READ, lambda: self._on_exit(domain)
            )
        self._drop_listener(domain)
        message = {"event": "spawned", "ns": stamp, "pid": domain.pid}
        self._send(domain.wire, message, channel)
        channel.close()  # the harness holds the only other end now
        if domain.kill_wanted:
            self._kill(domain)

    def _on_exit(self, domain: Domain) -> None:
        self._drop_pidfd(domain)
        message: dict[str, Any] = {"event": "ended", "ns": time.monotonic_ns()}
        with contextlib.suppress(ChildProcessError):  # a daemon's child, not ours
            _, status, usage = os.wait4(domain.pid, 0)
            message |= {
                "status": status,
                "user_s": usage.ru_utime,
                "system_s": usage.ru_stime,
                "max_rss_kib": usage.ru_maxrss,
            }
        domain.ended = True
        self._send(domain.wire, message)
        self._retire(domain)

    def _on_wire(self, domain: Domain) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = domain.wire.recv(1 << 13)
        if not data:
            self.selector.unregister(domain.wire)
        if data == DISK_REQUEST:
            # In a thread of its own: libvirt asks QEMU, which may be busy.
            threading.Thread(target=self._count_disk, args=(domain,), daemon=True).start()
            return
        if data == MEMORY_REQUEST:
            threading.Thread(target=self._tell_memory, args=(domain,), daemon=True).start()
            return
        if data.startswith(BALLOON_REQUEST):
            arguments = (domain, int(data[len(BALLOON_REQUEST) :]))
            threading.Thread(target=self._inflate, args=arguments, daemon=True).start()
            return
        if data.startswith(SAVE_REQUEST):
            path = os.fsdecode(data[len(SAVE_REQUEST) :])
            domain.saving = True  # its last word waits for the result
            threading.Thread(target=self._save, args=(domain, path), daemon=True).start()
            return
        self._kill(domain)

    def _count_disk(self, domain: Domain) -> None:
        """What the guest's scratch disk has had to do so far, as QEMU counts it."""
        counted: dict[str, int] = {}
        with contextlib.suppress(libvirt.libvirtError):
            if domain.handle is not None:
                counted = domain.handle.blockStatsFlags(SCRATCH_TARGET)
        known = {key: counted[key] for key in COUNTED if key in counted}
        message = {"event": "disk", "ns": time.monotonic_ns(), **known}
        self._post(lambda: self._send(domain.wire, message))

    def _tell_memory(self, domain: Domain) -> None:
        """What the guest's balloon driver says of its memory, asked for now and not before.

        Only while it is asked every second does QEMU have it; that would disturb an idle guest.
        """
        message: dict[str, Any]
        try:
            handle = _running(domain)
            live = libvirt.VIR_DOMAIN_AFFECT_LIVE
            handle.setMemoryStatsPeriod(1, live)
            try:
                until = time.monotonic() + STATISTICS_LIMIT_S
                asked = int(time.time())
                found = handle.memoryStats()
                while "usable" not in found or found.get("last_update", 0) < asked:
                    if time.monotonic() > until:
                        raise libvirt.libvirtError("its driver says nothing")
                    time.sleep(BALLOON_LOOK_S)
                    found = handle.memoryStats()
            finally:
                handle.setMemoryStatsPeriod(0, live)
            message = {"actual": found["actual"], "usable": found["usable"]}
        except libvirt.libvirtError as error:
            message = {"message": _text_of(error)}
        self._answer(domain, "memory", message)

    def _inflate(self, domain: Domain, wanted_kib: int) -> None:
        """Have the guest keep so much, and wait while its driver takes or gives pages."""
        message: dict[str, Any]
        try:
            handle = _running(domain)
            handle.setMemoryFlags(wanted_kib, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            actual, since = handle.memoryStats()["actual"], time.monotonic()
            while actual != wanted_kib and time.monotonic() - since < BALLOON_STALL_S:
                time.sleep(BALLOON_LOOK_S)
                now = handle.memoryStats()["actual"]
                if now != actual:
                    actual, since = now, time.monotonic()
            message = {"actual": actual}
        except libvirt.libvirtError as error:
            message = {"message": _text_of(error)}
        self._answer(domain, "balloon", message)

    def _answer(self, domain: Domain, event: str, message: dict[str, Any]) -> None:
        message = {"event": event, "ns": time.monotonic_ns(), **message}
        self._post(lambda: self._send(domain.wire, message))

    def _save(self, domain: Domain, path: str) -> None:
        """Write the guest to a file; libvirt ends QEMU when it is there."""
        try:
            _running(domain).saveFlags(path, None, libvirt.VIR_DOMAIN_SAVE_RUNNING)
            message = {"event": "saved", "xml": self.connection.saveImageGetXMLDesc(path, 0)}
        except libvirt.libvirtError as error:
            message = {"event": "failed", "message": _text_of(error)}
        message["ns"] = time.monotonic_ns()
        self._post(lambda: self._saved(domain, message))

    def _saved(self, domain: Domain, message: dict[str, Any]) -> None:
        domain.saving = False
        self._send(domain.wire, message)
        self._retire(domain)

    def _kill(self, domain: Domain) -> None:
        """Kill QEMU; where it is not known yet, as soon as it is."""
        domain.kill_wanted = True
        if domain.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(domain.pidfd, signal.SIGKILL)
        elif domain.handle is not None and not domain.ended:
            handle = domain.handle
            threading.Thread(target=_destroy, args=(handle,), daemon=True).start()

    def _on_lifecycle(
        self, _connection: object, handle: libvirt.virDomain, event: int, *_: object
    ) -> None:
        name = handle.name()
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._post(lambda: self._stopped(name))
        elif event == libvirt.VIR_DOMAIN_EVENT_RESUMED:
            stamp = time.monotonic_ns()
            self._post(lambda: self._resumed(name, stamp))

    def _resumed(self, name: str, stamp: int) -> None:
        """It runs, some milliseconds before the call that had it restored returns."""
        domain = self.domains.get(name)
        if domain is not None:
            self._send(domain.wire, {"event": "resumed", "ns": stamp})

    def _stopped(self, name: str) -> None:
        domain = self.domains.get(name)
        if domain is None:
            return
        domain.stopped = True
        if not domain.creating:  # else the result of the call, still on its way, decides
            self._forgotten(domain)

    def _on_closed(self, *_: object) -> None:
        self._post(self._daemon_gone)

    def _daemon_gone(self) -> None:
        """It will say nothing more: end its machines, and take its silence for the last word."""
        for domain in list(self.domains.values()):
            self._kill(domain)
            domain.stopped = True
            if not domain.creating:
                self._forgotten(domain)

    def _forgotten(self, domain: Domain) -> None:
        domain.forgotten = True
        self._retire(domain)

    def _retire(self, domain: Domain) -> None:
        """Say the last word once QEMU is dead and libvirt knows it."""
        if not domain.forgotten or domain.saving or (domain.pidfd >= 0 and not domain.ended):
            return
        self._drop_listener(domain)
        self._send(domain.wire, {"event": "forgotten", "ns": time.monotonic_ns()})
        with contextlib.suppress(KeyError):
            self.selector.unregister(domain.wire)
        domain.wire.close()
        self.domains.pop(domain.name, None)
        for item in self.waiting:
            if item[0]["name"] == domain.name:
                self.waiting.remove(item)
                self._start(*item)
                return

    def _drop_pidfd(self, domain: Domain) -> None:
        self.selector.unregister(domain.pidfd)
        os.close(domain.pidfd)
        domain.pidfd = -1

    def _drop_listener(self, domain: Domain) -> None:
        if domain.listener is None:
            return
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(domain.listener)
        domain.listener.close()
        domain.listener = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(domain.path)

    # -- orphans ---------------------------------------------------------------------

    def child_ended(self) -> None:
        """A child died: look soon whether it is a QEMU that nobody waits for."""
        if self.sweep_at is None:
            self.sweep_at = time.monotonic() + SWEEP_S

    def _sweep(self) -> None:
        """Reap QEMU zombies that stay: the ones libvirt's probes leave to the subreaper.

        Unreaped they cost libvirt 40 s each. Its direct children it waits for itself, at
        once; hence only what is seen twice is reaped here.
        """
        known = {domain.pid for domain in self.domains.values()}
        found = {pid for pid in _qemu_zombies() if pid not in known}
        for pid in found & self.suspects:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self.suspects = found - self.suspects
        self.sweep_at = time.monotonic() + SWEEP_S if self.suspects else None

    # -- other threads ---------------------------------------------------------------

    def _post(self, action: Callable[[], None]) -> None:
        self.results.append(action)
        self.outbox.send(b"!")

    def _on_result(self) -> None:
        self.inbox.recv(1)
        self.results.pop(0)()

    @staticmethod
    def _send(
        wire: socket.socket, message: dict[str, Any], passed: socket.socket | None = None
    ) -> None:
        data = json.dumps(message).encode()
        # The harness may have closed its end: then nobody wants to know.
        with contextlib.suppress(OSError):
            if passed is None:
                wire.send(data)
            else:
                socket.send_fds(wire, [data], [passed.fileno()])

    # -- ending ----------------------------------------------------------------------

    def finish(self) -> None:
        """Kill every domain and wait until QEMU is dead and libvirt has forgotten it."""
        with contextlib.suppress(KeyError):
            self.selector.unregister(self.control)
        self.waiting.clear()
        for domain in list(self.domains.values()):
            self._kill(domain)
        deadline = time.monotonic() + CREATE_LIMIT_S
        while self.domains and time.monotonic() < deadline:
            self._turn(0.1)
        with contextlib.suppress(libvirt.libvirtError):
            self.connection.close()


def _text_of(error: libvirt.libvirtError) -> str:
    return str(error.get_error_message() or error)


def _running(domain: Domain) -> libvirt.virDomain:
    if domain.handle is None:
        raise libvirt.libvirtError("it does not run yet")
    return domain.handle


def _run_libvirt_events() -> None:
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


def _destroy(handle: libvirt.virDomain) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        handle.destroy()


def _children() -> Iterator[int]:
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children") as listed:
            yield from map(int, listed.read().split())


def _qemu_zombies() -> list[int]:
    found = []
    for pid in _children():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
            name, _, rest = stat.read().partition("(")[2].rpartition(")")
            if rest.split()[0] == "Z" and name.startswith(QEMU_COMM):
                found.append(pid)
    return found


def furnish(folder: str) -> None:
    """Give this process, and no other, what libvirt's embedded driver is better off with.

    All of it is in a mount namespace of our own, and ends with us:

    - a file system in memory for what it keeps of running domains: it syncs those files to the
      disk ten times a start, and a ``/run`` on a disk makes that 12 ms on a quiet host;
    - the user and group the distribution runs QEMU as. The driver looks them up before it reads
      that we name another. Where the daemon's package is not installed there are none; rather
      than add them to the host, copies of passwd and group are mounted over the real ones.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0:
        return
    if libc.unshare(CLONE_NEWNS) != 0:
        if _has_user() and _has_group():
            return  # slower, no more
        raise OSError(ctypes.get_errno(), "unshare")
    # Mounts the harness makes later are to be seen here, ours are not to be seen there.
    _mount(libc, "none", "/", MS_SLAVE | MS_REC)
    for name in ("lib", "log", "run"):
        kept = os.path.join(folder, name)
        os.mkdir(kept)
        _mount(libc, "hvct", kept, 0, "tmpfs")
    for path, line, known in (
        ("/etc/passwd", f"{QEMU_USER}:x:64055:64055::/nonexistent:/bin/false\n", _has_user()),
        ("/etc/group", f"{QEMU_USER}:x:64055:\n", _has_group()),
    ):
        if not known:
            copy = os.path.join(folder, os.path.basename(path))
            with open(path) as source, open(copy, "w") as target:
                target.write(source.read() + line)
            _mount(libc, copy, path, MS_BIND)


def _has_user() -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(QEMU_USER))
    return False


def _has_group() -> bool:
    with contextlib.suppress(KeyError):
        return bool(grp.getgrnam(QEMU_USER))
    return False


def _mount(libc: ctypes.CDLL, source: str, target: str, flags: int, kind: str = "none") -> None:
    words = source.encode(), target.encode(), kind.encode()
    if libc.mount(*words, ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {source} {target}")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hvct-vm-worker")
    parser.add_argument("--uri", required=True)
    parser.add_argument("--control", type=int, required=True, help="descriptor of the socket")
    parser.add_argument("--root", default="", help="the embedded driver's folder")
    parser.add_argument("--emulator", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--kinds", default="qemu")
    parser.add_argument("--cleanup", default="[]", help="JSON list: argv to run at the end")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Serve one harness until it goes."""
    options = _parse(argv)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the harness ends it, by closing
    if options.root:
        furnish(options.root)
    worker = Worker(options.uri, options.control)
    awake, wake = socket.socketpair()
    awake.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    def on_wake() -> None:
        with contextlib.suppress(BlockingIOError):
            awake.recv(4096)
        worker.child_ended()

    worker.selector.register(awake, selectors.EVENT_READ, on_wake)
    # Learning about the emulator leaves zombies that libvirt waits for, so it cannot
    # happen in the thread that reaps them.
    failure: list[str] = []

    def connect() -> None:
        try:
            worker.connect(options.emulator, options.machine, options.kinds.split(","))
        except libvirt.libvirtError as error:
            failure.append(_text_of(error))

    connecting = threading.Thread(target=connect, daemon=True)
    connecting.start()
    while connecting.is_alive():
        worker._turn(0.01)
    if failure:
        worker.control.send(json.dumps({"event": "failed", "message": failure[0]}).encode())
        return 1
    gc.collect()
    gc.freeze()  # what is there stays: no collection walks over it while a VM starts
    with contextlib.suppress(AttributeError):  # musl has none
        ctypes.CDLL(None).malloc_trim(0)  # a third of what the start took is free again
    version = worker.connection.getLibVersion()
    with contextlib.suppress(OSError):  # the harness may be dead: `serve` notices, and we clean up
        worker.control.send(json.dumps({"event": "ready", "libvirt": version}).encode())
    try:
        worker.serve()
    finally:
        worker.finish()
    cleanup = json.loads(options.cleanup)
    if cleanup and not worker.dismissed:
        import subprocess  # not before: it would stay in memory

        subprocess.run(cleanup, stdin=subprocess.DEVNULL, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
