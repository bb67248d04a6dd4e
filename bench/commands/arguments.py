"""The whole command line, as data for `bench.cli`. Imports little.

Each command's own arguments, help and examples are in the modules named ``…_arguments``.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from bench.commands.host_arguments import clean, doctor, tune
from bench.commands.image_arguments import image
from bench.commands.measuring_arguments import calibrate, compare, costs, resume, run, selfcheck
from bench.commands.parser import Parser, Summaries
from bench.commands.report_arguments import archive, diff, list_runs, report, show
from bench.errors import BadInput
from bench.version import VERSION

EPILOG = """examples:
  hvct compare                            the quick suite in all three ways
  hvct compare redis nginx --blocks 12    two of its workloads, more blocks
  hvct compare --plan mine.toml           your own workloads
  hvct run busybox -- echo hello          one container
  hvct run --arm vm busybox -- uname -r   the same image as a virtual machine
  hvct doctor                             what works on this host
  hvct tune show                          which of its settings add noise

exit status:
  0 done · 1 the measured thing failed · 2 wrong usage or input
  3 this host cannot do it · 130 interrupted (hvct resume goes on)
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of one command line.

    Everything after ``--`` is the workload's ``argv``. Without a ``--`` the command of
    ``hvct run`` begins after the image, as container engines have it.

    Raises:
        BadInput: it is not one of ours.
    """
    options, argv = list(arguments), None
    if "--" in options:
        place = options.index("--")
        options, argv = options[:place], options[place + 1 :]
    parsed, unknown = make_parser(with_command=argv is not None).parse_known_args(options)
    if unknown:
        name = "" if parsed.command is None else f" {parsed.command}"
        what = "option" if unknown[0].startswith("-") else "argument"
        hint = f"hvct{name} --help shows what it knows"
        if parsed.command and (meant := _meant(parsed.options, unknown[0])):
            hint = f"did you mean {meant}?"
        raise BadInput(f"hvct{name} knows no {what} {unknown[0]!r}", hint)
    for name in _LISTS:
        if getattr(parsed, name, None) == "":
            option = f"--{name.replace('_', '-')}"
            raise BadInput(f"{option} names nothing", f"hvct {parsed.command} --help shows which")
    if parsed.command == "run":
        words = parsed.words if argv is None else argv
        if argv is None and words and words[0].startswith("-"):
            raise BadInput(
                f"{words[0]} comes after the image, where its command begins",
                "put options before the image, or the command after --",
            )
        argv = words
    elif argv is not None and not getattr(parsed, "image_option", None):
        raise BadInput(
            "a command after -- needs an image to run it in",
            "hvct compare --image IMAGE -- CMD…, or hvct run IMAGE -- CMD…",
        )
    parsed.argv = argv
    return parsed


def _meant(known: Sequence[str], option: str) -> str | None:
    close = difflib.get_close_matches(option.partition("=")[0], known, 1, cutoff=0.8)
    return close[0] if close else None


_LISTS = ("arms", "controls", "only", "parts", "tune_only")
"""Options that take names; an empty variable of a script is no wish for the default."""


def make_parser(*, with_command: bool = False) -> Parser:
    """The whole command line.

    Args:
        with_command: the workload's command was given after ``--``.
    """
    parser = Parser(
        prog="hvct",
        description="What does it cost to run a workload as a virtual machine instead of as a\n"
        "container, on this host, and how sure are we?",
        epilog=EPILOG,
        formatter_class=Summaries,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hvct {VERSION}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    compare(commands)
    calibrate(commands)
    selfcheck(commands)
    costs(commands)
    resume(commands)
    run(commands, with_command)
    for add in (doctor, tune, report, diff, archive, list_runs, show, image, clean):
        add(commands)
    for each in commands.choices.values():
        each.set_defaults(options=[word for word in each._option_string_actions if "--" in word])
    return parser
