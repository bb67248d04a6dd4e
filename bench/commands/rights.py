"""Who may do what: the one place that asks for root."""

from __future__ import annotations

import os

from bench.errors import HostCannot


def need_root() -> None:
    """Namespaces, cgroups and the bridge need root.

    Raises:
        HostCannot: we are somebody else.
    """
    if os.geteuid() != 0:
        raise HostCannot("measuring needs root (namespaces, cgroups, a bridge)", "run it with sudo")
