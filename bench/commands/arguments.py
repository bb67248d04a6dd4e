"""Every command's arguments, help and examples, as data for `bench.cli`. Imports little.

Over 400 lines: a user meets all commands at once, so they stand together and sound alike.
"""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from bench.arms import ARMS, DEFAULT_ARMS
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
    _compare(commands)
    _calibrate(commands)
    _selfcheck(commands)
    _costs(commands)
    _resume(commands)
    _run(commands, with_command)
    for add in (_doctor, _tune, _report, _diff, _archive, _list, _show, _image, _clean):
        add(commands)
    for each in commands.choices.values():
        each.set_defaults(options=[word for word in each._option_string_actions if "--" in word])
    return parser


def _command(
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


def _json(parser: argparse.ArgumentParser, text: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _machine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("virtual machine")
    group.add_argument(
        "--kernel", type=Path, metavar="FILE", help="guest kernel instead of the distribution's"
    )
    group.add_argument(
        "--libvirt-uri", default="", metavar="URI", help="a libvirt daemon, not the embedded driver"
    )


def _environment_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="set a variable, or pass ours on",
    )  # fmt: skip


def _measuring_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait", action="store_true", help="queue behind a comparison that is running"
    )
    parser.add_argument(
        "--no-report", action="store_true", help="measure only; write the report later"
    )
    parser.add_argument("--offline", action="store_true", help="pull no image")
    _json(parser, "print the results as JSON on standard output, nothing else")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def _tune_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tune", action="store_true",
        help="change the host's settings as hvct tune shows; undone at the end, or after a crash",
    )  # fmt: skip
    parser.add_argument("--tune-only", metavar="S,…", help="the same, for these settings alone")


def _work_options(parser: argparse.ArgumentParser) -> None:
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
    _environment_option(parser)
    parser.add_argument("--entrypoint", metavar="PROGRAM", help="instead of the image's")


def _compare(commands: Commands) -> None:
    parser = _command(
        commands, "compare", "compare", "compare workloads as VM, container and process",
        """
hvct compare                                    the quick suite
hvct compare hello redis --arms vm,container --blocks 12
hvct compare hello --together 20        twenty launched at once in each trial
hvct compare startup --arms all                 beside runc and other peers
hvct compare --image busybox -- sh -c 'echo ready; sleep 1'
hvct compare --image postgres:16 -e POSTGRES_PASSWORD=x    pulled if missing
hvct compare --image ./app.tar --ready http:8080/health -- serve --fast
hvct compare redis --dry-run >mine.toml         the plan as a file, how long
hvct compare --plan mine.toml
hvct compare redis --tune                       on a quieter host (hvct tune)
hvct compare xz --json >xz.json                 the figures for a program

Results go to runs/DATE-NAME: all trials, report.html, .pdf, .json, samples.csv.
Ctrl-C ends it cleanly; hvct resume goes on. Exit status 1: some trial failed.
A registry with a login: hvct image login. One with its own CA: hvct image pull
--cert-dir first, then it is in the cache.
""",
    )  # fmt: skip
    parser.add_argument(
        "workload", nargs="*", metavar="WORKLOAD",
        help="hello, redis, nginx, touch64, xz (the quick suite: the default); also idle, elastic; "
        "startup is hello",
    )  # fmt: skip
    _work_options(parser)
    parser.add_argument(
        "--arms",
        metavar="A,B,…",
        help=f"of {', '.join(ARMS)}, or all that work here; default: {','.join(DEFAULT_ARMS)}",
    )
    parser.add_argument(
        "--blocks", type=int, metavar="N", help="repetitions, one trial of every arm each"
    )
    parser.add_argument(
        "--together", type=int, default=1, metavar="N",
        help="launch N instances of each workload at once, and measure that",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the order of trials; default: a new one, recorded"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="run directory; default: runs/DATE-NAME"
    )
    parser.add_argument(
        "--judge-emulated",
        action="store_true",
        help="give verdicts on TCG figures too (development; marks every page)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan as a TOML file, and how long it takes; run nothing",
    )
    _tune_options(parser)
    _measuring_options(parser)
    _machine_options(parser)


def _calibrate(commands: Commands) -> None:
    parser = _command(
        commands, "calibrate", "calibrate", "measure this host's noise: each arm against itself",
        """
hvct calibrate                          the quick suite's workloads
hvct calibrate redis --arms container,process --blocks 20
hvct calibrate --plan mine.toml         the work and the arms of a plan
hvct calibrate --image postgres:16 -e POSTGRES_PASSWORD=x
hvct calibrate --dry-run                how long, and what it cannot show
hvct calibrate --show runs/20261124-calibration

What it finds is kept until the host changes, and hvct compare uses it: a
difference must exceed the noise floor, and where that exceeds the margin
nothing is called equivalent. It never makes a verdict easier.
""",
    )  # fmt: skip
    parser.add_argument(
        "workload", nargs="*", metavar="WORKLOAD",
        help="as for hvct compare; default: the quick suite",
    )  # fmt: skip
    _work_options(parser)
    parser.add_argument(
        "--arms", metavar="A,B,…", help=f"of {', '.join(ARMS)}; default: {','.join(DEFAULT_ARMS)}"
    )
    parser.add_argument(
        "--blocks", type=int, metavar="N", help="two trials of each arm; default: 12"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the order; default: a new one")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="run directory; default: runs/DATE-calibration"
    )
    parser.add_argument(
        "--show", type=Path, metavar="RUN", help="say what a stored one, or its archive, found"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and stop")
    _tune_options(parser)
    _measuring_options(parser)
    _machine_options(parser)


def _selfcheck(commands: Commands) -> None:
    parser = _command(
        commands, "selfcheck", "selfcheck", "put known effects in, and see what comes out",
        """
hvct selfcheck
hvct selfcheck --arms container --blocks 20     more blocks resolve less
hvct selfcheck --controls memory,cpu --json

Two workloads that differ in one injected effect (time, memory by each
definition, CPU, latency inside and over the network, a flush of the scratch
disk) run like any other. Their true difference is known,
so the intervals show whether this installation measures right, and the
smallest effect it can tell from nothing. Exit status 1: one was not found.
""",
    )  # fmt: skip
    parser.add_argument(
        "--arms", metavar="A,B,…", help=f"of {', '.join(DEFAULT_ARMS)}; default: all that work"
    )
    parser.add_argument(
        "--controls",
        metavar="A,B,…",
        help="of start, memory, cpu, latency, network, disk (a VM has its own, disk among them)",
    )
    parser.add_argument("--blocks", type=int, metavar="N", help="default: each control's own")
    _tune_options(parser)
    parser.add_argument(
        "--wait", action="store_true", help="queue behind a comparison that is running"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    _json(parser)
    _machine_options(parser)


def _costs(commands: Commands) -> None:
    parser = _command(
        commands, "costs", "costs", "measure what one more instance takes, for a cost model",
        """
hvct costs                              a waiting command, as VM and container
hvct costs redis --arms vm,container,process
hvct costs --steps 0,20,100 --vm-steps 0,4,8 --rounds 8
hvct costs --dry-run                    what would stand, how long
hvct costs --show runs/20261124-costs --json

More and more instances stand idle, in random steps. What the host loses is
set against what can be named; the rest is printed. Results go to
runs/DATE-costs: report.html, and cost-model.json for planners
(docs/costs.md). hvct resume goes on.
""",
    )  # fmt: skip
    parser.add_argument(
        "workload", nargs="?", default="idle", metavar="WORKLOAD",
        help="what stands: idle, redis, nginx, touch64 or elastic; default: idle",
    )  # fmt: skip
    parser.add_argument(
        "--work", default="xz", metavar="NAME", help="what a unit of work is; default: xz"
    )
    parser.add_argument(
        "--arms", metavar="A,B,…", help=f"of {', '.join(ARMS)}; default: vm,container"
    )
    parser.add_argument(
        "--steps", default="0,10,25,50", metavar="N,N,…", help="instances; default: 0,10,25,50"
    )
    parser.add_argument(
        "--vm-steps", default="0,5,10,20", metavar="N,N,…", help="of VMs; default: 0,5,10,20"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="passes over the steps; default: 5"
    )
    parser.add_argument(
        "--hold", type=float, default=2.0, metavar="SECONDS", help="at each step; default: 2"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the order; default: a new one")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="run directory; default: runs/DATE-costs"
    )
    parser.add_argument(
        "--show", type=Path, metavar="RUN", help="say what a stored one, or its archive, found"
    )
    parser.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of cost-model.json"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and stop")
    _tune_options(parser)
    _measuring_options(parser)
    _machine_options(parser)


def _resume(commands: Commands) -> None:
    parser = _command(
        commands, "resume", "compare", "go on with an interrupted run at its next block",
        """
hvct resume runs/20261123-204100-quick
hvct resume runs/20261123-204100-quick --wait   behind what is running now
""",
        function="resume",
    )  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN", help="its run directory")
    _measuring_options(parser)


def _run(commands: Commands, with_command: bool) -> None:
    parser = _command(
        commands, "run", "run", "run one instance on one backend",
        """
hvct run busybox -- echo hello
hvct run --arm vm --memory 256MiB busybox -- free -m
hvct run -it default -- bash
hvct run quay.io/prometheus/busybox:latest -- uname -a
hvct run --timeline busybox -- true             what the launch took
tar c . | hvct run -i busybox -- sh -c 'tar x -C /tmp; ls /tmp'

Without a command the image's own is run. The exit status is the command's,
128 + N when signal N ended it, 127 when its program is not there, 126 when it
may not be executed; 1 when it could not be started for another reason, 2 and 3
as for every command. Whatever the instance wrote is gone when it has ended.
A registry with a login: hvct image login. One with its own CA: hvct image pull
--cert-dir first, then it is in the cache.
""",
    )  # fmt: skip
    parser.usage = "hvct run [OPTION…] IMAGE [--] [CMD…]"
    parser.add_argument("image", metavar="IMAGE",
        help="as hvct image list shows it; a registry's reference, pulled where it is missing; "
        "or the path of an archive",
    )  # fmt: skip
    parser.add_argument("--offline", action="store_true", help="pull no image")
    if not with_command:
        # Options after the image would be taken for its command, and the other way round.
        words = parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
        words.required = False
    parser.add_argument(
        "--arm", metavar="ARM",
        help=f"of {', '.join(ARMS)}; default: container; without root: container:rootless",
    )  # fmt: skip
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    _environment_option(parser)
    parser.add_argument(
        "-u", "--user", metavar="USER", help="uid, uid:gid or a name the image knows"
    )
    parser.add_argument("-w", "--workdir", metavar="DIR", help="where it starts")
    parser.add_argument(
        "--cpus", type=float, default=1.0, metavar="N", help="default: 1; may be a fraction"
    )
    parser.add_argument("--memory", default="512MiB", metavar="SIZE", help="default: 512MiB")
    parser.add_argument(
        "--network", choices=("none", "bridge", "host"), default="none", help="default: none"
    )
    parser.add_argument("--entrypoint", metavar="PROGRAM", help="instead of the image's")
    parser.add_argument(
        "--timeline", action="store_true", help="print the events of the launch at the end"
    )
    _json(parser, "print timeline, usage and exit as one line of JSON on standard error")
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="keep the logs of launcher, libvirt and guest here"
    )
    _machine_options(parser)


def _doctor(commands: Commands) -> None:
    parser = _command(
        commands, "doctor", "doctor", "say what works on this host, what does not, and what to do",
        """
hvct doctor
hvct doctor --json                      keys: docs/doctor.md
hvct doctor --validate                  is hvct right here? writes a sheet
hvct doctor --validate --parts kvm,arms the quick part of that

Exit status 3: an arm does not work here; 1 (--validate): some check failed.
""",
    )  # fmt: skip
    _json(parser)
    parser.add_argument(
        "--validate", action="store_true",
        help="run the KVM probe, every arm, receipts and spike-ins; minutes, said beforehand",
    )  # fmt: skip
    parser.add_argument(
        "--parts", metavar="P,…",
        help="of --validate: host, kvm, arms, identity, network, spike-ins; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR",
        help="where --validate writes its sheet; default: here",
    )  # fmt: skip
    _machine_options(parser)


def _tune(commands: Commands) -> None:
    parser = _command(
        commands, "tune", "tune", "show and change settings of the host that make figures noisier",
        """
hvct tune show                        how they stand, what they do to figures
hvct tune apply --only governor,thp   until hvct tune reset
hvct tune apply --dry-run             which files would get which value
hvct tune apply --cpus 2              for workloads of two CPUs
hvct tune reset                       every old value again
hvct compare --tune                   only for the time of that run

Nothing is ever changed unasked. Old values are on disk before a change;
what cannot be undone is not done. Where a command is killed, the next one of
hvct restores them first. A reboot ends it all.
""",
    )  # fmt: skip
    parser.add_argument(
        "action", choices=("show", "apply", "reset"), metavar="show|apply|reset",
        help="say how they stand, change them, or restore them",
    )  # fmt: skip
    parser.add_argument("--only", metavar="S,…", help="these settings alone, as show names them")
    parser.add_argument(
        "--cpus", type=float, default=1.0, metavar="N",
        help="keep the last N CPUs for instances; default: 1",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    _json(parser)


def _report(commands: Commands) -> None:
    parser = _command(
        commands, "report", "report", "write the report of stored runs",
        """
hvct report runs/20261123-204100-quick
hvct report runs/* --output both                several runs or hosts
hvct report quick.hvct.tar.gz                   what hvct archive made
hvct report RUN --format html,csv,parquet
hvct report RUN --format pytest-benchmark       for pytest-benchmark compare
hvct report RUN --json | jq .runs[0].comparisons
hvct report --schema                            of the JSON
""",
    )  # fmt: skip
    parser.add_argument(
        "run", type=Path, nargs="*", metavar="RUN", help="run directories or archives"
    )
    parser.add_argument(
        "--format", default="html,pdf,json,csv", metavar="F,…",
        help="of html, pdf, json, csv, parquet, pytest-benchmark; default: html,pdf,json,csv",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="where to; default: the run's own directory, or one beside an archive",
    )  # fmt: skip
    _json(parser, "print the report's numbers as JSON and write nothing")
    parser.add_argument("--schema", action="store_true", help="print the JSON's schema")


def _archive(commands: Commands) -> None:
    parser = _command(
        commands, "archive", "report", "put a run into one file, to be sent and reported from",
        """
hvct archive runs/20261123-204100-quick
hvct archive RUN --output redis.hvct.tar.zst    smaller
hvct report redis.hvct.tar.zst                  on any host, without root

It holds every trial, the run's description and its logs: they name this host's
hardware and kernel. Reports are left out; hvct report writes them again.
""",
        "archive",
    )  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN", help="its run directory")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: RUN.hvct.tar.gz, beside it"
    )


def _diff(commands: Commands) -> None:
    parser = _command(
        commands, "diff", "diff", "say what changed between two runs, with verdicts",
        """
hvct diff runs/20261123-quick runs/20261124-quick
hvct diff runs/reference runs/candidate --only-worse --json >diff.json
hvct diff runs/one runs/two --anyway       another host or image

Each arm's trials of the second run stand against its trials of the first.
Exit status 0: nothing differs by more than its margin; 1: something does;
2: the runs are not alike, or nothing could be judged.
""",
    )  # fmt: skip
    parser.add_argument("before", type=Path, metavar="RUN", help="the reference")
    parser.add_argument("after", type=Path, metavar="RUN", help="what is held against it")
    parser.add_argument(
        "--anyway", action="store_true", help="compare runs that are not alike; the reasons stand"
    )
    parser.add_argument(
        "--only-worse", action="store_true", help="exit 1 only where something became worse"
    )
    parser.add_argument(
        "--require-equivalent", action="store_true", help="exit 1 where anything is undecided, too"
    )
    parser.add_argument("--all", action="store_true", help="show what is not judged as well")
    parser.add_argument(
        "--judge-emulated", action="store_true", help="give verdicts on TCG figures too"
    )
    _json(parser)


def _list(commands: Commands) -> None:
    parser = _command(
        commands, "list", "report", "list stored runs",
        """
hvct list
hvct list results --json
""",
        "list_runs",
    )  # fmt: skip
    parser.add_argument(
        "directory", type=Path, nargs="?", default=Path("runs"), metavar="DIR",
        help="where they are; default: runs",
    )  # fmt: skip
    _json(parser)


def _show(commands: Commands) -> None:
    parser = _command(
        commands, "show", "report", "show one run: its summary, and every trial that failed",
        """
hvct show runs/20261123-204100-quick
hvct show runs/20261123-204100-quick --json
""",
        "show",
    )  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN", help="its run directory")
    _json(parser, "print the report's numbers as JSON")


def _image(commands: Commands) -> None:
    parser = _command(
        commands, "image", "image", "pull, push, import, build, list, inspect and remove images",
        """
hvct image list
hvct image pull docker.io/library/nginx:1.27
hvct image import my-app.tar --name my-app
hvct image build ./my-app -t my-app              from its Dockerfile
hvct image build default                         the built-in one, anew
""",
    )  # fmt: skip
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)

    def action(name: str, summary: str, examples: str) -> Parser:
        return _command(actions, name, "image", summary, examples)

    item = action(
        "import", "import an OCI layout (folder or tar) or a docker save archive",
        """
docker save my/app:1 | gzip >app.tar.gz; hvct image import app.tar.gz
skopeo copy docker://my/app:1 oci:app; hvct image import app --name my-app
hvct image import big.tar --max-size 40GiB

Every layer is looked through before it is unpacked. What would fill the disk,
points out of the image or has impossible names is refused.
""",
    )  # fmt: skip
    item.add_argument("archive", type=Path, metavar="ARCHIVE", help="a file or a folder")
    item.add_argument(
        "--name", metavar="NAME", help="default: the one in the archive, else its file name"
    )
    _max_size(item)
    _json(item)
    item = action(
        "build", "build a Dockerfile (through buildah), or a built-in image anew",
        """
hvct image build ./my-app -t my-app:2          from ./my-app/Dockerfile
hvct image build . --build-arg VERSION=3 --file docker/Dockerfile
hvct image build            the default image, with today's packages
hvct image build busybox

FROM takes images of the cache first (default, busybox, pulled, imported ones):
with those and scratch it needs no network. Needed: apt-get install buildah.
""",
    )  # fmt: skip
    item.add_argument(
        "what", nargs="?", default="default", metavar="DIR",
        help="a folder with a Dockerfile; or default (sysbench, redis, nginx, …), or busybox",
    )  # fmt: skip
    item.add_argument("-t", "--tag", metavar="NAME", help="its name; default: the folder's")
    item.add_argument("-f", "--file", type=Path, metavar="FILE", help="default: DIR/Dockerfile")
    item.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="for its ARG"
    )
    item.add_argument("--offline", action="store_true", help="pull no base image")
    _max_size(item)
    _json(item)
    item = action(
        "pull", "bring an image of a registry into the cache",
        """
hvct image pull nginx:1.27                     docker.io/library/nginx:1.27
hvct image pull quay.io/org/app@sha256:…
hvct image pull registry.lan:5000/app --tls-verify=false
hvct image pull registry.lan/app --username me --password-stdin <secret

What is in the cache is not fetched again, a pull that was cut short goes on.
Where the registry cannot be reached, the image that was pulled last is taken.
""",
    )  # fmt: skip
    item.add_argument("reference", metavar="REF", help="REGISTRY/NAME:TAG or …@sha256:DIGEST")
    item.add_argument("--name", metavar="NAME", help="in the cache; default: as it is called there")
    item.add_argument("--offline", action="store_true", help="from the cache, asking nobody")
    _max_size(item)
    _registry_options(item)
    _json(item)
    item = action(
        "push", "push an image of the cache to a registry",
        """
hvct image push my-app registry.lan:5000/team/my-app:2
hvct image push default 127.0.0.1:5000/hvct/default --tls-verify=false

What was pulled, imported or built is pushed as it came, with its digest.
""",
    )  # fmt: skip
    item.add_argument("name", metavar="NAME", help="as hvct image list shows it")
    item.add_argument("reference", metavar="REF", help="REGISTRY/NAME:TAG")
    _registry_options(item)
    _json(item)
    for name, summary in (("login", "log in to a registry"), ("logout", "forget a login")):
        item = action(
            name, f"{summary}, through skopeo",
            f"""
hvct image {name} registry.lan:5000

Logins are kept where skopeo, podman and docker look for them, or in --authfile.
""",
        )  # fmt: skip
        item.add_argument("registry", metavar="REGISTRY", help="its name, with its port")
        if name == "login":
            _registry_options(item)
        else:
            item.add_argument("--authfile", type=Path, metavar="FILE", help="where it is kept")
    item = action("list", "list the images in the cache", "hvct image list\nhvct image list --json")
    _json(item)
    item = action(
        "inspect", "print all about one image, as JSON", "hvct image inspect default | jq .packages"
    )
    item.add_argument("name", metavar="NAME", help="as hvct image list shows it")
    _json(item, "what it does anyway")
    item = action(
        "remove", "remove images from the cache",
        "hvct image remove my-app\nhvct image remove default    it is built again when needed",
    )  # fmt: skip
    item.add_argument("name", nargs="+", metavar="NAME", help="as hvct image list shows it")
    for each in actions.choices.values():
        each.set_defaults(command="image")


def _registry_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("registry")
    group.add_argument("--username", default="", metavar="USER", help="for this command only")
    group.add_argument(
        "--password-stdin", action="store_true", help="read the password from standard input"
    )
    group.add_argument(
        "--authfile", type=Path, metavar="FILE", help="logins; default: skopeo's, then docker's"
    )
    group.add_argument(
        "--tls-verify", default="true", choices=("true", "false"), metavar="true|false",
        help="false: allow plain HTTP and any certificate",
    )  # fmt: skip
    group.add_argument(
        "--cert-dir", type=Path, metavar="DIR", help="folder with the registry's CA as ca.crt"
    )


def _max_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-size", default="20GiB", metavar="SIZE",
        help="refuse an image that unpacks to more; default: 20GiB",
    )  # fmt: skip


def _clean(commands: Commands) -> None:
    parser = _command(
        commands, "clean", "clean", "undo what runs that died left on this host",
        """
hvct clean --dry-run        what is left
hvct clean

Runs that are alive are left alone. Results and the cache are kept.
""",
    )  # fmt: skip
    parser.add_argument("tag", nargs="?", metavar="TAG", help="only this run's (r and four digits)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    _json(parser)
