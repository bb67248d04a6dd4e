"""The whole report of a quick run: what its first page says, and where every figure leads.

Over 400 lines, so that one report serves all of it.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import known_costs
import pytest
import synthetic

from bench.numbers import format_value
from reports import costs, report
from reports.chart_effects import MOST_ROWS
from reports.data import read

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
    listed = text[text.rindex("Contents") :]
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


def test_each_chart_is_on_the_page_of_its_caption(files: dict[str, Path]) -> None:
    """Whatever is written in a chart of the HTML stands on the PDF's page with that caption."""
    figures = re.findall(r"<figure>.*?</figure>", files["html"].read_text(), re.DOTALL)
    assert len(figures) == 12
    sheets = [page(files["pdf"], n + 1).replace(" ", "") for n in range(pages(files["pdf"]))]
    for number, figure in enumerate(figures, 1):
        (title,) = re.findall(r"<figcaption><b>(.*?)</b>", figure)
        caption = f"Figure {number}. {title}".replace(" ", "")
        (sheet,) = [text for text in sheets if caption in text]
        drawn = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)<", figure)]
        assert len(drawn) > 5
        for text in drawn:
            assert text.replace(" ", "") in sheet, (title, text)


def in_trouble(line: dict[str, Any]) -> None:
    """A host and instances with as much to warn of as the first page can be asked to hold."""
    change(line)
    line["disturbances"] |= {"steal_cpus": 0.3, "psi_cpu": 0.7, "other_cpus": 1.4, "flagged": 1.0}
    if line["arm"] == "vm" and line["block"] in {1, 7}:
        synthetic.spoil(line, "timeout", "no useful reply within 60 s")
    if line["workload"] == "nginx" and line["arm"] == "container" and line["block"] > 3:
        synthetic.spoil(line, "failed", "exit status 127: " + "a library is missing; " * 20)


@pytest.mark.parametrize(("kind", "count"), [("tcg", 1), ("kvm", 2)])
def test_the_first_page_never_overflows(tmp_path: Path, kind: str, count: int) -> None:
    """However much a run has to say, it fits; contents are on page 1 or 2, and page 1 says which.

    Of two runs it is the list of runs that fits, and each run's own first page behind it.
    """
    folders = []
    for n in range(count):
        record = synthetic.run_record(kind=kind, run_id=f"20261123-204{n}-quick-of-a-long-name")
        record["plan"]["invalidation"] = {"steal_cpus": 0.05}
        record["host"]["boot_id"] = f"boot-{n}"
        record["host"]["kernel"]["release"] += f"-{n}"
        folder = tmp_path / f"run-{n}"
        folders.append(synthetic.write_run(folder, record=record, seed=n, change=in_trouble))
    built = report.build(folders, ("pdf", "json"), tmp_path / "made")
    sheets = [page(built["pdf"], n + 1) for n in range(pages(built["pdf"]))]
    (at,) = [n for n, text in enumerate(sheets, 1) if "Contents Results" in text
             or "Contents The runs" in text]  # fmt: skip
    assert at <= 2 and f"Contents: page {at}" in sheets[0]
    runs = json.loads(built["json"].read_text())["runs"]
    if count > 1:
        assert all(run["id"] in sheets[0] for run in runs)
    for run in runs:
        first = next(text for text in sheets if QUESTIONS[0] in text and run["id"] in text)
        shown = first.replace(" ", "")
        for item in run["answers"]:
            for text in (item["question"], *item["lines"]):
                assert text.replace(" ", "") in shown, text


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """A report on costs, and one of three runs as one."""
    folder = tmp_path_factory.mktemp("others")
    costly = synthetic.write_run(folder / "costs", workloads=("redis", "xz"), blocks=4)
    record = json.loads((costly / "run.json").read_text())
    (costly / "run.json").write_text(json.dumps({**record, "costs": known_costs.COSTS}))
    known_costs.write(costly)
    runs = []
    for n in range(3):
        about = synthetic.run_record(run_id=f"run-{n}", kind="kvm", blocks=12, workloads=("redis",))
        about["host"]["boot_id"] = f"boot-{n}"
        runs.append(synthetic.write_run(folder / f"run-{n}", record=about, seed=n + 1))
    formats = ("html", "pdf", "json")
    return {
        "costs": report.build([costly], formats),
        "runs": report.build(runs, formats, folder / "three"),
    }


# -- every figure leads to its samples -------------------------------------------------------

NOT_SAMPLED = {"Outcomes", "Disturbances", "Metrics", "Samples", "Steps"}
"""Counts of trials, readings of the host (in trials.jsonl), margins; and the samples themselves."""

FIGURES = {
    "quick": {"Primary metrics", "Figures: Memory", "With and without the blocks left out",
              "Did anything move while it ran?", "Start-up by definition", "Published figures"},
    "costs": {"Cost", "Memory of one more"},
    "runs": {"Runs compared", "The runs as one, on this host"},
}  # fmt: skip
"""Tables that must have been looked at."""


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_leads_to_its_samples(
    files: dict[str, Path], others: dict[str, dict[str, Path]], name: str
) -> None:
    """No cell with a measured number is without a link, and each leads to samples or steps."""
    text = (files if name == "quick" else others[name])["html"].read_text()
    tables = re.findall(r'<div class="scroll[^>]*aria-label="([^"]*)">(.*?)</table>', text, re.S)
    assert len(tables) > 5
    ids = set(re.findall(r' id="([^"]*)"', text))
    looked = set()
    for title, table in tables:
        plain = re.sub(r", run run-\d$", "", html.unescape(title))
        if plain in NOT_SAMPLED:
            continue
        for kind, cell in re.findall(r'<td class="(value|effect|number)"[^>]*>(.*?)</td>', table):
            shown = re.sub(r"<[^>]*>", " ", cell)
            if not re.search(r"\d", shown):
                continue
            targets = re.findall(r'<a class="raw" href="#([^"]*)"', cell)
            assert targets, (plain, kind, shown)
            looked.add(plain)
            for target in targets:
                assert target in ids
                assert re.fullmatch(r"(run\d-)?(raw-\d+|steps-\d+)", target), (plain, target)
    assert looked >= FIGURES[name], FIGURES[name] - looked
    for caption in re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL):
        assert '<a href="#' in caption


def test_the_appendix_of_steps_holds_what_was_read(others: dict[str, dict[str, Path]]) -> None:
    """Each stored step stands there once, in order, as the costs were computed from it."""
    text = others["costs"]["html"].read_text()
    stored = read(others["costs"]["html"].parent).steps
    assert len(stored) == known_costs.ROUNDS * sum(map(len, known_costs.STEPS.values()))
    section = text[text.index('<section id="steps">') :].partition("</section>")[0]
    rows = [
        re.sub(r"<[^>]*>", " ", row).split() for row in re.findall(r"<tr data.*?</tr>", section)
    ]
    by_arm = sorted(stored, key=lambda step: ["container", "vm"].index(step.arm))
    assert len(rows) == len(by_arm)
    for row, step in zip(rows, by_arm, strict=True):
        assert [int(row[0]), int(row[1])] == [step.round + 1, step.instances]
        assert float(row[2].replace(",", "")) == pytest.approx(
            step.available_bytes / 2**20, abs=0.006
        )
        assert float(row[-1]) == pytest.approx(
            (step.cpu_s + step.helpers_cpu_s) / step.window_s, abs=6e-5
        )


def test_levels_are_links_in_the_pdf_too(files: dict[str, Path], run: dict[str, Any]) -> None:
    """Every arm's figure among the primary metrics leads to a page of the appendix."""
    argv = ["pdftohtml", "-xml", "-i", "-f", "2", "-l", "2", "-stdout", str(files["pdf"])]
    told = subprocess.run(argv, capture_output=True, check=True, text=True).stdout
    linked = {html.unescape(text) for text in re.findall(r"<a href=\"[^\"]*\">([^<]*)</a>", told)}
    for metric, workload in run["plan"]["primary"]:
        levels = [s["text"] for s in run["summaries"]
                  if (s["metric"], s["workload"]) == (metric, workload)]  # fmt: skip
        assert len(levels) == 3 and set(levels) <= linked, levels


# -- the same numbers in every format --------------------------------------------------------


def everything(path: Path) -> str:
    """All words of a page or a PDF, without spaces."""
    if path.suffix == ".pdf":
        argv = ["pdftotext", "-raw", str(path), "-"]
        text = subprocess.run(argv, capture_output=True, check=True, text=True).stdout
    else:
        text = re.sub(r"<(style|script|svg)\b.*?</\1>", " ", path.read_text(), flags=re.DOTALL)
        text = html.unescape(re.sub(r"<[^>]*>", " ", text))
    return "".join(text.split())


def missing(wanted: list[str], path: Path) -> list[str]:
    """Which of these texts a file lacks."""
    text = everything(path)
    return [one for one in wanted if "".join(one.split()) not in text]


def test_disturbances_and_robustness_are_the_json_s(
    files: dict[str, Path], run: dict[str, Any]
) -> None:
    """Every reading, both ways of each verdict, every look for a drift: in HTML and PDF."""
    ways, moved = run["robustness"]["both_ways"], run["robustness"]["moved"]
    wanted = [item["text"] for item in run["disturbances"]]
    wanted += [way[key] for way in ways for key in ("text", "text_all", "verdict", "verdict_all")]
    wanted += [one[key] for one in moved for key in ("title", "of", "trend_p", "change_p")]
    assert len(ways) == 5 and len(moved) > 10 and len(run["disturbances"]) > 10
    for name in ("html", "pdf"):
        assert not missing(wanted, files[name]), name


def test_costs_are_the_json_s(others: dict[str, dict[str, Path]]) -> None:
    """Prices, ledger, remarks and the first page's sentences: in HTML and PDF."""
    built = others["costs"]
    run = json.loads(built["json"].read_text())["runs"][0]
    model = read(built["json"].parent).costs
    assert model is not None and run["costs"] == json.loads(json.dumps(model.as_json()))
    rows = [*costs.price_rows(model), *costs.ledger_rows(model)]
    wanted = [text for title, cells in rows for text in (title, *cells)]
    wanted += [*costs.remarks(model), *costs.sentences(model)]
    assert len(wanted) > 50
    for name in ("html", "pdf"):
        assert not missing(wanted, built[name]), name


def test_runs_as_one_are_the_json_s(others: dict[str, dict[str, Path]]) -> None:
    """Effects, verdicts, spreads and advice over runs: in HTML and PDF."""
    built = others["runs"]
    (found,) = json.loads(built["json"].read_text())["merged"]
    keys = ("title", "text", "verdict", "spread_text", "advice")
    wanted = [row[key] for row in found["rows"] for key in keys]
    wanted += [found["note"], *found["members"]]
    assert len(found["rows"]) > 3
    for name in ("html", "pdf"):
        assert not missing(wanted, built[name]), name


# -- charts ----------------------------------------------------------------------------------


def tips(path: Path, title: str, word: str) -> list[str]:
    """What the marks of a chart say when pointed at; `word` is in one chart of that title only."""
    text = path.read_text()
    (figure,) = [f for f in re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
                 if f"<b>{title}.</b>" in f and word in f]  # fmt: skip
    return [html.unescape(tip) for tip in re.findall(r'data-tip="([^"]*)"', figure)]


def test_all_metrics_stand_on_one_axis(files: dict[str, Path], run: dict[str, Any]) -> None:
    """Ratios of every family in one chart, what is judged among them; differences beside."""
    said = tips(files["html"], "All metrics on one axis", "axis")
    titles = {row["title"] for row in run["comparisons"] if any(
        tip.startswith(f"{row['title']}, {row['pair']}: ") for tip in said)}  # fmt: skip
    families = {row["family"] for row in run["comparisons"] if row["title"] in titles}
    assert families == {name for name, _ in run["families"]} and len(titles) == MOST_ROWS
    for row in run["comparisons"]:
        if not row["primary"]:
            continue
        start, end = f"{row['title']}, {row['pair']}: ", row["verdict_text"]
        effects = [row["effect"], row["other"]]
        ratio = next(one["text"] for one in effects if one and one["scale"] == "ratio")
        assert f"{start}{ratio}, {end}" in said
        if row["effect"]["scale"] == "difference":
            text = f"{start}{row['effect']['text']}, margin {row['margin_text']}, {end}"
            assert text in said


def test_memory_is_drawn_trial_by_trial(files: dict[str, Path], run: dict[str, Any]) -> None:
    """Every value of memory charged is a mark of the distribution, and one in run order."""
    said = tips(files["html"], "How steady it was: every trial", "memory charged")
    labels = {arm["name"]: arm["label"] for arm in run["arms"]}
    curves = [item for item in run["distributions"] if item["metric"] == "memory_current"]
    assert len(curves) == 5 * 3
    for curve in curves:
        label = labels[curve["arm"]]
        for block, value in curve["order"]:
            assert f"{label}, block {block}: {format_value(value, 'bytes')}" in said
        for value, share in zip(curve["values"], curve["shares"], strict=True):
            shown = f"{label}: {format_value(value, 'bytes')}, {share:.0%} of trials at or below"
            assert shown in said


def test_the_ledger_is_drawn_part_by_part(others: dict[str, dict[str, Path]]) -> None:
    """Each counted part, the unexplained rest and the loss are marks with the model's text."""
    said = tips(others["costs"]["html"], "The memory ledger of one more instance", "ledger")
    model = read(others["costs"]["html"].parent).costs
    assert model is not None
    wanted = {
        f"{arm.label}, {title}: {costs.text(estimate, 'bytes')}"
        for arm in model.arms
        for title, estimate in (
            *((part.title, part.bytes) for part in arm.ledger if part.counted),
            ("unexplained", arm.unexplained),
            ("missing on the host", arm.host_delta),
        )
    }
    assert len(wanted) > 12 and set(said) == wanted
