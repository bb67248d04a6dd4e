"""The pytest plugin, as the installed wheel offers it to somebody else's tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import faults
import pytest

import bench
from bench.command import run

pytestmark = pytest.mark.checkout  # it builds the wheel and an environment of its own

CHECKOUT = Path(__file__).resolve().parent.parent
MINE = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}


@dataclass
class Project:
    """Somebody's folder of tests, and an environment that has hvct's wheel."""

    python: Path
    folder: Path

    def argv(self, *arguments: str) -> list[str]:
        """The command line of its pytest."""
        return [str(self.python), "-m", "pytest", "-rs", "-p", "no:cacheprovider", *arguments]

    def pytest(self, *arguments: str, before: Sequence[str] = ()) -> faults.Done:
        """Run its tests to their end."""
        done = subprocess.run(
            [*before, *self.argv(*arguments)],
            cwd=self.folder,
            env={**MINE, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return faults.Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, and the libraries of ours lent by a .pth."""
    if not Path(bench.__file__).is_relative_to(CHECKOUT):
        return Path(sys.executable)  # we are in one
    room = tmp_path_factory.mktemp("with wheel")
    built = request.getfixturevalue("built_wheel")
    run([sys.executable, "-m", "venv", "--without-pip", room / "venv"])
    python = room / "venv/bin/python"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run([python, "-c", asked]).decode().strip())
    with zipfile.ZipFile(built) as wheel:  # a pure wheel is installed by unpacking it
        wheel.extractall(site)
    # Such a line adds the folder, not its own .pth files: the checkout stays unseen.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def project(environment: Path, tmp_path: Path) -> Project:
    """An empty project."""
    folder = tmp_path / "their tests"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    return Project(environment, folder)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Whatever a test does, nothing of it stays on the host."""
    if os.geteuid() != 0:
        pytest.skip("instances need root")
    with faults.nothing_left():
        yield


def example() -> str:
    """The example of docs/pytest.md."""
    text = (CHECKOUT / "docs/pytest.md").read_text()
    (found,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return str(found)


@pytest.mark.root
@pytest.mark.usefixtures("nothing_left", "busybox")
def test_the_documented_example_runs_with_the_wheel(project: Project) -> None:
    """It passes in every arm; what pytest-benchmark stored says what was measured, and where."""
    (project.folder / "test_example.py").write_text(example())
    done = project.pytest("--benchmark-json", "result.json")
    assert done.code == 0 and "8 passed" in done.out, done
    stored = json.loads((project.folder / "result.json").read_text())["benchmarks"]
    assert sorted((item["name"], item["param"]) for item in stored) == sorted(
        (f"{test}[{arm}]", arm)
        for test in ("test_start", "test_request")
        for arm in ("container", "process")
    )
    for item in stored:
        about = item["extra_info"]
        assert about["hvct_arm"] == item["params"]["hvct_arm"] == item["param"]
        assert about["hvct_accelerator"] == ""
        assert about["hvct_image"] == "busybox"
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", about["hvct_image_digest"])
        assert " CPU" in about["hvct_host"]
        if item["name"].startswith("test_start"):
            assert item["stats"]["rounds"] == 5
            # The harness knows it after it happened, never before.
            assert 0 < about["hvct_started_s"] <= item["stats"]["median"]
    grouped = subprocess.run(
        [project.python, "-m", "pytest_benchmark", "compare", "result.json",
         "--group-by=param:hvct_arm"],
        cwd=project.folder, env={**MINE, "PYTHONPATH": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert grouped.returncode == 0, grouped.stderr
    said = grouped.stdout + grouped.stderr
    assert "benchmark 'hvct_arm=container': 2 tests" in said, said
    assert "benchmark 'hvct_arm=process': 2 tests" in said, said


INSTANCE = """
import pytest

def test_it(hvct_run):
    print("release", hvct_run("busybox", ["uname", "-r"]).stdout.decode())
"""


@pytest.mark.root
@pytest.mark.vm
@pytest.mark.usefixtures("nothing_left", "busybox")
def test_without_pytest_benchmark_and_as_a_vm(project: Project) -> None:
    """Fixtures work where pytest-benchmark is not loaded; a VM answers with its own kernel."""
    (project.folder / "test_it.py").write_text(INSTANCE)
    done = project.pytest("-s", "-p", "no:benchmark", "--hvct-arms", "process,vm")
    if "skipped" in done.out and "vm: " in done.out:
        pytest.skip("there is no virtual machine here")
    assert done.code == 0 and "2 passed" in done.out, done
    mine, guests = re.findall(r"release (\S+)", done.out)
    assert mine == os.uname().release != guests


FAILING = """
import pytest

def test_fails(hvct_launch):
    hvct_launch("busybox", ["sleep", "600"]).__enter__()
    assert False, "on purpose"

@pytest.mark.hvct(image="busybox", argv=["nosuchprogram"])
def test_no_program(hvct_instance):
    pass

@pytest.mark.hvct(image="busybox", argv=["true"], memory="1 GiB")
def test_wrong_key(hvct_instance):
    pass

def test_no_marker(hvct_instance):
    pass

@pytest.mark.hvct(image="busybox", argv=["true"], user="nosuchuser")
def test_wrong_user(hvct_start, benchmark):
    hvct_start(benchmark, rounds=1)
"""


@pytest.mark.root
@pytest.mark.usefixtures("nothing_left", "busybox")
def test_failures_fail_their_test_and_leave_nothing(project: Project) -> None:
    """A test that fails inside an instance, or describes none, says why; all is released."""
    (project.folder / "test_fails.py").write_text(FAILING)
    done = project.pytest("--hvct-arms", "process")
    assert done.code == 1 and "passed" not in done.out, done
    for words in (
        "on purpose",
        "nosuchprogram",
        "memory: there is no such key",
        "has no marker that says what to run",
        "nosuchuser",
    ):
        assert words in done.out, (words, done.out)
    assert "Traceback" not in done.err


ENDLESS = """
import os, signal, time

def test_killed(hvct_launch):
    with hvct_launch("busybox", ["sleep", "600"]):
        open("running", "w").close()
        time.sleep(600)
"""


@pytest.mark.root
@pytest.mark.usefixtures("nothing_left", "busybox")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_a_test_nothing_is_left(project: Project, number: signal.Signals) -> None:
    """SIGKILL or SIGTERM to pytest while an instance runs: helpers and instance are gone soon."""
    (project.folder / "test_endless.py").write_text(ENDLESS)
    process = subprocess.Popen(
        project.argv("-q", "--hvct-arms", "container"),
        cwd=project.folder,
        env={**MINE, "PYTHONPATH": ""},
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (project.folder / "running").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(30) == -number
    finally:
        process.kill()
        process.wait()


def test_what_cannot_run_is_skipped_with_its_reason(project: Project) -> None:
    """Where an arm does not work, or not as this user, its tests are skipped and say why."""
    (project.folder / "test_it.py").write_text(INSTANCE)
    if os.geteuid() != 0:
        done = project.pytest()
        assert done.code == 0 and "2 skipped" in done.out and "needs root" in done.out, done
        return
    hide = "; ".join(
        faults.shell("mount", "--bind", "/dev/null", path)
        for path in Path("/usr/bin").glob("qemu-system-*")
    )
    done = project.pytest("--hvct-arms", "vm,process", before=faults.hidden(hide or "true"))
    assert done.code == 0 and "1 passed, 1 skipped" in done.out, done
    assert re.search(r"SKIPPED .* hvct: vm: .*qemu.*; ", done.out), done.out


def test_an_arm_that_does_not_exist_is_refused_at_once(project: Project) -> None:
    """A typing error in --hvct-arms is a usage error that names the arm that was meant."""
    done = project.pytest("--hvct-arms", "contaner2")
    assert done.code == 4 and "there is no arm 'contaner2'" in done.err, done
    assert "did you mean container" in done.err


def test_unused_it_imports_nothing(project: Project) -> None:
    """Other people's tests pay for no library of ours: only the plugin itself is imported."""
    (project.folder / "test_theirs.py").write_text(
        "import sys\n\ndef test_nothing():\n"
        "    heavy = {'pandas', 'numpy', 'libvirt', 'pyroute2', 'pydantic', 'rich', 'scipy'}\n"
        "    assert not heavy & set(sys.modules)\n"
        "    ours = {name for name in sys.modules if name.split('.')[0] in ('bench', 'hv', 'ct')}\n"
        "    assert ours == {'bench', 'bench.pytest_plugin'}\n"
    )
    done = project.pytest("-p", "no:benchmark", "-p", "no:hypothesispytest")
    assert done.code == 0 and "1 passed" in done.out, done
