"""Run directories edited by hand, damaged or made to hurt: a line, a hint, exit 2; never more."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic

from bench import store
from bench.cli import main

WRONG: tuple[Any, ...] = (
    *(None, True, 0, -1, -1e-9, 10**40, 1e308, -1e308, 5e-324, float("nan"), float("inf")),
    *("", "x", "\ud800", "\x00\x1b[2J", "x" * 100_000, [], [1], [[]], {}, {"": None}),
)
GONE = object()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run in which nothing is wrong."""
    return synthetic.write_run(tmp_path_factory.mktemp("good") / "run", blocks=2)


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    for name in ("run.json", "trials.jsonl"):
        (folder / name).write_bytes((good / name).read_bytes())
    return folder


def hvct(*words: str | Path) -> tuple[int, str]:
    """Exit code and what was said, of a command in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = main([str(word) for word in words])
    return code, said.getvalue()


def readers(run: Path) -> Iterator[tuple[str, int, str]]:
    """Every command that reads a run, with its exit code and what it said."""
    for words in (("report", "--json", run), ("show", run), ("list", run.parent), ("resume", run)):
        yield (str(words[0]), *hvct(*words))


def check(run: Path) -> set[int]:
    """What is wrong is said in two lines by all of them; `list` goes on to the next run."""
    codes = set()
    for name, code, said in readers(run):
        assert "Traceback" not in said and "defect" not in said, (name, said)
        # 1: it could be read, and holds nothing that was measured.
        assert code in (0, 1, 2, 3), (name, code, said)
        assert code != 1 or name == "report", (name, said)
        assert code != 2 or len(said.splitlines()) == 2, (name, said)
        assert name != "list" or code == 0, said
        codes.add(code)
    return codes


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield (*place, key)
        yield from places(inner, (*place, key))


def replaced(value: Any, place: tuple[Any, ...], wrong: Any) -> Any:
    """A copy with one value changed, or gone."""
    made = inner = copy.deepcopy(value)
    for key in place[:-1]:
        inner = inner[key]
    if wrong is GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = wrong
    return made


def test_a_good_run_is_read(run: Path) -> None:
    """What is refused below is refused for what is wrong with it."""
    assert [code for name, code, _ in readers(run) if name != "resume"] == [0, 0, 0]


def test_any_value_at_any_place(run: Path) -> None:
    """Random places of run.json and of a trial take random values, another choice each time."""
    chance = random.Random(seed := time.time_ns())
    print(f"seed {seed}")
    record = json.loads((run / "run.json").read_text())
    lines = (run / "trials.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    codes = set[int]()
    for _ in range(12):
        wrong = chance.choice((*WRONG, GONE))
        changed, trial = record, first
        if chance.random() < 0.5:
            changed = replaced(record, chance.choice(list(places(record))), wrong)
        else:
            trial = replaced(first, chance.choice(list(places(first))), wrong)
        (run / "run.json").write_text(json.dumps(changed))
        (run / "trials.jsonl").write_text("\n".join([json.dumps(trial), *lines[1:]]) + "\n")
        codes |= check(run)
    assert 2 in codes  # what each may be is in `check`


def trials(run: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes of the trials."""
    path = run / "trials.jsonl"
    path.write_bytes(change(path.read_bytes()))


DAMAGE: dict[str, tuple[Callable[[Path], object], int]] = {
    "last line cut off": (lambda run: trials(run, lambda data: data[:-40]), 0),
    "noise in the middle": (
        lambda run: trials(run, lambda data: data[:5000] + os.urandom(9999) + data[5000:]),
        0,
    ),
    # Nothing is left that was measured.
    "trials are zeros": (lambda run: trials(run, lambda _: bytes(1 << 20)), 1),
    "a line of 40 MB": (lambda run: trials(run, lambda data: data + b"[" * (40 << 20)), 0),
    "a number of 10,000 digits": (
        lambda run: trials(
            run, lambda data: data.replace(b'"block": 0', b'"block": ' + b"9" * 9999, 1)
        ),
        0,
    ),
    "block is 1e999": (
        lambda run: trials(run, lambda data: data.replace(b'"block": 0', b'"block": 1e999', 1)),
        2,
    ),
    "run.json is zeros": (lambda run: (run / "run.json").write_bytes(bytes(4096)), 2),
    "run.json is deep": (lambda run: (run / "run.json").write_text("[" * 200_000), 2),
    "another format": (
        lambda run: (run / "run.json").write_text('{"format": 10000000000, "plan": {}}'),
        2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file(run: Path, kind: str) -> None:
    """What can still be read is reported; what cannot is said."""
    damage, code = DAMAGE[kind]
    damage(run)
    assert hvct("report", "--json", run)[0] == code
    check(run)


def test_what_is_no_file_is_not_read(run: Path, good: Path) -> None:
    """A pipe or an endless device in place of a file does not hold anybody up."""
    for name in ("run.json", "trials.jsonl"):
        for put in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir):
            (run / name).unlink()
            put(run / name)
            assert hvct("report", "--json", run)[0] in (2, 3)
            check(run)
            (run / name).rmdir() if (run / name).is_dir() else (run / name).unlink()
            (run / name).write_bytes((good / name).read_bytes())


def test_a_report_does_not_follow_links(run: Path, tmp_path: Path) -> None:
    """A link in the place of the report is replaced; what it pointed to is as it was."""
    other = tmp_path / "other"
    other.write_text("kept")
    for name in ("report.html", "report.json"):
        (run / name).symlink_to(other)
    assert hvct("report", run, "--format", "html,json")[0] == 0
    assert other.read_text() == "kept" and not (run / "report.html").is_symlink()


def test_an_attempt_is_counted_from_whole_lines_only(run: Path) -> None:
    """Resuming numbers its attempts by trials that are ones."""
    with (run / "trials.jsonl").open("a") as handle:
        handle.write('{"block": true, "attempt": 9}\n{"block": 0, "attempt": "9"}\n[]\n')
    assert store.attempts(run) == {0: 1, 1: 1}
