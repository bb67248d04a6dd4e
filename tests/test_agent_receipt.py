"""The receipt says what really ran: change one thing and it shows."""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.agent.confinement import CAPABILITY_MASK
from bench.agent.launch_record import workload_rlimits
from bench.agent.session import AgentSession, run_record
from bench.host import meminfo
from bench.identity import FIELDS, FieldClass, derived
from bench.model import Event, Ids, Image, ImageConfig, InstanceSpec, ReceiptLevel, Security

PATH = ("PATH", "/usr/local/bin:/usr/bin:/bin")
SPEC = InstanceSpec(
    id="t",
    image=Image("none", "", Path("/"), 0, "", "amd64", ImageConfig(), ""),
    argv=("sleep", "0"),
    env=(PATH, ("A", "1")),
    workdir="/tmp",
)

Receipt = dict[str, Any]


@pytest.fixture
def receipt(agents: Any) -> Callable[..., Receipt]:
    """The receipt of SPEC with some fields changed."""

    def take(guest: tuple[tuple[str, str], ...] = (), **changes: Any) -> Receipt:
        ours, _ = agents.start()
        session = AgentSession(ours)
        extra = {name: changes.pop(name) for name in ("seccomp", "rlimits") if name in changes}
        session.send_run([*run_record(dataclasses.replace(SPEC, **changes), guest, **extra)])
        assert session.wait(Event.EXITED, time.monotonic_ns() + 40_000_000_000)
        return dict(session.receipt)

    return take


def changed(first: Receipt, second: Receipt) -> set[str]:
    """Fields that differ, but for those that differ between any two launches."""
    free = {"pid", "writable_free", "entropy_avail"}
    return {key for key in {*first, *second} - free if first.get(key) != second.get(key)}


def test_cheap_receipt_matches_the_spec(receipt: Callable[..., Receipt]) -> None:
    """Every field of the specification is found again in what ran."""
    got = receipt()
    assert got["arg"] == list(SPEC.argv)
    assert got["env"] == [f"{PATH[0]}={PATH[1]}", "A=1"]
    assert (got["cwd"], got["uid"], got["gid"], got["umask"]) == ("/tmp", "0", "0", "0022") or (
        os.geteuid() != 0
    )
    program = Path(got["program"])
    info = program.stat()
    assert program.name == "sleep"
    assert int(got["program_inode"]) == info.st_ino
    assert int(got["program_size"]) == info.st_size
    assert int(got["program_mode"], 8) == info.st_mode & 0o7777
    assert int(got["cpus_allowed"]) == len(os.sched_getaffinity(0))
    assert got["hostname"] == os.uname().nodename
    assert got["release"] == os.uname().release
    limits = {line.split(":")[0]: line.split(":")[1:] for line in got["rlimit"]}
    for name, soft, hard in workload_rlimits():
        shown = [str(value) if value >= 0 else "unlimited" for value in (soft, hard)]
        assert limits[name] == shown
    assert set(limits) == {name for name, *_ in workload_rlimits()}  # none is left to chance
    assert int(got["mem_total_bytes"]) == meminfo()["MemTotal"]
    assert int(got["swap_total_bytes"]) == meminfo()["SwapTotal"]
    assert int(got["stdout_bytes"]) == 0


@pytest.mark.root
@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"argv": ("sleep", "0.0")}, {"arg"}),
        ({"argv": ("/bin/sleep", "0")}, {"arg", "program"}),
        ({"env": (PATH, ("A", "2"))}, {"env"}),
        ({"env": (("A", "1"), PATH)}, {"env"}),
        ({"workdir": "/"}, {"cwd"}),
        ({"ids": Ids(0, 3)}, {"gid"}),
        ({"ids": Ids(0, 0, (7, 8))}, {"group"}),
        ({"ids": Ids(5)}, {"uid", "cap_effective", "cap_permitted"}),
        ({"rlimits": [("NOFILE", 77, 99)]}, {"rlimit"}),
        (
            {"security": Security.SAME},
            {"no_new_privs", "cap_effective", "cap_permitted", "cap_bounding"},
        ),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_each_change_shows(
    receipt: Callable[..., Receipt], change: dict[str, Any], fields: set[str]
) -> None:
    """One thing changed in the specification changes its fields of the receipt, and no other."""
    if os.geteuid() != 0:
        pytest.skip("changing user needs root")
    base = receipt(rlimits=[]) if "rlimits" in change else receipt()
    assert changed(base, receipt(**change)) == fields


@pytest.mark.root
def test_confinement_is_in_force(receipt: Callable[..., Receipt]) -> None:
    """Under ``same``, capabilities, no_new_privs and the filter are what the receipt says."""
    if os.geteuid() != 0:
        pytest.skip("capabilities need root")
    allow_all = (6).to_bytes(2, "little") + bytes(2) + 0x7FFF0000.to_bytes(4, "little")
    text = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | cut -f2 >&2"
    got = receipt(argv=("sh", "-c", text), security=Security.SAME, seccomp=allow_all)
    assert got["cap_effective"] == got["cap_bounding"]
    assert int(got["cap_effective"], 16) == CAPABILITY_MASK
    assert (got["no_new_privs"], got["seccomp"]) == ("1", "2")


@pytest.mark.root
@pytest.mark.parametrize("security", [Security.CONTAINER_NATIVE, Security.SAME])
def test_capabilities_are_those_of_proc(
    receipt: Callable[..., Receipt], tmp_path: Path, security: Security
) -> None:
    """Asked one by one, the sets are what /proc/self/status says of the workload."""
    if os.geteuid() != 0:
        pytest.skip("capabilities need root")
    allow_all = (6).to_bytes(2, "little") + bytes(2) + 0x7FFF0000.to_bytes(4, "little")
    status = tmp_path / "status"
    argv = ("sh", "-c", f"cat /proc/self/status > {status}")
    got = receipt(argv=argv, security=security, seccomp=allow_all)
    shown = dict(line.split(":\t") for line in status.read_text().splitlines() if ":\t" in line)
    labels = {"permitted": "Prm", "effective": "Eff", "bounding": "Bnd", "ambient": "Amb"}
    for name, label in labels.items():
        assert got[f"cap_{name}"] == shown[f"Cap{label}"]
    assert got["no_new_privs"] == shown["NoNewPrivs"]


def test_digest_level_adds_the_machine(receipt: Callable[..., Receipt]) -> None:
    """The untimed receipt also says which CPU, mitigations, kernel and memory mode."""
    cheap, full = receipt(), receipt(receipt=ReceiptLevel.DIGEST)
    assert changed(cheap, full) >= {"cpu_model", "cpu_flags", "vulnerability", "version"}
    flags = [
        line.partition(":")[2].split()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("flags")
    ]
    assert full["cpu_flags"].split() == flags[0]
    folder = Path("/sys/devices/system/cpu/vulnerabilities")
    assert {line.partition(":")[0] for line in full["vulnerability"]} == {
        path.name for path in folder.iterdir()
    }
    assert "cmdline" not in full  # the host's own is nobody's business


def test_every_field_that_is_compared_is_reported(receipt: Callable[..., Receipt]) -> None:
    """No field that must match is missing: two silent arms would agree about nothing."""
    got = receipt(receipt=ReceiptLevel.DIGEST, ids=Ids(0, 0, (1,)) if os.geteuid() == 0 else Ids())
    added_by_the_host = {"content", "image"}
    needed = {name for name, kind in FIELDS.items() if kind is FieldClass.MUST_MATCH}
    compared = set(derived(got, got))
    assert needed - added_by_the_host - compared <= {"thp", "mitigations"} - compared


def test_limits_never_exceed_the_hosts() -> None:
    """The limits asked for can be set by everybody: none is above this host's hard limit."""
    numbers = {"LOCKS": 10, "RTTIME": 15}
    for name, soft, hard in workload_rlimits():
        _, most = resource.getrlimit(
            numbers[name] if name in numbers else getattr(resource, f"RLIMIT_{name}")
        )
        assert most == -1 or 0 <= hard <= most
        assert hard == -1 or 0 <= soft <= hard
