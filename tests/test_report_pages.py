"""The report's files: the same numbers in HTML, PDF and JSON, the same bytes every time."""

from __future__ import annotations

import csv
import html
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from bench.errors import BadInput, HvctError
from reports import report


def _synthetic() -> ModuleType:
    """The generator beside this file; tests are no package."""
    path = Path(__file__).with_name("synthetic.py")
    spec = importlib.util.spec_from_file_location("synthetic", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


synthetic = _synthetic()
WORKLOADS = ("redis", "xz")


def in_html(path: Path) -> str:
    """The words of the page, without markup, with single spaces."""
    text = re.sub(r"<(style|script|svg)\b.*?</\1>", " ", path.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def in_pdf(path: Path) -> str:
    """The words of the PDF, with single spaces."""
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext (poppler-utils) is not installed")
    done = subprocess.run(
        ["pdftotext", "-raw", str(path), "-"], capture_output=True, check=True, text=True
    )
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with a timeout and a failure, reported in every format."""

    def change(line: dict[str, Any]) -> None:
        if (line["arm"], line["workload"], line["block"]) == ("vm", "redis", 3):
            synthetic.spoil(line, "timeout", "port 6379 gave no useful reply within 60 s")
        if (line["arm"], line["workload"], line["block"]) == ("container", "xz", 5):
            synthetic.spoil(line, "failed", "signal 9, out of memory (1 killed by the kernel)")

    folder = tmp_path_factory.mktemp("runs") / "run"
    synthetic.write_run(folder, change=change, workloads=WORKLOADS)
    return report.build([folder], ("html", "pdf", "json", "csv"))


def test_html_pdf_and_json_show_the_same_numbers(built: dict[str, Path]) -> None:
    """Every effect, level and verdict of the JSON stands in the HTML and in the PDF."""
    run = json.loads(built["json"].read_text())["runs"][0]
    pages = {"html": in_html(built["html"]), "pdf": in_pdf(built["pdf"])}
    wanted = {row["effect"]["text"] for row in run["comparisons"] if row["effect"]}
    wanted |= {row["other"]["text"] for row in run["comparisons"] if row["other"]}
    wanted |= {row["text"] for row in run["summaries"] if row["text"]}
    wanted |= {row["interval_text"] for row in run["summaries"] if row["interval_text"]}
    assert len(wanted) > 100
    for name, words in pages.items():
        missing = sorted(text for text in wanted if text not in words)
        # A long second line may wrap in the PDF; then its parts stand one after the other.
        missing = [text for text in missing if text.replace(" ", "") not in words.replace(" ", "")]
        assert not missing, (name, missing[:5])
    for headline in run["headlines"]:
        assert headline["text"].replace(" ", "") in pages["pdf"].replace(" ", "")
        assert headline["text"] in pages["html"]


def test_doubling_an_arm_shows_in_every_format(built: dict[str, Path], tmp_path: Path) -> None:
    """With the container's values doubled, the doubled ratio stands in HTML, PDF and JSON."""

    def shown(files: dict[str, Path]) -> tuple[float, str]:
        run = json.loads(files["json"].read_text())["runs"][0]
        row = next(
            row
            for row in run["comparisons"]
            if row["id"] == "startup_ready/redis/container/process"
        )
        return row["effect"]["estimate"], row["effect"]["text"]

    folder = tmp_path / "doubled"
    synthetic.write_run(
        folder,
        change=lambda line: synthetic.scale_arm(line, "container", 2.0),
        workloads=WORKLOADS,
    )
    doubled = report.build([folder], ("html", "pdf", "json"))
    before, text_before = shown(built)
    after, text_after = shown(doubled)
    assert after == pytest.approx(2 * before)
    assert text_before != text_after
    for words in (in_html(doubled["html"]), in_pdf(doubled["pdf"])):
        assert text_after in words and text_before not in words


def test_emulation_is_said_on_the_first_page(built: dict[str, Path]) -> None:
    """The banner gives accelerator and reason, every VM column carries it, no VM verdict."""
    words = in_html(built["html"])
    assert "TCG, not KVM. Figures of vm (TCG) describe an emulator" in words
    assert "stopped on cmpxchg16b" in words
    table = re.search(r'<table id="table-start-up".*?</table>', built["html"].read_text(), re.S)
    assert table is not None
    for row in re.findall(r"<tr[^>]*><th scope=\"row\">.*?</tr>", table[0], re.S):
        last = row.rpartition('<td class="effect')[2]
        assert "emulated" in last or "not compared" in last
        assert "v-different" not in last


def test_failures_are_listed_with_their_errors(built: dict[str, Path]) -> None:
    """A trial that timed out or failed appears with what was said about it."""
    for words in (in_html(built["html"]), in_pdf(built["pdf"])):
        assert "port 6379 gave no useful reply within 60 s" in words
        assert "signal 9, out of memory (1 killed by the kernel)" in words


def test_the_page_holds_everything_it_shows(built: dict[str, Path]) -> None:
    """Nothing is fetched: no address, no foreign script, style, font or image; and it is small."""
    page = built["html"].read_text()
    page_without_names = page.replace("http://www.w3.org/2000/svg", "").replace(
        "http://www.w3.org/1999/xlink", ""
    )
    assert "://" not in page_without_names.replace("qemu:///embed", "")
    assert not re.search(r"<(link|iframe|img|object)\b|@import|src=", page)
    assert not re.search(r"url\((?!#)", page)
    assert len(page.encode()) < 5 << 20


class _Ids(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"href", "xlink:href", "aria-describedby"} and value:
                self.targets.add(value.removeprefix("#"))
        if tag not in {"meta", "input", "col", "br", "hr"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_the_markup_is_sound(built: dict[str, Path]) -> None:
    """Elements nest, ids are unique, and every link inside the page leads somewhere."""
    parser = _Ids()
    parser.feed(built["html"].read_text())
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids))
    assert parser.targets <= set(parser.ids)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    """HTML, PDF and JSON are byte-identical from another process and another place."""
    first = synthetic.write_run(tmp_path / "a", workloads=("redis",), blocks=6)
    second = shutil.copytree(first, tmp_path / "elsewhere" / "b")
    here = report.build([first], ("html", "pdf", "json", "csv"))
    code = (
        "import sys; from pathlib import Path; from reports import report; "
        "report.build([Path(sys.argv[1])], ('pdf',)); "  # charts that were not drawn as SVG before
        "report.build([Path(sys.argv[1])], ('html', 'json', 'csv'))"
    )
    root = Path(report.__file__).resolve().parent.parent
    subprocess.run(
        [sys.executable, "-c", code, str(second)],
        check=True,
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo",
             "HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path)},
    )  # fmt: skip
    for path in here.values():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_what_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    """Markup in errors, titles, commands, host facts and findings stays text."""
    evil = '<script>alert("x")</script><b>&amp;'
    record = synthetic.run_record(workloads=("redis",), blocks=6)
    record["plan"]["workloads"][0]["title"] = evil
    record["plan"]["workloads"][0]["argv"] = [evil]
    record["metrics"]["startup_ready"]["title"] = evil
    record["metrics"]["startup_ready"]["definition"] = evil
    record["host"]["cpu"]["model"] = evil
    record["command"] = evil
    record["findings"][0]["message"] = evil
    record["descriptions"]["vm"]["domain_xml"] = evil + "\n"
    record["images"] = {evil: {"digest": evil}}

    def change(line: dict[str, Any]) -> None:
        line["disturbances"][evil] = 1.0
        if line["block"] == 2 and line["arm"] == "vm":
            synthetic.spoil(line, "failed", evil)

    folder = synthetic.write_run(tmp_path / "run", record=record, change=change)
    written = report.build([folder], ("html", "pdf"))
    page = written["html"].read_text()
    assert "<script>alert" not in page and "<b>&amp;" not in page
    assert in_html(written["html"]).count('<script>alert("x")</script><b>&amp;') >= 8
    parser = _Ids()
    parser.feed(page)
    assert not parser.open


def test_odd_names_cannot_break_the_charts(tmp_path: Path) -> None:
    """Dollar signs, backslashes and control characters in titles are drawn as they are."""
    record = synthetic.run_record(workloads=("redis", "nginx"), blocks=6)
    record["plan"]["workloads"][0]["title"] = r"$\frac{1}{$ 100 %"
    record["plan"]["workloads"][1]["title"] = "bell \x07 and null \x00 \ud800"
    folder = synthetic.write_run(tmp_path / "run", record=record)
    written = report.build([folder], ("html", "pdf"))
    assert r"$\frac{1}{$ 100 %" in in_html(written["html"])


def test_the_samples_are_all_exported(built: dict[str, Path]) -> None:
    """samples.csv holds one row per sample, with the exact stored values."""
    with built["csv"].open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    stored = [
        (trial["block"], trial["arm"], trial["workload"], sample["metric"], sample["value"])
        for line in (built["csv"].parent / "trials.jsonl").read_text().splitlines()
        for trial in [json.loads(line)]
        for sample in trial["samples"]
    ]
    exported = [
        (int(row["block"]), row["arm"], row["workload"], row["metric"], float(row["value"]))
        for row in rows
    ]
    assert sorted(exported) == sorted(stored)
    assert {row["accelerator"] for row in rows} == {"tcg", "none"}


def test_parquet_holds_the_same_table(built: dict[str, Path]) -> None:
    """samples.parquet reads back as the CSV does."""
    pytest.importorskip("pyarrow", reason="Parquet is optional and pyarrow is not installed")
    folder = built["csv"].parent
    written = report.build([folder], ("parquet",))
    assert len(pd.read_parquet(written["parquet"])) == len(pd.read_csv(built["csv"]))


def test_the_terminal_shows_the_primary_metrics(built: dict[str, Path]) -> None:
    """The summary has a row per primary metric with the report's own texts, and fits."""
    text = io.StringIO()
    Console(file=text, width=140, force_terminal=False).print(report.summary(built["html"].parent))
    words = " ".join(text.getvalue().split())
    run = json.loads(built["json"].read_text())["runs"][0]
    for row in run["comparisons"]:
        if row["primary"]:
            assert row["effect"]["text"] in words
    assert "start-up to ready, redis" in words and "emulated" in words
    assert max(map(len, text.getvalue().splitlines())) <= 140
    narrow = io.StringIO()
    Console(file=narrow, width=80, force_terminal=False).print(
        report.summary(built["html"].parent, accelerator=False)
    )
    lines = narrow.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for row in run["comparisons"]:  # pair by pair, no row broken into several lines
        if row["primary"]:
            assert any(row["effect"]["text"] in line for line in lines)


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    """Two runs make one report beside them, each with its own figures; theirs stay untouched."""
    one = synthetic.write_run(tmp_path / "one", workloads=("redis",), run_id="one", blocks=6)
    two = synthetic.write_run(
        tmp_path / "two", workloads=("redis",), run_id="two", blocks=6, seed=5
    )
    written = report.build([one, two], ("html", "json"))
    assert written["html"].parent == tmp_path / "report-one+two"
    assert not (one / "report.html").exists()
    parser = _Ids()
    parser.feed(written["html"].read_text())
    assert not parser.open and len(parser.ids) == len(set(parser.ids))
    runs = json.loads(written["json"].read_text())["runs"]
    words = in_html(written["html"])
    for run in runs:
        row = next(row for row in run["comparisons"] if row["primary"])
        assert row["effect"]["text"] in words


def test_an_unknown_format_is_bad_input(built: dict[str, Path]) -> None:
    """A format that does not exist is refused before anything is written."""
    with pytest.raises(BadInput, match="no format 'docx'"):
        report.build([built["html"].parent], ("docx",))


def test_a_report_that_cannot_be_written_leaves_nothing(built: dict[str, Path]) -> None:
    """When the file cannot be put in place the error names it, and no half file stays."""
    run = built["html"].parent
    target = run / "blocked"
    (target / "report.json").mkdir(parents=True)
    with pytest.raises(HvctError) as caught:
        report.build([run], ("json",), into=target)
    assert "report.json" in caught.value.message and caught.value.hint
    assert [path.name for path in target.iterdir()] == ["report.json"]
