"""Bad input, through the command line: one line what, one what to do, exit code 2, no traces."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest

from bench.image.index import host_architecture

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a test does, nothing of it stays on the host."""
    with faults.nothing_left():
        yield


# --- plans --------------------------------------------------------------------------------

GOOD = """\
name = "p"

[[workload]]
name = "w"
image = "busybox"
argv = ["true"]
"""

WRONG_PLANS = {
    "unknown key": ("bloks = 9\n" + GOOD, "bloks", "did you mean blocks"),
    "unknown key of a workload": (GOOD + 'imgae = "x"\n', "imgae", "did you mean image"),
    "unknown key of limits": (GOOD + "limits = {cpu = 1}\n", r"limits\.cpu", "docs/plan.md"),
    "a number as text": ('blocks = "12"\n' + GOOD, "blocks", "valid integer"),
    "a truth as number": (GOOD + "limits = {cpus = true}\n", "cpus", "valid number"),
    "argv as text": (GOOD.replace('["true"]', '"true"'), "argv", "valid list"),
    "argv of numbers": (GOOD.replace('["true"]', "[1]"), r"argv\.0", "valid string"),
    "no program": (GOOD.replace('["true"]', '[""]'), "names no program", "argv"),
    "two workloads of a name": (GOOD + GOOD.split("\n\n")[1], "'w' is there twice", "own name"),
    "two arms of a name": ('arms = ["vm", "vm"]\n' + GOOD, "'vm' is named twice", "once"),
    "a key twice": (GOOD + 'name = "again"\n', "not valid TOML", "line"),
    "a metric twice": (
        GOOD + '[[workload.metric]]\nname = "m"\nunit = "s"\nregex = "(.)"\n' * 2,
        "metric m is there already",
        "name of its own",
    ),
    "a primary metric twice": (
        GOOD + '[[primary]]\nmetric = "teardown"\nworkload = "w"\n' * 2,
        "teardown of 'w' twice",
        "once",
    ),
    "negative memory": (GOOD + 'limits = {memory = "-5 MiB"}\n', "'-5 MiB'", "no size"),
    "negative bytes": (GOOD + "limits = {writable = -1}\n", "writable", "must be positive"),
    "no bytes": (GOOD + "limits = {shm = 0}\n", "shm", "must be positive"),
    "negative time": (GOOD + "timeout_s = -1\n", "timeout_s", "greater than 0"),
    "endless margin": (GOOD + "[margins]\nteardown = inf\n", "teardown", "finite"),
    "unknown arm": ('arms = ["vm", "jail"]\n' + GOOD, "'jail'", "choose from vm"),
    "unknown image": (GOOD.replace("busybox", "nope"), "no image 'nope'", "image import"),
    "more CPUs than there are": (GOOD + "limits = {cpus = 1000}\n", "1000 CPUs", "at most"),
    "more memory than there is": (GOOD + 'limits = {memory = "9999 GiB"}\n', "MiB", "smaller"),
    "too few blocks": ("blocks = 2\n" + GOOD, "2 blocks", "at least 7 blocks"),
    "no workload": ('name = "p"\n', "workload", "required"),
}


@pytest.mark.parametrize("kind", WRONG_PLANS)
def test_a_wrong_plan_is_refused_with_its_place(kind: str, tmp_path: Path) -> None:
    """Exit 2; the place and what is allowed there; a dry run finds it too; no folder is made."""
    text, *words = WRONG_PLANS[kind]
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    done = faults.hvct("compare", "--plan", plan, "--dry-run")
    done.says(2, *words)


def test_a_wrong_plan_touches_nothing(tmp_path: Path) -> None:
    """Without --dry-run it is the same, and the run directory was not made."""
    plan = tmp_path / "plan.toml"
    plan.write_text("bloks = 9\n" + GOOD)
    faults.hvct("compare", "--plan", plan, "--output", tmp_path / "run").says(2, "bloks")
    faults.hvct("compare", "--plan", "/dev/zero").says(2, "larger than 1 MiB")
    assert list(tmp_path.iterdir()) == [plan]


# --- the command line -----------------------------------------------------------------------

WRONG_COMMANDS = {
    "unknown workload": ("compare nope", 2, ("no workload 'nope'", "choose from hello")),
    "unknown image": ("compare --image nope", 2, ("no image 'nope'", "hvct image import")),
    "unknown image to run": ("run nope", 2, ("no image 'nope'", "hvct image import")),
    "unknown arm": ("compare hello --arms vm,jail", 2, ("no arm 'jail'", "choose from")),
    "one arm": ("compare hello --arms vm", 2, ("at least two arms", "hvct run")),
    "too few blocks": ("compare hello --blocks 3", 2, ("3 blocks", "at least 7")),
    "no CPUs": ("run --cpus -1 busybox -- true", 2, ("cpus",)),
    "no number of CPUs": ("run --cpus nan busybox -- true", 2, ("CPU|cpus",)),
    "endless CPUs": ("run --cpus inf busybox -- true", 2, ("CPU|cpus",)),
    "too many CPUs": ("run --cpus 1000 busybox -- true", 2, ("1000 CPUs", "fewer")),
    "negative memory": ("run --memory -5MiB busybox -- true", 2, ("memory",)),
    "no memory": ("run --memory 0 busybox -- true", 2, ("must be positive", "256MiB")),
    "unknown user": ("run -u nope busybox -- true", 2, ("no user 'nope'", "one of")),
    "no kernel": ("compare hello --kernel /nope", 2, ("/nope", "vmlinux")),
    "not found": ("run busybox -- nope", 127, ("nope: not found", "check")),
    "not executable": ("run busybox -- /etc/passwd", 126, ("not executable", "permission")),
    "a folder": ("run --arm process busybox -- /etc", 126, ("not executable", "permission")),
    "hardly any memory": ("run --memory 64KiB busybox -- true", 1, ("[Mm]emory", "larger")),
    "a memory limit that nothing starts in": (
        "run --memory 1KiB busybox -- true", 1, ("out of memory before its workload", "larger"),
    ),
    "a VM of 1 KiB": ("run --arm vm --memory 1KiB busybox -- true", 3, ("with 1 KiB", "at least")),
    "VM on the host's network": (
        "run --arm vm --network host busybox -- true", 3, ("network", "none or bridge"),
    ),
    "VM with too little memory": (
        "run --arm vm --memory 16MiB busybox -- true", 3, ("does not boot", "at least"),
    ),
    "VM larger than the host": (
        "run --arm vm --memory 99999GiB busybox -- true", 3, ("does not fit", "less than"),
    ),
    "no run": ("resume /nope", 2, ("not a run directory", "hvct list")),
    "no report": ("report /nope", 2, ("not a run directory", "hvct list")),
    "unknown image to inspect": ("image inspect nope", 2, ("no image 'nope'", "import")),
    "no archive": ("image import /nope", 2, ("does not exist", "path")),
    "no tag": ("clean ../x", 2, ("not the tag", "hvct clean")),
    "no tag of ours": ("clean bogus", 2, ("'bogus' is not the tag", "hvct clean --dry-run")),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_COMMANDS)
def test_a_wrong_command_is_refused(kind: str, tmp_path: Path) -> None:
    """One line what, one line what to do, the exit code, and no run directory."""
    line, code, words = WRONG_COMMANDS[kind]
    faults.hvct(*line.split(), cwd=tmp_path).says(code, *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.vm
def test_a_program_that_is_not_there_is_said_of_a_vm_too() -> None:
    """The same words as of a container."""
    done = faults.hvct("run", "--arm", "vm", "busybox", "--", "nope")
    done.says(127, "nope: not found", "check")


def test_a_comparison_whose_vm_cannot_boot_does_not_begin(tmp_path: Path) -> None:
    """Too little memory for a guest is found before the first trial; no folder stays."""
    plan = tmp_path / "plan.toml"
    plan.write_text(GOOD + 'limits = {memory = "16 MiB"}\n')
    done = faults.hvct("compare", "--wait", "--plan", plan, "--output", tmp_path / "run")
    done.says(3, "does not boot with 16 MiB", "at least")
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_not_written_into(tmp_path: Path) -> None:
    """Unless nothing is in it; what a run killed at once has left counts as nothing."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").write_text("x")
    *command, _ = faults.comparison(tmp_path, ("container", "process"))
    faults.hvct(*command, other).says(2, "exists already", "--output")
    assert (other / "mine").read_text() == "x" and len(list(other.iterdir())) == 1
    begun = tmp_path / "begun"
    (begun / "logs").mkdir(parents=True)
    (begun / ".run.json.4711").write_text("{")
    assert faults.hvct(*command, begun).code == 0
    assert len(faults.trials(begun)) == 2 * faults.BLOCKS
    faults.hvct(*command, begun).says(2, "exists already", "hvct resume")


# --- images -----------------------------------------------------------------------------------


def archive(path: Path, *, architecture: str = "", layer_digest: str = "") -> Path:
    """A ``docker save`` archive with one layer; a wrong digest may be claimed of it."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        info = tarfile.TarInfo("hello")
        info.size = 100_000
        tar.addfile(info, io.BytesIO(os.urandom(info.size)))
    layer = made.getvalue()
    config = {
        "architecture": architecture or host_architecture(),
        "os": "linux",
        "config": {"Cmd": ["/hello"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": ["sha256:" + (layer_digest or hashlib.sha256(layer).hexdigest())],
        },
    }
    manifest = [{"Config": "config.json", "RepoTags": ["a:1"], "Layers": ["layer.tar"]}]
    files = {
        "manifest.json": json.dumps(manifest).encode(),
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer,
    }
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def truncated(path: Path) -> Path:
    """An archive whose end is missing."""
    content = gzip.compress(archive(path).read_bytes())
    path.write_bytes(content[: len(content) // 2])
    return path


BAD_ARCHIVES = {
    "no archive": (lambda path: path.write_text("hello") and path, ("damaged|no archive",)),
    "truncated": (truncated, ("damaged|truncated",)),
    "layer changed": (lambda path: archive(path, layer_digest="0" * 64), ("digest|damaged",)),
    "other architecture": (
        lambda path: archive(path, architecture="s390x"),
        ("s390x", host_architecture()),
    ),
}


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_a_bad_archive_is_refused(kind: str, tmp_path: Path) -> None:
    """Exit 2, and the cache holds no part of it."""
    make, words = BAD_ARCHIVES[kind]
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    made = make(tmp_path / "image.tar")
    faults.hvct("image", "import", made, "--name", "mine", env=cache).says(2, *words)
    rest = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path for path in rest if path.suffix != ".lock"] == []
    listed = faults.hvct("image", "list", "--json", env=cache)
    assert listed.code == 0 and json.loads(listed.out) == []


def test_a_good_archive_is_taken(tmp_path: Path) -> None:
    """The archives above are refused for what is wrong with them, and for nothing else."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = faults.hvct("image", "import", archive(tmp_path / "a.tar"), "--name", "m", env=cache)
    assert done.code == 0, done


HOSTILE_PLANS = {
    "10 MB": ("# " + "x" * 10_000_000, "larger than 1 MiB"),
    "900,000 brackets": ("x = " + "[" * 900_000, "not valid TOML"),
    "100,000 tables in each other": ("[" + "a." * 100_000 + "a]\n", "a key of more than 100 parts"),
    "a key of 500 kB": ("k" * 500_000 + " = 1\n" + GOOD, "no such key"),
    "a number of 10,000 digits": ("blocks = " + "9" * 10_000 + "\n" + GOOD, "not valid TOML"),
    "10^30 blocks": ("blocks = 1" + "0" * 30 + "\n" + GOOD, "blocks"),
    "1e308 CPUs": (GOOD + "limits = {cpus = 1e308}\n", "cpus"),
    "10^30 bytes": (GOOD + "limits = {memory = 1" + "0" * 30 + "}\n", "MiB|memory"),
    "10^400 bytes": (GOOD + 'limits = {memory = "1' + "0" * 400 + ' GiB"}\n', "no size"),
    "5e-324 seconds": (GOOD + "timeout_s = 1e400\n", "timeout_s"),
    "no number at all": (GOOD + "hold_s = nan\n", "hold_s"),
    "a NUL in argv": (GOOD.replace('"true"', '"a\\u0000b"'), "NUL|zero"),
    "half a character": ('name = "\\ud800"\n', "not valid TOML"),
    "800 kB of arguments twice": (
        GOOD.replace('"true"', f'"{"x" * 900_000}"') + 'env = {A = "' + "y" * 100_000 + '"}\n',
        "1 MiB|larger",
    ),
    "5,000 workloads": (
        'name = "p"\n'
        + "".join(
            GOOD.partition("\n\n")[2].replace('"w"', f'"w{n}"') for n in range(5000)
        ),
        "at most 256",
    ),
    "no UTF-8": (b"name = '\xff\xfe'\n", "not valid TOML"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_PLANS)
def test_a_hostile_plan_is_refused(kind: str, tmp_path: Path) -> None:
    """Size, depth and numbers beyond all sense: exit 2, in a line, at once."""
    text, word = HOSTILE_PLANS[kind]
    plan = tmp_path / "plan.toml"
    plan.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = faults.hvct("compare", "--plan", plan, "--dry-run", cwd=tmp_path, timeout_s=60)
    done.says(2, word)
    assert all(len(line) < 2000 for line in done.err.splitlines())
    assert list(tmp_path.iterdir()) == [plan]
