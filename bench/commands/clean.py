"""``hvct clean``: undo what runs that died left on the host."""

from __future__ import annotations

import argparse
import json

from bench import journal
from bench.cleanup import clean
from bench.commands.rights import need_root
from bench.errors import BadInput

TAGS = "hvct clean --dry-run names them; without a tag it is for all that died"


def main(options: argparse.Namespace) -> int:
    """Say what was done, or would be, line by line."""
    if options.tag is not None and not journal.TAG.fullmatch(options.tag):
        raise BadInput(f"{options.tag!r} is not the tag of a run: r and four digits", TAGS)
    need_root("undoing what runs left", "their cgroups, mounts and links")
    done = clean(options.tag, options.dry_run)
    if options.json:
        print(json.dumps({"dry_run": options.dry_run, "done": done}, indent=1))
        return 0
    for line in done:
        print(f"would be undone: {line}" if options.dry_run else line)
    if not done:
        print("nothing is left" if options.dry_run else "nothing was left")
    return 0
