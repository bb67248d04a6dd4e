"""Without root: what works, what is left out and said, and what needs it; whose the files are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import faults
import pytest
import synthetic
from archives import BASE, entry, layer, layout_of

from bench.cache import cache_dir, remove_tree
from bench.model import Image
from bench.owner import hand_over
from hv.kernel import guest_kernel

pytestmark = pytest.mark.root

UID = 12345
AS_USER = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")


class User:
    """Somebody without any right on this host, with a home of his own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def hvct(self, *words: str | Path) -> faults.Done:
        """Run hvct as this user, in his home."""
        done = faults.hvct(*words, before=AS_USER, env=self.env, cwd=self.home)
        assert "Traceback" not in done.err and "defect" not in done.err, done.err
        return done

    def has_kernel(self) -> None:
        """Put the guest's kernel into his cache: nothing is to be downloaded here."""
        guest_kernel(None)
        mine = self.home / "cache" / "hvct" / "kernel"
        if not mine.exists():
            mine.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(cache_dir("kernel"), mine, symlinks=True)
            current = mine / "current.json"  # it names paths
            text = current.read_text().replace(str(cache_dir("kernel")), str(mine))
            current.write_text(text)
            self.owns(mine)
            for folder in (mine.parent, mine.parent.parent):
                os.chown(folder, UID, UID)

    def owns(self, path: Path) -> Path:
        """Give him a file or folder."""
        for each in (path, *path.rglob("*")):
            os.chown(each, UID, UID, follow_symlinks=False)
        return path


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    """A user; of what he started nothing is left in the end, on the host and in his /run."""
    home = Path(tempfile.mkdtemp(prefix="hvct-home-"))  # pytest's folders are its owner's alone
    try:
        os.chown(home, UID, UID)
        (home / "run").mkdir(mode=0o700)
        os.chown(home / "run", UID, UID)
        yield User(home)
        nothing_left(home)
    finally:
        remove_tree(home)


def nothing_left(home: Path) -> None:
    """No journal, no runtime folder, no process."""
    left = {path.name for path in (home / "run").glob("hvct/*")}
    assert {name for name in left if not name.endswith(".lock")} == set()
    assert faults.marked("") == {} or all(
        Path(f"/proc/{pid}").stat().st_uid != UID for pid in faults.marked("")
    )


def test_images_are_built_and_imported_without_root(user: User, busybox: Image) -> None:
    """Busybox is byte for byte root's; an imported image says what could not be kept."""
    built = user.hvct("image", "build", "busybox", "--json")
    assert built.code == 0 and json.loads(built.out)["digest"] == busybox.digest
    device = entry("owned", b"x", uid=1000, gid=70000, mode=0o600)
    layout = user.owns(layout_of(user.home / "layout", BASE, layer(device)))
    assert user.hvct("image", "import", layout, "--name", "mine").code == 0
    assert "without root: all files are root's" in user.hvct("image", "list").out
    assert user.hvct("image", "remove", "mine").code == 0
    user.hvct("image", "build", "default").says(3, "needs root", "busybox")
    assert [path for path in (user.home / "cache/hvct/tmp").iterdir()] == []


def test_a_container_without_root(user: User) -> None:
    """It is one: its own processes, mounts, name and network; root inside, nobody outside."""
    script = "id -u; echo $$; hostname; ls /sys/class/net; touch /new; ls -d /new; cat >/dev/null"
    done = user.hvct("run", "busybox", "--", "sh", "-c", script + "; mount | head -1; exit 7")
    assert done.code == 7, done
    uid, pid, host, net, new, root = done.out.split("\n")[:6]
    assert (uid, host, net, new) == ("0", "hvct", "lo", "/new") and int(pid) < 10
    assert root.startswith("overlay on / ")
    assert "without root: no limits, no accounting" in done.err
    inside = user.hvct("run", "busybox", "--", "sh", "-c", "cat /proc/1/uid_map; mknod /x c 1 1")
    assert inside.out.split() == ["0", str(UID), "1"] and inside.code == 1
    told = user.hvct("run", "--json", "busybox", "--", "true")
    facts = json.loads(told.err.splitlines()[-1])
    assert facts["arm"] == "container:rootless" and "no limits" in facts["reduced"]
    assert facts["usage"] == {"cpu": None, "memory": None}


def test_output_at_once_is_not_lost(user: User) -> None:
    """What a workload says in its first instant arrives with the news that it has started."""
    for _ in range(5):
        done = user.hvct("run", "busybox", "--", "sh", "-c", "echo 1; echo 2; sleep 0.1; echo 3")
        assert done.out == "1\n2\n3\n"


CANNOT = {
    "another user inside": ("run -u nobody busybox", "no user 65534", "-u 0"),
    "the host's network": ("run --network host busybox", "no host network", "sudo"),
    "a bridge": ("run --network bridge busybox", "a bridge needs root", "sudo"),
    "the measured container": ("run --arm container busybox", "needs root", "rootless"),
    "a bare process": ("run --arm process busybox", "needs root", "rootless"),
    "a comparison": ("compare hello", "measuring needs root", "sudo"),
    "cleaning": ("clean", "undoing what runs left needs root .their cgroups", "sudo"),
    "other settings": ("tune apply", "changing settings of the host needs root", "sudo"),
    "the old settings": ("tune reset", "restoring settings of the host needs root", "sudo"),
}


@pytest.mark.parametrize("kind", CANNOT)
def test_what_needs_root_says_so(user: User, kind: str) -> None:
    """Exit 3, what is missing, and what to do."""
    line, *words = CANNOT[kind]
    user.hvct(*line.split(), *(["--", "true"] if line.startswith("run") else [])).says(3, *words)


def test_root_has_no_use_for_the_reduced_container() -> None:
    """It points to the one that is measured."""
    done = faults.hvct("run", "--arm", "container:rootless", "busybox", "--", "true")
    done.says(3, "for users who are not root", "container:userns")


@pytest.mark.vm
def test_a_virtual_machine_without_root(user: User) -> None:
    """The embedded libvirt runs as that user: no control group, no bridge, and it is said."""
    user.has_kernel()
    done = user.hvct("run", "--arm", "vm", "busybox", "--", "id", "-u")
    assert (done.code, done.out) == (0, "0\n"), done
    assert "without root: no accounting" in done.err


def test_plans_lists_and_reports_without_root(user: User) -> None:
    """A dry run, list, show, report and resume's refusal; nothing needs a cache of root's."""
    runs = user.home / "runs"
    synthetic.write_run(runs / "one", blocks=2)
    user.owns(runs)
    assert user.hvct("compare", "hello", "--dry-run").code == 0
    assert "one" in user.hvct("list").out
    assert user.hvct("show", runs / "one").code == 0
    done = user.hvct("report", runs / "one", "--format", "html,json")
    assert done.code == 0 and (runs / "one/report.html").stat().st_uid == UID
    os.chown(runs / "one", 0, 0)
    user.hvct("report", runs / "one", "--format", "json", "--output", "/root/x").says(
        3, "mkdir|write", "folder"
    )
    user.hvct("report", runs / "one", "--format", "json").says(3, "denied", "folder")


def test_doctor_without_root(user: User) -> None:
    """It says which arms are reduced, which need root, and that nothing can be compared."""
    user.has_kernel()
    done = user.hvct("doctor", "--json")
    document = json.loads(done.out)
    assert done.code == 3 and not document["usable"]
    found = {item["backend"]: item for item in document["capabilities"]}
    assert found["container:rootless"]["usable"] and found["vm"]["usable"]
    assert "no limits" in found["container:rootless"]["reason"]
    assert not found["container"]["usable"] and "root" in found["container"]["reason"]
    assert "rights.root" in {item["code"] for item in document["findings"]}


def test_a_runtime_folder_of_somebody_else_is_not_used(user: User) -> None:
    """A name in /tmp that another user took first is no place for journals and sockets."""
    other = User(user.home)
    taken = user.home / "taken"
    other.env = {**user.env, "XDG_RUNTIME_DIR": str(taken)}
    (taken / "hvct").mkdir(parents=True)
    (taken / "hvct").chmod(0o777)
    other.hvct("run", "busybox", "--", "true").says(3, "somebody else", "XDG_RUNTIME_DIR")


# --- sudo -----------------------------------------------------------------------------------


def sudo(user: User, *words: str | Path, **more: str) -> faults.Done:
    """Run hvct as sudo would: root, with the caller in the environment."""
    env: Mapping[str, str] = {"SUDO_UID": str(UID), "SUDO_GID": str(UID), **more}
    return faults.hvct(*words, env=env, cwd=user.home)


def owners(folder: Path) -> set[int]:
    """Who owns what is in a folder, itself included."""
    return {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}


def test_results_under_sudo_are_the_callers(user: User) -> None:
    """The run directory, every folder made for it, its logs and the report; nothing above."""
    above = user.home / "above"
    above.mkdir()
    *command, _ = faults.comparison(user.home, ("container", "process"))
    done = sudo(user, *command, above / "new" / "run", "--quiet")
    assert done.code in (0, 1), done
    assert owners(above / "new") == {UID} and above.stat().st_uid == 0
    assert (above / "new/run/trials.jsonl").exists()
    written = sudo(user, "report", above / "new/run", "--format", "json", "--output", above / "r")
    assert written.code == 0
    assert owners(above / "r") == {UID}


def test_what_is_not_roots_is_not_given_away(user: User, tmp_path: Path) -> None:
    """Links that the caller put there, symbolic or hard, give him nobody's file."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    run = tmp_path / "run"
    run.mkdir()
    (run / "soft").symlink_to(secret)
    os.link(secret, run / "hard")
    (run / "folder").symlink_to(tmp_path)
    (run / "made").write_text("x")
    (run / "other").write_text("x")
    os.chown(run / "other", 777, 777)
    code = "import sys, pathlib, bench.owner; bench.owner.hand_over(pathlib.Path(sys.argv[1]))"
    env = {**os.environ, "SUDO_UID": str(UID), "SUDO_GID": str(UID)}
    subprocess.run([sys.executable, "-c", code, str(run)], env=env, check=True)
    assert secret.stat().st_uid == 0 and (run / "other").stat().st_uid == 777
    assert run.stat().st_uid == (run / "made").stat().st_uid == UID
    assert (run / "soft").lstat().st_uid == UID and tmp_path.stat().st_uid == 0
    hand_over(run / "hard")  # without sudo in the environment: nothing to do
    assert (run / "hard").stat().st_uid == 0


def test_root_keeps_a_cache_of_its_own(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sudo keeps the caller's HOME, what root will execute is not put into it."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(user.home))
    monkeypatch.setenv("SUDO_UID", str(UID))
    monkeypatch.setenv("SUDO_GID", str(UID))
    assert not cache_dir().is_relative_to(user.home)
    monkeypatch.delenv("SUDO_UID")
    assert cache_dir().is_relative_to(user.home)
