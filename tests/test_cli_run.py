"""`hvct run`, images, and a comparison from a user's plan, as they are typed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from console import COLUMNS, hvct, hvct_argv, terminal

from bench import journal, store
from bench.image.busybox import find_busybox

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("busybox")]

BIG = 64 << 20
ANOTHERS_S = 900.0  # somebody else's comparison may have to end first
NATIVE = pytest.mark.parametrize("arm", ["container", "process"])


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Whatever a test ran has undone itself."""
    with faults.nothing_left():
        yield


def sha256(data: bytes) -> str:
    """What sha256sum prints first."""
    return hashlib.sha256(data).hexdigest()


# -- output, input, exit status ------------------------------------------------------------


@NATIVE
def test_output_and_exit_status_are_the_commands(arm: str) -> None:
    """Standard output and error arrive apart, byte for byte, and nothing else does."""
    script = r"printf 'a\0\377\n'; echo oops >&2; exit 7"
    done = hvct("run", "--arm", arm, "busybox", "--", "sh", "-c", script)
    assert (done.code, done.out, done.err) == (7, b"a\0\xff\n", b"oops\n")


@NATIVE
def test_a_signal_is_told_as_a_shell_tells_it(arm: str) -> None:
    """128 + N."""
    done = hvct("run", "--arm", arm, "busybox", "sh", "-c", "kill -SEGV $$")
    assert (done.code, done.out, done.err) == (128 + signal.SIGSEGV, b"", b"")


@NATIVE
def test_environment_user_and_folder_are_set(arm: str) -> None:
    """-e, -u and -w mean what they mean to container engines."""
    options = ["-e", "A=1=2", "-e", "HOME", "-e", "NOT_SET_HERE", "-u", "nobody", "-w", "/tmp"]
    script = "id -u; pwd; echo $A; echo $HOME; echo ${NOT_SET_HERE-unset}"
    done = hvct("run", *options, "--arm", arm, "busybox", "--", "sh", "-c", script)
    assert done.out.decode().split() == ["65534", "/tmp", "1=2", os.environ["HOME"], "unset"]


def test_64_mib_go_through_in_both_directions() -> None:
    """What is piped in comes out, all of it and unchanged."""
    data = os.urandom(1 << 20) * (BIG >> 20)
    done = hvct("run", "-i", "busybox", "--", "tee", "/dev/stderr", stdin=data)
    assert done.code == 0
    assert sha256(done.out) == sha256(done.err) == sha256(data)


def test_input_that_nobody_reads_does_not_hang() -> None:
    """A command that ends ends the run, however much input is waiting."""
    with subprocess.Popen(
        hvct_argv("run", "-i", "busybox", "--", "sleep", "0.5"), stdin=subprocess.PIPE
    ) as running:
        assert running.stdin is not None
        with pytest.raises(BrokenPipeError):
            while True:
                running.stdin.write(b"x" * 65536)
        assert running.wait(30) == 0


def test_a_reader_that_goes_away_ends_the_run() -> None:
    """`hvct run … yes | head -1` ends at once, as `yes | head -1` does."""
    with subprocess.Popen(
        hvct_argv("run", "busybox", "--", "yes"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.read(2) == b"y\n"
        running.stdout.close()
        assert running.wait(30) == 128 + signal.SIGPIPE
        assert running.stderr.read() == b""


def test_closed_and_full_streams() -> None:
    """Closed streams are as /dev/null; a full disk is told in two lines."""
    words = shlex.join(hvct_argv("run", "-i", "busybox", "--", "sh", "-c", "cat; echo x"))
    closed = subprocess.run(["sh", "-c", f"exec {words} <&- >&- 2>&-"], check=False)
    assert closed.returncode == 0
    full = subprocess.run(["sh", "-c", f"{words} </dev/null >/dev/full"],
                          stderr=subprocess.PIPE, check=False)  # fmt: skip
    assert full.returncode == 3
    assert b"standard output: No space left" in full.stderr


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["busybox", "--", "nope"], 127, "nope: not found"),
        (["nope", "--", "true"], 2, "no image 'nope'"),
        (["--arm", "xen", "busybox"], 2, "no arm 'xen'"),
        (["--memory", "lots", "busybox"], 2, "'lots' is no size"),
        (["--cpus", "-1", "busybox"], 2, "--cpus must be positive"),
        (["--cpus", "4096", "busybox"], 2, "4096 CPUs"),
        (["-e", "=x", "busybox"], 2, "NAME=VALUE"),
        (["-u", "nosuch", "busybox"], 2, "no user 'nosuch'"),
        (["-it", "busybox"], 2, "needs a terminal"),
        (["--logs", "/proc/nope", "busybox"], 2, "mkdir /proc/nope"),
        (["--arm", "vm", "--network", "host", "busybox"], 3, "network namespace"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_run_is_said(words: list[str], code: int, what: str) -> None:
    """One line what, one what to do, and an exit status that tells whose fault it was."""
    done = hvct("run", *words)
    assert done.code == code
    assert what in done.complaint[0]


def test_results_for_programs_and_people(tmp_path: Path) -> None:
    """--json is one line on standard error, --timeline a table; --logs keeps the logs."""
    logs = tmp_path / "logs"
    done = hvct("run", "--json", "--logs", logs, "busybox", "--", "echo", "hi")
    assert done.out == b"hi\n"
    (line,) = done.err.splitlines()
    document = json.loads(line)
    assert document["exit"]["code"] == 0 and document["argv"] == ["echo", "hi"]
    assert document["timeline"]["started"] > 0
    assert document["usage"]["memory"]["current_bytes"] > 0
    assert document["image"]["digest"].startswith("sha256:")
    assert [path.name for path in logs.iterdir()] == ["ct-launcher.log"]
    shown = hvct("run", "--timeline", "busybox", "--", "true").err.decode()
    assert re.search(r"^ +requested +0\.00 .*\n(.*\n)* +started +[\d.]+ ", shown, re.MULTILINE)


def test_a_run_loads_only_what_it_needs() -> None:
    """No pandas, pydantic or rich, and without a bridge no pyroute2, between Enter and output."""
    argv = [sys.executable, "-X", "importtime", "-m", "bench.cli", "run", "busybox", "true"]
    done = subprocess.run(argv, capture_output=True, check=True)
    loaded = set(re.findall(r"\| +(\w+)$", done.stderr.decode(), re.MULTILINE))
    assert "bench" in loaded
    heavy = {"pandas", "numpy", "scipy", "matplotlib", "pyroute2", "libvirt", "weasyprint"}
    assert not loaded & (heavy | {"pydantic", "rich", "jinja2", "psutil"})


# -- signals and terminals -----------------------------------------------------------------


def started(*words: str) -> subprocess.Popen[bytes]:
    """An hvct run that has printed its first line."""
    running = subprocess.Popen(
        hvct_argv("run", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    return running


@NATIVE
def test_signals_reach_the_command(arm: str) -> None:
    """SIGTERM and SIGUSR1 are passed on; what the command does with them is its affair."""
    script = (
        "trap 'echo one' USR1; trap 'echo end; exit 5' TERM; echo up; while :; do sleep .1; done"
    )
    with started("--arm", arm, "busybox", "--", "sh", "-c", script) as running:
        running.send_signal(signal.SIGUSR1)
        assert running.stdout is not None
        assert running.stdout.readline() == b"one\n"
        running.terminate()
        assert running.stdout.read() == b"end\n"
        assert running.wait(30) == 5


def test_who_ignores_three_requests_is_killed() -> None:
    """Ctrl-C thrice gets rid of anything."""
    with started("busybox", "--", "sh", "-c", "trap '' INT TERM; echo up; sleep 60") as running:
        for _ in range(3):
            running.send_signal(signal.SIGINT)
            time.sleep(0.3)
        assert running.wait(30) == 128 + signal.SIGKILL
        assert running.stderr is not None and b"three times" in running.stderr.read()


def test_an_interactive_shell_in_a_terminal() -> None:
    """It has a terminal of our size, ^C interrupts its command, ^D ends it, ours is restored."""
    with terminal("run", "-it", "busybox", "--", "sh") as screen:
        screen.until(r"/ # ")
        screen.type("stty size; tty\n")
        screen.until(rf"24 {COLUMNS}\s+/dev/pts/0")
        screen.type("sleep 60\n")
        screen.until(r"sleep 60\r\n")
        assert not screen.restored
        time.sleep(0.3)  # until the shell has started it: a ^C at its prompt is something else
        screen.type("\x03")
        screen.until(r"\^C(.|\n)*/ # ")
        screen.type("echo status $?\n")
        screen.until("status 130")
        screen.type("\x04")
        assert screen.end() == 0
        assert screen.restored


def test_the_terminal_is_restored_after_an_error() -> None:
    """A command that is killed, or never starts, leaves the terminal as it was."""
    for words, code in ((["sh", "-c", "kill -9 $$"], 137), (["nope"], 127)):
        with terminal("run", "-it", "busybox", "--", *words) as screen:
            assert screen.end() == code
            assert screen.restored


@pytest.mark.vm
def test_a_vm_behaves_like_a_container(tmp_path: Path) -> None:
    """Input, both outputs, exit status and the timeline, through a guest; its logs are kept."""
    data = os.urandom(1 << 20)
    script = "sha256sum; echo oops >&2; uname -r; exit 9"
    words = ["--arm", "vm", "--json", "--logs", tmp_path, "-i", "busybox"]
    done = hvct("run", *words, "--", "sh", "-c", script,
                stdin=data)  # fmt: skip
    first, second = done.out.decode().splitlines()
    assert first.split()[0] == sha256(data)
    assert second != os.uname().release
    oops, line = done.err.decode().splitlines()
    document = json.loads(line)
    assert (done.code, oops, document["exit"]["code"]) == (9, "oops", 9)
    assert document["timeline"]["kernel"] < document["timeline"]["started"]
    assert document["accelerator"]["kind"] in ("kvm", "tcg")
    assert (tmp_path / "vm-worker.log").exists()


@pytest.mark.vm
def test_ctrl_c_while_a_vm_boots_ends_it() -> None:
    """Nothing runs any more, nothing is left, and the exit status says why."""
    argv = hvct_argv("run", "--arm", "vm", "busybox", "--", "sleep", "60")
    with subprocess.Popen(argv, stderr=subprocess.PIPE, start_new_session=True) as running:
        deadline = time.monotonic() + 60
        while not any(record.pid == running.pid for record in journal.live()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(1.0)  # somewhere in QEMU's or the kernel's start
        os.killpg(running.pid, signal.SIGINT)  # as a terminal sends it: to all of them
        assert running.wait(30) == 130
        assert running.stderr is not None
        assert running.stderr.read().decode().splitlines() == ["hvct: interrupted"]


# -- images --------------------------------------------------------------------------------


def docker_save(path: Path) -> None:
    """A `docker save` archive of one layer with busybox in it."""

    def member(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), mode, 1_700_000_000
        archive.addfile(info, io.BytesIO(data))

    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as layer:
        member(layer, "bin/busybox", find_busybox(path.parent).read_bytes(), 0o755)
        member(layer, "etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n")
    config = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {
            "Entrypoint": ["/bin/busybox"],
            "Cmd": ["echo", "from the image"],
            "Env": ["GREETING=hello"],
            "User": "app",
            "WorkingDir": "/etc",
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(made.getvalue())}"]},
    }
    manifest = [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        member(archive, "layer.tar", made.getvalue())
        member(archive, "c.json", json.dumps(config).encode())
        member(archive, "manifest.json", json.dumps(manifest).encode())


def test_an_image_from_docker_save_to_its_removal(tmp_path: Path) -> None:
    """Imported, listed, inspected, run as it says itself, overridden, and removed."""
    name = f"cli-test/{os.getpid()}:1"
    docker_save(tmp_path / "app.tar")
    done = hvct("image", "import", tmp_path / "app.tar", "--name", name, "--json")
    assert done.code == 0, done
    try:
        assert json.loads(done.out)["name"] == name
        assert name in hvct("image", "list").out.decode()
        about = json.loads(hvct("image", "inspect", name).out)
        assert about["config"]["entrypoint"] == ["/bin/busybox"]
        assert about["config"]["ids"]["uid"] == 1000
        assert hvct("run", name).out == b"from the image\n"
        shown = hvct("run", "--arm", "process", name, "--", "env").out.decode().split("\n")
        assert "GREETING=hello" in shown
        assert hvct("run", name, "pwd").out == b"/etc\n"
        words = ["--entrypoint", "/bin/busybox", name, "--", "id", "-u"]
        assert hvct("run", *words).out == b"1000\n"
    finally:
        assert hvct("image", "remove", name).code == 0
    assert hvct("image", "inspect", name).code == 2
    assert name not in hvct("image", "list", "--json").out.decode()


# -- a comparison --------------------------------------------------------------------------


@pytest.mark.usefixtures("default_image")
def test_the_documented_plan_interrupted_and_resumed(tmp_path: Path) -> None:
    """docs/plan.md's example: progress of one line, Ctrl-C that says how to go on, a report."""
    text = (Path(__file__).parent.parent / "docs" / "plan.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.toml").write_text('gap = "none"\n' + example)
    run = tmp_path / "runs" / "mine"

    options = ["--arms", "container,process", "--blocks", "7", "--output", run, "--wait"]
    with terminal("compare", "--plan", tmp_path / "mine.toml", *options) as screen:
        screen.until(r"Block .*2/7", ANOTHERS_S)
        screen.type("\x03")
        assert screen.end() == 130
        assert screen.restored
    assert "undoing what was set up" in screen.drawn
    assert f"go on with: hvct resume {run}" in screen.drawn
    assert any("2 arms × 2 workloads × 7 blocks" in line for line in screen.lines)
    bars = [line for line in screen.lines if re.search(r"━.* (container|process) · .* left$", line)]
    assert bars and max(map(len, bars)) <= COLUMNS
    stopped = store.load(run)
    assert 1 <= len(stopped.complete_blocks()) < 7
    assert stopped.run["options"] == {"libvirt_uri": "", "kernel": None, "tune": None}
    listed = json.loads(hvct("list", run.parent, "--json").out)
    assert (listed[0]["ended"], listed[0]["blocks_done"]) == (None, len(stopped.complete_blocks()))

    done = hvct("resume", run, "--json", "--wait", timeout_s=ANOTHERS_S)
    assert done.code == 0, done
    assert b"Block   7/7" in done.err
    document = json.loads(done.out)
    metrics = {row["metric"] for row in document["runs"][0]["comparisons"]}
    assert {"startup_ready", "sums"} <= metrics
    whole = store.load(run)
    assert whole.complete_blocks() == set(range(7))
    assert whole.trials[: len(stopped.trials)] == stopped.trials
    assert {trial["outcome"] for trial in whole.trials} == {"ok"}
    sums = [item["value"] for trial in whole.trials for item in trial["samples"]
            if item["metric"] == "sums"]  # fmt: skip
    assert len(sums) == 14
    for name in ("report.html", "report.pdf", "report.json"):
        assert (run / name).stat().st_size > 5000

    again = hvct("resume", run, "--no-report", "--wait", timeout_s=ANOTHERS_S)
    assert again.code == 0 and b"is complete" in again.err
    assert b"sums" in hvct("show", run).out
