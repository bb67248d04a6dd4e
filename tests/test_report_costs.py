"""The report on what instances cost: the figures of cost-model.json, in every format."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
import synthetic
from known_costs import COSTS, write

from bench import archive, steps
from bench.errors import BadInput
from reports import costs, report
from reports.data import read


def costly(folder: Path) -> Path:
    """A run with steps of known truth beside its trials."""
    synthetic.write_run(folder, workloads=("redis", "xz"))
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "costs": COSTS}))
    return write(folder)


def words(text: str) -> str:
    """Without markup, with single spaces."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def test_the_page_shows_the_model_s_figures(tmp_path: Path) -> None:
    """Each cell of the section is the text of a figure in report.json, arm by arm."""
    folder = costly(tmp_path / "a run")
    files = report.build([folder], ("html", "json"))
    page = files["html"].read_text()
    section = page[page.index('<section id="costs">') :].partition("</section>")[0]
    assert 'href="#costs"' in page
    model = read(folder).costs
    assert model is not None
    for title, cells in (*costs.price_rows(model), *costs.ledger_rows(model)):
        row = re.search(rf'<th scope="row">{re.escape(title)}</th>(.*?)</tr>', section)
        assert row, title
        assert [words(cell) for cell in re.findall(r"<td.*?</td>", row[1])] == cells
    assert "vm (TCG): its ledger does not close" in words(section)
    assert "under emulation" in words(section)
    assert all(html.escape(said, quote=False) in page for said in costs.sentences(model))
    assert dict(costs.ledger_rows(model))["unexplained"][0].startswith("8.750 [")
    told = json.loads(files["json"].read_text())["runs"][0]["costs"]
    assert told == json.loads(json.dumps(model.as_json()))
    assert told["arms"][0]["unexplained"]["mean"] == pytest.approx(8.75 * 2**20, rel=1e-3)


def test_a_run_without_steps_has_no_such_section(tmp_path: Path) -> None:
    """And it says where a ledger comes from."""
    folder = synthetic.write_run(tmp_path / "run", workloads=("redis", "xz"))
    page = report.build([folder], ("html",))["html"].read_text()
    assert 'id="costs"' not in page and "hvct costs" in page


def test_an_archive_holds_the_steps(tmp_path: Path) -> None:
    """Another person's report says the same."""
    folder = costly(tmp_path / "run")
    packed = archive.pack(folder, tmp_path / "run.tar.gz")
    assert read(packed).costs == read(folder).costs is not None


def test_damaged_steps_are_bad_input(tmp_path: Path) -> None:
    """A number that is none does not become a report."""
    folder = costly(tmp_path / "run")
    path = folder / steps.STEPS_FILE
    path.write_text(path.read_text().replace('"window_s": 2.0', '"window_s": NaN', 1))
    with pytest.raises(BadInput, match="not finite"):
        read(folder)
