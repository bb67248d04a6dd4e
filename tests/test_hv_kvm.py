"""libvirt's ``type='kvm'`` path, on any host whose /dev/kvm runs at least a light payload.

The payload does what even an emulated KVM can (long mode, a loop, a reset); the domain,
the worker and the reaping are those of every virtual machine.
"""

from __future__ import annotations

import dataclasses
import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.context import RunContext
from bench.errors import HvctError
from bench.journal import open_run
from hv.connection import Connection
from hv.domain import DomainPlan, domain_xml
from hv.emulator import emulator
from hv.probe import DOUBTFUL_FEATURES, payload

pytestmark = [pytest.mark.root, pytest.mark.vm]
LIMIT_NS = 20_000_000_000


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A worker, where there is a /dev/kvm that can be opened."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"/dev/kvm: {error.strerror}")
    try:
        qemu = emulator()
    except HvctError as error:
        pytest.skip(error.message)
    with open_run(tmp_path_factory.mktemp("run")) as context, Connection(context, qemu) as opened:
        yield opened


def light_plan(context: RunContext, qemu: Path) -> DomainPlan:
    """A domain whose kernel is the light payload."""
    return DomainPlan(
        name=f"hvct-{context.tag}-light",
        kind="kvm",
        memory_bytes=64 << 20,
        vcpus=1,
        emulator=qemu,
        kernel=payload(light=True),
        initramfs=Path("/"),
        channel=context.runtime_dir / "light.sock",
        console=context.runtime_dir / "light.console",
        disabled_features=DOUBTFUL_FEATURES,
    )


def with_debug_console(xml: str, path: Path) -> str:
    """The domain without an initramfs, and with the port that the payload speaks on."""
    domain = ET.fromstring(xml)
    boot, devices = domain.find("os"), domain.find("devices")
    assert boot is not None and devices is not None
    for name in ("initrd", "cmdline"):
        found = boot.find(name)
        assert found is not None
        boot.remove(found)
    port = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(port, "source", path=str(path))
    target = ET.SubElement(port, "target", type="isa-debug", port="1")
    ET.SubElement(target, "model", name="isa-debugcon")
    ET.SubElement(port, "address", type="isa", iobase="0xe9")
    return ET.tostring(domain, encoding="unicode")


def test_a_kvm_domain_runs_and_ends(connection: Connection) -> None:
    """libvirt starts it under KVM, it runs in long mode, its reset ends it, and we reap it."""
    context = connection.context
    plan = light_plan(context, connection.emulator.wrapper)
    said = context.runtime_dir / "light.debug"
    xml = with_debug_console(domain_xml(plan), said)
    link = connection.start(plan.name, xml, plan.channel)
    try:
        deadline_ns = time.monotonic_ns() + LIMIT_NS
        assert link.await_that(lambda: bool(link.resumed_ns or link.failure), deadline_ns)
        assert not link.failure, link.failure
        argv = Path(f"/proc/{link.pid}/cmdline").read_bytes().split(b"\0")
        assert b"kvm" in argv[argv.index(b"-accel") + 1]
        assert link.await_that(lambda: link.ended_ns is not None, deadline_ns)
        assert said.read_text() == "AB01234"
        assert link.status is not None and link.usage["user_s"] + link.usage["system_s"] > 0
        assert link.await_that(lambda: link.forgotten, deadline_ns)
    finally:
        link.kill()
        link.close()


def test_a_domain_that_cannot_start_says_why(connection: Connection) -> None:
    """QEMU's own words about a wrong plan arrive, and nothing is left waiting."""
    plan = light_plan(connection.context, connection.emulator.wrapper)
    plan = dataclasses.replace(plan, name=f"{plan.name}-2", kernel=Path("/nonexistent/kernel"))
    link = connection.start(plan.name, domain_xml(plan), plan.channel)
    try:
        deadline_ns = time.monotonic_ns() + LIMIT_NS
        assert link.await_that(lambda: link.forgotten, deadline_ns)
        assert "/nonexistent/kernel" in link.failure
    finally:
        link.close()
