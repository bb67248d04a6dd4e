"""The only importer of hv, ct and peers: turns an arm's name into a backend, lazily."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.arms import Arm
from bench.backend import Backend
from bench.context import RunContext


def _vm(context: RunContext, options: dict[str, Any]) -> Backend:
    from hv.backend import VmBackend

    if options.pop("daemon", False):
        from hv.daemon import DaemonBackend

        return DaemonBackend(context, **options)
    if options.pop("distro", False):
        from hv.distro import DistroBackend

        return DistroBackend(context, **options)
    if options.pop("restore", False):
        from hv.restore import RestoreBackend

        return RestoreBackend(context, **options)
    return VmBackend(context, **options)


def _qemu(context: RunContext, options: dict[str, Any]) -> Backend:
    from hv.qemu import QemuBackend

    return QemuBackend(context, **options)


def _container(context: RunContext, options: dict[str, Any]) -> Backend:
    from ct.backend import ContainerBackend
    from ct.pooled import PooledBackend
    from ct.rootless import RootlessBackend
    from ct.slots import SlotBackend

    if options.pop("rootless", False):
        return RootlessBackend(context, **options)
    if options.pop("slot", False):
        return SlotBackend(context, **options)
    if options.pop("pooled", False):
        return PooledBackend(context, **options)
    return ContainerBackend(context, **options)


def _process(context: RunContext, options: dict[str, Any]) -> Backend:
    from ct.process import ProcessBackend

    return ProcessBackend(context, **options)


def _runc(context: RunContext, options: dict[str, Any]) -> Backend:
    from bench.peers.oci import RuncBackend

    return RuncBackend(context, **options)


def _crun(context: RunContext, options: dict[str, Any]) -> Backend:
    from bench.peers.oci import CrunBackend

    return CrunBackend(context, **options)


def _bwrap(context: RunContext, options: dict[str, Any]) -> Backend:
    from bench.peers.bubblewrap import BubblewrapBackend

    return BubblewrapBackend(context, **options)


def _unshare(context: RunContext, options: dict[str, Any]) -> Backend:
    from bench.peers.unshare import UnshareBackend

    return UnshareBackend(context, **options)


def _nspawn(context: RunContext, options: dict[str, Any]) -> Backend:
    from bench.peers.nspawn import NspawnBackend

    return NspawnBackend(context, **options)


def _docker(context: RunContext, options: dict[str, Any]) -> Backend:
    from bench.peers.docker import DockerBackend

    return DockerBackend(context, **options)


def _podman(context: RunContext, options: dict[str, Any]) -> Backend:
    from bench.peers.podman import PodmanBackend

    return PodmanBackend(context, **options)


BACKENDS: dict[str, Callable[[RunContext, dict[str, Any]], Backend]] = {
    "vm": _vm,
    "qemu": _qemu,
    "container": _container,
    "process": _process,
    "runc": _runc,
    "crun": _crun,
    "bwrap": _bwrap,
    "unshare": _unshare,
    "nspawn": _nspawn,
    "docker": _docker,
    "podman": _podman,
}


def make(arm: Arm, context: RunContext) -> Backend:
    """The backend of an arm, not yet entered. Imports what it needs only now."""
    return BACKENDS[arm.backend](context, dict(arm.options))
