"""The command line: parse, dispatch, and the one place where errors are printed.

Exit codes: 0 done, 1 the measured thing failed, 2 usage or bad input, 3 this host cannot
do it (with the remedy), 130 interrupted (a run can be resumed).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from bench.errors import HvctError
from bench.version import VERSION

EPILOG = """examples:
  hvct compare                          the quick suite as VM, container and process
  hvct compare redis nginx --blocks 12  two of its workloads, more blocks
  hvct compare --plan mine.toml         your own workloads
  hvct run busybox -- echo hello        one container
  hvct run --arm vm busybox -- uname -r the same image as a virtual machine
  hvct doctor                           what works on this host
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options, command = _split_command(arguments)
    parser = make_parser()
    parsed = parser.parse_args(options)
    if parsed.command is None:
        parser.print_help()
        return 0
    parsed.argv = command
    try:
        module = importlib.import_module(f"bench.commands.{parsed.module}")
        handler: Callable[[argparse.Namespace], int] = getattr(module, parsed.function)
        return handler(parsed)
    except HvctError as error:
        return report_error(error)
    except KeyboardInterrupt:
        print("hvct: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (`hvct list | head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def report_error(error: HvctError) -> int:
    """Print what is wrong and what to do, one line each."""
    print(f"hvct: {' '.join(error.message.split())}", file=sys.stderr)
    if error.hint:
        print(f"      {' '.join(error.hint.split())}", file=sys.stderr)
    return error.exit_code


def _split_command(arguments: list[str]) -> tuple[list[str], list[str] | None]:
    """Everything after ``--`` is the workload's argv."""
    if "--" not in arguments:
        return arguments, None
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="hvct",
        description="What does it cost to run a workload as a virtual machine instead of as a"
        " container, on this host, and how sure are we?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hvct {VERSION}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for add in (_compare, _resume, _run, _doctor, _report, _list, _show, _image, _clean):
        add(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(
    commands: Commands, name: str, module: str, summary: str, examples: str, function: str = "main"
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=name, module=module, function=function)
    return parser


def _host_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("virtual machine")
    group.add_argument(
        "--kernel",
        type=Path,
        metavar="FILE",
        help="guest kernel instead of the distribution's",
    )
    group.add_argument(
        "--libvirt-uri", default="", metavar="URI", help="a libvirt daemon, not the embedded driver"
    )


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait", action="store_true", help="wait while another comparison is running"
    )
    parser.add_argument(
        "--no-report", action="store_true", help="measure only; write the report later"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON, nothing else"
    )
    parser.add_argument("--quiet", action="store_true", help="no live progress")
    _host_options(parser)


def _compare(commands: Commands) -> None:
    parser = _command(
        commands, "compare", "compare", "compare workloads as VM, container and process",
        """
hvct compare
hvct compare hello redis --arms vm,container --blocks 12
hvct compare --image busybox -- sh -c 'echo ready; sleep 1'
hvct compare --plan mine.toml --dry-run
""",
    )  # fmt: skip
    parser.add_argument(
        "workload", nargs="*", metavar="WORKLOAD", help="of the quick suite; default: all of it"
    )
    parser.add_argument("--plan", type=Path, metavar="FILE", help="a plan in TOML (docs/plan.md)")
    parser.add_argument(
        "--image", metavar="IMAGE", help="one workload from any image; its command after --"
    )
    parser.add_argument("--arms", metavar="A,B,…", help="default: vm,container,process")
    parser.add_argument(
        "--blocks", type=int, metavar="N", help="repetitions, one trial of every arm each"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the order of trials; default: a new one, recorded"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="run directory; default: runs/<date>-<plan>"
    )
    parser.add_argument(
        "--judge-emulated",
        action="store_true",
        help="give verdicts on TCG figures too (development; marks every page)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and how long it takes, run nothing"
    )
    _run_options(parser)


def _resume(commands: Commands) -> None:
    parser = _command(
        commands, "resume", "compare", "go on with an interrupted run at its next block",
        "hvct resume runs/20261123-2041-quick", function="resume",
    )  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN", help="its run directory")
    _run_options(parser)


def _run(commands: Commands) -> None:
    parser = _command(
        commands, "run", "run", "run one instance on one backend",
        """
hvct run busybox -- echo hello
hvct run --arm vm --memory 256MiB busybox -- free -m
hvct run -it default -- bash
hvct run --timeline busybox -- true
""",
    )  # fmt: skip
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--arm", default="container", help="container (default), vm or process")
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("-u", "--user", metavar="UID[:GID]")
    parser.add_argument("-w", "--workdir", metavar="DIR")
    parser.add_argument("--cpus", type=float, default=1.0, metavar="N")
    parser.add_argument("--memory", default="512MiB", metavar="SIZE")
    parser.add_argument("--network", choices=("none", "bridge", "host"), default="none")
    parser.add_argument("--entrypoint", metavar="PROGRAM", help="instead of the image's")
    parser.add_argument(
        "--timeline", action="store_true", help="print the events of the launch at the end"
    )
    parser.add_argument(
        "--json", action="store_true", help="print timeline, usage and exit as JSON on stderr"
    )
    _host_options(parser)


def _doctor(commands: Commands) -> None:
    parser = _command(
        commands, "doctor", "doctor", "say what works on this host, what does not, and what to do",
        "hvct doctor\nhvct doctor --json",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")
    _host_options(parser)


def _report(commands: Commands) -> None:
    parser = _command(
        commands, "report", "report", "write the report of stored runs",
        "hvct report runs/20261123-2041-quick\nhvct report RUN --format html,csv",
    )  # fmt: skip
    parser.add_argument("run", type=Path, nargs="+", metavar="RUN")
    parser.add_argument(
        "--format", default="html,pdf,json", metavar="F,…", help="of html, pdf, json, csv, parquet"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def _list(commands: Commands) -> None:
    parser = _command(
        commands, "list", "report", "list stored runs", "hvct list\nhvct list --json", "list_runs"
    )
    parser.add_argument("directory", type=Path, nargs="?", default=Path("runs"), metavar="DIR")
    parser.add_argument("--json", action="store_true")


def _show(commands: Commands) -> None:
    parser = _command(
        commands,
        "show",
        "report",
        "show the summary of one run",
        "hvct show runs/20261123-2041-quick",
        "show",
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--json", action="store_true")


def _image(commands: Commands) -> None:
    parser = _command(
        commands, "image", "image", "import, build, list, inspect and remove images",
        """
hvct image build default
hvct image import my-app.tar --name my-app
hvct image list
""",
    )  # fmt: skip
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    item = actions.add_parser("import", help="an OCI layout or a docker save archive")
    item.add_argument("archive", type=Path)
    item.add_argument("--name", metavar="NAME")
    item = actions.add_parser("build", help="a built-in image from distribution packages")
    item.add_argument("name", nargs="?", default="default", choices=("default", "busybox"))
    item = actions.add_parser("list", help="what is in the cache")
    item.add_argument("--json", action="store_true")
    item = actions.add_parser("inspect", help="all about one image, as JSON")
    item.add_argument("name")
    item = actions.add_parser("remove", help="forget an image")
    item.add_argument("name")


def _clean(commands: Commands) -> None:
    parser = _command(
        commands, "clean", "clean", "undo what runs that died left on the host",
        "hvct clean\nhvct clean --dry-run",
    )  # fmt: skip
    parser.add_argument("tag", nargs="?", metavar="TAG", help="only this run's")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")


if __name__ == "__main__":
    sys.exit(main())
