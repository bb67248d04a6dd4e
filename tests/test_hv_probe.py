"""Which accelerator: decided by running a payload, with a reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bench.cache import cache_dir
from bench.errors import HostCannot
from bench.model import Accelerator
from hv import probe
from hv.emulator import Emulator, emulator
from hv.probe import PayloadResult, Verdict


@pytest.fixture(scope="module")
def qemu() -> Emulator:
    """QEMU on this host."""
    try:
        return emulator()
    except HostCannot as error:
        pytest.skip(error.message)


def test_payload_passes_where_instructions_work(qemu: Emulator) -> None:
    """Under TCG, which implements the whole CPU, it says every letter and is quick."""
    result = probe.run_payload(qemu, "tcg", "max")
    assert result.said == "AB01234DZ"
    assert result.passed and result.mips > probe.LEAST_MIPS


def test_payload_tells_a_cpu_without_the_instruction(qemu: Emulator) -> None:
    """A CPU without cmpxchg16b or xsave is no failure: the letter is small."""
    assert probe.run_payload(qemu, "tcg", "max,cx16=off,xsave=off").said == "AB01234dz"


def test_verdict_on_this_host_has_a_reason(qemu: Emulator) -> None:
    """Whatever this host can do, the answer says why."""
    verdict = probe.payload_verdict(qemu)
    assert verdict.accelerator.kind in ("kvm", "tcg")
    assert verdict.accelerator.reason
    if not Path("/dev/kvm").exists():
        assert "no /dev/kvm" in verdict.accelerator.reason


@pytest.mark.parametrize(("ending", "runs"), [("exit 1", 2), ("exec sleep 1000", 1)])
def test_both_runs_share_one_budget_below_a_second(
    qemu: Emulator, tmp_path: Path, ending: str, runs: int
) -> None:
    """A QEMU that fails at once is tried a second time; one that hung for all the time is not."""
    assert probe.LIMIT_S < probe.BUDGET_S < 1.0
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\necho $* >>'{tmp_path}/runs'\n{ending}\n")
    program.chmod(0o755)
    fake = dataclasses.replace(qemu, qemu=program)
    budget_s = probe.LIMIT_S if runs == 1 else 30.0
    first, second = probe.try_payload(fake, "tcg", "max", budget_s)
    assert not first.passed and not second.passed
    started = (tmp_path / "runs").read_text().splitlines()
    assert len(started) == runs and "arch-capabilities" not in started[0]
    assert "max,arch-capabilities=off" in started[-1] or runs == 1


@pytest.mark.parametrize(
    ("said", "mips", "words"),
    [
        ("", 0.0, "did not start"),
        ("A", 0.0, "long mode"),
        ("AB01", 0.0, "plain loop"),
        ("AB01234", 1.8, "ran at 1.8 MIPS and stopped on cmpxchg16b"),
        ("AB01234D", 900.0, "stopped on xsave"),
        ("AB01234DZ", 12.0, "ran at 12.0 MIPS"),
    ],
)
def test_each_failure_is_named(said: str, mips: float, words: str) -> None:
    """Where it stopped, and how fast it was until then."""
    result = PayloadResult(said, mips, "", 0.1)
    assert not result.passed and words in result.describe()


def test_second_stage_overrules_the_first(
    qemu: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KVM that runs the payload but not the kernel is not used; the verdict is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    good = Verdict(Accelerator("kvm", "a guest ran at 3000 MIPS"))
    boots: list[Verdict] = []

    def boot(verdict: Verdict) -> str:
        boots.append(verdict)
        return "the guest kernel did not reach its init within 20 s"

    one = probe.decide(qemu, "kernel", boot, first=lambda _: good)
    assert one.accelerator.kind == "tcg" and "did not reach its init" in one.accelerator.reason
    assert probe.decide(qemu, "kernel", boot, first=lambda _: good) == one
    assert len(boots) == 1
    assert probe.decide(qemu, "another kernel", lambda _: "", first=lambda _: good) == good


def test_damaged_verdicts_are_found_anew(
    qemu: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken cache file, or one of an earlier boot of the host, is not believed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = cache_dir("vm") / "accelerator.json"
    old = Verdict(Accelerator("tcg", "of today"))
    for text in ("", "[1]", json.dumps({"boot_id": "another", "verdicts": {"x": {}}})):
        store.write_text(text)
        assert probe.decide(qemu, "kernel", lambda _: "", first=lambda _: old) == old
