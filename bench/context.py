"""Where one run keeps its things on the host, and the names everything of it carries."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.network import RunNetwork

RUN_VARIABLE = "HVCT_RUN"
"""Environment variable that marks every helper process of a run, so that clean finds them."""


def runtime_root() -> Path:
    """Journals and sockets of live runs: ``/run/hvct`` for root, else ``$XDG_RUNTIME_DIR/hvct``."""
    if os.geteuid() == 0:
        return Path("/run/hvct")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/hvct-{os.geteuid()}") / "hvct"


@dataclass(frozen=True)
class RunContext:
    """What a backend needs to know about the run it serves.

    Attributes:
        tag: five characters, unique among live runs; every name on the host derives
            from it: cgroup ``hvct/<tag>/<instance>``, link ``<tag>-<n>``, bridge
            ``hvct<tag>``, domain ``hvct-<instance>``.
        runtime_dir: ``<runtime_root>/<tag>``, mode 0755: sockets, overlays, libvirt root.
        log_dir: where consoles and worker logs go.
        network: the run's bridge, None when no workload needs it.
        cleanup: argv that a helper process runs when the harness died.
    """

    tag: str
    runtime_dir: Path
    log_dir: Path
    network: RunNetwork | None = None
    cleanup: tuple[str, ...] = ()
    libvirt_uri: str = ""
    kernel: Path | None = None

    def instance(self, number: int) -> str:
        """The id of the run's n-th instance."""
        return f"{self.tag}-{number:04d}"
