"""The launcher ./hvct: what it says and does when it cannot set up, and how it stays quick."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import faults
import pytest

pytestmark = pytest.mark.checkout

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder() -> Iterator[Path]:
    """A checkout that nobody has set up, in a folder with a space in its name.

    Not below tmp_path, which other users may not enter.
    """
    with tempfile.TemporaryDirectory(prefix="hvct-") as room:
        Path(room).chmod(0o755)
        folder = Path(room, "my hvct")
        folder.mkdir()
        for name in ("hvct", "packages.txt", "pyproject.toml"):
            shutil.copy(CHECKOUT / name, folder / name)
        yield folder


def start(
    folder: Path, *argv: str, before: Sequence[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the launcher of a checkout with these environment variables, started by `before`."""
    return subprocess.run(
        [*before, folder / "hvct", *argv],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def path_without(tmp_path: Path, *hidden: str) -> str:
    """A search path that has every program of this host but these."""
    shown = tmp_path / "programs"
    shown.mkdir()
    for folder in ("/usr/sbin", "/usr/bin"):
        for program in Path(folder).iterdir():
            link = shown / program.name
            if program.name not in hidden and not link.is_symlink():
                link.symlink_to(program)
    return str(shown)


def another_distribution(tmp_path: Path, release: str) -> list[str]:
    """For `before`: the same host with another /etc/os-release."""
    if os.geteuid() != 0:
        pytest.skip("mounting another os-release needs root")
    written = tmp_path / "os-release"
    written.write_text(release + "\n")
    real = Path("/etc/os-release").resolve()
    return faults.hidden(faults.shell("mount", "--bind", written, real))


def groups() -> dict[str, list[str]]:
    """packages.txt as the tests read it: names by group."""
    found: dict[str, list[str]] = {}
    for line in (CHECKOUT / "packages.txt").read_text().splitlines():
        if head := re.fullmatch(r"\[(\w+)\]", line):
            current = found.setdefault(head[1], [])
        elif words := line.partition("#")[0].split():
            current.append(words[0])
    return found


@pytest.mark.root
def test_package_list_is_read_whole(folder: Path, tmp_path: Path) -> None:
    """On a distribution it does not know it exits 3 and names every package that is needed."""
    before = another_distribution(tmp_path, "ID=slackware")
    done = start(folder, "--help", before=before, PATH=path_without(tmp_path, "apt-get"))
    assert done.returncode == 3
    assert "no apt-get" in done.stderr
    listed = done.stderr.rpartition(":  ")[2].split()
    assert listed == groups()["run"]
    assert not (folder / ".venv").exists()


@pytest.mark.root
@pytest.mark.parametrize(
    ("release", "command", "some"),
    [
        ("ID=fedora", "sudo dnf install", {"musl-gcc", "qemu-system-x86-core", "libvirt-devel"}),
        ('ID="almalinux"\nID_LIKE="rhel centos fedora"', "sudo dnf install", {"glibc-devel"}),
        ("ID=arch", "sudo pacman -S --needed", {"musl", "qemu-system-x86", "ttf-dejavu"}),
    ],
)
def test_other_distributions_are_told_their_own_command(
    folder: Path, tmp_path: Path, release: str, command: str, some: set[str]
) -> None:
    """Where it does not install by itself it prints the exact command, with that one's names."""
    before = another_distribution(tmp_path, release)
    done = start(folder, "--help", before=before, PATH=path_without(tmp_path, "apt-get"))
    assert done.returncode == 3
    *_, what, how = done.stderr.strip().splitlines()
    assert "only on Debian and its kin" in what
    assert how.strip().startswith(f"{command} ")
    assert how.endswith(" && HVCT_SKIP_PACKAGES=1 ./hvct")
    words = set(how.split())
    if os.uname().machine == "x86_64":
        assert some <= words
    assert not {"musl-tools", "libvirt-dev", "fonts-dejavu-core"} & words, "Debian's names"
    assert not any(word.startswith("aur/") for word in words)
    assert ("&& yay -S umoci mmdebstrap &&" in how) == ("pacman" in command)


def test_packages_are_listed_for_any_distribution(folder: Path) -> None:
    """`./hvct packages FAMILY MACHINE` prints names, each once, and sets nothing up."""
    for family, machine in (("debian", "x86_64"), ("fedora", "aarch64"), ("arch", "x86_64")):
        done = start(folder, "packages", family, machine)
        names = done.stdout.split()
        assert done.returncode == 0 and len(names) == len(set(names)) > 20
        assert all(re.fullmatch(r"(aur/)?[a-z0-9.+-]+", name) for name in names)
    assert "qemu-system-arm" in start(folder, "packages", "debian", "aarch64").stdout.split()
    assert not (folder / ".venv").exists() and not (folder / ".hvct").exists()


def test_a_part_of_the_checks_has_to_be_named(folder: Path) -> None:
    """`./hvct test --session` alone is wrong usage, said before anything is set up."""
    done = start(folder, "test", "--session")
    assert done.returncode == 2 and "e.g. ./hvct test --session lint" in done.stderr
    assert not (folder / ".hvct").exists()


def test_package_list_gives_a_reason_for_each_package() -> None:
    """Each line names one package once, in every family, and says what it is for."""
    lines = (CHECKOUT / "packages.txt").read_text().splitlines()
    named = [line for line in lines if line and line[0] not in "#["]
    other = r"(?: (?:debian|fedora|arch)(?:-aarch64)?:(?:aur/)?[a-z0-9.+-]+)*"
    assert all(re.fullmatch(rf"[a-z0-9.+-]+{other} +# \S.*", line) for line in named)
    names = [line.split()[0] for line in named]
    assert len(names) == len(set(names))
    assert set(groups()) == {"run", "test"}


@pytest.mark.root
def test_without_root_it_names_the_command(folder: Path) -> None:
    """Not root and a package missing: exit 3, the exact command to type, nothing half made."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    with (folder / "packages.txt").open("a") as listed:
        listed.write("[run]\nhvct-no-such-package  # never installed\n")
    folder.chmod(0o777)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", folder / "hvct", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert "sudo apt-get install --no-install-recommends hvct-no-such-package" in done.stderr
    assert not (folder / ".venv").exists()
    assert not (folder / ".hvct/stamp-run").exists()


@pytest.mark.root
def test_read_only_folder_is_explained(folder: Path) -> None:
    """A folder it cannot write in: exit 3 and what to do."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    folder.chmod(0o555)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", folder / "hvct", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert "not writable" in done.stderr
    assert "put it where you can write" in done.stderr


def test_failed_step_shows_why(folder: Path) -> None:
    """When pip fails, the end of what it said is shown, it exits 1, and no stamp is written."""
    broken = (folder / "pyproject.toml").read_text().replace("[project]", "[project", 1)
    (folder / "pyproject.toml").write_text(broken)
    done = start(folder, "--help", HVCT_SKIP_PACKAGES="1")
    assert done.returncode == 1
    assert "      | " in done.stderr
    assert str(folder / ".hvct/setup.log") in done.stderr
    assert (folder / ".hvct/installing").exists(), "the next start must make the environment anew"
    assert not (folder / ".hvct/stamp-run").exists()


def test_stamp_follows_its_inputs(folder: Path, tmp_path: Path) -> None:
    """A start trusts the stamp only with the same inputs, in the same place, with a live Python.

    The environment is a stand-in here, since only the launcher's own decision is looked at:
    the real set-up runs in the bare root.
    """
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    for name in ("hvct", "python"):
        (programs / name).write_text('#!/bin/sh\necho started "$@"\n')
        (programs / name).chmod(0o755)
    inputs = [folder / name for name in ("pyproject.toml", "packages.txt", "hvct")]
    summed = subprocess.run(
        ["cksum"], input=b"".join(path.read_bytes() for path in inputs), capture_output=True
    )
    (folder / ".hvct").mkdir()
    (folder / ".hvct/stamp-run").write_text(f"{summed.stdout.decode().strip()} {folder}\n")
    no_apt = path_without(tmp_path, "apt-get")  # a set-up then ends as it begins, with status 3

    def outcome(where: Path = folder) -> tuple[int, str]:
        done = start(where, "a b", "c", PATH=no_apt)
        return done.returncode, done.stdout

    started, sets_up = (0, "started a b c\n"), (3, "")
    assert outcome() == started
    for path in inputs[:2]:
        kept = path.read_text()
        path.write_text(kept + "\n# changed\n")
        assert outcome() == sets_up, f"a change of {path.name} went unseen"
        path.write_text(kept)
    assert outcome() == started
    (programs / "python").rename(programs / "gone")
    assert outcome() == sets_up, "the environment lost its Python"
    (programs / "gone").rename(programs / "python")
    moved = folder.rename(folder.with_name("moved hvct"))
    assert outcome(moved) == sets_up, "an environment does not survive being moved"


def test_shell_is_clean() -> None:
    """Shellcheck finds nothing in the launcher and in the CI script."""
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [CHECKOUT / "hvct", CHECKOUT / ".ci/run"]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for script in scripts:
        subprocess.run(["sh", "-n", script], check=True)
