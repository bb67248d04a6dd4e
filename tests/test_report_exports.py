"""What leaves a report for other programs: schema, pytest-benchmark's JSON, a run in one file."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
import synthetic
from pytest_benchmark.stats import Stats

from bench import archive
from bench.cli import main
from bench.errors import BadInput
from reports import report, schema


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic run in a folder with a space in its name, with logs and a failed trial."""

    def change(line: dict[str, Any]) -> None:
        if (line["arm"], line["workload"], line["block"]) == ("container", "xz", 5):
            synthetic.spoil(line, "failed", "signal 9")

    folder = tmp_path_factory.mktemp("my runs") / "quick"
    synthetic.write_run(folder, workloads=("redis", "xz"), blocks=7, change=change)
    (folder / "logs").mkdir()
    (folder / "logs" / "r1-0001.txt").write_text("guest console\n")
    return folder


def test_the_json_keeps_to_its_schema(run: Path, tmp_path: Path) -> None:
    """The JSON of one run and of two is valid; a field more, a field less or a text is not."""
    validator = jsonschema.Draft202012Validator(schema.schema())
    validator.check_schema(schema.schema())
    stored = report.as_json([run])
    validator.validate(json.loads(stored))
    validator.validate(json.loads(report.as_json([run, run])))

    def spoilt(change: Callable[[dict[str, Any]], object]) -> bool:
        data = json.loads(stored)
        change(data)
        return not validator.is_valid(data)

    assert spoilt(lambda data: data.update(format=0))
    assert spoilt(lambda data: data["runs"][0].update(extra=1))
    assert spoilt(lambda data: data["runs"][0]["comparisons"][0].pop("verdict"))
    assert spoilt(lambda data: data["runs"][0]["summaries"][0].update(median="1 s"))


def test_pytest_benchmark_reads_our_durations(run: Path, tmp_path: Path) -> None:
    """`pytest-benchmark compare` prints our series; its own statistics of them are ours."""
    written = report.build([run], ("pytest-benchmark", "csv"), tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare",
         str(written["pytest-benchmark"]), "--columns=median,iqr,rounds"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert "startup_ready[redis-vm (TCG)]" in done.stdout
    data = json.loads(written["pytest-benchmark"].read_text())
    table = pd.read_csv(written["csv"])
    assert data["benchmarks"]
    for item in data["benchmarks"]:
        about = item["extra_info"]
        mine = table[(table.metric == about["metric"]) & (table.workload == about["workload"])
                     & (table.arm == about["arm"])]  # fmt: skip
        assert item["stats"]["data"] == mine["value"].tolist()
        theirs = Stats()
        for value in mine["value"]:
            theirs.update(value)
        for field in Stats.fields:
            assert item["stats"][field] == pytest.approx(getattr(theirs, field)), field
    rounds = {item["name"]: item["stats"]["rounds"] for item in data["benchmarks"]}
    assert rounds["run_wall[xz-container]"] == 6 and rounds["run_wall[xz-process]"] == 7


@pytest.mark.parametrize("suffix", [".hvct.tar.gz", ".hvct.tar.zst"])
def test_an_archive_reports_what_its_run_does(run: Path, tmp_path: Path, suffix: str) -> None:
    """Packed and sent elsewhere, a run gives the same report, byte for byte, beside the file."""
    sent = tmp_path / f"sent over{suffix}"
    assert main(["archive", str(run), "--output", str(sent)]) == 0
    here = report.build([run], ("html", "json", "csv"), tmp_path / "here")
    assert main(["report", str(sent), "--format", "html,json,csv"]) == 0
    for path in here.values():
        there = tmp_path / "sent over-report" / path.name
        assert there.read_bytes() == path.read_bytes(), path.name
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_same_run_packs_to_the_same_bytes(run: Path, tmp_path: Path) -> None:
    """Time, owner and reports do not show in an archive; logs are in it, links are not."""
    first = archive.pack(run, tmp_path / "a.tar.gz")
    os.utime(run / "trials.jsonl", (1, 1))
    report.build([run], ("json",))
    (run / "logs" / "link").symlink_to("/etc/passwd")
    second = archive.pack(run, tmp_path / "b.tar.gz")
    (run / "logs" / "link").unlink()
    (run / "report.json").unlink()
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert sorted(tar.getnames()) == [
            "quick/logs/r1-0001.txt", "quick/run.json", "quick/trials.jsonl",
        ]  # fmt: skip


def tar_of(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A tar of these members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for about, content in members:
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return out.getvalue()


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """A member that is a symbolic link."""
    about = tarfile.TarInfo(name)
    about.type, about.linkname = tarfile.SYMTYPE, target
    return about, b""


def test_an_archive_cannot_write_where_it_likes(run: Path, tmp_path: Path) -> None:
    """Members outside the run's folder are never written, whatever paths and links say."""
    record, trials = ((run / name).read_bytes() for name in ("run.json", "trials.jsonl"))
    evil = tmp_path / "evil.hvct.tar.gz"
    target = tmp_path / "owned"
    members = [
        (tarfile.TarInfo(f"../../../../../..{target}"), b"x"),
        (tarfile.TarInfo(str(target)), b"x"),
        link("quick/logs", str(tmp_path)),
        (tarfile.TarInfo("quick/logs/owned"), b"x"),
        (tarfile.TarInfo("quick/run.json"), record),
        (tarfile.TarInfo("quick/trials.jsonl"), trials),
    ]
    evil.write_bytes(packed(tar_of(members), evil.name))
    with archive.opened(evil) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["run.json", "trials.jsonl"]
    assert not target.exists() and not folder.exists()


def packed(plain: bytes, suffix: str) -> bytes:
    """The bytes packed as the suffix says."""
    if suffix.endswith(".gz"):
        return gzip.compress(plain)
    return subprocess.run(["zstd", "-q"], input=plain, capture_output=True, check=True).stdout


def flipped(data: bytes) -> bytes:
    """The bytes with one in the middle changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


OTHERS = {
    "empty": b"",
    "no run in it": tar_of([(tarfile.TarInfo("quick/other"), b"x")]),
    "run.json is a link": tar_of([link("quick/run.json", "/etc/hostname")]),
    "two runs": tar_of([(tarfile.TarInfo(f"{name}/run.json"), b"{}") for name in ("a", "b")]),
}
DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "not packed": lambda _: b"hello",
    "nothing": lambda _: b"",
    "cut off": lambda data: data[: len(data) * 2 // 3],
    "a bit flipped": flipped,
    "something after it": lambda data: data + b"hello, world",
    "a checksum wrong": lambda data: data[:-4] + bytes(byte ^ 0xFF for byte in data[-4:]),
}


@pytest.mark.parametrize("suffix", [".hvct.tar.gz", ".hvct.tar.zst"])
@pytest.mark.parametrize("name", [*OTHERS, *DAMAGED])
def test_a_broken_archive_is_bad_input(run: Path, tmp_path: Path, name: str, suffix: str) -> None:
    """Whatever is wrong with an archive ends in one line and a hint, and nothing is written."""
    broken = tmp_path / f"broken{suffix}"
    if name in OTHERS:
        broken.write_bytes(packed(OTHERS[name], suffix))
    else:
        broken.write_bytes(DAMAGED[name](archive.pack(run, broken).read_bytes()))
    with pytest.raises(BadInput) as caught:
        report.build([broken], ("json",))
    assert "\n" not in caught.value.message and caught.value.hint
    assert caught.value.message.startswith(str(broken))
    assert list(tmp_path.iterdir()) == [broken]


def test_an_archive_is_named_as_one(run: Path, tmp_path: Path) -> None:
    """A target without an archive's suffix is refused, and so is a folder that is no run."""
    with pytest.raises(BadInput, match="no name for an archive"):
        archive.pack(run, tmp_path / "run.zip")
    with pytest.raises(BadInput, match="not a run directory"):
        archive.pack(tmp_path)
    assert not list(tmp_path.iterdir())
