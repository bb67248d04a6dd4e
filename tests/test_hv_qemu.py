"""The same guest by QEMU alone, by libvirt as it is, and by a daemon: the same work."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest

from bench.context import RunContext
from bench.errors import HvctError, LaunchFailed
from bench.identity import FieldClass, differences
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec, NetworkMode
from hv.backend import VmBackend
from hv.daemon import DaemonBackend
from hv.domain import Disk, DomainPlan, domain_xml
from hv.qemu import QemuBackend, qemu_argv

LIMIT_NS = 90_000_000_000
PLAN = DomainPlan(
    name="hvct-x",
    kind="tcg",
    memory_bytes=(128 << 20) + 1,
    vcpus=2,
    emulator=Path("/a/qemu"),
    kernel=Path("/k"),
    initramfs=Path("/i"),
    channel=Path("/run/a,b.sock"),
    console=Path("/c"),
    disks=(Disk("vda", Path("/image")), Disk("vdb", Path("/scratch"), False, "none")),
)


def test_the_command_line_has_the_domains_devices() -> None:
    """Every device of the domain's XML, at the same address of the root bus; commas survive."""
    argv = qemu_argv(PLAN)
    root = ET.fromstring(domain_xml(PLAN))
    slots = {int(place.get("slot", "0"), 16) for place in root.iter("address")}
    placed = [word for word in argv if "bus=pcie.0" in word]
    assert {int(word.split("addr=")[1].split(",")[0], 16) for word in placed} == slots
    assert len(placed) == len(slots)
    assert any("path=/run/a,,b.sock" in word for word in argv)
    assert argv[argv.index("-append") + 1] == root.findtext("os/cmdline")
    assert argv[argv.index("-m") + 1] == "129"
    assert sum("cache.direct=on" in word for word in argv) == 2  # file and format of /scratch


def test_stock_keeps_what_we_take_away() -> None:
    """The CPU checks stay in a stock domain, and only there are they removed otherwise."""
    assert "cpu-unavailable-features" in domain_xml(PLAN)
    assert "cpu-unavailable-features" not in domain_xml(dataclasses.replace(PLAN, trimmed=False))


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run with a bridge."""
    with faults.nothing_left(), open_run(tmp_path_factory.mktemp("a run"), network=True) as run:
        yield run


def spec(context: RunContext, image: Image, number: int, *argv: str) -> InstanceSpec:
    """A guest on the bridge."""
    assert context.network is not None
    return InstanceSpec(
        context.instance(number),
        image,
        argv,
        env=(("PATH", "/bin:/sbin"),),
        network=NetworkMode.BRIDGE,
        address=context.network.address(number),
    )


def host_network() -> list[str]:
    """Links that no run of ours has made, and firewall rules, without what counts packets."""
    own = re.compile(r"(hvct)?r[0-9a-f]{4}\b|veth")
    said = [name for name in os.listdir("/sys/class/net") if not own.match(name)]
    for program in ("iptables-save", "ip6tables-save"):
        if shutil.which(program):
            lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout
            said += [line.partition(" [")[0] for line in lines.splitlines() if line[0] != "#"]
    return said


@pytest.mark.root
@pytest.mark.vm
def test_the_same_guest_four_ways(context: RunContext, busybox: Image) -> None:
    """Output, status, receipt and marks by libvirt, untrimmed, by a libvirtd, and by QEMU alone.

    The host's own links and firewall stay as they are.
    """
    backends = (
        VmBackend(context),
        VmBackend(context, stock=True),
        DaemonBackend(context),
        QemuBackend(context),
    )
    receipts = []
    before = host_network()
    for number, backend in enumerate(backends, 1):
        with backend:
            found = backend.probe()
            if not found.usable:
                pytest.skip(f"{found.reason}; {found.remedy}")
            script = "cat /sys/class/net/eth0/address; df -k / | tail -n 1; echo e >&2; exit 7"
            made = spec(context, busybox, number, "sh", "-c", script)
            assert made.address is not None
            with backend.launch(made) as instance:
                assert instance.wait(Event.EXITED, time.monotonic_ns() + LIMIT_NS)
                instance.synchronise()
                assert made.address.mac.encode() in instance.stdout
                assert instance.stderr == b"e\n"
                assert instance.exit is not None and instance.exit.code == 7
                marks = list(instance.timeline.seconds())
                receipts.append(dict(instance.receipt))
                assert host_network() == before
                usage = instance.memory()
                assert usage is not None and (usage.anon_bytes or 0) > 32 << 20
                final = instance.release()
            expected = ["requested", "accepted", "spawned", "kernel", "init", "started", "exited"]
            assert [name for name in marks if name in expected] == expected
            assert final["cgroup_cpu_s"] > 0.1
            # Of a daemon's child nobody can tell it.
            assert final.get("rusage_user_s", 0.0) > 0.1 or isinstance(backend, DaemonBackend)
    for other in receipts[1:]:
        pair = ("qemu", "vm")
        broken = [
            difference
            for difference in differences(other, receipts[0], pair, "")
            if difference.field_class is FieldClass.MUST_MATCH
        ]
        assert broken == []


@pytest.mark.root
@pytest.mark.vm
def test_a_qemu_that_does_not_start(context: RunContext, busybox: Image) -> None:
    """What QEMU itself said is in the error, in one line; the next one starts."""
    with QemuBackend(context) as backend:
        try:
            backend.prepare(spec(context, busybox, 10, "true"))
        except HvctError as error:
            pytest.skip(error.message)
        gone = dataclasses.replace(busybox, path=Path("/nonexistent"))
        with (
            backend.launch(spec(context, gone, 11, "true")) as instance,
            pytest.raises(LaunchFailed, match="nonexistent"),
        ):
            instance.wait(Event.STARTED, time.monotonic_ns() + LIMIT_NS)
