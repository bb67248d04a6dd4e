"""What is recorded about a host, and when two recordings are of one host."""

from __future__ import annotations

import copy
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import host


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """This host's fingerprint."""
    return host.fingerprint()


def test_the_fingerprint_agrees_with_other_sources(facts: dict[str, Any]) -> None:
    """CPU count, memory and swap are what psutil says."""
    assert facts["cpu"]["count"] == psutil.cpu_count()
    assert facts["memory"]["total_bytes"] == psutil.virtual_memory().total
    assert facts["memory"]["swap_bytes"] == psutil.swap_memory().total
    assert facts["kernel"]["release"] == os.uname().release
    available = psutil.virtual_memory().available
    assert host.mem_available_bytes() == pytest.approx(available, rel=0.05)


def test_the_fingerprint_is_plain_json(facts: dict[str, Any]) -> None:
    """It is stored in run.json and read back equal."""
    assert json.loads(json.dumps(facts)) == facts


def test_the_fingerprint_names_nobody(facts: dict[str, Any]) -> None:
    """Run directories are published: no host name, home folder, user or foreign boot words."""
    text = json.dumps(facts)
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text.replace("vmscape", ""))
    assert str(Path.home()) not in text
    boot = facts["kernel"]["command_line"]
    assert "root=" not in boot and "uuid" not in boot.lower()


def test_a_host_is_itself(facts: dict[str, Any]) -> None:
    """The same host after a reboot, with another amount of free disk, is the same host."""
    later = copy.deepcopy(facts)
    later["boot_id"] = "another"
    later["cache"]["free_bytes"] = 1
    later["memory"]["total_bytes"] -= 4096
    assert host.same_host(facts, later) == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("cpu", "model", "Other CPU"),
        ("cpu", "governor", "powersave-other"),
        ("memory", "total_bytes", 1 << 30),
        ("memory", "thp", "other"),
        ("kernel", "release", "1.0"),
        ("kernel", "mitigations", {}),
        ("cgroup", "version", 9),
        ("programs", "qemu", "0.1"),
    ],
)
def test_a_difference_that_matters_is_named(
    facts: dict[str, Any], section: str, key: str, value: object
) -> None:
    """Runs are merged by host only when nothing that figures depend on has changed."""
    other = copy.deepcopy(facts)
    other[section][key] = value
    (line,) = host.same_host(facts, other)
    assert line.startswith(f"{section}.{key}: ")


def test_fingerprints_of_other_versions_compare() -> None:
    """A fact that one side does not have is a difference, not a crash."""
    assert host.same_host({}, {}) == []
    assert host.same_host({}, {"cpu": {"count": 2}}) == ["cpu.count: unknown against 2"]


def test_the_summary_is_one_line() -> None:
    """A stored host is described without looking at the present one."""
    facts: dict[str, object] = {
        "cpu": {"model": "AMD EPYC", "count": 2, "hypervisor": None},
        "memory": {"total_bytes": 25 * (1 << 30) - (1 << 29) - (1 << 30)},
        "kernel": {"release": "6.18.4-generic"},
        "cgroup": {"version": 1},
    }
    assert host.summary_line(facts) == "AMD EPYC · 2 CPUs · 23.5 GiB · Linux 6.18 · cgroup v1"
    assert host.summary_line({}) == "unknown CPU · None CPUs · no cgroups"
    assert " · Linux " in host.summary_line()


def test_of_the_kernels_command_line_only_tuning_is_kept() -> None:
    """Words about disks, consoles and services stay out of published runs."""
    words = "root=UUID=1 quiet mitigations=off isolcpus=1 console=ttyS0 nosmt ip=10.0.0.1"
    kept = [word for word in words.split() if host.TUNING.match(word)]
    assert kept == ["mitigations=off", "isolcpus=1", "nosmt"]


def test_file_system_of_a_path() -> None:
    """The innermost mount decides."""
    assert host.file_system(Path("/proc/self")) == "proc"
    assert host.file_system(Path("/")) not in (None, "proc")


def test_pages_that_a_cpu_keeps_free_are_available() -> None:
    """What is freed goes to its CPU's list first: it is not missing, and MemFree has it not."""
    zones = (
        "Node 0, zone    DMA32\n  pages free     766000\n        managed  766000\n"
        "  pagesets\n    cpu: 0\n              count:    100\n              high:     2498\n"
        "    cpu: 1\n              count:    50\n              high:     2498\n"
    )
    assert host.per_cpu_free_bytes(zones) == 150 * os.sysconf("SC_PAGE_SIZE")
    assert host.per_cpu_free_bytes("") == 0
    assert host.mem_available_bytes() >= host.meminfo()["MemAvailable"] - (64 << 20)
