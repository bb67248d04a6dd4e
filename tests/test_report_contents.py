"""What a report says beyond its figures: which is better, threats, gaps, definitions, samples."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
import synthetic

from bench.errors import HvctError
from reports import report, threats
from reports.analysis import analyse
from reports.data import read
from reports.model import RunReport


def analysed(folder: Path, **options: Any) -> RunReport:
    """A synthetic run, read and analysed."""
    return analyse(read(synthetic.write_run(folder, **options)))


def answer(run: RunReport, question: str) -> str:
    """What the first page says to a question."""
    return " ".join(next(a for a in run.answers if a.question == question).lines)


def test_which_is_better_follows_from_the_verdicts(tmp_path: Path) -> None:
    """The arm with the better figure wins, the other way round when figures are swapped."""
    run = analysed(tmp_path / "kvm", kind="kvm", blocks=12)
    text = answer(run, "Which is better?")
    ready = next(c for c in run.comparisons if c.primary and c.metric == "startup_ready")
    assert ready.effect is not None and ready.effect.text in text
    assert text.startswith("The container is better in ") and "start-up to ready" in text
    assert "Virtual machine or container makes no difference that matters" in text
    slow = analysed(
        tmp_path / "slow",
        kind="kvm",
        blocks=12,
        change=lambda line: synthetic.scale_arm(line, "container", 1000.0),
    )
    text = answer(slow, "Which is better?")
    assert "The virtual machine is better in " in text and "The container is better" not in text
    assert "work per host CPU second" in text  # more is better there


def test_an_emulated_machine_is_never_better_or_worse(tmp_path: Path) -> None:
    """Under TCG the first page says that this run cannot choose, before anything else."""
    run = analysed(tmp_path / "run", workloads=("minimal", "redis"), blocks=6)
    text = answer(run, "Which is better?")
    assert text.startswith("Virtual machine or container: this run cannot say.")
    assert "virtual machine is better" not in text
    assert any(gap.startswith("What virtualisation costs: vm (TCG)") for gap in run.gaps)


def test_every_finding_is_a_threat_under_one_question(tmp_path: Path) -> None:
    """Threats repeat each finding once, with its meaning; a finding more is a threat more."""
    record = synthetic.run_record(workloads=("redis",), blocks=6)
    plain = analyse(read(synthetic.write_run(tmp_path / "plain", record=record)))
    added = {"code": "lag-1", "level": "warning", "message": "blocks follow each other",
             "meaning": "too few of them are new", "remedy": "wait"}  # fmt: skip
    record["findings"].append(added)
    run = analyse(read(synthetic.write_run(tmp_path / "more", record=record)))
    codes = [threat.code for threat in run.threats if threat.code]
    assert sorted(codes) == sorted(item["code"] for item in run.findings)
    record["findings"].append(added)
    assert analyse(read(synthetic.write_run(tmp_path / "twice", record=record))).findings == (
        run.findings
    )
    assert len(run.threats) == len(plain.threats) + 1
    new = next(threat for threat in run.threats if threat.code == "lag-1")
    assert new.kind == "statistical"
    assert new.text == "Blocks follow each other: too few of them are new."
    assert {threat.kind for threat in run.threats} == set(threats.KINDS)


def test_gaps_name_what_stayed_open(tmp_path: Path) -> None:
    """An undecided primary comparison and a refused pair are among what the run does not show."""

    def change(line: dict[str, Any]) -> None:
        if line["arm"] == "container" and line["workload"] == "redis" and line["block"] % 2:
            synthetic.scale_arm(line, "container", 3.0)
        if line["arm"] == "container" and line["workload"] == "xz" and line["block"] == 0:
            line["receipt"]["program"] = "/usr/bin/other"

    run = analysed(tmp_path / "run", workloads=("redis", "xz"), blocks=8, change=change)
    undecided = [c for c in run.comparisons if c.primary and c.verdict == "undecided"]
    assert undecided
    for row in undecided:
        assert any(row.title in gap and row.margin_text in gap for gap in run.gaps)
    assert any("refused" in gap and "container ÷ process" in gap for gap in run.gaps)


def test_definitions_of_start_up_follow_from_the_timeline(tmp_path: Path) -> None:
    """Each study's figure is the median of its own intervals, computed here by hand."""
    folder = synthetic.write_run(tmp_path / "run", workloads=("minimal", "redis"), blocks=7)
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    for line in lines:  # an instance is released a while after its workload has ended
        line["timeline"]["release_requested"] = line["timeline"]["exited"] + 0.0005
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = analyse(read(folder))
    names = [arm.name for arm in run.arms]

    def ours(workload: str, key: str, arm: str) -> float | None:
        found = [d for d in run.defined if (d.workload, d.definition) == (workload, key)]
        return found[0].levels[names.index(arm)] if found else None

    def by_hand(workload: str, arm: str, *pairs: tuple[str, str]) -> float:
        mine = [t["timeline"] for t in lines if (t["workload"], t["arm"]) == (workload, arm)]
        return statistics.median(sum(at[b] - at[a] for a, b in pairs) for at in mine)

    gone = (("requested", "exited"), ("release_requested", "released"))
    assert ours("minimal", "run", "container") == pytest.approx(
        by_hand("minimal", "container", *gone)
    )
    assert ours("minimal", "firecracker-end", "vm") == pytest.approx(
        by_hand("minimal", "vm", *gone)
    )
    assert ours("redis", "firecracker-spec", "vm") == pytest.approx(
        by_hand("redis", "vm", ("spawned", "init"))
    )
    assert ours("redis", "unikraft-guest", "vm") == pytest.approx(
        by_hand("redis", "vm", ("kernel", "started"))
    )
    assert ours("redis", "run", "container") is None  # it is held, and stopped by us
    assert ours("redis", "firecracker-spec", "container") is None  # it speaks of machines


def test_published_figures_stand_beside_measured_ones_only(tmp_path: Path) -> None:
    """Ours appears where the arm was not emulated; every row names its source and its ends."""
    record = synthetic.run_record(workloads=("minimal",), blocks=6)
    record["plan"]["workloads"][0]["ready"] = {"kind": "started"}
    emulated = analyse(read(synthetic.write_run(tmp_path / "tcg", record=record)))
    rows = {item.arm: item for item in emulated.published}
    assert rows["vm (TCG)"].ours == "" and rows["process"].ours.endswith("(median)")
    record = synthetic.run_record(workloads=("minimal",), blocks=6, kind="kvm")
    record["plan"]["workloads"][0]["ready"] = {"kind": "started"}
    real = analyse(read(synthetic.write_run(tmp_path / "kvm", record=record)))
    assert {item.arm for item in real.published} == {"vm (KVM)", "process"}
    known = {item.key for item in real.definitions}
    for item in real.published:
        assert item.ours and item.source and item.differs and item.definition in known
    written = report.build([tmp_path / "tcg"], ("html",))
    page = written["html"].read_text()
    assert "243.5 ms" not in page and "neither agree nor disagree" in page


def test_samples_csv_holds_what_the_appendix_names(tmp_path: Path) -> None:
    """Lines of each series, of two runs in one table, are those of its metric, workload, arm."""
    one = synthetic.write_run(tmp_path / "one", workloads=("redis",), blocks=6, run_id="one")
    two = synthetic.write_run(tmp_path / "two", workloads=("xz",), blocks=7, run_id="two", seed=3)
    written = report.build([one, two], ("json", "csv"), tmp_path / "both")
    with written["csv"].open(newline="") as handle:
        lines = list(csv.reader(handle))
    checked = 0
    for run in json.loads(written["json"].read_text())["runs"]:
        for item in run["series"]:
            rows = [
                dict(zip(lines[0], line, strict=True))
                for line in lines[item["first_line"] - 1 : item["last_line"]]
            ]
            assert len(rows) == item["n"] == len(item["values"].split())
            for name in ("metric", "workload", "arm"):
                assert {row[name] for row in rows} == {item[name]}
            assert {row["run"] for row in rows} == {run["id"]}
            checked += len(rows)
    assert checked == len(lines) - 1


def test_blocks_left_out_are_marked(tmp_path: Path) -> None:
    """A block that the plan's rules leave out stays in samples.csv, and is named there."""

    def change(line: dict[str, Any]) -> None:
        line["disturbances"]["steal_cpus"] = 0.9 if line["block"] == 2 else 0.0

    record = synthetic.run_record(workloads=("redis",), blocks=8)
    record["plan"]["invalidation"] = {"steal_cpus": 0.05}
    folder = synthetic.write_run(tmp_path / "run", record=record, change=change)
    written = report.build([folder], ("json", "csv"))
    with written["csv"].open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["counted"] for row in rows if row["block"] == "2"} == {"False"}
    assert {row["counted"] for row in rows if row["block"] != "2"} == {"True"}
    series = json.loads(written["json"].read_text())["runs"][0]["series"]
    assert all(len(re.findall(r"\(\S+\)", item["values"])) == 1 for item in series)


def words(path: Path) -> str:
    """The text of a page or a PDF, without any space."""
    if path.suffix == ".pdf":
        if shutil.which("pdftotext") is None:
            pytest.skip("pdftotext (poppler-utils) is not installed")
        done = subprocess.run(["pdftotext", "-raw", path, "-"], capture_output=True, check=True)
        text = done.stdout.decode()
    else:
        text = re.sub(r"<(style|script|svg)\b.*?</\1>", " ", path.read_text(), flags=re.DOTALL)
        text = html.unescape(re.sub(r"<[^>]*>", " ", text))
    return "".join(text.split())


def test_several_runs_are_joined_by_their_questions(tmp_path: Path) -> None:
    """Two hosts in one report: each question's effects side by side, and whether they agree."""
    one = synthetic.write_run(tmp_path / "one", kind="kvm", blocks=12, run_id="one",
                              workloads=("redis", "xz"))  # fmt: skip
    record = synthetic.run_record(kind="kvm", blocks=12, run_id="two", workloads=("redis", "xz"))
    record["host"]["cpu"]["model"] = "Another CPU"
    two = synthetic.write_run(
        tmp_path / "two", record=record, seed=9,
        change=lambda line: synthetic.scale_arm(line, "vm", 0.001),
    )  # fmt: skip
    written = report.build([one, two], ("html", "pdf", "json"), tmp_path / "both")
    data = json.loads(written["json"].read_text())
    rows = {(r["metric"], r["workload"], r["arm"]): r for r in data["joint"]}
    assert len(rows) == 2 * 3  # pairs × primary questions of these workloads
    shown = {name: words(written[name]) for name in ("html", "pdf")}
    for row in data["joint"]:
        for run, cell in zip(data["runs"], row["cells"], strict=True):
            own = next(c for c in run["comparisons"] if c["id"] == cell["comparison"])
            assert (cell["text"], cell["estimate"]) == (
                own["effect"]["text"], own["effect"]["estimate"],
            )  # fmt: skip
            for name, text in shown.items():
                assert cell["text"].replace(" ", "") in text, (name, cell["text"])
    contrary = rows[("startup_ready", "redis", "vm")]
    assert contrary["summary"].startswith("they contradict each other; from ")
    assert "They contradict each other about" in data["agreement"]
    assert [line for line in data["likeness"] if line.startswith("host: ")]
    for text in shown.values():
        assert data["agreement"].replace(" ", "") in text
    argv = ["pdftotext", "-layout", written["pdf"], "-"]
    said = subprocess.run(argv, capture_output=True, check=True, text=True).stdout
    heads = [sheet.split(maxsplit=1)[0] for sheet in said.split("\f")[1:] if sheet.strip()]
    order = [name for name, before in zip(heads, ["", *heads], strict=False) if name != before]
    # All runs; each on its own; method and what was set up; then the appendices of each.
    assert order == ["2", "one", "two", "2", "one", "two"], heads
    again = report.build([one, two], ("html", "json"), tmp_path / "again")
    for name, path in again.items():
        assert path.read_bytes() == written[name].read_bytes(), name


def test_one_run_is_not_joined(tmp_path: Path) -> None:
    """A single run's report has no joint page."""
    folder = synthetic.write_run(tmp_path / "run", workloads=("redis",), blocks=6)
    data = json.loads(report.as_json([folder]))
    assert data["joint"] == [] and data["agreement"] == "" and data["likeness"] == []


def test_html_and_pdf_hold_the_new_pages_too(tmp_path: Path) -> None:
    """Threats, gaps, definitions and samples of the JSON stand in HTML and PDF, word for word."""
    folder = synthetic.write_run(tmp_path / "run", workloads=("minimal", "redis"), blocks=6)
    written = report.build([folder], ("html", "pdf", "json"))
    run = json.loads(written["json"].read_text())["runs"][0]
    wanted = [item["text"] for item in run["threats"]] + run["gaps"]
    wanted += [text for item in run["defined"] for text in item["texts"]]
    wanted += [item["values"] for item in run["series"]]
    wanted += [line for item in run["answers"] for line in item["lines"]]
    assert len(wanted) > 150
    for name in ("html", "pdf"):
        text = words(written[name])
        missing = [item for item in wanted if "".join(item.split()) not in text]
        assert not missing, (name, missing[:3])


@pytest.mark.parametrize("stored", [0, 4])
def test_a_run_without_a_figure_says_so(tmp_path: Path, stored: int) -> None:
    """No trial, or none of a complete block: all files say it, and the command fails with it."""
    folder = synthetic.write_run(tmp_path / "run", workloads=("redis", "xz"), blocks=2)
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join(lines[:stored]))
    printed: list[str] = []
    for fails in (report.build, lambda paths: report.write_json(paths, printed.append)):
        with pytest.raises(HvctError, match="nothing was measured") as caught:
            fails([folder])
        assert caught.value.exit_code == 1 and str(folder) in caught.value.message
    assert "".join(printed) == (folder / "report.json").read_text()
    (answer,) = [item for item in json.loads((folder / "report.json").read_text())["runs"][0][
        "answers"] if item["question"] == "What came out?"]  # fmt: skip
    assert answer["lines"][0].startswith("Nothing was measured")
    assert f"holds {stored or 'no'} trial" in answer["lines"][0]
    assert answer["lines"][0] in (folder / "report.html").read_text()
    argv = ["pdftotext", "-l", "1", folder / "report.pdf", "-"]
    said = subprocess.run(argv, capture_output=True, check=True, text=True).stdout
    assert answer["lines"][0] in " ".join(said.split())
    assert (folder / "samples.csv").read_text().count("\n") == 1
