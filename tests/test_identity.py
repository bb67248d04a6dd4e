"""Receipts: one changed field at a time must be caught, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from bench import identity
from bench.identity import FieldClass

RECEIPT: dict[str, Any] = {
    "arg": ["xz", "-9"],
    "env": ["PATH=/bin"],
    "cwd": "/",
    "uid": "0",
    "gid": "0",
    "group": ["0"],
    "umask": "0022",
    "rlimit": ["NOFILE:1024:4096"],
    "program": "/usr/bin/xz",
    "program_inode": "77",
    "program_size": "1000",
    "program_mode": "100755",
    "cpus_allowed": "1",
    "writable_bytes": "268435456",
    "writable_inodes": "65536",
    "shm_bytes": "67108864",
    "content": ["/usr/bin/xz abc"],
    "image": "sha256:abc",
    "thp": "always [madvise] never",
    "securebits": "0",
    "timerslack_ns": "50000",
    "nice": "0",
    "machine": "x86_64",
    "writable_magic": "1021994",
    "shm_magic": "1021994",
    "randomize_va_space": "2",
    "hostname": "hvct",
    "release": "6.1.0",
    "mem_total_bytes": "1000000",
}


def stored(arm: str, receipt: dict[str, Any], block: int = 0) -> dict[str, Any]:
    """A stored trial with this receipt."""
    return {"block": block, "workload": "w", "arm": arm, "outcome": "ok", "receipt": receipt}


def compared(first: dict[str, Any], second: dict[str, Any]) -> identity.PairIdentity:
    """What comparing two receipts, vm against container, finds."""
    trials = [stored("vm", first), stored("container", second)]
    (result,) = identity.compare(trials, [], [("vm", "container")], {"w": "container-native"})
    return result


def test_equal_receipts_are_identical() -> None:
    """The pair counts, nothing is refused."""
    result = compared(RECEIPT, dict(RECEIPT))
    assert (result.pairs, result.identical, result.refused) == (1, 1, {})


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, field_class in identity.FIELDS.items()
        if field_class is FieldClass.MUST_MATCH and name not in identity.WORK_ONLY
    ],
)
def test_every_must_match_field_refuses_when_it_differs(name: str) -> None:
    """A mutation of any one of them is caught, and named in the reason."""
    assert name in RECEIPT
    mutated = {**RECEIPT, name: "something else"}
    result = compared(RECEIPT, mutated)
    assert name in result.refused["w"]
    assert result.identical == 0


@pytest.mark.parametrize("name", ["arg", "content", "uid"])
def test_silence_is_a_difference(name: str) -> None:
    """An arm cannot pass by leaving a field out."""
    silent = {key: value for key, value in RECEIPT.items() if key != name}
    assert name in compared(RECEIPT, silent).refused["w"]


def test_no_receipt_at_all_is_refused() -> None:
    """An empty receipt proves nothing."""
    assert compared({}, {}).refused


@pytest.mark.parametrize("name", ["release", "mem_total_bytes"])
def test_declared_differences_are_listed_and_allowed(name: str) -> None:
    """They are shown in the report and refuse nothing."""
    result = compared(RECEIPT, {**RECEIPT, name: "other"})
    assert result.refused == {}
    assert result.identical == 1
    assert result.differences[name].field_class is FieldClass.DECLARED


def test_cpu_flags_refuse_work_metrics_only() -> None:
    """Start-up may be compared across CPU models; work per CPU second may not."""
    result = compared({**RECEIPT, "cpu_flags": "avx2"}, {**RECEIPT, "cpu_flags": "sse2"})
    assert result.refused == {}
    assert "cpu_instructions" in result.work_refused["w"]


def test_a_guest_under_kvm_can_pass() -> None:
    """What every guest's kernel says otherwise than its host's is declared, and refuses nothing."""
    host = {
        **RECEIPT,
        "cpu_flags": "fpu tsc sse2 ht tm vmx est pti ibrs avx2 dtherm arat",
        "vulnerability": [
            "spectre_v2:Mitigation: Enhanced IBRS; IBPB: conditional; PBRSB-eIBRS: SW sequence",
            "itlb_multihit:KVM: Mitigation: VMX disabled",
            "mds:Not affected",
            "gather_data_sampling:Mitigation: Microcode",
            "vmscape:Mitigation: IBPB before exit to userspace",
        ],
    }
    guest = {
        **RECEIPT,
        "cpu_flags": "fpu tsc sse2 hypervisor tsc_known_freq pti ibrs_enhanced avx2 arat",
        "vulnerability": [
            "spectre_v2:Mitigation: Enhanced / Automatic IBRS; IBPB: conditional; RSB filling",
            "itlb_multihit:Not affected",
            "mds:Not affected",
            "gather_data_sampling:Unknown: Dependent on hypervisor status",
        ],
    }
    result = compared(guest, host)
    assert (result.refused, result.work_refused) == ({}, {})
    assert result.differences["cpu_flags"].field_class is FieldClass.DECLARED
    assert result.differences["vulnerability"].field_class is FieldClass.DECLARED
    lacking = {**guest, "cpu_flags": "fpu tsc sse2 hypervisor"}
    assert "avx2" in compared(lacking, host).work_refused["w"]
    off = {**guest, "vulnerability": ["spectre_v2:Vulnerable; IBPB: disabled"]}
    assert "Vulnerable" in compared(off, host).work_refused["w"]


def test_contents_must_be_proven_for_both() -> None:
    """Two untimed trials that gave no digest do not agree: they are silent."""
    untimed = [{"arm": arm, "workload": "w", "receipt": {}} for arm in ("vm", "container")]
    trials = [stored("vm", RECEIPT), stored("container", RECEIPT)]
    (result,) = identity.compare(trials, untimed, [("vm", "container")], {"w": ""})
    assert "no proof" in result.refused["w"]


def test_an_emulated_cpu_has_flags_of_its_own() -> None:
    """Under TCG nothing is judged, and the flags are a declared difference."""
    first = stored("vm", {**RECEIPT, "cpu_flags": "sse2"}) | {"accelerator": {"kind": "tcg"}}
    second = stored("container", {**RECEIPT, "cpu_flags": "avx2"})
    (result,) = identity.compare([first, second], [], [("vm", "container")], {"w": ""})
    assert (result.refused, result.work_refused) == ({}, {})
    assert result.differences["cpu_instructions"].field_class is FieldClass.DECLARED


def test_the_order_of_vulnerabilities_is_no_difference() -> None:
    """Two kernels list the same files in different orders."""
    first = {**RECEIPT, "vulnerability": ["a:Not affected", "b:Mitigation: y"]}
    same = {**RECEIPT, "vulnerability": ["b:Mitigation: y", "a:Not affected"]}
    assert compared(first, same).differences == {}
    other = {**RECEIPT, "vulnerability": ["b:Vulnerable", "a:Not affected"]}
    assert compared(first, other).work_refused


def test_the_host_name_is_declared_for_a_bare_process_only() -> None:
    """Allowed differences belong to a pair of arms."""
    other = {**RECEIPT, "hostname": "host"}
    assert "hostname" in compared(RECEIPT, other).refused["w"]
    trials = [stored("container", RECEIPT), stored("process", other)]
    (result,) = identity.compare(trials, [], [("container", "process")], {"w": ""})
    assert result.refused == {}


def test_the_same_profile_makes_confinement_must_match() -> None:
    """Under security = "same" capabilities and seccomp have to agree."""
    assert identity.class_of("seccomp", ("vm", "container"), "same") is FieldClass.MUST_MATCH
    assert identity.class_of("seccomp", ("vm", "container"), "") is FieldClass.DECLARED
