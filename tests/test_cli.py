"""The command line without measuring: help, usage, what only reads, and how progress looks.

Over 400 lines: all that a user sees before anything is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import synthetic
from console import COLUMNS, hvct, lines_of
from rich.console import Console

from bench import estimate, plan, workloads
from bench.campaign import Durations
from bench.cli import main
from bench.commands.arguments import make_parser, parse
from bench.commands.progress import RunProgress, clock, open_progress
from bench.errors import BadInput
from bench.model import Outcome, Trial
from bench.schedule import Slot

HEAVY = ("pandas", "numpy", "scipy", "matplotlib", "pyroute2", "libvirt", "weasyprint", "jinja2",
         "pydantic", "rich", "psutil", "archspec")  # fmt: skip


def commands(parser: argparse.ArgumentParser, name: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Every command, and every action of one."""
    yield list(name)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from commands(below, (*name, word))


COMMANDS = list(commands(make_parser()))


# -- help and usage ------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words) or "hvct")
def test_help_has_examples_and_fits_a_terminal(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--help of every command exits 0, shows at least one example, and no line wraps."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    examples = shown.partition("\nexamples:\n")[2]
    assert re.search(rf"^  .*hvct {' '.join(command)}", examples, re.MULTILINE)
    assert [line for line in shown.splitlines() if len(line) > COLUMNS] == []


def test_every_option_is_explained() -> None:
    """No option or argument of any command is without help."""
    for words in COMMANDS:
        parser: argparse.ArgumentParser = make_parser()
        for word in words:
            (below,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
            parser = below.choices[word]
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help, (words, action.dest)


def test_help_imports_nothing_heavy() -> None:
    """No --help, no usage error and no list of runs loads a library that costs start-up time."""
    code = f"""
import contextlib, io, json, sys
from bench.cli import main
for words in {COMMANDS!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([*words, "--help"])
with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
    main(["nonsense"])
    main(["list"])
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("choices", ["'compare', 'run'", "compare, run"])
def test_choices_are_read_as_each_python_lists_them(choices: str) -> None:
    """Up to 3.11 argparse quotes them, since 3.12 it does not."""
    complaint = "argument COMMAND: invalid choice: 'compere' (choose from {})"
    with pytest.raises(BadInput, match="no command 'compere'") as caught:
        make_parser().error(complaint.format(choices))
    assert caught.value.hint == "did you mean compare?"
    with pytest.raises(BadInput) as caught:
        make_parser().error(complaint.replace("compere", "x").format(choices))
    assert caught.value.hint == "choose from compare, run"


@pytest.mark.parametrize(
    ("words", "what", "remedy"),
    [
        (["compere"], "no command 'compere'", "did you mean compare?"),
        (["image", "imprt"], "no action 'imprt'", "did you mean import?"),
        (["image"], "ACTION is missing", "hvct image --help"),
        (["run"], "IMAGE is missing", "hvct run --help"),
        (["run", "--bogus", "busybox"], "'--bogus'", "hvct run --help"),
        (["run", "busybox", "--arm", "vm"], "--arm comes after the image", "before the image"),
        (["run", "--network", "lan", "busybox"], "no network 'lan'", "none, bridge, host"),
        (["compare", "--blocks", "x"], "--blocks 'x' is no whole number", "hvct compare --help"),
        (["compare", "--block", "12"], "'--block'", "did you mean --blocks?"),
        (["compare", "--", "true"], "needs an image", "--image IMAGE"),
        (["compare", "--arms", "vm"], "at least two arms", "hvct run"),
        (["compare", "--arms", "vm,xen"], "no arm 'xen'", "container"),
        (["compare", "nope"], "no workload 'nope'", "hello"),
        (["compare", "hello", "--blocks", "2"], "2 blocks are too few", "--blocks 7"),
        (["compare", "redsi"], "no workload 'redsi'", "did you mean redis?"),
        (["compare", "--arms", ""], "--arms names nothing", "hvct compare --help"),
        (["compare", "--arms", "containers,vm"], "no arm 'containers'", "did you mean container?"),
        (["compare", "--blocks", "0"], "0 is no number of blocks", "1 to 100000"),
        (["compare", "--blocks", "99999999", "--dry-run"], "no number of blocks", "100000"),
        (["compare", "--seed", "-1", "--dry-run"], "-1 is no seed", "0 or more"),
        (["compare", "--tune-only", "x", "--dry-run"], "no setting 'x'", "governor"),
        (["compare", "--output", "/dev/null"], "/dev/null exists already", "--output"),
        (["costs", "--steps", "-1,5"], "--steps needs a value", "--steps=VALUE"),
        (["costs", "--steps=-1,5"], "cannot stand here", "up to 10000"),
        (["tune", "x"], "no action 'x'", "show, apply, reset"),
        (["run", "--workdir", "etc", "busybox"], "'etc' is relative", "begin it with /"),
        (["run", "busybox", "--", ""], "empty word", "CMD"),
        (["doctor", "--kernel", "nope"], "--kernel nope is no file", "vmlinux"),
        (["run", "--kernel", "nope", "busybox"], "--kernel nope is no file", "vmlinux"),
        (["report", "/bin/true"], "no archive of a run", "hvct archive"),
        (["compare", "--image", "nope"], "no image 'nope'", "hvct image import"),
        (["compare", "--plan", "nope.toml"], "nope.toml cannot be read", "docs/plan.md"),
        (["show", "nope"], "not a run directory", "hvct list"),
        (["resume", "nope"], "not a run directory", "hvct list"),
        (["report", "nope"], "not a run directory", "hvct list"),
        (["report", "nope", "--format", "doc"], "no format 'doc'", "html"),
        (["list", "nope"], "nope is no folder", "name the one"),
        (["image", "inspect", "nope"], "no image 'nope'", "hvct image import"),
        (["image", "remove", "busybox", "nope"], "no image 'nope'", "busybox"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_are_two_lines(
    words: list[str],
    what: str,
    remedy: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """One line what is wrong, one what to do, exit status 2, nothing on standard output."""
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    shown = capsys.readouterr()
    first, second = shown.err.splitlines()
    assert first.startswith("hvct: ") and what in first
    assert second.startswith("      ") and remedy in second
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", ["login", "pull"])
def test_a_password_that_was_promised_must_come(
    action: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty standard input is said before a registry is asked."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    words = ["image", action, "registry.invalid/app", "--username", "me", "--password-stdin"]
    assert main(words) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "holds no password" in first and "--password-stdin <FILE" in second


def test_the_command_of_run_begins_after_the_image_or_after_two_dashes() -> None:
    """As container engines have it, or after --, where options may also follow the image."""
    assert parse(["run", "-i", "busybox", "echo", "-n", "x"]).argv == ["echo", "-n", "x"]
    parsed = parse(["run", "busybox", "--arm", "vm", "--", "ls", "--", "-l"])
    assert (parsed.arm, parsed.image, parsed.argv) == ("vm", "busybox", ["ls", "--", "-l"])
    assert parse(["run", "busybox"]).argv == []
    assert parse(["compare", "--image", "busybox", "--", "true"]).argv == ["true"]
    with pytest.raises(BadInput, match="'x'"):
        parse(["run", "busybox", "x", "--", "true"])


def test_without_root_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What needs root exits 3 and says sudo; list and a dry run work without."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    for words in (["run", "--arm", "container", "busybox"], ["compare", "hello"], ["clean"]):
        assert main(words) == 3
        assert "sudo" in capsys.readouterr().err
    assert main(["list"]) == 0
    assert main(["compare", "hello", "--dry-run"]) == 0


def test_a_reader_that_goes_away_and_a_full_disk(tmp_path: Path) -> None:
    """`| head` ends quietly; a full disk behind our output is the host's fault, in two lines."""
    synthetic.write_run(tmp_path / "runs" / "one", workloads=("minimal",), blocks=2)
    argv = [sys.executable, "-m", "bench.cli", "show", str(tmp_path / "runs" / "one")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shown:
        assert shown.stdout is not None and shown.stderr is not None
        shown.stdout.close()
        assert shown.stderr.read() == b""
    assert shown.returncode == 0
    with open("/dev/full", "wb") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 3
    assert done.stderr.decode().splitlines()[0] == "hvct: No space left on device"


def test_a_terminal_without_our_letters_shows_the_rest(tmp_path: Path) -> None:
    """In a locale that is not UTF-8 a letter may be lost, never the command."""
    synthetic.write_run(tmp_path / "one", workloads=("minimal",), blocks=2)
    argv = [sys.executable, "-m", "bench.cli", "show", str(tmp_path / "one")]
    for encoding in ("latin-1", "ascii"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(argv, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"2 of 2 blocks" in done.stdout


# -- what only reads -----------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of three runs: whole, with a failure and not complete, and unreadable."""
    folder = tmp_path / "runs"
    synthetic.write_run(folder / "20261123-a", workloads=("minimal", "redis"), blocks=3)

    def one_fails(line: dict[str, object]) -> None:
        if (line["block"], line["arm"], line["workload"]) == (1, "vm", "minimal"):
            synthetic.spoil(line, "failed", "exit status 7")
            line["logs"] = "logs/001-1-minimal-vm.log"

    record = synthetic.run_record(run_id="20261124-b", workloads=("minimal",), blocks=3)
    record["ended"] = None
    synthetic.write_run(folder / "20261124-b", record=record, change=one_fails)
    lines = (folder / "20261124-b" / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "20261124-b" / "trials.jsonl").write_text("".join(lines[:-1]))
    (folder / "20261125-c").mkdir()
    (folder / "20261125-c" / "run.json").write_text("{")
    return folder


def test_list_shows_every_run_and_what_to_do(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of aligned columns; a run that is not complete, or unreadable, is said to be."""
    assert main(["list", str(runs)]) == 0
    shown = capsys.readouterr().out
    head, first, second, third, *rest = shown.splitlines()
    assert head.index("BLOCKS") == first.index("3/3") == second.index("2/3")
    assert "18 ok" in first and "5 ok, 1 failed" in second and "unreadable" in third
    unfinished = shlex.quote(str(runs / "20261124-b"))
    assert rest[-1] == f"not complete: go on with hvct resume {unfinished}"
    assert main(["list", str(runs), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row.get("blocks_done") for row in rows] == [3, 2, None]
    assert rows[0]["workloads"] == ["minimal", "redis"]
    assert main(["list", str(runs / "20261123-a")]) == 0
    assert "no runs in" in capsys.readouterr().out


def test_show_names_failed_trials_and_their_logs(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, the state, the figures, and for each failure where its log is."""
    run = runs / "20261124-b"
    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert f"hvct resume {run}" in shown and "2 of 3 blocks" in shown
    assert "block 2 · vm · minimal: failed: exit status 7" in shown
    assert str(run / "logs/001-1-minimal-vm.log") in shown
    assert main(["show", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"]


def test_report_writes_what_was_asked_for(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each format to its file, named on standard output; --json prints and writes nothing."""
    run, into = runs / "20261123-a", runs.parent / "report"
    formats = ["html", "json", "csv"]
    if importlib.util.find_spec("pyarrow"):
        formats.append("parquet")
    assert main(["report", str(run), "--format", ",".join(formats), "--output", str(into)]) == 0
    named = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(named) == formats
    assert all(Path(path).stat().st_size > 500 for path in named.values())
    assert sorted(path.name for path in run.iterdir()) == ["run.json", "trials.jsonl"]
    assert main(["report", str(run), str(run), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2


# -- plans and time ------------------------------------------------------------------------


@pytest.fixture
def documented_plan(tmp_path: Path) -> Path:
    """The example of docs/plan.md as a file."""
    text = (Path(__file__).parent.parent / "docs" / "plan.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    made = tmp_path / "mine.toml"
    made.write_text(example)
    return made


def test_a_dry_run_prints_the_plan_and_its_time(
    documented_plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is run; what would be, how often, how long, and what is judged is printed."""
    assert main(["compare", "--plan", str(documented_plan), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "3 arms × 2 workloads × 12 blocks" in shown and "about" in shown
    assert "redis-server" in shown and "startup_ready of kv" in shown
    assert '[[workload]]\nname = "sum"' in shown and "# ready: " in shown
    words = ["compare", "--plan", str(documented_plan), "--dry-run", "--json"]
    assert main([*words, "--arms", "container,process", "--blocks", "7", "--seed", "5"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["estimated_s"] > 10
    assert document["plan"]["arms"] == ["container", "process"]
    assert (document["plan"]["blocks"], document["plan"]["seed"]) == (7, 5)
    assert list(documented_plan.parent.iterdir()) == [documented_plan]


@pytest.mark.parametrize(
    "words",
    [
        ["--plan", "mine.toml"],
        [],
        ["startup", "idle", "elastic", "--arms", "all", "--blocks", "20", "--seed", "0"],
        [
            "--image",
            "busybox",
            "-e",
            "A=b\tc",
            "--ready",
            "line:^u\\s",
            "--",
            "sh",
            "-c",
            "echo 'up'\n",
        ],
    ],
    ids=["documented", "quick", "built in", "image"],
)
def test_what_a_dry_run_prints_is_a_plan_file(
    words: list[str],
    documented_plan: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given to --plan it is the same plan, whatever the first one was made of."""
    monkeypatch.chdir(documented_plan.parent)
    dry = ["--dry-run", "--json"]
    tail = words.index("--") if "--" in words else len(words)
    words, argv = words[:tail], words[tail:]
    if "--seed" not in words:
        words = [*words, "--seed", "77"]
    assert main(["compare", *words, *dry, *argv]) == 0
    first = json.loads(capsys.readouterr().out)["plan"]
    assert main(["compare", *words, "--dry-run", *argv]) == 0
    Path("printed.toml").write_text(capsys.readouterr().out)
    assert main(["compare", "--plan", "printed.toml", *dry]) == 0
    assert json.loads(capsys.readouterr().out)["plan"] == first


@pytest.mark.parametrize("words", [["compare"], ["calibrate"], ["costs", "idle"]])
def test_a_dry_run_is_there_for_programs(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Plan, time and folder as JSON, and nothing else on standard output."""
    assert main([*words, "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan"]["arms"] and document["estimated_s"] > 0
    assert document["directory"].startswith("runs/")
    assert ("steps" in document) == (words[0] == "costs")


def test_a_run_whose_trials_are_gone_is_not_called_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended, but what is stored does not say so."""
    run = tmp_path / "one"
    synthetic.write_run(run, workloads=("minimal",), blocks=2)
    assert main(["show", str(run)]) == 0
    assert "complete" in capsys.readouterr().out
    (run / "trials.jsonl").write_text("")
    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "0 of 2 blocks" in shown and "missing or damaged" in " ".join(shown.split())


def test_the_time_is_learned_from_what_was_run() -> None:
    """First a guess by arm; then what trials really took, receipts and report included."""
    made = plan.quick([workloads.builtin("hello")], arms=("container", "process"), blocks=10)
    guess = estimate.run_seconds(made, Durations())
    assert guess > 20 * estimate.FIRST_GUESS_S["container"]
    known = Durations({"container/hello": 2.0, "process/hello": 1.0,
                       "hvct/prepare": 3.0, "hvct/report": 4.0})  # fmt: skip
    assert estimate.run_seconds(made, known) == pytest.approx(11 * 2 + 11 * 1 + 3 + 4)
    assert estimate.run_seconds(made, known, []) == pytest.approx(3 + 4)
    assert estimate.run_seconds(made, known, [], ["default"]) > 20


def test_times_are_written_as_people_say_them() -> None:
    """Minutes and seconds, hours only where there are some."""
    assert [clock(seconds) for seconds in (0, 61.4, 7321)] == ["0:00", "1:01", "2:02:01"]
    assert estimate.phrase(12.3) == "about 12 s"
    assert estimate.phrase(281) == "about 4 min 40 s"


# -- progress ------------------------------------------------------------------------------


def drawn(progress: RunProgress, made: plan.Plan) -> None:
    """Everything that can be shown."""
    progress.banner("Host", "a processor with a long name · " * 5)
    progress.stage("identity receipts · 1/15 · " + "a workload with a very long title " * 5)
    progress.stage("identity receipts · 2/15 · vm")
    for block in range(2):
        slot = Slot(block, 0, "nginx", "vm")
        progress.begin(slot, workloads.builtin("nginx"), 75 * block, 150, 111.0)
        progress.end(Trial(block, 0, "vm", "nginx", Outcome.FAILED, error="it went wrong " * 12))
    progress.close()


def test_progress_in_a_terminal_is_one_line_of_80_columns() -> None:
    """Block, bar, what runs, how many are not ok, and the time left, whatever their lengths."""
    made = plan.quick([workloads.builtin("nginx")])
    shown = io.StringIO()
    drawn(RunProgress(Console(file=shown, force_terminal=True, width=COLUMNS), made), made)
    lines = lines_of(shown.getvalue())
    assert max(map(len, lines)) <= COLUMNS
    bars = [line for line in lines if line.startswith("Block ")]
    assert re.fullmatch(r"Block   1/10 +━+  vm · nginx to HTTP 200 +1:51 left", bars[0])
    assert re.fullmatch(
        r"Block   2/10 +━+.━+  vm · nginx to HTTP 200 +1 not ok  1:51 left", bars[-1]
    )
    assert any("identity receipts · 1/15" in line and "…" in line for line in lines)


def test_progress_on_a_pipe_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """One line per stage and block, no movement; quiet is silent."""
    made = plan.quick([workloads.builtin("nginx")])
    with open_progress(made, sys.stdout) as progress:
        drawn(progress, made)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\r" not in shown
    assert shown.count("identity receipts") == 1
    assert "Block   1/10  1:51 left\n" in shown and "Block   2/10" in shown
    with open_progress(made, sys.stdout, quiet=True) as progress:
        drawn(progress, made)
    assert capsys.readouterr().out == ""


def test_debugging_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """HVCT_DEBUG=1 adds the traceback that a user is spared otherwise."""
    assert b"Traceback" not in hvct("image", "inspect", "nope").err
    monkeypatch.setenv("HVCT_DEBUG", "1")
    done = hvct("image", "inspect", "nope")
    assert done.code == 2 and b"Traceback" in done.err
