"""A run of many arms: a row each, in tables and charts, that fits the page."""

from __future__ import annotations

import html
import re
import subprocess
from pathlib import Path

import pytest
import synthetic

from reports import charts, report
from reports.analysis import analyse
from reports.data import read
from reports.wording import gathered

ARMS = (
    "vm", "vm:stock", "vm:daemon", "vm:restore", "container", "container:slot", "container:pooled",
    "container:userns", "process",
)  # fmt: skip
PAGE = 1.35
"""Height of a page's text by its width, less a heading and a caption."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with nine arms, and its report."""
    made = synthetic.write_run(tmp_path_factory.mktemp("many") / "run", arms=ARMS, blocks=8)
    report.build([made])
    return made


def test_every_figure_is_on_both_pages(folder: Path) -> None:
    """Each arm's level and each pair's effect, in the HTML and, where it is no chart, the PDF."""
    run = analyse(read(folder))
    assert run.crowded
    page = html.unescape(re.sub(r"<[^>]+>", " ", (folder / "report.html").read_text()))
    printed = subprocess.run(["pdftotext", "-layout", folder / "report.pdf", "-"],
                             capture_output=True, text=True, check=True).stdout  # fmt: skip
    for text in (page, printed):
        words = " ".join(text.split())
        for row in run.summaries:
            assert row.text in words, row
        for comparison in run.comparisons:
            assert comparison.effect is None or comparison.effect.text in words, comparison
        for arm in run.arms:
            assert arm.label in words
        assert f"{len(ARMS)} arms: what" in words


def test_no_chart_is_longer_than_a_page(folder: Path) -> None:
    """What does not fit would be cut off by the foot of the page."""
    made = charts.pictures(analyse(read(folder)))
    assert {"forest", "startup-ecdf", "timeline"} <= set(made)
    assert all(picture.height < PAGE for picture in made.values())


def test_the_same_said_of_several_is_said_once() -> None:
    """One line for all arms of which the same is said beside the same one."""
    said = [("a", "c", "same."), ("b", "c", "same."), ("d", "c", "other."), ("a", "e", "same.")]
    assert gathered(said, "÷", "each ÷") == [
        "a and b each ÷ c: same.", "d ÷ c: other.", "a ÷ e: same."
    ]  # fmt: skip
