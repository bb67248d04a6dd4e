"""``hvct resume``: go on with an interrupted run of whichever command began it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench import host, store
from bench.commands.images import check_kernel
from bench.commands.measuring import Finish, alone, measure, remaining
from bench.commands.rights import need_root
from bench.commands.tune import tuned
from bench.errors import BadInput
from bench.schedule import AGAINST_ITSELF
from bench.steps import EXPERIMENT
from bench.version import VERSION


def main(options: argparse.Namespace) -> int:
    """Go on with an interrupted run."""
    from bench import plan_file  # pydantic: 7 MiB and 0.1 s that a quick run need not spend

    stored = store.load(options.run)
    chosen = plan_file.from_run(stored.run["plan"])
    need_root()
    kept = stored.run.get("options", {})
    options.libvirt_uri = kept.get("libvirt_uri", "")
    options.kernel = Path(kept["kernel"]) if kept.get("kernel") else None
    options.tune, options.tune_only = bool(kept.get("tune")), kept.get("tune")
    check_kernel(options.kernel)
    finish = finish_of(chosen.experiment)
    with alone(options.wait, options.run), tuned(chosen, options):
        check_same_host(stored.run)
        if not remaining(chosen, stored.directory):
            print(f"{options.run} is complete: nothing is left to measure", file=sys.stderr)
            return finish(stored.directory, options)
        return measure(chosen, stored.run, store.RunStore(stored.directory), options, finish)


def check_same_host(run: dict[str, Any]) -> None:
    """Refuse to go on with a run on another host, in another state, or with another version.

    Raises:
        BadInput: with what has changed.
    """
    changed = host.same_host(run.get("host", {}), host.fingerprint())
    if run.get("hvct_version") != VERSION:
        changed = [f"hvct {run.get('hvct_version')} began it, this is {VERSION}", *changed]
    if changed:
        raise BadInput(
            f"this is not the host, or not the state, the run began on: {'; '.join(changed[:3])}",
            "start a new run; several runs are compared with hvct report RUN RUN",
        )


def finish_of(experiment: str | None) -> Finish:
    """How the command ends that began a run of this experiment."""
    if experiment == AGAINST_ITSELF:
        from bench.commands import calibrate

        return calibrate.finish
    if experiment == EXPERIMENT:
        from bench.commands import costs

        return costs.finish
    from bench.commands import compare

    return compare.finish
