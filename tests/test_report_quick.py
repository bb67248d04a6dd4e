"""The whole report of a quick run: what its first page says, and where every figure leads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import synthetic

from reports import report

QUESTIONS = (
    "What was compared?", "Was it the same work?", "Which is better?", "What came out?",
    "How sure is that?", "What could make it wrong?",
)  # fmt: skip


def change(line: dict[str, Any]) -> None:
    """One block of a host with stolen time, one trial too slow, one that failed."""
    line["disturbances"]["steal_cpus"] = 0.9 if line["block"] == 5 else 0.001
    if (line["arm"], line["workload"], line["block"]) == ("vm", "redis", 3):
        synthetic.spoil(line, "timeout", "no useful reply within 60 s")
    if (line["arm"], line["workload"], line["block"]) == ("container", "xz", 2):
        synthetic.spoil(line, "failed", "signal 9")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The quick suite's five workloads in three arms, 13 blocks, reported in full."""
    record = synthetic.run_record(kind="kvm", blocks=13)
    assert len(record["plan"]["workloads"]) == 5 and len(record["plan"]["arms"]) == 3
    record["plan"]["invalidation"] = {"steal_cpus": 0.05}
    folder = tmp_path_factory.mktemp("runs") / "quick"
    synthetic.write_run(folder, record=record, change=change)
    return report.build([folder], ("html", "pdf", "json", "csv"))


@pytest.fixture(scope="module")
def run(files: dict[str, Path]) -> dict[str, Any]:
    """The run as report.json has it."""
    found: dict[str, Any] = json.loads(files["json"].read_text())["runs"][0]
    return found


def page(path: Path, number: int) -> str:
    """The words on one page of a PDF."""
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext (poppler-utils) is not installed")
    argv = ["pdftotext", "-f", str(number), "-l", str(number), str(path), "-"]
    done = subprocess.run(argv, capture_output=True, check=True, text=True)
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def first(files: dict[str, Path]) -> str:
    """The PDF's first page, without spaces: a line may break anywhere."""
    return page(files["pdf"], 1).replace(" ", "")


def pages(path: Path) -> int:
    """How many pages a PDF says it has."""
    found = re.search(r"page 1 of (\d+)", page(path, 1))
    assert found, "the first page says how many there are"
    return int(found[1])


def test_a_quick_report_is_small(files: dict[str, Path]) -> None:
    """Five workloads in three arms: less than 5 MiB, with everything inside."""
    assert files["html"].stat().st_size < 5 << 20


def test_the_first_page_holds_every_answer(first: str, run: dict[str, Any]) -> None:
    """All questions with all lines of their answers, and every sentence about a judged metric."""
    assert [item["question"] for item in run["answers"]] == list(QUESTIONS)
    for item in run["answers"]:
        for text in (item["question"], *item["lines"]):
            assert text.replace(" ", "") in first, text
    judged = [item for item in run["headlines"] if item["primary"]]
    assert len(judged) == len(run["plan"]["primary"]) == run["family_size"]
    for item in judged:
        assert item["text"].replace(" ", "") in first, item["text"]


def test_three_questions_of_a_reader_who_stops_there(first: str, run: dict[str, Any]) -> None:
    """Which is better for me? How sure are they? What would make this wrong?"""

    def said(question: str) -> str:
        start = first.index(question.replace(" ", ""))
        later = [first.find(q.replace(" ", ""), start + 1) for q in (*QUESTIONS, "Contents")]
        return first[start : min(at for at in later if at > start)]

    better = said("Which is better?")
    for row in run["comparisons"]:
        if not row["primary"]:
            continue
        workload = next(w["title"] for w in run["workloads"] if w["name"] == row["workload"])
        assert workload.replace(" ", "") in better, "every judged workload is placed"
        if row["verdict"] == "different":
            assert row["effect"]["text"].replace(" ", "") in better, "by how much"
    assert "Thecontainerisbetterin" in better and "makesnodifferencethatmatters" in better
    sure = said("How sure is that?")
    for text in ("Intervals are 95 %", "Holm-corrected over the 5 primary comparisons",
                 "at most 5 %", "at least three runs across reboots"):  # fmt: skip
        assert text.replace(" ", "") in sure
    wrong = said("What could make it wrong?")
    serious = [item for item in run["findings"] if item["level"] != "info"]
    assert len(serious) > 3, "more than fits, so that the page has to say where they are"
    for item in serious[:3]:
        assert item["message"][1:].replace(" ", "") in wrong
        assert item["meaning"].replace(" ", "") in wrong, "with what it means"
    more = f"And {len(serious) - 3} more, under “What could make it wrong”"
    assert more.replace(" ", "") in wrong


def test_the_contents_lead_to_their_pages(files: dict[str, Path]) -> None:
    """Each number in the PDF's contents is that of the page on which that heading stands."""
    text = page(files["pdf"], 1)
    listed = text[text.index("Contents") :]
    titles = re.findall(r'<li[^>]*><a href="#[^"]*">([^<]*)</a>', files["html"].read_text())
    assert len(titles) > 14
    argv = ["pdftohtml", "-xml", "-i", "-stdout", str(files["pdf"])]
    told = subprocess.run(argv, capture_output=True, check=True, text=True).stdout
    stands = {name: int(at) for at, name in re.findall(r'<item page="(\d+)">([^<]*)</item>', told)}
    for title in titles:
        found = re.search(re.escape(title) + r"[ .]*\.\s?(\d+)", listed)
        assert found, title
        assert int(found[1]) == stands[title], title
        assert title in page(files["pdf"], stands[title])
    numbers = [stands[title] for title in titles]
    assert numbers == sorted(numbers) and numbers[0] > 1 and numbers[-1] <= pages(files["pdf"])
