"""The host's end of the agent's channel; the same code for every arm (docs/protocol.md).

A session never blocks without a deadline, never writes more than the agent has room
for, and stamps what arrives with the host's CLOCK_MONOTONIC. Over 400 lines, since the state of
one channel is one class.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal as signals
import socket
import time
from collections.abc import Callable, Sequence

from bench import record
from bench.agent.frames import (
    FRAME_MAX,
    STDIN_WINDOW,
    ClockMapping,
    Frame,
    launch_error,
    number,
    pack,
    unpack,
)
from bench.agent.launch_record import run_record
from bench.errors import HvctError, LaunchFailed
from bench.model import Event, Execution, ExitStatus

__all__ = ["AgentSession", "ClockMapping", "Frame", "OutputCallback", "run_record"]

LIST_KEYS = frozenset({"arg", "env", "group", "rlimit", "setting", "vulnerability"})
"""Receipt keys that are lists even with one element, or none."""

KILL_LIMIT_NS = 10_000_000_000  # from EXEC_KILL to the news that it has ended

# What a hostile instance may make us keep; all of it is far above what an honest one sends.
OUTPUT_MOST_BYTES = 256 << 20
FILE_MOST_BYTES = 512 << 20
RECEIPT_MOST_BYTES = 8 << 20
EVENTS_MOST = 32
AFTER_START = frozenset({"listening", "ended", "exited"})

OutputCallback = Callable[[str, bytes, int], None]
"""Called with ("stdout" or "stderr", data, host stamp in ns) for each piece of output."""


class AgentSession:
    """One connected channel: a socket pair's end, or an accepted virtio-serial connection.

    Attributes:
        hello: the HELLO record, empty until it arrived.
        events: the agent's own stamps in ns, by name (``init``, ``mounted``, ``started``,
            ``listening``, ``ended``, ``exited``; keys compare equal to ``Event``).
        received: host stamps of when the same arrived.
        doubt: how much earlier an event that is looked for (``listening``) may have been, ns.
        exit: how the workload ended, None while it runs.
        receipt: what the agent reported; list keys hold lists.
        error: why the launch failed, None otherwise.
        closed: the channel has reached its end.
        keep_output: off where `on_output` passes endless output on: it is not kept.
    """

    def __init__(
        self,
        channel: socket.socket,
        *,
        shared_clock: bool = True,
        on_output: OutputCallback | None = None,
    ) -> None:
        """Take over the socket: it is closed by ``close()``.

        Args:
            shared_clock: the instance has the host's CLOCK_MONOTONIC (not a VM).
            on_output: called as output arrives, besides its being kept.
        """
        channel.setblocking(False)
        self._channel = channel
        self._shared_clock = shared_clock
        self.on_output = on_output
        self.keep_output = True
        self.hello: dict[str, str] = {}
        self.events: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self.doubt: dict[str, int] = {}
        self.exit: ExitStatus | None = None
        self.receipt: dict[str, object] = {}
        self.error: LaunchFailed | None = None
        self.closed = False
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._stdin = bytearray()
        self._stdin_credit = STDIN_WINDOW
        self._stdin_ends = False
        self._argv0 = ""
        self._token = ""  # of the ping that waits for its answer
        self._receipt_bytes = 0
        self._pongs: dict[str, tuple[int, int, int]] = {}
        self._anchor: ClockMapping | None = None  # the first ping-pong
        self._file = bytearray()
        self._file_end: int | None = None  # an errno, 0 when all of it came
        self._ended_execution: Callable[[Execution], None] | None = None
        self._mapping: ClockMapping | None = ClockMapping() if shared_clock else None

    # ---- properties ----

    def fileno(self) -> int:
        """The channel's descriptor, for poll together with others."""
        return self._channel.fileno()

    @property
    def stdin_pending(self) -> int:
        """Bytes of stdin that wait for the workload to read, or for the channel to take them."""
        return len(self._stdin) + len(self._outgoing)

    @property
    def stdout(self) -> bytes:
        """What arrived so far; all of it once ``exit`` is set."""
        return bytes(self._output["stdout"])

    @property
    def stderr(self) -> bytes:
        """What arrived so far; all of it once ``exit`` is set."""
        return bytes(self._output["stderr"])

    @property
    def mapping(self) -> ClockMapping | None:
        """The clock mapping, None until ``ping`` where the clock is not shared."""
        return self._mapping

    def host_stamp(self, event: str) -> tuple[int, int] | None:
        """(host stamp, its error) in ns of an event; None when it has not happened.

        Where the clock is not shared and not yet mapped, the stamp of its arrival.
        """
        if event not in self.events:
            return None
        if self._mapping is None:
            return self.received[event], 0
        error_ns = self._mapping.error_ns + self.doubt.get(event, 0)
        return self._mapping.host_ns(self.events[event]), error_ns

    # ---- sending ----

    def _send(self, kind: Frame, payload: bytes) -> None:
        if len(payload) > FRAME_MAX:
            raise HvctError(
                f"{kind.name} of {len(payload)} bytes is larger than the agent's frames (1 MiB)",
                "shorten the command's arguments and environment",
            )
        if not self.closed:
            self._outgoing += pack(kind, payload)
            self._flush()

    def _flush(self) -> None:
        while self._outgoing and not self.closed:
            try:
                sent = self._channel.send(self._outgoing)
            except BlockingIOError:
                return
            except OSError:  # the end is noticed, and told, by the next read
                self._outgoing.clear()
                return
            del self._outgoing[:sent]

    def send_run(self, pairs: Sequence[tuple[str, str | int | bytes]]) -> None:
        """Send RUN (once, at once: HELLO need not have arrived)."""
        self._argv0 = next((str(value) for key, value in pairs if key == "arg"), "")
        self._send(Frame.RUN, record.encode(pairs))

    def send_prepare(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Have a guest made ready for a RUN that is to come: the event ``prepared`` follows."""
        self._send(Frame.PREPARE, record.encode(pairs))

    def send_wake(self, realtime_ns: int, entropy: bytes) -> None:
        """Tell a restored guest the time, and to reseed: it says HELLO (``init``) then."""
        pairs = [("realtime_ns", str(realtime_ns)), ("entropy", entropy.hex())]
        self._send(Frame.WAKE, record.encode(pairs))

    def signal(self, number: int) -> None:
        """Send a signal to the workload's process."""
        self._send(Frame.SIGNAL, record.encode([("number", int(number))]))

    def window(self, rows: int, columns: int) -> None:
        """Tell the size of the terminal."""
        self._send(Frame.WINDOW, record.encode([("rows", rows), ("columns", columns)]))

    def send_stdin(self, data: bytes) -> None:
        """Pass bytes to the workload's stdin as it takes them; b"" closes it."""
        self._stdin += data
        self._stdin_ends |= not data
        self._feed_stdin()

    def _feed_stdin(self) -> None:
        while self._stdin and self._stdin_credit:
            piece = bytes(self._stdin[: self._stdin_credit])
            del self._stdin[: len(piece)]
            self._stdin_credit -= len(piece)
            self._send(Frame.STDIN, piece)
        if self._stdin_ends and not self._stdin:
            self._stdin_ends = False
            self._send(Frame.STDIN, b"")

    def quit(self) -> None:
        """Ask the agent to kill what is left and end (a VM powers off)."""
        self._send(Frame.QUIT, b"")

    def close(self) -> None:
        """Close the channel: the agent kills everything it started and ends."""
        self.closed = True
        self._channel.close()

    # ---- receiving ----

    def pump(self, timeout_s: float) -> None:
        """Handle what has arrived, waiting at most `timeout_s` for something."""
        if self.closed:
            return
        poller = select.poll()
        wanted = select.POLLIN | (select.POLLOUT if self._outgoing else 0)
        poller.register(self._channel, wanted)
        ready = poller.poll(max(0.0, timeout_s) * 1000)
        if not ready:
            return
        if ready[0][1] & select.POLLOUT:
            self._flush()
        if ready[0][1] & ~select.POLLOUT:
            self._read()

    def _read(self) -> None:
        try:
            data = self._channel.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic_ns()
        if not data:
            self.closed = True
            return
        self._incoming += data
        for kind, payload in unpack(self._incoming):
            try:
                self._dispatch(kind, payload, now)
            except (KeyError, ValueError) as error:
                self.close()  # what it says from now on is not listened to
                raise LaunchFailed(f"the agent sent a malformed record (type {kind})") from error

    def _dispatch(self, kind: int, payload: bytes, now: int) -> None:
        if kind == Frame.STDOUT or kind == Frame.STDERR:
            name = "stdout" if kind == Frame.STDOUT else "stderr"
            if self.keep_output:
                self._output[name] += payload
                if sum(map(len, self._output.values())) > OUTPUT_MOST_BYTES:
                    raise self._too_much("output", OUTPUT_MOST_BYTES)
            if self.on_output:
                self.on_output(name, payload, now)
            return
        if kind == Frame.FILE:
            self._file += payload
            if len(self._file) > FILE_MOST_BYTES:
                raise self._too_much("content of a file", FILE_MOST_BYTES)
            return
        pairs = record.decode(payload)
        if kind == Frame.RECEIPT:
            self._receipt_bytes += len(payload)
            if self._receipt_bytes > RECEIPT_MOST_BYTES:
                raise self._too_much("receipts", RECEIPT_MOST_BYTES)
            self._add_receipt(pairs)
            return
        fields = dict(pairs)
        if kind == Frame.HELLO:
            self.hello = fields
            self._note("init", number(fields, "monotonic_ns"), now)
        elif kind == Frame.EVENT:
            stamp = number(fields, "monotonic_ns")
            since = number(fields, "since_ns", most=stamp) if "since_ns" in fields else stamp
            self._note(fields["name"], stamp, now)
            self.doubt.setdefault(fields["name"], stamp - since)
        elif kind == Frame.EXIT:
            self.exit = ExitStatus(
                code=number(fields, "code", most=255) if "code" in fields else None,
                signal=number(fields, "signal", 1, 64) if "signal" in fields else None,
                user_s=number(fields, "user_us") / 1e6,
                system_s=number(fields, "system_us") / 1e6,
                max_rss_bytes=number(fields, "max_rss_kib") * 1024,
            )
            self._note("exited", number(fields, "monotonic_ns"), now)
        elif kind == Frame.PONG:
            stamps = number(fields, "monotonic_ns"), number(fields, "boottime_ns")
            if fields["token"] == self._token:
                self._pongs[self._token] = (now, *stamps)
        elif kind == Frame.ERROR:
            self.error = launch_error(fields, self._argv0)
        elif kind == Frame.FILE_END:
            self._file_end = number(fields, "errno", most=4095) if "errno" in fields else 0
        elif kind == Frame.EXEC_DONE:
            code = number(fields, "code", most=255) if "code" in fields else None
            said = fields["output"].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if "step" in fields:
                said = launch_error(fields, fields["message"]).message
            if self._ended_execution is None:
                raise LaunchFailed("the agent reports a command that nobody ran")
            self._ended_execution(Execution(code, said, now))
        elif kind == Frame.CREDIT:
            self._stdin_credit += number(fields, "bytes", most=STDIN_WINDOW - self._stdin_credit)
            self._feed_stdin()
        else:
            raise LaunchFailed(f"the agent sent a frame of unknown type {kind}")

    def _too_much(self, what: str, most_bytes: int) -> LaunchFailed:
        self.close()
        return LaunchFailed(
            f"the instance sent more than {most_bytes >> 20} MiB of {what}",
            "what runs in it is not to be trusted, or does not keep to its limits",
        )

    def _note(self, name: str, stamp_ns: int, now: int) -> None:
        """Keep an event's first stamp.

        Raises:
            ValueError: it is one event too many, or cannot have happened then.
        """
        earliest = self.events.get("started" if name in AFTER_START else "init", 0)
        if len(self.events) >= EVENTS_MOST or stamp_ns < earliest:
            raise ValueError("an event out of order")
        if self._shared_clock and stamp_ns > now:
            raise ValueError("an event of the future")
        self.events.setdefault(name, stamp_ns)
        self.received.setdefault(name, now)

    def _add_receipt(self, pairs: list[tuple[str, str]]) -> None:
        lists: dict[str, list[str]] = {key: [] for key in LIST_KEYS & {key for key, _ in pairs}}
        for key, value in pairs:
            if key in LIST_KEYS:
                held = self.receipt.setdefault(key, lists[key])
                assert isinstance(held, list)
                held.append(value)
            else:
                self.receipt[key] = value

    # ---- waiting ----

    def wait(self, event: Event | str, deadline_ns: int) -> bool:
        """Handle what arrives until an event has happened, or the deadline.

        Args:
            event: INIT, STARTED, LISTENING or EXITED.
            deadline_ns: on CLOCK_MONOTONIC.

        Raises:
            LaunchFailed: it can no longer happen.
        """
        while event not in self.events:
            if self.error:
                raise self.error
            if self.exit:
                raise LaunchFailed(
                    f"the workload ended ({self.exit.describe()}) before it was {event!s}",
                    "look at its output",
                )
            if self.closed:
                raise self._ended()
            left = deadline_ns - time.monotonic_ns()
            if left <= 0:
                return False
            self.pump(left / 1e9)
        return True

    def _ended(self) -> LaunchFailed:
        doing = "before it was up" if not self.hello else "while the workload ran"
        return LaunchFailed(
            f"the instance ended {doing}, without saying why",
            "look at its log; it may have been killed, or had too little memory",
        )

    def _await(self, ready: Callable[[], bool], deadline_ns: int, what: str) -> None:
        while not ready():
            left = deadline_ns - time.monotonic_ns()
            if self.closed:
                raise self.error or self._ended()
            if left <= 0:
                raise LaunchFailed(f"the agent did not answer {what} in time")
            self.pump(left / 1e9)

    def ping(self, count: int = 20, timeout_s: float = 10.0) -> ClockMapping:
        """Map the instance's clock to the host's; the identity where it is shared.

        The best of `count` round trips bounds the error to half its time. A second call
        later tells the rate of the clock as well.

        Raises:
            LaunchFailed: no answer within `timeout_s`.
        """
        if self._shared_clock:
            return ClockMapping()
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        best_ns, mapping = 1 << 62, ClockMapping()
        for turn in range(count):
            token = f"p{turn}"
            self._pongs.pop(token, None)
            self._token = token
            sent = time.monotonic_ns()
            self._send(Frame.PING, record.encode([("token", token)]))
            self._await(lambda token=token: token in self._pongs, deadline_ns, "a ping")  # type: ignore[misc]
            back, mono, boot = self._pongs.pop(token)
            if back - sent < best_ns:
                best_ns = back - sent
                offset = (sent + back) // 2 - mono
                mapping = ClockMapping(offset, (best_ns + 1) // 2, mono, mono - boot)
        self._mapping = mapping if self._anchor is None else self._anchor.through(mapping)
        self._anchor = self._anchor or mapping
        return self._mapping

    def execute(self, argv: Sequence[str], timeout_s: float) -> Execution:
        """Run a command beside the workload, as the workload: user, environment, place, limits.

        It is killed after `timeout_s`, and with the workload.

        Raises:
            LaunchFailed: the instance ended, or did not answer in time.
        """
        ended: list[Execution] = []
        self._ended_execution = ended.append
        self._send(Frame.EXEC, record.encode([("arg", word) for word in argv]))
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        while not ended and not self.closed and (left := deadline_ns - time.monotonic_ns()) > 0:
            self.pump(left / 1e9)
        if ended:
            return ended[0]
        self._send(Frame.EXEC_KILL, b"")
        last_ns = time.monotonic_ns() + KILL_LIMIT_NS
        self._await(lambda: bool(ended), last_ns, f"for {argv[0]}")
        return Execution(None, f"it took longer than {timeout_s:g} s", ended[0].ended_ns)

    def fetch(self, path: str, timeout_s: float = 60.0) -> bytes:
        """The bytes of a regular file as the workload's root has it.

        Raises:
            HvctError: it cannot be read inside.
            LaunchFailed: the instance ended, or did not answer in time.
        """
        self._file.clear()
        self._file_end = None
        self._send(Frame.FETCH, record.encode([("path", path)]))
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        self._await(lambda: self._file_end is not None, deadline_ns, f"for {path}")
        return self._fetched(path)

    def _fetched(self, path: str) -> bytes:
        data = bytes(self._file)
        self._file.clear()
        if self._file_end:
            raise HvctError(f"{path} cannot be read in the instance: {os.strerror(self._file_end)}")
        return data

    def stop(self, number: int = signals.SIGTERM, grace_s: float = 10.0) -> None:
        """Signal the workload, SIGKILL it after the grace, return when it has ended.

        Raises:
            LaunchFailed: it did not end, or the channel did.
        """
        if self.exit or self.error:
            return
        self.signal(number)
        if self.wait(Event.EXITED, time.monotonic_ns() + int(grace_s * 1e9)):
            return
        self.signal(signals.SIGKILL)
        if not self.wait(Event.EXITED, time.monotonic_ns() + 30_000_000_000):
            raise LaunchFailed("the workload outlived SIGKILL by 30 s")

    def drain(self, deadline_ns: int) -> bool:
        """After ``quit``: handle what arrives until the agent has closed the channel."""
        with contextlib.suppress(HvctError):
            while not self.closed and (left := deadline_ns - time.monotonic_ns()) > 0:
                self.pump(left / 1e9)
        return self.closed
