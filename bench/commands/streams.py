"""Our standard streams, signals and terminal joined to those of a running instance."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import sys
import termios
from collections.abc import Iterator
from tty import setraw

from bench.backend import Instance
from bench.errors import oserror

STDIN, STDOUT, STDERR = 0, 1, 2
CHUNK = 65536
STDIN_MOST = 2 * CHUNK  # passed on and not taken yet: beyond it, whoever feeds us has to wait
IDLE_S = 0.25
BACKLOG_S = 0.02  # while stdin waits for the channel to take it
PATIENCE = 3  # requests to end, after which a workload that ignores them is killed
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PASSED_ON = (*ENDING, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


def attend(instance: Instance, *, interactive: bool, tty: bool) -> int:
    """Pass bytes and signals until the workload ends; its exit status as a shell would give it.

    Args:
        interactive: pass our standard input on.
        tty: the workload has a terminal. Ours is raw only where it also gets our input:
            otherwise nobody could interrupt it.

    Raises:
        BrokenPipeError: nobody reads our output any more.
        HvctError: our output cannot be written.
    """
    for name, held in (("stdout", instance.stdout), ("stderr", instance.stderr)):
        _write(name, held, 0)  # what came together with the news that it has started
    instance.watch_output(_write, keep=False)
    with _caught_signals() as signals, _raw_terminal(interactive and tty and os.isatty(STDIN)):
        if tty:
            _resize(instance)
        _follow(instance, signals, reading=interactive)
    status = instance.exit
    assert status is not None
    return 128 + status.signal if status.signal is not None else int(status.code or 0)


def _follow(instance: Instance, signals: int, *, reading: bool) -> None:
    """Until the exit: sleep until there is something to do in any direction, then do it."""
    asked = 0
    while instance.exit is None:
        pending = instance.stdin_pending
        poller = select.poll()
        poller.register(instance.fileno(), select.POLLIN)
        poller.register(signals, select.POLLIN)
        if reading and pending <= STDIN_MOST:
            poller.register(STDIN, select.POLLIN)
        ready = dict(poller.poll((BACKLOG_S if pending else IDLE_S) * 1000))
        if STDIN in ready:
            data = _read()
            if data is not None:
                instance.send_stdin(data)
                reading = bool(data)
        for number in os.read(signals, 64) if signals in ready else b"":
            asked += number in ENDING
            if number == signal.SIGWINCH:
                _resize(instance)
            elif asked == PATIENCE:
                print("hvct: it was asked to end three times; killing it", file=sys.stderr)
                instance.signal(signal.SIGKILL)
            else:
                instance.signal(number)
        instance.pump(0)


def _read() -> bytes | None:
    """What our standard input has: b"" at its end, None when it was not ready after all."""
    try:
        return os.read(STDIN, CHUNK)
    except BlockingIOError:
        return None
    except OSError:  # the terminal hung up
        return b""


def _write(stream: str, data: bytes, _stamp_ns: int) -> None:
    """All of it, also to a descriptor that somebody made non-blocking."""
    descriptor = STDERR if stream == "stderr" else STDOUT
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except BrokenPipeError:
            raise
        except OSError as error:
            name = "standard error" if stream == "stderr" else "standard output"
            raise oserror("write", name, error) from error


@contextlib.contextmanager
def _caught_signals() -> Iterator[int]:
    """A descriptor from which the numbers of arriving signals are read, one byte each.

    Nothing is done in a handler: it could find the channel in the middle of a frame.
    """
    receiving, sending = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {}
    wakeup_before = signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    try:
        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's `&`
                before[number] = signal.signal(number, lambda *_: None)
        yield receiving
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(receiving)
        os.close(sending)


@contextlib.contextmanager
def _raw_terminal(wanted: bool) -> Iterator[None]:
    """Our terminal raw while the workload's own line discipline is in charge."""
    if not wanted:
        yield
        return
    before = termios.tcgetattr(STDIN)
    try:
        setraw(STDIN)
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)


def _resize(instance: Instance) -> None:
    """Tell the workload's terminal the size of ours, where we have one."""
    for descriptor in (STDIN, STDOUT, STDERR):
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, b"\0" * 8)
            rows, columns, _, _ = struct.unpack("HHHH", size)
            instance.resize(rows, columns)
            return
