"""A container's link to the run's bridge: one rtnetlink message, sent by the launcher.

It is put together here (rtnetlink(7), linux/if_link.h): pyroute2 takes half a millisecond of the
start for the same bytes, as a test checks. The launcher sends it, because the peer's namespace
exists only inside the launch: going back to Python for it would cost two more switches, and 1.7 ms
instead of 0.4. Nobody deletes the pair: it goes with the namespace.
"""

from __future__ import annotations

import socket
import struct

from bench.errors import LaunchFailed
from bench.model import Address, InstanceSpec, NetworkMode
from ct import steps
from ct.steps import Steps

NETNS_FD = 4  # ct/launcher/steps.c puts the instance's namespace there for this message
INTERFACE = "eth0"


def _index(bridge: str) -> int:
    try:
        return socket.if_nametoindex(bridge)
    except OSError as error:
        raise LaunchFailed(f"the bridge {bridge} is not there", "run ./hvct clean") from error


RTM_NEWLINK = 16
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 1, 4, 0x200, 0x400
IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_NET_NS_FD = 1, 3, 10, 18, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
_NLMSGHDR = struct.Struct("=LHHLL")
_IFINFOMSG = struct.Struct("=BxHiLL")


def _attribute(kind: int, payload: bytes) -> bytes:
    """A struct nlattr with its payload, padded to four bytes."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def link_message(address: Address) -> bytes:
    """RTM_NEWLINK for a veth pair: the host's end up in the bridge, ``eth0`` inside."""
    # The peer must not be up yet (ENOTCONN): it is brought up from inside.
    peer = (
        _IFINFOMSG.pack(0, 0, 0, 0, 0)
        + _attribute(IFLA_IFNAME, INTERFACE.encode() + b"\0")
        + _attribute(IFLA_ADDRESS, bytes.fromhex(address.mac.replace(":", "")))
        + _attribute(IFLA_NET_NS_FD, struct.pack("=L", NETNS_FD))
    )
    info = _attribute(IFLA_INFO_KIND, b"veth\0") + _attribute(
        IFLA_INFO_DATA, _attribute(VETH_INFO_PEER, peer)
    )
    body = (
        _IFINFOMSG.pack(0, 0, 0, IFF_UP, IFF_UP)
        + _attribute(IFLA_IFNAME, address.link.encode() + b"\0")
        + _attribute(IFLA_MASTER, struct.pack("=L", _index(address.bridge)))
        + _attribute(IFLA_LINKINFO, info)
    )
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE
    return _NLMSGHDR.pack(_NLMSGHDR.size + len(body), RTM_NEWLINK, flags, 1, 0) + body


LOOPBACK = Steps([steps.loopback()])


def link_steps(spec: InstanceSpec) -> Steps:
    """Make the pair; before anything else, while the host's /proc is still in sight."""
    if spec.network is not NetworkMode.BRIDGE or spec.address is None:
        return steps.NOTHING
    return Steps([steps.link(link_message(spec.address))])


def interface_steps(spec: InstanceSpec) -> Steps:
    """Give the interface inside its address and a permanent entry for the host, and bring it up."""
    if spec.network is not NetworkMode.BRIDGE or spec.address is None:
        return steps.NOTHING
    return Steps(
        (
            steps.interface(INTERFACE, spec.address),
            steps.neighbour(INTERFACE, spec.address),
        )
    )
