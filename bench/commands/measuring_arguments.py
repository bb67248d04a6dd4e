"""Arguments, help and examples of the commands that launch instances."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.arms import ARMS, DEFAULT_ARMS
from bench.commands.parser import (
    Commands,
    command,
    environment_option,
    json_option,
    machine_options,
    measuring_options,
    tune_options,
    work_options,
)


def compare(commands: Commands) -> None:
    """Add ``hvct compare``."""
    parser = command(
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
    work_options(parser)
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
    tune_options(parser)
    measuring_options(parser)
    machine_options(parser)


def calibrate(commands: Commands) -> None:
    """Add ``hvct calibrate``."""
    parser = command(
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
    work_options(parser)
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
    tune_options(parser)
    measuring_options(parser)
    machine_options(parser)


def selfcheck(commands: Commands) -> None:
    """Add ``hvct selfcheck``."""
    parser = command(
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
    tune_options(parser)
    parser.add_argument(
        "--wait", action="store_true", help="queue behind a comparison that is running"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    json_option(parser)
    machine_options(parser)


def costs(commands: Commands) -> None:
    """Add ``hvct costs``."""
    parser = command(
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
    tune_options(parser)
    measuring_options(parser)
    machine_options(parser)


def resume(commands: Commands) -> None:
    """Add ``hvct resume``."""
    parser = command(
        commands, "resume", "resume", "go on with an interrupted run at its next block",
        """
hvct resume runs/20261123-204100-quick
hvct resume runs/20261123-204100-quick --wait   behind what is running now
""",
    )  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN", help="its run directory")
    measuring_options(parser)


def run(commands: Commands, with_command: bool) -> None:
    """Add ``hvct run``."""
    parser = command(
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
    environment_option(parser)
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
    json_option(parser, "print timeline, usage and exit as one line of JSON on standard error")
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="keep the logs of launcher, libvirt and guest here"
    )
    machine_options(parser)
