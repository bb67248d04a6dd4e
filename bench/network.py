"""The run's network: one bridge, one subnet, layer 2 only, the same for every arm.

No NAT, no forwarding, no DNS: a measured instance talks with the host and with its
neighbours on the bridge, and with nothing else. Everything is named after the run's tag,
so that `bench.cleanup` finds it by name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import ipaddress
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bench.context import runtime_root
from bench.errors import BadInput, HostCannot, HvctError
from bench.model import Address, Finding

if TYPE_CHECKING:
    from pyroute2 import IPRoute

PREFIX = 24
POOLS = (ipaddress.IPv4Network("10.0.0.0/8"), ipaddress.IPv4Network("198.18.0.0/15"))
HOSTS = 253  # .1 is the host, .2 to .254 are instances
POLL_S = 0.001  # resolution of `wait_link_gone`
NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


class RunNetwork:
    """The bridge ``hvct<tag>`` with its subnet, for as long as the context is open.

    Attributes:
        bridge: its name.
        host_ip, host_mac: the host's own address on it.
        prefix: length of the network prefix.
        ipr: the one kept netlink socket (opening one per call costs 0.5 ms).
    """

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.bridge = bridge_name(tag)
        self.prefix = PREFIX
        self.host_mac = mac(tag, 0)
        self.subnet = ipaddress.IPv4Network("0.0.0.0/32")
        self.host_ip = ""
        self.index = 0
        self.ipr: IPRoute

    def __enter__(self) -> Self:
        from pyroute2 import IPRoute, NetlinkError

        self.ipr = IPRoute()
        try:
            with _allocation():
                self.subnet = choose_subnet(self.tag, _routed(self.ipr))
                self.host_ip = str(self.subnet[1])
                self._make_bridge()
        except NetlinkError as error:
            self._leave()
            remedy = {
                errno.EPERM: "run as root",
                errno.EOPNOTSUPP: "load the kernel module: modprobe bridge",
            }.get(error.code, "run ./hvct doctor")
            raise HostCannot(f"the bridge {self.bridge} cannot be made: {error}", remedy) from error
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def _make_bridge(self) -> None:
        # A fixed address, else the bridge takes over the lowest one of its ports and the
        # instances' permanent neighbour entries point nowhere.
        self.ipr.link(
            "add",
            ifname=self.bridge,
            kind="bridge",
            address=self.host_mac,
            br_stp_state=0,
            br_forward_delay=0,
            br_mcast_snooping=0,
        )
        self.index = socket.if_nametoindex(self.bridge)
        # Before it is up: no duplicate-address detection, no router solicitations.
        _sysctl(f"net/ipv6/conf/{self.bridge}/disable_ipv6", "1")
        _sysctl(f"net/ipv4/conf/{self.bridge}/forwarding", "0")
        self.ipr.addr("add", index=self.index, address=self.host_ip, prefixlen=self.prefix)
        self.ipr.link("set", index=self.index, state="up")

    def _leave(self) -> None:
        try:
            delete_links(self.tag, self.ipr)
        finally:
            self.ipr.close()

    # -- instances -------------------------------------------------------------------

    def address(self, index: int) -> Address:
        """The place of the run's n-th instance.

        MAC and link name are unique to `index`; the IP comes round again after 253
        instances, so at most 253 may live at once.

        Raises:
            BadInput: the index is negative or too large for a link name.
        """
        link = f"{self.tag}-{index}"
        if index < 0 or len(link) > 15:
            raise BadInput(f"an instance number must be from 0 to 999999999, not {index}")
        return Address(
            bridge=self.bridge,
            ip=str(self.subnet[2 + index % HOSTS]),
            prefix=self.prefix,
            mac=mac(self.tag, index + 1),
            host_ip=self.host_ip,
            host_mac=self.host_mac,
            link=link,
        )

    def add_neighbour(self, address: Address) -> None:
        """Tell the host where the instance is, for good: ARP would cost up to 1 s."""
        self.ipr.neigh(
            "replace",
            dst=address.ip,
            lladdr=address.mac,
            ifindex=self.index,
            state=0x80,  # NUD_PERMANENT
        )

    def remove_neighbour(self, address: Address) -> None:
        """Forget it; it does not matter when it is not there."""
        from pyroute2 import NetlinkError

        with contextlib.suppress(NetlinkError):
            self.ipr.neigh("del", dst=address.ip, lladdr=address.mac, ifindex=self.index)

    def link_exists(self, name: str) -> bool:
        """True while the host has a link of this name."""
        return link_exists(name)

    def wait_link_gone(self, name: str, deadline_ns: int) -> bool:
        """Wait until the kernel has dropped a link (it does so asynchronously).

        Polls every millisecond of CLOCK_MONOTONIC; False when `deadline_ns` passed first.
        """
        while link_exists(name):
            if time.monotonic_ns() >= deadline_ns:
                return False
            time.sleep(POLL_S)
        return True


def bridge_name(tag: str) -> str:
    """The run's bridge."""
    return f"hvct{tag}"


def mac(tag: str, number: int) -> str:
    """A locally administered address: two bytes for the run, three for the instance."""
    run = hashlib.sha256(tag.encode()).digest()[:2]
    return ":".join(f"{byte:02x}" for byte in (0x02, *run, *(number % (1 << 24)).to_bytes(3)))


def choose_subnet(tag: str, taken: Iterable[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """The first free /24, from a place in the pools that depends on the tag.

    Raises:
        HostCannot: every one overlaps a route of this host.
    """
    used = list(taken)
    seed = int.from_bytes(hashlib.sha256(tag.encode()).digest()[2:6])
    for pool in POOLS:
        if any(pool.subnet_of(network) for network in used):
            continue  # a VPN that routes all of it
        count = 1 << (PREFIX - pool.prefixlen)
        for step in range(count):
            number = (seed + step) % count
            base = int(pool.network_address) + (number << (32 - PREFIX))
            candidate = ipaddress.IPv4Network((base, PREFIX))
            if not any(candidate.overlaps(network) for network in used):
                return candidate
    raise HostCannot(
        "no free /24 in 10.0.0.0/8 or 198.18.0.0/15", "remove routes that cover both of them"
    )


def link_exists(name: str) -> bool:
    """True while this network namespace has a link of this name (one ioctl)."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def links_of(tag: str) -> list[str]:
    """The links a run left on this host, its bridge last."""
    names = [name for _, name in socket.if_nameindex()]
    own = [name for name in names if name.startswith(f"{tag}-")]
    return own + [name for name in names if name == bridge_name(tag)]


def delete_links(tag: str, ipr: IPRoute | None = None) -> list[str]:
    """Delete every link of a run; returns their names."""
    from pyroute2 import IPRoute, NetlinkError

    names = links_of(tag)
    if not names:
        return []
    socket_ = ipr or IPRoute()
    try:
        for name in names:
            # A veth may vanish between listing and deleting: its namespace is dying.
            with contextlib.suppress(OSError, NetlinkError):
                socket_.link("del", index=socket.if_nametoindex(name))
    finally:
        if ipr is None:
            socket_.close()
    return names


def netfilter_finding(switch: Path = NETFILTER) -> Finding | None:
    """A warning where bridged frames pass the host's firewall (Docker's default)."""
    try:
        if switch.read_text().strip() != "1":
            return None
    except OSError:
        return None  # br_netfilter is not loaded
    policy = _forward_policy()
    if policy == "ACCEPT":
        return None
    dropped = policy == "DROP"
    return Finding(
        code="net.bridge-netfilter",
        level="problem" if dropped else "warning",
        message=f"br_netfilter is on and the FORWARD policy is {policy or 'not readable'}",
        meaning=(
            "frames between two instances are dropped; host to instance still works"
            if dropped
            else "frames between instances may be dropped, and every one passes the firewall"
        ),
        remedy="sysctl net.bridge.bridge-nf-call-iptables=0 for the time of the run",
    )


def _forward_policy() -> str:
    """The policy of the filter FORWARD chain, "" when no tool can tell."""
    for tool in ("iptables", "iptables-nft", "iptables-legacy"):
        if shutil.which(tool):
            done = subprocess.run([tool, "-S", "FORWARD"], capture_output=True, check=False)
            words = done.stdout.decode("utf-8", "replace").split()
            if words[:2] == ["-P", "FORWARD"] and len(words) > 2:
                return words[2]
    return ""


@contextlib.contextmanager
def _allocation() -> Iterator[None]:
    """One subnet at a time: a bridge that is up has its route, so routes tell all of them."""
    root = runtime_root()
    root.mkdir(parents=True, exist_ok=True)
    with (root / "network.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _routed(ipr: IPRoute) -> list[ipaddress.IPv4Network]:
    """Every destination this host has a route or an address for (not the default)."""
    found = []
    for route in ipr.get_routes(family=socket.AF_INET):
        destination = route.get_attr("RTA_DST")
        if destination:
            found.append(ipaddress.IPv4Network((destination, route["dst_len"]), strict=False))
    for address in ipr.get_addr(family=socket.AF_INET):
        local = address.get_attr("IFA_ADDRESS")
        if local:
            found.append(ipaddress.IPv4Network((local, address["prefixlen"]), strict=False))
    return found


def _sysctl(name: str, value: str) -> None:
    try:
        Path("/proc/sys", name).write_text(value)
    except FileNotFoundError:
        return  # no IPv6 in this kernel: as wanted
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise HvctError(f"sysctl {name}={value}: {reason}", "run as root") from error
