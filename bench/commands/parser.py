"""How every command line of hvct reads: its parser, and options that several commands have."""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from pathlib import Path
from typing import NoReturn, TypeAlias

from bench.errors import BadInput


class Summaries(argparse.RawDescriptionHelpFormatter):
    """One line for each command, however long its name."""

    def add_argument(self, action: argparse.Action) -> None:
        """Count the commands' own indentation, which argparse forgets."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment


class Parser(argparse.ArgumentParser):
    """Complains as every other part of hvct does: one line what, one line what to do."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print.

        Raises:
            BadInput: always.
        """
        hint = f"{self.prog} --help shows how"
        choice = re.fullmatch(
            r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message
        )
        if choice:
            what = choice[1].strip("-").lower() if "|" not in choice[1] else "action"
            message = f"there is no {what} {choice[2]!r}"
            # In quotation marks up to CPython 3.11 and early 3.12, without them since.
            choices = [name.strip("'") for name in choice[3].split(", ")]
            close = difflib.get_close_matches(choice[2], choices, 1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(choices)}"
        elif number := re.fullmatch(r"argument (\S+): invalid (int|float) value: (.*)", message):
            message = f"{number[1]} {number[3]} is no {_KINDS[number[2]]}"
        elif lone := re.fullmatch(r"argument (\S+): expected one argument", message):
            name = lone[1].rpartition("/")[2]
            message = f"{name} needs a value"
            hint = f"write {name} VALUE, or {name}=VALUE where it begins with a dash"
        elif lacking := re.fullmatch(r"the following arguments are required: (.*)", message):
            message = f"{lacking[1].replace(', ', ' and ')} is missing"
        raise BadInput(message, hint)


_KINDS = {"int": "whole number", "float": "number"}

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def command(
    commands: Commands, name: str, module: str, summary: str, text: str, function: str = "main"
) -> Parser:
    """One command; `text` holds its examples and, after an empty line, what else to know."""
    examples, _, notes = text.strip().partition("\n\n")
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + textwrap.indent(examples, "  ") + (notes and f"\n\n{notes}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=name, module=module, function=function)
    return parser


def json_option(parser: argparse.ArgumentParser, text: str = "print JSON") -> None:
    """``--json``, and what it prints."""
    parser.add_argument("--json", action="store_true", help=text)


def machine_options(parser: argparse.ArgumentParser) -> None:
    """Which kernel guests boot, and which libvirt starts them."""
    group = parser.add_argument_group("virtual machine")
    group.add_argument(
        "--kernel", type=Path, metavar="FILE", help="guest kernel instead of the distribution's"
    )
    group.add_argument(
        "--libvirt-uri", default="", metavar="URI", help="a libvirt daemon, not the embedded driver"
    )


def environment_option(parser: argparse.ArgumentParser) -> None:
    """Variables of the workload."""
    parser.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="set a variable, or pass ours on",
    )  # fmt: skip


def measuring_options(parser: argparse.ArgumentParser) -> None:
    """Queueing, offline, and what is shown while and after measuring."""
    parser.add_argument(
        "--wait", action="store_true", help="queue behind a comparison that is running"
    )
    parser.add_argument(
        "--no-report", action="store_true", help="measure only; write the report later"
    )
    parser.add_argument("--offline", action="store_true", help="pull no image")
    json_option(parser, "print the results as JSON on standard output, nothing else")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def tune_options(parser: argparse.ArgumentParser) -> None:
    """The host's settings for the time of a run."""
    parser.add_argument(
        "--tune", action="store_true",
        help="change the host's settings as hvct tune shows; undone at the end, or after a crash",
    )  # fmt: skip
    parser.add_argument("--tune-only", metavar="S,…", help="the same, for these settings alone")


def work_options(parser: argparse.ArgumentParser) -> None:
    """What is compared, or calibrated: a plan, or any image."""
    parser.add_argument("--plan", type=Path, metavar="FILE", help="a plan in TOML (docs/plan.md)")
    parser.add_argument(
        "--image", dest="image_option", metavar="IMAGE",
        help="one workload from any image: a name of hvct image list, a registry's reference, or "
        "the path of an archive; its command, or its entrypoint's arguments, after --",
    )  # fmt: skip
    parser.add_argument(
        "--ready", default="auto", metavar="RULE",
        help="when that is ready: health (the image's HEALTHCHECK), tcp:PORT, http:PORT/PATH, "
        "line:REGEX, output, or exit: it is no server and ends by itself. Default: without a "
        "command by health check, else by the first TCP port exposed; else exit",
    )  # fmt: skip
    environment_option(parser)
    parser.add_argument("--entrypoint", metavar="PROGRAM", help="instead of the image's")
