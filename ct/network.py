"""A container's link to the run's bridge: one rtnetlink message, sent by the launcher.

pyroute2 puts the message together (0.2 ms). The launcher sends it, because the peer's
namespace exists only inside the launch: going back to Python for it would cost two more
switches, and 1.7 ms instead of 0.4. Nobody deletes the pair: it goes with the namespace.
"""

from __future__ import annotations

import socket

from bench.errors import LaunchFailed
from bench.model import Address, InstanceSpec, NetworkMode
from ct import steps
from ct.steps import Step

NETNS_FD = 4  # ct/launcher.c puts the instance's namespace there for this message
INTERFACE = "eth0"


def _index(bridge: str) -> int:
    try:
        return socket.if_nametoindex(bridge)
    except OSError as error:
        raise LaunchFailed(f"the bridge {bridge} is not there", "run ./hvct clean") from error


def link_message(address: Address) -> bytes:
    """RTM_NEWLINK for a veth pair: the host's end up in the bridge, ``eth0`` inside."""
    from pyroute2.netlink.rtnl import RTM_NEWLINK
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    request, acknowledge, exclusive, create, up = 1, 4, 0x200, 0x400, 1
    message = ifinfmsg()
    message["header"] = {
        "type": RTM_NEWLINK,
        "flags": request | acknowledge | exclusive | create,
        "sequence_number": 1,
        "pid": 0,
    }
    message["flags"] = message["change"] = up
    # The peer must not be up yet (ENOTCONN): it is brought up from inside.
    peer = [
        ("IFLA_IFNAME", INTERFACE),
        ("IFLA_ADDRESS", address.mac),
        ("IFLA_NET_NS_FD", NETNS_FD),
    ]
    data = {"attrs": [("VETH_INFO_PEER", {"attrs": peer})]}
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}
    message["attrs"] = [
        ("IFLA_IFNAME", address.link),
        ("IFLA_MASTER", _index(address.bridge)),
        ("IFLA_LINKINFO", info),
    ]
    message.encode()
    return bytes(message.data)


def link_steps(spec: InstanceSpec) -> tuple[Step, ...]:
    """Make the pair; before anything else, while the host's /proc is still in sight."""
    if spec.network is not NetworkMode.BRIDGE or spec.address is None:
        return ()
    return (steps.link(link_message(spec.address)),)


def interface_steps(spec: InstanceSpec) -> tuple[Step, ...]:
    """Bring up what is inside, with address and a permanent entry for the host."""
    if spec.network is NetworkMode.HOST:
        return ()
    if spec.network is NetworkMode.NONE or spec.address is None:
        return (steps.loopback(),)
    return (
        steps.loopback(),
        steps.interface(INTERFACE, spec.address),
        steps.neighbour(INTERFACE, spec.address),
    )
