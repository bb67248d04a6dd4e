"""Everything that is checked before a change lands: `./hvct test` runs it, `nox -l` lists it.

All sessions share the project's own environment, which ./hvct made: installing
the same packages a second time would cost minutes and test nothing more. Only
`wheel` has its own, because what it checks is the installed distribution.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.error_on_external_run = False
# Between them, `wheel`, `beside` and `host` run each test once. A test session comes last, so that
# the last thing printed is pytest's own summary.
nox.options.sessions = ["lint", "wheel", "beside", "host"]

ROOT = Path(__file__).resolve().parent
PACKAGES = ("bench", "ct", "hv", "reports")
SOURCES = (*PACKAGES, "tests", "noxfile.py")
ON_THE_HOST = "root or vm or chroot or checkout"
ALONE = "alone"
UNDOES = "undoes"


def tracked(*patterns: str) -> list[str]:
    """Files of the checkout that match, without those that git ignores (or all, without git)."""
    asked = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "--", *patterns]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive, or no git
        roots = [ROOT / name for name in (*PACKAGES, "tests", ".ci")]
        return sorted(
            str(path.relative_to(ROOT))
            for root in roots
            for pattern in patterns
            for path in root.rglob(pattern.rpartition("/")[2])
        )
    return sorted(name for name in done.stdout.splitlines() if (ROOT / name).is_file())


@nox.session
def lint(session: nox.Session) -> None:
    """Layout, types, layers, spelling, shell and C: all are run, then all failures named."""
    python = sys.executable
    layers = f"{Path(python).parent}/lint-imports"
    checks: list[tuple[str, ...]] = [
        (python, "-m", "ruff", "check", "."),
        (python, "-m", "ruff", "format", "--check", "."),
        # Without its cache, which goes stale where two run at once; it takes 8 s.
        (python, "-m", "mypy", "--cache-dir=/dev/null"),
        (layers,),
        (python, "-m", "codespell_lib", *tracked("*.py", "*.md", "*.txt", "*.toml", "*.c", "*.h")),
        ("shellcheck", "hvct", ".ci/run", *tracked("*.sh")),
        ("clang-format", "--dry-run", "-Werror", *tracked("*.c", "*.h")),
    ]
    failed = []
    for check in checks:
        name = " ".join(check[:5]).replace(python, "python")
        session.log(name)
        try:
            session.run(*check, log=False)
        except nox.command.CommandFailed:
            failed.append(name)
    if failed:
        session.error("failed: " + "; ".join(failed))


@nox.session(default=False)
def tests(session: nox.Session) -> None:
    """Any tests, against the checkout: `nox -s tests -- -k NAME`; without arguments all of them."""
    session.run(sys.executable, "-m", "pytest", *session.posargs)


@nox.session
def beside(session: nox.Session) -> None:
    """The other tests that change the host or look at the checkout, two at a time."""
    session.run(
        sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile",
        "--no-loadscope-reorder", "-m", f"({ON_THE_HOST}) and not ({ALONE} or {UNDOES})",
        *session.posargs,
        success_codes=[0, 5] if session.posargs else [0],  # 5: -k left none
    )  # fmt: skip


@nox.session
def host(session: nox.Session) -> None:
    """The tests that measure or wait for a quiet host: one at a time, and nothing beside them."""
    session.run(
        sys.executable, "-m", "pytest", "-m", ALONE, *session.posargs,
        success_codes=[0, 5] if session.posargs else [0],
    )  # fmt: skip


@nox.session
def wheel(session: nox.Session) -> None:
    """Run all other tests against the installed wheel, two at a time, since nothing is measured.

    They start no instance, so those that kill runs or undo what any left run beside them, one at a
    time: these mostly wait.
    """
    room = Path(session.create_tmp()).resolve()
    for old in room.glob("*.whl"):
        old.unlink()
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # else removed modules are shipped on
    session.run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(room), str(ROOT)
    )  # fmt: skip
    (built,) = room.glob("*.whl")
    python = installed(session, room / "venv", built)
    session.chdir(room)  # the checkout must not be importable
    words = [
        python, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT),
        "-p", "no:cacheprovider", str(ROOT / "tests"),
    ]  # fmt: skip
    rest = f"not ({ON_THE_HOST} or {ALONE} or {UNDOES})"
    with (room / "undoes.log").open("w+") as log:
        undoing = subprocess.Popen([*words, "-m", UNDOES], stdout=log, stderr=subprocess.STDOUT)
        try:
            session.run(*words, "-n", "2", "--dist", "loadfile", "-m", rest)
        finally:
            failed = undoing.wait()
            print((room / "undoes.log").read_text(), end="")
    if failed:
        session.error("tests that kill runs or undo what any left have failed")


def installed(session: nox.Session, venv: Path, built: Path) -> str:
    """An environment that has the wheel, and the libraries of the project's environment.

    The libraries are lent by a .pth line: such a line adds the folder but not
    the .pth files in it, so the checkout's own editable install stays unseen.
    """
    session.run(sys.executable, "-m", "venv", "--clear", str(venv))
    python = str(venv / "bin" / "python")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ours = session.run(python, "-c", where, silent=True)
    theirs = session.run(sys.executable, "-c", where, silent=True)
    Path(str(ours).strip(), "lent.pth").write_text(str(theirs).strip() + "\n")
    session.run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", str(built))
    session.run(python, "-m", "pip", "check")
    return python


MEASURED = [0, 1]
"""Exit codes of pytest after measuring: 1 is a row that could not be measured, and says why."""


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure hvct itself against every target, printed as a table; not part of the gate."""
    session.run(
        sys.executable, "-m", "pytest", "-q", "--benchmark-enable",
        "--benchmark-columns=min,median,max,rounds", "tests/perf", *session.posargs,
        success_codes=MEASURED,
    )  # fmt: skip


@nox.session(default=False)
def launch(session: nox.Session) -> None:
    """Measure our launchers against peers and floor, and write the tables of docs/launch.md."""
    names = ("container", "floor", "many", "memory", "peers", "release", "v2", "vm")
    tests = [f"tests/perf/test_perf_{name}.py" for name in names]
    env = {"HVCT_LAUNCH_PAGE": str(ROOT / "docs" / "launch.md")}
    session.run(
        sys.executable, "-m", "pytest", "-q", *tests, *session.posargs, env=env,
        success_codes=MEASURED,
    )  # fmt: skip


@nox.session(default=False)
def cold(session: nox.Session) -> None:
    """Measure a cold VM's start on other machines, and write the table of docs/cold.md."""
    page = str(ROOT / "docs" / "cold.md")
    words = ("-m", "tests.perf.cold", "--page", page)
    session.run(sys.executable, *words, *session.posargs, env={"PYTHONPATH": str(ROOT)})


@nox.session(default=False)
def simulation(session: nox.Session) -> None:
    """Compute docs/method.md's table anew: what the statistics do with data of known truth."""
    session.run(
        sys.executable, "tests/simulation.py", "docs/method.md", env={"PYTHONPATH": str(ROOT)}
    )  # fmt: skip


@nox.session(default=False)
def picture(session: nox.Session) -> None:
    """Draw a picture of the README from a real run: nox -s picture -- RUN [docs/report.png]."""
    if len(session.posargs) not in (1, 2):
        session.error("name a run directory: nox -s picture -- runs/DATE-NAME [PICTURE]")
    run, picture = (*session.posargs, str(ROOT / "docs" / "report.png"))[:2]
    session.run(sys.executable, "tests/screenshot.py", run, picture, env={"PYTHONPATH": str(ROOT)})


@nox.session(default=False)
def chaos(session: nox.Session) -> None:
    """Kill, cut and fill at random: hundreds of rounds, with virtual machines (hours)."""
    asked = {"HVCT_CHAOS_ROUNDS": "300", "HVCT_CHAOS_MACHINES": "1"}
    env = {name: os.environ.get(name, value) for name, value in asked.items()}
    session.run(
        sys.executable, "-m", "pytest", "--timeout=0", "tests/test_faults_chaos.py",
        *session.posargs, env=env,
    )  # fmt: skip


@nox.session(default=False)
def bare(session: nox.Session) -> None:
    """`./hvct test --session lint` in a bare root, with all test packages (15 minutes, as root)."""
    session.run(sys.executable, "-m", "pytest", "-s", "tests/bare_checks.py", *session.posargs)


@nox.session(default=False)
def debian13(session: nox.Session) -> None:
    """Set hvct up in a bare Debian 13 and run an instance in every arm (10 minutes, as root)."""
    session.run(sys.executable, "-m", "pytest", "-s", "tests/debian13.py", *session.posargs)


@nox.session(default=False)
def security(session: nox.Session) -> None:
    """Write the table of docs/security.md: what Docker and each arm refuse, tried on this host."""
    session.run(sys.executable, "tests/escapes.py", env={"PYTHONPATH": str(ROOT)})
