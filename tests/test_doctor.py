"""Every finding says what was seen, what it means for the numbers, and what to do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from bench import checks, doctor
from bench.model import Accelerator, Capability, Finding

CALM: dict[str, Any] = {
    "cpu": {"count": 8, "governor": "performance", "turbo": False, "hypervisor": None},
    "memory": {"swap_bytes": 0, "ksm": 0, "thp": "madvise"},
    "kernel": {"clocksource": "tsc"},
}


def codes(findings: list[Finding]) -> set[str]:
    """Their codes."""
    return {finding.code for finding in findings}


def test_a_calm_host_has_no_findings() -> None:
    """Nothing is said about a host that has nothing to say."""
    assert doctor.judge(CALM) == []
    assert doctor.judge({}) == []


@pytest.mark.parametrize(
    ("section", "key", "value", "code"),
    [
        ("memory", "swap_bytes", 1 << 30, "memory.swap"),
        ("memory", "ksm", 1, "memory.ksm"),
        ("memory", "thp", "always", "memory.thp"),
        ("cpu", "governor", "powersave", "cpu.governor"),
        ("cpu", "turbo", True, "cpu.turbo"),
        ("cpu", "count", 2, "cpu.few"),
        ("cpu", "hypervisor", "KVM", "cpu.guest"),
        ("kernel", "clocksource", "hpet", "cpu.clocksource"),
    ],
)
def test_each_distortion_is_found_with_meaning_and_remedy(
    section: str, key: str, value: object, code: str
) -> None:
    """One changed fact, one finding, with a consequence and a next step."""
    facts = copy.deepcopy(CALM)
    facts[section][key] = value
    (finding,) = doctor.judge(facts)
    assert finding.code == code
    assert finding.level in doctor.LEVELS
    assert finding.meaning and finding.remedy


@pytest.mark.root
def test_this_host_is_examined() -> None:
    """All checks run here, the worst come first, and nothing is left behind."""
    found = doctor.examine([])
    levels = [doctor.LEVELS.index(finding.level) for finding in found]
    assert levels == sorted(levels)
    assert all(finding.message and finding.meaning for finding in found)
    assert "cgroup.refused" not in codes(found)
    for mount in Path("/sys/fs/cgroup").glob("*"):
        assert not (mount / "hvct" / "doctor").exists()


def test_an_emulated_vm_is_a_warning_about_every_figure() -> None:
    """TCG is usable, and its figures describe an emulator."""
    tcg = Capability("vm", True, accelerator=Accelerator("tcg", "the payload never ended"))
    (finding,) = checks.accelerator([tcg])
    assert finding.code in ("kvm.unproven", "kvm.absent")
    assert "the payload never ended" in finding.message
    assert "emulator" in finding.meaning


def test_proven_kvm_is_no_finding_and_nested_kvm_is_one() -> None:
    """Only what was run under KVM counts as KVM; below another hypervisor it is said."""
    proven = Capability("vm", True, accelerator=Accelerator("kvm", "ran"))
    nested = Capability("vm", True, accelerator=Accelerator("kvm", "ran", nested=True))
    assert list(checks.accelerator([proven])) == []
    assert codes(list(checks.accelerator([nested]))) == {"kvm.nested"}


def test_an_arm_that_does_not_work_is_a_problem_and_a_missing_peer_is_not() -> None:
    """The remedy of the backend's own probe is passed on."""
    found = list(checks.accelerator([
        Capability("container", False, "no erofs", "modprobe erofs"),
        Capability("docker", False, "not installed"),
    ]))  # fmt: skip
    assert [(finding.level, finding.remedy) for finding in found] == [
        ("problem", "modprobe erofs"),
        ("info", ""),
    ]


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every package named is in the one list that ./hvct installs from."""
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    listed = (Path(__file__).parent.parent / "packages.txt").read_text()
    found = [f for f in checks.programs({}) if f.code != "program.libvirt"]
    assert "program.mkfs.erofs" in codes(found)
    for finding in found:
        assert finding.remedy.removeprefix("apt-get install ") in listed.split()


def test_kernel_features_are_found_however_they_are_built() -> None:
    """Built in, loaded or loadable: all count; an invented one does not."""
    assert checks.kernel_has("proc")
    assert not checks.kernel_has("nosuchthing")


def test_leftovers_of_dead_runs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that could not be undone is shown with the command that undoes it."""
    record = doctor.journal.Journal("r0001", 1, -7, "/x", since="yesterday")
    monkeypatch.setattr(doctor.journal, "dead", lambda: [record])
    monkeypatch.setattr(doctor.cleanup, "clean", lambda tag, dry_run: ["one thing"])
    (finding,) = doctor.leftovers()
    assert finding.remedy == "hvct clean r0001"
    assert "yesterday" in finding.message
