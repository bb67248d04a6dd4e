"""``hvct clean``: undo what runs that died left on the host."""

from __future__ import annotations

import argparse
import json

from bench.cleanup import clean
from bench.commands.rights import need_root


def main(options: argparse.Namespace) -> int:
    """Say what was done, or would be, line by line."""
    need_root()
    done = clean(options.tag, options.dry_run)
    if options.json:
        print(json.dumps({"dry_run": options.dry_run, "done": done}, indent=1))
        return 0
    for line in done:
        print(f"would be undone: {line}" if options.dry_run else line)
    if not done:
        print("nothing is left" if options.dry_run else "nothing was left")
    return 0
