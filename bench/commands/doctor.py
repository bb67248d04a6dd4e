"""``hvct doctor``: what works on this host, what does not, and what to do about it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from bench import arms, host, journal, registry, store
from bench.cleanup import clean_dead
from bench.commands.images import check_kernel
from bench.commands.rights import ROOTLESS
from bench.doctor import TRAPS, examine
from bench.errors import BadInput, HvctError
from bench.model import Capability, Finding

MARKS = {"info": "· ", "warning": "!!", "problem": "NO"}
NAME_WIDTH = 18
NOT_A_TERMINAL = 100  # columns


def main(options: argparse.Namespace) -> int:
    """Probe every arm by doing, examine the host, say both. Exit 3 when an arm cannot run."""
    check_kernel(options.kernel)
    if options.validate:
        from bench.commands import validate  # all that measures

        return validate.main(options)
    if options.parts:
        raise BadInput("--parts belongs to --validate", "hvct doctor --validate --parts kvm,arms")
    capabilities = probe(options, arms.DEFAULT_ARMS)
    # Whether these work decides nothing.
    variants = probe(options, arms.OPTIONAL) if os.geteuid() == 0 else []
    peers = probe(options, arms.PEERS) if os.geteuid() == 0 else []
    # Without root there is one reason for everything, and it has a finding of its own.
    findings = examine(capabilities if os.geteuid() == 0 else ())
    usable = all(capability.usable for capability in capabilities)
    if options.json:
        document = {
            "usable": usable,
            "host": host.fingerprint(),
            "capabilities": store.jsonable(capabilities),
            "optional": store.jsonable(variants),
            "peers": store.jsonable(peers),
            "findings": store.jsonable(findings),
            "checks": [
                {"code": trap.code, "found": any(trap.code == item.code for item in findings)}
                for trap in TRAPS
            ],
        }
        print(json.dumps(document, indent=1))
        return 0 if usable else 3
    print_text("Host    ", host.summary_line())
    print()
    for capability in capabilities:
        print_capability(capability)
    for head, probed in (("Variants", variants), ("Peers   ", peers)):
        if probed:
            print_text(f"\n{head} ", "optional, for --arms")
        for capability in probed:
            print_capability(capability, briefly=True)
    print()
    for finding in findings:
        print_finding(finding)
    return 0 if usable else 3


def print_text(head: str, text: str) -> None:
    """A paragraph that hangs behind its head, as wide as the terminal."""
    width = shutil.get_terminal_size((NOT_A_TERMINAL, 0)).columns
    lines = textwrap.wrap(text, max(30, width - len(head)), break_on_hyphens=False)
    for number, line in enumerate(lines):
        print(f"{head if number == 0 else ' ' * len(head)}{line}")


def print_capability(capability: Capability, *, briefly: bool = False) -> None:
    """What one arm can do, how, and why; briefly, without why that accelerator."""
    label = capability.accelerator.label
    name = f"{capability.backend} ({label})" if label else capability.backend
    state = "works" if capability.usable else "does not work"
    why = capability.reason or capability.version
    print_text(f"{name:{NAME_WIDTH}} ", f"{state}: {why}" if why else state)
    if capability.accelerator.reason and not briefly:
        print_text(f"{'':{NAME_WIDTH}} ", capability.accelerator.reason)
    if not capability.usable and capability.remedy:
        print_text(f"{'':{NAME_WIDTH}} → ", capability.remedy)


def print_finding(finding: Finding) -> None:
    """What was seen, what it means for the figures, and what to do."""
    print_text(f"{MARKS[finding.level]}  ", finding.message)
    if finding.meaning:
        print_text("    ", finding.meaning)
    if finding.remedy:
        print_text("    → ", finding.remedy)


def probe(options: argparse.Namespace, names: Sequence[str]) -> list[Capability]:
    """What each of these arms can do here; a probe that breaks is an answer too."""
    lacking: list[Capability] = []
    if os.geteuid() != 0:
        why, remedy = "it needs root (namespaces, cgroups, a bridge)", "sudo hvct doctor"
        lacking = [Capability(name, False, why, remedy) for name in names if name not in ROOTLESS]
        names = tuple(ROOTLESS)
    clean_dead()
    found = []
    with journal.open_run(None, libvirt_uri=options.libvirt_uri, kernel=options.kernel) as context:
        for arm in arms.resolve(names):
            if sys.stderr.isatty():
                print(f"\rtrying {arm.name} … \033[K", end="", file=sys.stderr, flush=True)
            try:
                with registry.make(arm, context) as backend:
                    capability = backend.probe()
            except HvctError as error:
                capability = Capability(arm.name, False, error.message, error.hint)
            except ImportError as error:
                capability = Capability(arm.name, False, str(error), "./hvct setup")
            found.append(dataclasses.replace(capability, backend=arm.name))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return [*map(reduced, found), *lacking]


def reduced(capability: Capability) -> Capability:
    """What works without root, with what is left out then."""
    if os.geteuid() == 0 or not capability.usable:
        return capability
    return dataclasses.replace(capability, reason=f"reduced: {ROOTLESS[capability.backend]}")
