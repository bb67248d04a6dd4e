"""The run's bridge: one subnet that nobody else uses, and nothing left of it."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from bench import network
from bench.errors import BadInput, HostCannot
from bench.network import RunNetwork

TAG = f"n{os.getpid() % 10000:04d}"


def nets(*names: str) -> list[ipaddress.IPv4Network]:
    """Networks by their text."""
    return [ipaddress.IPv4Network(name) for name in names]


def test_a_subnet_overlaps_no_route() -> None:
    """The first choice gives way to a route, however small or large it is."""
    first = network.choose_subnet("r0001", [])
    assert first.subnet_of(ipaddress.IPv4Network("10.0.0.0/8")) and first.prefixlen == 24
    for taken in (first, first.supernet(new_prefix=16), nets(f"{first[77]}/32")[0]):
        assert not network.choose_subnet("r0001", [taken]).overlaps(taken)


def test_a_vpn_over_all_of_ten_is_evaded() -> None:
    """Where 10.0.0.0/8 is routed as a whole, the benchmarking range is used."""
    chosen = network.choose_subnet("r0001", nets("10.0.0.0/8"))
    assert chosen.subnet_of(ipaddress.IPv4Network("198.18.0.0/15"))


def test_no_room_is_said_with_a_remedy() -> None:
    """A host that routes both pools cannot have a bridge of ours."""
    with pytest.raises(HostCannot) as caught:
        network.choose_subnet("r0001", nets("10.0.0.0/8", "198.18.0.0/15"))
    assert caught.value.hint


def test_hardware_addresses_are_local_unicast_and_distinct() -> None:
    """Every instance has its own address, from its number alone."""
    seen = {network.mac("r0001", number) for number in range(1000)}
    assert len(seen) == 1000
    assert all(int(address[:2], 16) & 3 == 2 for address in seen)
    assert network.mac("r0001", 5) == network.mac("r0001", 5) != network.mac("r0002", 5)


@pytest.mark.root
def test_bridge_is_up_without_delays_and_goes_with_the_context() -> None:
    """STP off, no forwarding delay, no IPv6, no forwarding; gone afterwards."""
    with RunNetwork(TAG) as net:
        base = Path("/sys/class/net", net.bridge)
        assert (base / "bridge/stp_state").read_text() == "0\n"
        assert (base / "bridge/forward_delay").read_text() == "0\n"
        assert (base / "address").read_text().strip() == net.host_mac
        assert Path(f"/proc/sys/net/ipv4/conf/{net.bridge}/forwarding").read_text() == "0\n"
        six = Path(f"/proc/sys/net/ipv6/conf/{net.bridge}/disable_ipv6")
        assert not six.exists() or six.read_text() == "1\n"
        assert _holds(net.host_ip)
    assert not network.link_exists(net.bridge)
    assert network.links_of(TAG) == []


def _holds(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True


@pytest.mark.root
def test_two_runs_get_two_subnets() -> None:
    """A second run on the same host does not answer for the first one's addresses."""
    with RunNetwork(TAG) as one, RunNetwork(f"{TAG}x") as two:
        assert not one.subnet.overlaps(two.subnet)
        assert one.bridge != two.bridge


@pytest.mark.root
def test_addresses_follow_from_the_number() -> None:
    """Names fit into 15 characters, the IP is in the subnet, and 253 may live at once."""
    with RunNetwork(TAG) as net:
        addresses = [net.address(number) for number in range(253)]
        assert len({a.ip for a in addresses}) == 253
        assert net.host_ip not in {a.ip for a in addresses}
        assert all(ipaddress.IPv4Address(a.ip) in net.subnet for a in addresses)
        assert net.address(253).ip == net.address(0).ip
        assert net.address(253).mac != net.address(0).mac
        assert len(net.address(999_999_999).link) == 15
        with pytest.raises(BadInput):
            net.address(-1)
        with pytest.raises(BadInput):
            net.address(10**9)


@pytest.mark.root
def test_a_neighbour_is_permanent_and_can_be_replaced() -> None:
    """The host never asks by ARP for an instance; the next holder of an IP takes it over."""
    with RunNetwork(TAG) as net:
        first, next_one = net.address(3), net.address(3 + 253)
        net.add_neighbour(first)
        net.add_neighbour(next_one)
        table = Path("/proc/net/arp").read_text()
        line = next(line for line in table.splitlines() if line.split()[0] == first.ip)
        assert line.split()[2:4] == ["0x6", next_one.mac]  # complete and permanent
        net.remove_neighbour(next_one)
        net.remove_neighbour(next_one)
        assert first.ip not in Path("/proc/net/arp").read_text()


@pytest.mark.root
def test_a_vanishing_link_is_awaited() -> None:
    """`network_released` is when the kernel has dropped the link, or False at the deadline."""
    with RunNetwork(TAG) as net:
        link = net.address(1).link
        _veth(link)
        assert net.link_exists(link)
        assert not net.wait_link_gone(link, time.monotonic_ns() + 5_000_000)
        subprocess.run(["ip", "link", "del", link], check=True)
        assert net.wait_link_gone(link, time.monotonic_ns() + 5_000_000_000)


@pytest.mark.root
def test_links_of_instances_go_with_the_run() -> None:
    """A link that an instance left is deleted with the bridge; a foreign one is not."""
    foreign = f"{TAG}q-1"
    with RunNetwork(TAG) as net:
        _veth(net.address(1).link)
        _veth(foreign)
    try:
        assert network.links_of(TAG) == []
        assert network.link_exists(foreign)
    finally:
        network.delete_links(f"{TAG}q")
    assert not network.link_exists(foreign)


def _veth(name: str) -> None:
    argv = ["ip", "link", "add", name, "type", "veth", "peer", "name", f"p{name}"[:15]]
    subprocess.run(argv, check=True)


@pytest.mark.root
def test_a_frame_crosses_the_bridge_at_once() -> None:
    """A namespace on the bridge answers the first connection: no listening delay, no ARP."""
    with RunNetwork(TAG) as net:
        place = net.address(9)
        holder = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", "echo up; cat; exec python3 -c \"import socket;"
             f"s=socket.create_server(('{place.ip}', 9));print('on',flush=True);s.accept()\""],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert holder.stdin and holder.stdout
            holder.stdout.readline()
            net.ipr.link("add", ifname=place.link, kind="veth", master=net.index, state="up",
                         peer={"ifname": "eth0", "net_ns_pid": holder.pid,
                               "address": place.mac})  # fmt: skip
            inside = f"ip addr add {place.ip}/24 dev eth0 && ip link set eth0 up"
            subprocess.run(["nsenter", "-n", "-t", str(holder.pid), "sh", "-c", inside], check=True)
            net.add_neighbour(place)
            holder.stdin.close()
            assert holder.stdout.readline() == b"on\n"
            with socket.create_connection((place.ip, 9), timeout=5):
                pass
        finally:
            holder.kill()
            holder.wait()
            if holder.stdout:
                holder.stdout.close()
        assert net.wait_link_gone(place.link, time.monotonic_ns() + 5_000_000_000)
