"""Arguments, help and examples of the commands about stored runs."""

from __future__ import annotations

from pathlib import Path

from bench.commands.parser import Commands, command, json_option


def report(commands: Commands) -> None:
    """Add ``hvct report``."""
    parser = command(
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
    json_option(parser, "print the report's numbers as JSON and write nothing")
    parser.add_argument("--schema", action="store_true", help="print the JSON's schema")


def archive(commands: Commands) -> None:
    """Add ``hvct archive``."""
    parser = command(
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


def diff(commands: Commands) -> None:
    """Add ``hvct diff``."""
    parser = command(
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
    json_option(parser)


def list_runs(commands: Commands) -> None:
    """Add ``hvct list``."""
    parser = command(
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
    json_option(parser)


def show(commands: Commands) -> None:
    """Add ``hvct show``."""
    parser = command(
        commands, "show", "report", "show one run: its summary, and every trial that failed",
        """
hvct show runs/20261123-204100-quick
hvct show runs/20261123-204100-quick --json
""",
        "show",
    )  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN", help="its run directory")
    json_option(parser, "print the report's numbers as JSON")
