"""``hvct doctor``: what works on this host, what does not, and what to do about it."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from bench import arms, host, journal, registry, store
from bench.cleanup import clean_dead
from bench.commands.rights import need_root
from bench.doctor import examine
from bench.errors import HvctError
from bench.model import Capability

MARKS = {"info": "ok", "warning": "!!", "problem": "NO"}


def main(options: argparse.Namespace) -> int:
    """Probe every arm by doing, examine the host, say both. Exit 3 when an arm cannot run."""
    need_root()
    clean_dead()
    capabilities = probe(options)
    findings = examine(capabilities)
    usable = all(capability.usable for capability in capabilities)
    if options.json:
        document = {
            "host": host.fingerprint(),
            "capabilities": store.jsonable(capabilities),
            "findings": store.jsonable(findings),
        }
        print(json.dumps(document, indent=1))
        return 0 if usable else 3
    print(f"Host    {host.summary_line()}\n")
    for capability in capabilities:
        label = capability.accelerator.label
        name = f"{capability.backend} ({label})" if label else capability.backend
        state = "works" if capability.usable else "does not work"
        print(f"{name:16} {state}: {capability.reason or capability.version}")
        if capability.accelerator.reason:
            print(f"{'':16} {capability.accelerator.reason}")
        if not capability.usable and capability.remedy:
            print(f"{'':16} → {capability.remedy}")
    print()
    for finding in findings:
        print(f"{MARKS[finding.level]}  {finding.message}")
        for line in (finding.meaning, finding.remedy and f"→ {finding.remedy}"):
            if line and finding.level != "info":
                print(f"    {line}")
    return 0 if usable else 3


def probe(options: argparse.Namespace) -> list[Capability]:
    """What each of the default arms can do here; a probe that breaks is an answer too."""
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="hvct-doctor-") as folder,
        journal.open_run(
            Path(folder), libvirt_uri=options.libvirt_uri, kernel=options.kernel
        ) as context,
    ):
        for arm in arms.resolve(arms.DEFAULT_ARMS):
            try:
                with registry.make(arm, context) as backend:
                    found.append(backend.probe())
            except (HvctError, ImportError) as error:
                hint = (
                    error.hint if isinstance(error, HvctError) else "run ./hvct once to install it"
                )
                found.append(Capability(arm.backend, False, str(error), hint))
    return found
