"""The command line: parse, dispatch, and the one place where errors are printed.

Exit codes: 0 done, 1 the measured thing failed, 2 usage or bad input, 3 this host cannot
do it (with the remedy), 128 + N ended by signal N (130 interrupted: a run can be resumed).
``HVCT_DEBUG=1`` shows every program that is started, and where an error comes from.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from bench.commands.arguments import make_parser, parse
from bench.errors import HvctError, Terminated, oserror

DEBUG_VARIABLE = "HVCT_DEBUG"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _open_standard_descriptors()
    _start_debugging()
    try:
        parsed = parse(sys.argv[1:] if argv is None else argv)
        if parsed.command is None:
            make_parser().print_help()
            return 0
        with _terminations():
            code = _handler(parsed)(parsed)
            sys.stdout.flush()  # a full disk, or a reader that went away, is told here
            return code
    except HvctError as error:
        return report_error(error)
    except KeyboardInterrupt as error:
        print("hvct: interrupted", file=sys.stderr)
        # Python under -m kills itself by SIGINT if one ever ended an exec(), as of dataclasses;
        # one that ends well makes it forget that.
        exec("")
        return exit_code(error)
    except BrokenPipeError:
        # The reader went away (`hvct list | head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return report_error(_described(error))
    except Exception as error:
        return report_error(_defect(error))


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """What a shell expects of a process that a signal ended."""
    return 128 + (interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT)


def report_error(error: HvctError) -> int:
    """Print what is wrong and what to do, one line each."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    print(f"hvct: {_one_line(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"      {_one_line(error.hint)}", file=sys.stderr)
    return error.exit_code


def _one_line(text: str) -> str:
    """Names from outside may hold what a terminal obeys."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


def _handler(parsed: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    module = importlib.import_module(f"bench.commands.{parsed.module}")
    handler: Callable[[argparse.Namespace], int] = getattr(module, parsed.function)
    return handler


def _described(error: OSError) -> HvctError:
    described = oserror("access", os.fsdecode(error.filename or ""), error)
    if error.filename is None:  # most likely our own output
        described.message = os.strerror(error.errno) if error.errno else str(error)
    described.hint = described.hint or f"{DEBUG_VARIABLE}=1 shows where"
    described.__cause__ = error
    return described


def _defect(error: Exception) -> HvctError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    described = HvctError(
        f"a defect of hvct: {type(error).__name__} at {where}: {error}",
        f"{DEBUG_VARIABLE}=1 shows all of it; please report it",
    )
    described.__cause__ = error
    return described


def _open_standard_descriptors() -> None:
    """Where 0, 1 or 2 were closed, our next file would get that number, and be written to."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w"))
    # A name that is no text goes out as it came; a terminal that lacks a letter shows a "?".
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            utf8 = codecs.lookup(stream.encoding).name == "utf-8"
            stream.reconfigure(errors="surrogateescape" if utf8 else "replace")


def _start_debugging() -> None:
    if os.environ.get(DEBUG_VARIABLE):
        import logging

        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")


@contextlib.contextmanager
def _terminations() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: everything is released first."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise Terminated(number)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # not the main thread
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
