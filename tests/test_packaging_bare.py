"""Set-up on a bare machine: a distribution root without Python, and every way of breaking off."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator

import pytest
import synthetic
from bareroot import FOLDER, PLAIN_CHROOT, BareRoot

pytestmark = [pytest.mark.root, pytest.mark.chroot, pytest.mark.checkout]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareRoot]:
    """One bare root for the module: what is expensive, installing, happens once."""
    if os.geteuid() != 0:
        pytest.skip("making a distribution root needs root")
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    path = tmp_path_factory.mktemp("bare") / "root"
    path.mkdir()
    try:
        yield BareRoot(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)  # over 1 GB


def test_set_up_survives_everything(bare: BareRoot) -> None:
    """Killed in the middle of apt, then of pip, then two at once: hvct is set up and answers."""
    stamp = bare.folder / ".hvct/stamp-run"

    first = bare.start("./hvct", "--help")
    bare.kill_when(first, lambda: "\nSetting up " in bare.log())
    assert not stamp.exists()

    second = bare.start("./hvct", "--help")
    libraries = bare.folder / ".venv/lib"
    bare.kill_when(second, lambda: any(libraries.glob("python3*/site-packages/numpy/core")))
    assert not stamp.exists()

    both = [bare.start("./hvct", "--help") for _ in range(2)]
    ends = [bare.finish(each) for each in both]
    assert all("usage" in out.lower() for out, _ in ends)
    assert sum("waiting for it" in err for _, err in ends) == 1
    assert sum("Python packages" in err for _, err in ends) == 1, "both set up"
    assert stamp.exists()
    assert not (bare.path / "usr/sbin/policy-rc.d").exists()


def need_set_up(bare: BareRoot) -> None:
    """Skip what can only follow from the test before."""
    if not (bare.folder / ".hvct/stamp-run").exists():
        pytest.skip("the set-up before this test failed")


@pytest.mark.vm
def test_the_package_list_suffices(bare: BareRoot) -> None:
    """With nothing but the [run] packages every arm runs a command, and a report becomes a PDF."""
    need_set_up(bare)
    for arm in ("process", "container", "vm"):
        out, _ = bare.finish(
            bare.start("./hvct", "run", "--arm", arm, "busybox", "--", "echo", arm)
        )
        assert out == f"{arm}\n"
    synthetic.write_run(bare.folder / "runs/one")
    bare.finish(bare.start("./hvct", "report", "runs/one", "--format", "html,pdf"))
    pdf = bare.folder / "runs/one/report.pdf"
    assert pdf.read_bytes().startswith(b"%PDF")
    assert pdf.stat().st_size > 20_000, "hardly anything is in it"


@pytest.mark.vm
def test_the_main_job_runs_whole(bare: BareRoot) -> None:
    """`./hvct compare` builds the default image there, measures, and writes its report."""
    need_set_up(bare)
    chosen = ("./hvct", "compare", "redis", "--arms", "container,process,vm", "--blocks", "7")
    plan, _ = bare.finish(bare.start(*chosen, "--dry-run"))
    # Beside other tests a quiet host would be waited for in vain.
    (bare.folder / "main.toml").write_text('gap = "none"\n' + plan)
    command = ("./hvct", "compare", "--plan", "main.toml", "--output", "runs/main")
    out, _ = bare.finish(bare.start(*command))
    assert "runs/main/report.html" in out
    folder = bare.folder / "runs/main"
    trials = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert Counter((trial["arm"], trial["outcome"]) for trial in trials) == {
        (arm, "ok"): 7 for arm in ("container", "process", "vm")
    }
    page = (folder / "report.html").read_text()
    assert "redis to PING" in page and "vm (" in page
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
    stored = json.loads((folder / "run.json").read_text())
    assert any(line.startswith("redis-server ") for line in stored["images"]["default"]["packages"])


def test_the_other_command_sets_up_and_runs_its_tests(bare: BareRoot) -> None:
    """`./hvct test` brings what tests need from PyPI, and runs them; here without packages.

    The distribution packages of [test] are 1 GB: `nox -s bare` sets them up too.
    """
    need_set_up(bare)
    quick = ("tests/test_numbers.py", "tests/test_schedule.py", "tests/test_plan.py")
    command = ("./hvct", "test", "--session", "tests", *quick)
    out, err = bare.finish(bare.start("env", "HVCT_SKIP_PACKAGES=1", *command))
    assert re.search(r"\b\d\d passed", out), out
    assert "Session tests was successful" in err
    assert (bare.folder / ".hvct/stamp-test").exists()


@pytest.mark.vm
def test_a_plain_chroot_is_root_enough(bare: BareRoot) -> None:
    """Where / is no mount point hvct gives itself one, and every arm runs."""
    need_set_up(bare)
    for arm in ("process", "container", "vm"):
        command = ("./hvct", "run", "--arm", arm, "busybox", "--", "echo", arm)
        out, _ = bare.finish(bare.start(*command, enter=PLAIN_CHROOT))
        assert out == f"{arm}\n"


def test_later_starts_touch_no_package_client(bare: BareRoot) -> None:
    """With the stamp in place it starts without apt, dpkg and pip: they are not even there."""
    need_set_up(bare)
    for client in ("apt-get", "dpkg", "dpkg-query"):
        (bare.path / "usr/bin" / client).unlink()
    shutil.rmtree(next((bare.folder / ".venv/lib").glob("python3*/site-packages/pip")))
    link = bare.path / "usr/local/bin/hvct"
    link.symlink_to(f"{FOLDER}/hvct")
    out, err = bare.finish(bare.start("hvct", "--help", folder="/tmp"), timeout_s=20)
    assert "usage" in out.lower()
    assert err == ""
