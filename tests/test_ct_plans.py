"""What the launcher is told, as values; and that it refuses what makes no sense."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from bench.agent.confinement import CAPABILITY_MASK
from bench.agent.seccomp import NAMESPACE_FLAGS, seccomp_program
from bench.context import RunContext
from bench.errors import Refused
from bench.model import Address, Image, InstanceSpec, Limits, NetworkMode, Security
from ct import network, steps
from ct.backend import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, ContainerBackend
from ct.process import ProcessBackend
from ct.rootfs import Lower

LOWER = Lower("image-x", "file", True)
ADDRESS = Address("lo", "10.9.8.7", 24, "02:00:00:00:00:07", "10.9.8.1", "02:00:00:00:00:01", "t-7")


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    """A run that never starts anything."""
    return RunContext(tag="plan0", runtime_dir=tmp_path, log_dir=tmp_path)


def spec_of(busybox: Image, **changes: object) -> InstanceSpec:
    """An instance of the tiny image."""
    return InstanceSpec("plan0-0001", busybox, ("true",), **changes)  # type: ignore[arg-type]


def names(plan: tuple[steps.Step, ...]) -> list[str]:
    """What is done, in order."""
    return [step.do for step in plan]


def test_confinement_comes_last(context: RunContext, busybox: Image) -> None:
    """Rights are dropped after all that needs them, the filter after everything."""
    plan = names(ContainerBackend(context).plan(spec_of(busybox), LOWER).steps)
    assert plan[-4:] == ["detach", "capabilities", "no_new_privs", "seccomp"]
    assert plan.index("pivot") < plan.index("write") < plan.index("detach")


def test_same_security_leaves_confinement_to_the_agent(context: RunContext, busybox: Image) -> None:
    """Under security = same it is the agent that drops rights, in every arm alike."""
    spec = spec_of(busybox, security=Security.SAME)
    plan = names(ContainerBackend(context).plan(spec, LOWER).steps)
    assert plan[-1] == "detach"


def test_namespaces_follow_the_specification(context: RunContext, busybox: Image) -> None:
    """Host networking shares the network namespace; a process has a mount namespace only."""
    container = ContainerBackend(context)
    assert container.plan(spec_of(busybox), LOWER).flags & CLONE_NEWNET
    host = spec_of(busybox, network=NetworkMode.HOST)
    assert not container.plan(host, LOWER).flags & CLONE_NEWNET
    user = ContainerBackend(context, user=True).plan(spec_of(busybox), LOWER)
    assert user.flags & CLONE_NEWUSER and user.user_map
    assert ProcessBackend(context).plan(spec_of(busybox), LOWER).flags == CLONE_NEWNS
    assert container.plan(spec_of(busybox), LOWER).flags & CLONE_NEWPID


def test_process_and_container_have_the_same_root(context: RunContext, busybox: Image) -> None:
    """The writable layer and its limits are the same steps in both arms."""
    spec = spec_of(busybox, limits=Limits(writable_bytes=7 << 20, writable_inodes=99))
    one = ContainerBackend(context).plan(spec, LOWER).steps
    two = ProcessBackend(context).plan(spec, LOWER).steps
    root = [step for step in one if any("scratch" in word for word in step.arguments)]
    assert root == [step for step in two if any("scratch" in word for word in step.arguments)]
    assert "size=7340032,nr_inodes=99" in root[0].describe()


def test_what_an_arm_cannot_do_is_refused(context: RunContext, busybox: Image) -> None:
    """A user namespace with a scratch disk, or on the host's network: refused with a reason."""
    with pytest.raises(Refused):
        limits = Limits(scratch_bytes=64 << 20)
        ContainerBackend(context, user=True).check(spec_of(busybox, limits=limits))
    with pytest.raises(Refused) as caught:
        ContainerBackend(context, user=True).check(spec_of(busybox, network=NetworkMode.HOST))
    assert caught.value.hint


def test_link_message_says_one_thing(busybox: Image) -> None:
    """One RTM_NEWLINK, which pyroute2 reads as a pair: up in the bridge, down in the namespace."""
    message = network.link_message(ADDRESS)
    length, kind = struct.unpack_from("<IH", message)
    assert (length, kind) == (len(message), 16)
    for part in (b"t-7\0", b"eth0\0", b"veth", bytes.fromhex("020000000007")):
        assert part in message
    read = ifinfmsg(message)
    read.decode()
    assert read.get_attr("IFLA_IFNAME") == "t-7" and read.get_attr("IFLA_MASTER") == 1
    pair = read.get_attr("IFLA_LINKINFO")
    assert pair.get_attr("IFLA_INFO_KIND") == "veth"
    peer = pair.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert (peer["flags"], peer.get_attr("IFLA_IFNAME")) == (0, "eth0")
    assert peer.get_attr("IFLA_ADDRESS") == ADDRESS.mac
    assert peer.get_attr("IFLA_NET_NS_FD") == network.NETNS_FD
    inside = network.interface_steps(spec_of(busybox, network=NetworkMode.BRIDGE, address=ADDRESS))
    assert [step.arguments for step in inside] == [
        ("eth0", "10.9.8.7", "255.255.255.0"),
        ("eth0", "10.9.8.1", "020000000001"),
    ]


def test_filter_is_small_and_built_once() -> None:
    """A valid BPF length, the same object each time, and no namespace flag forgotten."""
    program = seccomp_program()
    assert len(program) % 8 == 0 and 40 < len(program) // 8 < 400
    assert seccomp_program() is program
    assert NAMESPACE_FLAGS == 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | (7 << 28)


def test_capabilities_are_the_usual_ones_without_mknod() -> None:
    """Docker's default set less MKNOD: there is no device control group behind it."""
    assert CAPABILITY_MASK == 0xA80425FB & ~(1 << 27)


def test_a_step_describes_itself_on_one_line() -> None:
    """Error texts name the step with its arguments, cut where they are long."""
    text = steps.write("/etc/hosts", "a\nb" + "c" * 200).describe()
    assert "\n" not in text and len(text) < 100
