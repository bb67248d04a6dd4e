"""A VM's link to the run's bridge: a tap that QEMU opens by name, made on the kept socket."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from bench.errors import HvctError, LaunchFailed
from bench.model import Address, InstanceSpec, NetworkMode
from bench.network import RunNetwork
from hv.domain import Nic


def nic(spec: InstanceSpec) -> Nic | None:
    """The guest's card, None for a guest with loopback only."""
    if spec.network is not NetworkMode.BRIDGE or spec.address is None:
        return None
    return Nic(spec.address.link, spec.address.mac)


def guest_keys(spec: InstanceSpec, *, mac: bool = False) -> list[tuple[str, str]]:
    """What the agent is told: its address, and the host's as a permanent neighbour.

    Args:
        mac: the card's too: a restored guest's still has another.
    """
    address = spec.address
    if spec.network is not NetworkMode.BRIDGE or address is None:
        return []
    own = [("guest.mac", address.mac)] if mac else []
    return [
        *own,
        ("guest.address", f"{address.ip}/{address.prefix}"),
        ("guest.neighbour", f"{address.host_ip} {address.host_mac}"),
    ]


def add_tap(network: RunNetwork, address: Address) -> None:
    """Make the tap, up and in the bridge, and tell the host where the guest is.

    Raises:
        LaunchFailed: the kernel refused; nothing is left then.
    """
    from pyroute2 import NetlinkError

    try:
        network.ipr.link("add", ifname=address.link, kind="tuntap", mode="tap")
        index = socket.if_nametoindex(address.link)
        bridge = socket.if_nametoindex(address.bridge)
        network.ipr.link("set", index=index, master=bridge, state="up")
        network.add_neighbour(address)
    except (NetlinkError, OSError) as error:
        with contextlib.suppress(HvctError):
            remove_tap(network, address)
        raise LaunchFailed(
            f"the tap {address.link} cannot be made: {error}",
            "it needs root and /dev/net/tun (modprobe tun)",
        ) from error


def remove_tap(network: RunNetwork, address: Address) -> None:
    """Remove the tap and the host's neighbour entry; fine when they are gone."""
    from pyroute2 import NetlinkError

    network.remove_neighbour(address)
    with contextlib.suppress(NetlinkError, OSError):
        network.ipr.link("del", index=socket.if_nametoindex(address.link))


@contextlib.contextmanager
def tap(network: RunNetwork | None, spec: InstanceSpec) -> Iterator[None]:
    """The tap of an instance for as long as the context is open; nothing where it has none."""
    if nic(spec) is None or spec.address is None:
        yield
        return
    if network is None:
        raise LaunchFailed("the instance has an address but the run has no bridge")
    add_tap(network, spec.address)
    try:
        yield
    finally:
        remove_tap(network, spec.address)
