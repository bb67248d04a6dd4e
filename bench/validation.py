"""The sheet of ``hvct doctor --validate``: what was tried on a host, what passed, and why not.

It is made to be sent to somebody: nothing in it names the host, a person or a folder.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import textwrap
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.arms import ARMS
from bench.spikein import Recovery

PARTS = ("host", "kvm", "arms", "identity", "network", "spike-ins")
STATES = {True: "passed", False: "FAILED", None: "left out"}
WIDTH = 100
COMMON = {"", "/", "/root", "root", "localhost", "linux", "debian", "host", "guest", *ARMS, *PARTS}
"""Names that name nobody, and that stand in a sheet for something else."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        passed: None where it could not be tried.
        said: what was seen.
    """

    part: str
    name: str
    passed: bool | None
    said: str
    seconds: float = 0.0


@dataclass
class Sheet:
    """Everything that was tried on one host."""

    about: dict[str, Any]
    checks: list[Check] = field(default_factory=list)

    def add(
        self, part: str, name: str, passed: bool | None, said: str, seconds: float = 0.0
    ) -> Check:
        """Note one check."""
        self.checks.append(Check(part, name, passed, " ".join(said.split()), round(seconds, 2)))
        return self.checks[-1]

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and something was tried."""
        tried = [check.passed for check in self.checks if check.passed is not None]
        return bool(tried) and all(tried)

    @property
    def kvm(self) -> bool | None:
        """Whether KVM runs the guest kernel; None where that was not asked."""
        asked = [check.passed for check in self.checks if check.part == "kvm"]
        return all(asked) if asked else None

    def verdict(self) -> str:
        """One sentence for the end."""
        failed = [check for check in self.checks if check.passed is False]
        if self.passed:
            return "Everything that was tried passed."
        others = [check for check in failed if check.part != "kvm"]
        if self.kvm is False and not others:
            return (
                "KVM does not run guests here, so figures of virtual machines describe an "
                "emulator. Everything else passed, with the VM under TCG."
            )
        return f"{len(failed)} of {len(self.checks)} checks failed."

    def text(self) -> str:
        """For people."""
        lines = [f"hvct {self.about['hvct_version']} on {self.about['summary']}", ""]
        for check in self.checks:
            # Before it is wrapped: a private path may hold spaces.
            lines += line(replace(check, said=redact(check.said)))
        return redact("\n".join([*lines, "", *textwrap.wrap(self.verdict(), WIDTH), ""]))

    def document(self) -> dict[str, Any]:
        """For programs."""
        made = {
            **self.about,
            "passed": self.passed,
            "kvm": self.kvm,
            "verdict": self.verdict(),
            "checks": [asdict(check) for check in self.checks],
        }
        found: dict[str, Any] = _values(json.loads(json.dumps(made, default=str)))
        return found


def line(check: Check) -> list[str]:
    """A check as it is printed: state, name, and what was seen, hanging."""
    head = f"{STATES[check.passed]:9} {check.part} · {check.name}"
    body = textwrap.wrap(check.said, WIDTH - 10, break_on_hyphens=False)
    return [head, *(f"{'':10}{part}" for part in body)]


def redact(text: str) -> str:
    """Without what names this host, its user, or the folders they work in."""
    for private, name in _private().items():
        text = re.sub(rf"(?<![\w.-]){re.escape(private)}(?![\w-])", name, text)
    return text


def _values(found: Any) -> Any:
    """The same for every text in a document; keys are ours."""
    if isinstance(found, dict):
        return {key: _values(value) for key, value in found.items()}
    if isinstance(found, list):
        return [_values(value) for value in found]
    return redact(found) if isinstance(found, str) else found


def _private() -> dict[str, str]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    found = {os.getcwd(): "<here>", str(Path.home()): "<home>", platform.node(): "<host>",
             user: "<user>", os.environ.get("SUDO_USER", ""): "<user>"}  # fmt: skip
    longest_first = sorted(found.items(), key=lambda item: -len(item[0]))
    return {private: name for private, name in longest_first if private.lower() not in COMMON}


def judge(recovery: Recovery) -> tuple[bool, str]:
    """Whether an injected effect was found again: by the rule of the gate in `bench.spikein`."""
    least = 0.75 * recovery.control.blocks  # on a busy host a window may have to be left out
    good = recovery.sound and recovery.comparison.n_pairs >= least
    if recovery.injection.sharp:
        good = good and recovery.detected and recovery.bounded
    return good, recovery.line()
