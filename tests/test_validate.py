"""`hvct doctor --validate`: what passes, what fails, and what the sheet to send back says."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest

from bench import controls, journal, spikein, validation
from bench.commands import validate
from bench.commands.arguments import parse
from bench.store import StoredRun
from bench.validation import Sheet

WAIT_S = 900.0  # somebody else's comparison may have to end first
ABOUT = {"hvct_version": "1", "summary": "a host", "host": {}}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Whatever a test does, nothing of it stays on the host."""
    with faults.nothing_left():
        yield


@pytest.mark.root
@pytest.mark.vm
@pytest.mark.usefixtures("nothing_left", "busybox")
def test_the_quick_parts_on_this_host(tmp_path: Path) -> None:
    """KVM as the probe found it, every arm by its output; the sheet names nobody."""
    done = faults.hvct("doctor", "--validate", "--parts", "kvm,arms", "--json", cwd=tmp_path)
    sheet = json.loads(done.out)
    assert json.loads((tmp_path / "hvct-validation.json").read_text()) == sheet
    checks = {check["name"]: check for check in sheet["checks"]}
    assert {name for name in checks if name.endswith("runs a command")} >= {
        "container runs a command", "process runs a command",
    }  # fmt: skip
    assert all(check["passed"] for check in sheet["checks"] if check["part"] != "kvm"), done.err
    assert checks["nothing is left"]["passed"]
    assert sheet["kvm"] == checks["payload"]["passed"], "stage two follows stage one here"
    assert done.code == (0 if sheet["passed"] else 1)
    text = (tmp_path / "hvct-validation.txt").read_text()
    if not sheet["kvm"]:
        assert not sheet["passed"]
        assert "KVM does not run guests here" in text and "under TCG" in text
        assert checks["payload"]["said"] in " ".join(text.split())
        assert checks["guest kernel"]["passed"] is None
    for private in (str(tmp_path), str(Path.home()) + "/", f"{platform.node()}\n"):
        assert private not in text and private not in json.dumps(sheet)


@pytest.mark.root
@pytest.mark.alone
@pytest.mark.vm
@pytest.mark.usefixtures("nothing_left", "busybox", "default_image")
def test_receipts_and_servers_on_this_host(tmp_path: Path) -> None:
    """What hvct needs is there, receipts of every pair agree, a server in each arm answers."""
    done = faults.hvct(
        *("doctor", "--validate", "--parts", "host,identity,network", "--json"),
        cwd=tmp_path,
        timeout_s=WAIT_S,
    )
    sheet = json.loads(done.out)
    checks = {check["name"]: check for check in sheet["checks"]}
    assert checks["requirements"]["passed"], checks["requirements"]["said"]
    pairs = [("vm", "container"), ("container", "process")]
    if not sheet["capabilities"]["vm"]["usable"]:
        pytest.skip(sheet["capabilities"]["vm"]["reason"])
    for arm, baseline in pairs:
        check = checks[f"{arm} against {baseline}"]
        assert check["passed"] and check["said"].startswith("2 of 2 pairs of trials identical")
    for arm in ("vm", "container", "process"):
        assert checks[f"{arm} answers"]["said"] == "2 of 2 servers answered"
        assert checks[f"{arm} answers"]["passed"]
    assert sheet["kvm"] is None and sheet["passed"] and done.code == 0


@pytest.mark.root
@pytest.mark.alone
@pytest.mark.usefixtures("nothing_left", "busybox")
def test_a_spike_in_on_this_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control of memory, as the part runs all of them; each arm and metric is a check."""
    # What other programs do to the host's memory would be judged by chance with so few blocks.
    own = tuple(injection for injection in controls.MEMORY.injections if injection.sharp)
    control = dataclasses.replace(controls.MEMORY, blocks=6, injections=own)
    monkeypatch.setattr(controls, "NATIVE", (control,))
    monkeypatch.setattr(controls, "EMULATED", ())
    monkeypatch.setattr(controls, "KVM", ())
    with journal.exclusive(wait=True):
        sheet = validate.run(("spike-ins",), parse(["doctor", "--validate"]))
    checks = [check for check in sheet.checks if check.part == "spike-ins"]
    metrics = {injection.metric for injection in control.injections}
    assert len(checks) == 2 * len(metrics)
    for arm in ("container", "process"):
        for metric in metrics:
            (check,) = (
                check for check in checks if check.name == f"{arm}: {control.title}, {metric}"
            )
            assert check.passed and "truth" in check.said, check
    printed = "".join(capsys.readouterr())
    assert printed.count("passed    spike-ins") == len(checks)


@pytest.mark.root
@pytest.mark.usefixtures("nothing_left", "busybox")
def test_an_arm_that_does_not_work_fails_and_the_others_go_on(tmp_path: Path) -> None:
    """Without QEMU the vm arm fails with its reason and remedy; the others pass; exit 1."""
    hide = "; ".join(
        faults.shell("mount", "--bind", "/dev/null", path)
        for path in Path("/usr/bin").glob("qemu-system-*")
    )
    before = faults.hidden(hide or "true")
    asked = ("doctor", "--validate", "--parts", "kvm,arms", "--output", tmp_path)
    done = faults.hvct(*asked, before=before)
    assert done.code == 1, done
    text = (tmp_path / "hvct-validation.txt").read_text()
    assert "FAILED    arms · vm works" in text and "install" in text
    assert "FAILED    kvm · payload" in text
    assert "passed    arms · container runs a command" in text
    assert "passed    arms · process runs a command" in text


def test_parts_are_checked_before_anything_runs() -> None:
    """A part that does not exist, and parts of nothing, are input errors."""
    faults.hvct("doctor", "--parts", "arms").says(2, "belongs to --validate", "hvct doctor")
    if not os.geteuid():
        faults.hvct("doctor", "--validate", "--parts", "kvn").says(2, "no part 'kvn'", "kvm")


def test_a_sheet_passes_only_when_something_was_tried_and_nothing_failed() -> None:
    """What was left out neither passes nor fails; an empty sheet does not pass."""
    sheet = Sheet(dict(ABOUT))
    assert not sheet.passed
    sheet.add("kvm", "guest kernel", None, "not tried")
    assert not sheet.passed and sheet.kvm is False
    sheet = Sheet(dict(ABOUT))
    sheet.add("arms", "container", True, "ran")
    assert sheet.passed and sheet.kvm is None
    sheet.add("kvm", "payload", False, "too slow")
    assert not sheet.passed and "Everything else passed" in sheet.verdict()
    sheet.add("arms", "process", False, "no")
    assert "2 of 3 checks failed" in sheet.verdict()


def test_the_sheet_names_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Host, user, home and working directory are taken out, wherever they stand; keys are kept."""
    folder = tmp_path / "secret project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home of erika"))
    monkeypatch.setenv("LOGNAME", "mustermann")
    monkeypatch.setattr(platform, "node", lambda: "arms-race.example.org")
    sheet = Sheet({**ABOUT, "mustermann": "kept as a key"})
    said = f"{folder}/x, {tmp_path}/home of erika/.cache, mustermann on arms-race.example.org"
    for ahead in range(0, 90, 7):  # wherever the lines break
        sheet.add("arms", "vm", False, "-" * ahead + " " + said)
    document = sheet.document()
    assert document["mustermann"] == "kept as a key"
    del document["mustermann"]
    for text in (sheet.text(), json.dumps(document)):
        for private in ("secret", "erika", "mustermann", "arms-race"):
            assert private not in text
        assert "<here>/x" in text and "<home>/.cache" in text and "<user> on <host>" in text


def recovered(spiked_by: float, noise: float = 0.0) -> tuple[bool, str]:
    """What the sheet says where the spiked variant really differs by so many seconds."""
    control, times = controls.START_30, [0.050 + 0.0001 * (block % 5) for block in range(12)]
    offs = [noise * (-1) ** block * (block // 2 + 1) for block in range(12)]
    trials = [
        {"arm": "container", "block": block, "workload": workload.name, "outcome": "ok",
         "samples": [{"metric": "startup_ready", "value": base + extra}]}
        for block, base in enumerate(times)
        for workload, extra in ((control.base, 0.0), (control.spiked, spiked_by + offs[block]))
    ]  # fmt: skip
    injection = next(item for item in control.injections if item.metric == "startup_ready")
    stored = StoredRun(Path(), {}, trials)
    return validation.judge(spikein.recovery(stored, control, injection, "container"))


def test_a_spike_in_passes_only_where_what_was_put_in_comes_out() -> None:
    """The injected 30 ms pass; none, twice or half as much do not, nor what noise may be."""
    assert recovered(0.0301)[0], recovered(0.0301)
    for wrong in (0.0, 0.0602, 0.0150):
        passed, said = recovered(wrong)
        assert not passed, said
    passed, said = recovered(0.0301, noise=0.030)
    assert "recovered" in said and not passed, said
