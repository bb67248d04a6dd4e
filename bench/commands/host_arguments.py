"""Arguments, help and examples of the commands about this host."""

from __future__ import annotations

from pathlib import Path

from bench.commands.parser import Commands, command, json_option, machine_options


def doctor(commands: Commands) -> None:
    """Add ``hvct doctor``."""
    parser = command(
        commands, "doctor", "doctor", "say what works on this host, what does not, and what to do",
        """
hvct doctor
hvct doctor --json                      keys: docs/doctor.md
hvct doctor --validate                  is hvct right here? writes a sheet
hvct doctor --validate --parts kvm,arms the quick part of that

Exit status 3: an arm does not work here; 1 (--validate): some check failed.
""",
    )  # fmt: skip
    json_option(parser)
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
    machine_options(parser)


def tune(commands: Commands) -> None:
    """Add ``hvct tune``."""
    parser = command(
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
    json_option(parser)


def clean(commands: Commands) -> None:
    """Add ``hvct clean``."""
    parser = command(
        commands, "clean", "clean", "undo what runs that died left on this host",
        """
hvct clean --dry-run        what is left
hvct clean

Runs that are alive are left alone. Results and the cache are kept.
""",
    )  # fmt: skip
    parser.add_argument("tag", nargs="?", metavar="TAG", help="only this run's (r and four digits)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    json_option(parser)
