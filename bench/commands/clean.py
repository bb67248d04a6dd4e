"""``hvct clean``: undo what runs that died left on the host."""

from __future__ import annotations

import argparse

from bench.cleanup import clean
from bench.commands.rights import need_root


def main(options: argparse.Namespace) -> int:
    """Say what was done, line by line."""
    need_root()
    done = clean(options.tag, options.dry_run)
    for line in done:
        print(line)
    if not done:
        print("nothing was left")
    return 0
