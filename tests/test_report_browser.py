"""The report as a reader has it: opened in a real browser, clicked, filtered, read by axe.

Over 400 lines, so that one browser and one report serve all of it.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_core_python
import known_costs
import pytest
import synthetic
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from bench.numbers import format_value
from reports import report
from reports.drawing import STYLES

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1300,1000",
)  # fmt: skip
BLOCKS = 13
"""Enough to look for drift; one of them does not count."""

AXE = Path(axe_core_python.__file__).with_name("axe.min.js")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with a failure, a timeout, and a block that the plan's rules leave out."""

    def change(line: dict[str, Any]) -> None:
        line["disturbances"]["steal_cpus"] = 0.9 if line["block"] == 5 else 0.001
        if (line["arm"], line["workload"], line["block"]) == ("vm", "redis", 3):
            synthetic.spoil(line, "timeout", "no useful reply within 60 s")
        if (line["arm"], line["workload"], line["block"]) == ("container", "xz", 2):
            synthetic.spoil(line, "failed", "signal 9")

    folder = tmp_path_factory.mktemp("a run") / "quick"
    record = synthetic.run_record(workloads=("minimal", "redis", "xz"), blocks=BLOCKS)
    record["plan"]["invalidation"] = {"steal_cpus": 0.05}
    synthetic.write_run(folder, record=record, change=change)
    return report.build([folder], ("html", "json", "csv"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages that one comparison does not have: of costs, and of three runs as one."""
    folder = tmp_path_factory.mktemp("others")
    costly = synthetic.write_run(folder / "costs", workloads=("redis", "xz"))
    record = json.loads((costly / "run.json").read_text())
    (costly / "run.json").write_text(json.dumps({**record, "costs": known_costs.COSTS}))
    known_costs.write(costly)
    runs = []
    for n in range(3):
        about = synthetic.run_record(
            run_id=f"run-{n}", kind="kvm", blocks=BLOCKS, workloads=("redis",)
        )
        about["host"]["boot_id"] = f"boot-{n}"
        runs.append(synthetic.write_run(folder / f"run-{n}", record=about, seed=n + 1))
    return {
        "costs": report.build([costly], ("html",))["html"],
        "runs": report.build(runs, ("html",), folder / "three")["html"],
    }


@pytest.fixture(scope="module")
def run(files: dict[str, Path]) -> dict[str, Any]:
    """The run as report.json has it."""
    found: dict[str, Any] = json.loads(files["json"].read_text())["runs"][0]
    return found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A headless browser with an empty profile."""
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if not all(programs):
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(
        executable_path=str(programs[1]), env={**os.environ, "SE_OFFLINE": "true"}
    )
    browser = webdriver.Chrome(options=options, service=service)
    browser.set_script_timeout(300)  # axe looks at every element; a busy host takes its time
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def page(chromium: webdriver.Chrome, files: dict[str, Path]) -> webdriver.Chrome:
    """The report, freshly opened."""
    chromium.get("about:blank")
    chromium.get(files["html"].as_uri())
    return chromium


def rows_shown(page: webdriver.Chrome, table: str) -> list[tuple[str, str, list[str]]]:
    """(group, head, cells) of every row of a table that a reader sees, from top to bottom."""
    found: list[tuple[str, str, list[str]]] = page.execute_script(
        """
        const rows = [], seen = (e) => e.checkVisibility();
        for (const body of document.getElementById(arguments[0]).tBodies) {
          const head = body.querySelector("tr.group");
          for (const row of body.rows) {
            if (row === head || !seen(row)) continue;
            const cells = [...row.cells].filter(seen).map((c) => c.innerText.trim());
            rows.push([head ? head.innerText.trim() : "", cells[0], cells.slice(1)]);
          }
        }
        return rows;
        """,
        table,
    )
    return found


def click(page: webdriver.Chrome, element: WebElement) -> None:
    """Click where a reader would have scrolled to."""
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def test_nothing_fails_and_nothing_is_fetched(page: webdriver.Chrome) -> None:
    """Opening the page logs no error and asks for nothing but the page."""
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_every_cell_shows_the_number_of_the_data(
    page: webdriver.Chrome, run: dict[str, Any]
) -> None:
    """All families' tables, cell by cell: each arm's level, each pair's effect and verdict."""
    titles = {item["name"]: item["title"] for item in run["workloads"]}
    metrics = {item["name"]: item["title"] for item in run["metrics"]}
    levels = {(titles[s["workload"]], metrics[s["metric"]], s["arm"]): s for s in run["summaries"]}
    effects = {(titles[c["workload"]], metrics[c["metric"]], c["arm"], c["baseline"]): c
               for c in run["comparisons"]}  # fmt: skip
    checked = 0
    for table in ("table-start-up", "table-memory", "table-cpu"):
        for group, head, cells in rows_shown(page, table):
            for arm, cell in zip(run["arms"], cells, strict=False):
                level = levels.get((group, head, arm["name"]))
                if level and level["median"] is not None:
                    assert cell.startswith(level["text"]), (group, head, cell)
                    checked += 1
            for (arm, base, _), cell in zip(run["pairs"], cells[len(run["arms"]) :], strict=True):
                row = effects.get((group, head, arm, base))
                if row and row["effect"]:
                    assert cell.startswith(row["effect"]["text"]), (group, head, cell)
                    assert row["verdict_text"] == "described" or row["verdict_text"] in cell
                    checked += 1
    assert checked > 150


def test_a_click_on_a_head_sorts_by_the_data(page: webdriver.Chrome, run: dict[str, Any]) -> None:
    """Rows go by the container's exact median, up and then down; the keyboard does it too."""
    titles = {item["name"]: item["title"] for item in run["workloads"]}
    metrics = {item["name"]: item["title"] for item in run["metrics"]}
    place = [arm["name"] for arm in run["arms"]].index("container")
    head = page.find_elements(By.CSS_SELECTOR, "#table-start-up thead button")[1 + place]
    medians = {
        (titles[s["workload"]], metrics[s["metric"]]): s["median"]
        for s in run["summaries"]
        if s["arm"] == "container" and s["median"] is not None
    }

    def order() -> list[float | None]:
        shown = [row for row in rows_shown(page, "table-start-up") if row[0] == titles["redis"]]
        return [medians.get((group, name)) for group, name, _ in shown]

    known = [value for value in order() if value is not None]
    none: list[float | None] = [None] * order().count(None)
    assert none and known != sorted(known)
    click(page, head)
    assert order() == [*sorted(known), *none], "rows without a figure come last"
    head.send_keys(Keys.ENTER)
    assert order() == [*sorted(known, reverse=True), *none]
    column = page.find_elements(By.CSS_SELECTOR, "#table-start-up thead th")[1 + place]
    assert column.get_attribute("aria-sort") == "descending"


def test_a_filter_leaves_the_rows_that_match(page: webdriver.Chrome) -> None:
    """Words of row and group must all occur; the number left is said; nothing typed shows all."""
    field = page.find_element(By.CSS_SELECTOR, "input[data-filters=table-start-up]")
    every = rows_shown(page, "table-start-up")
    field.send_keys("redis ready")
    left = rows_shown(page, "table-start-up")
    wanted = [
        row
        for row in every
        if all(word in f"{row[0]} {row[1]} {row[2]}".lower() for word in ("redis", "ready"))
    ]
    assert left == wanted and 0 < len(left) < len(every)  # fmt: skip
    said = page.find_element(By.CSS_SELECTOR, "#start-up output").text
    assert said == f"{len(left)} of {len(every)} rows"
    field.clear()
    field.send_keys("x", Keys.BACKSPACE)
    assert rows_shown(page, "table-start-up") == every


def test_an_arm_that_is_not_ticked_disappears(page: webdriver.Chrome, run: dict[str, Any]) -> None:
    """Its columns, its pairs and its marks go, from tables and charts, and come back."""
    place = [arm["name"] for arm in run["arms"]].index("vm")
    box = page.find_element(By.CSS_SELECTOR, f"input[data-arm='{place}']")
    marks = page.find_elements(By.CSS_SELECTOR, f"#start-up svg [data-arms='{place}']")
    others = page.find_elements(By.CSS_SELECTOR, "#start-up svg [data-arms='0']")
    before = rows_shown(page, "table-memory")
    assert marks and others and all(mark.is_displayed() for mark in marks[:5])
    box.send_keys(Keys.SPACE)
    for _, _, cells in rows_shown(page, "table-memory"):
        assert len(cells) == 3  # process, container, container ÷ process
    heads = page.find_element(By.CSS_SELECTOR, "#table-memory thead").text
    assert "vm" not in heads and "container ÷ process" in heads
    assert not any(mark.is_displayed() for mark in marks[:5])
    assert all(mark.is_displayed() for mark in others[:5])
    box.send_keys(Keys.SPACE)
    assert rows_shown(page, "table-memory") == before


def test_pointing_at_a_mark_says_its_value(page: webdriver.Chrome, run: dict[str, Any]) -> None:
    """Every trial's mark in the distribution has the value of the data; pointing shows it."""
    curve = next(
        item
        for item in run["distributions"]
        if (item["metric"], item["workload"], item["arm"]) == ("startup_ready", "redis", "process")
    )
    figure = page.find_elements(By.CSS_SELECTOR, "#start-up figure")[0]
    tips = [mark.get_attribute("data-tip")
            for mark in figure.find_elements(By.CSS_SELECTOR, "use[data-tip]")]  # fmt: skip
    wanted = [f"process: {format_value(value, 's')}, {share:.0%} of trials by then"
              for value, share in zip(curve["values"], curve["shares"], strict=True)]  # fmt: skip
    assert len(wanted) == BLOCKS and set(wanted) <= set(tips)
    marks = [mark for mark in figure.find_elements(By.CSS_SELECTOR, "use[data-tip]")
             if mark.get_attribute("data-tip") in wanted]  # fmt: skip
    marks.sort(key=lambda mark: mark.rect["x"])
    in_place = [mark.get_attribute("data-tip") for mark in marks]
    assert in_place == wanted, "from left to right as the values ascend"
    mark = marks[0]
    shown = page.find_element(By.CSS_SELECTOR, ".tip")
    assert not shown.is_displayed()
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    webdriver.ActionChains(page).move_to_element(mark).perform()
    assert shown.is_displayed() and shown.text in tips
    webdriver.ActionChains(page).send_keys(Keys.ESCAPE).perform()
    assert not shown.is_displayed()


def test_keys_go_from_mark_to_mark(page: webdriver.Chrome, run: dict[str, Any]) -> None:
    """Each chart is one stop of Tab; arrow keys say there what pointing at the marks says."""
    figures = page.find_elements(By.CSS_SELECTOR, "figure:has([data-tip])")
    assert figures
    for figure in figures:
        assert len(figure.find_elements(By.CSS_SELECTOR, "[tabindex='0']")) == 1
    chart = page.find_element(By.CSS_SELECTOR, "#start-up figure [tabindex='0']")
    assert chart.accessible_name
    shown = page.find_element(By.CSS_SELECTOR, ".tip[role=status]")

    def marks() -> list[str]:
        found = chart.find_elements(By.CSS_SELECTOR, "[data-tip]")
        return [str(one.get_attribute("data-tip")) for one in found if one.is_displayed()]

    def press(*keys: str) -> str:
        webdriver.ActionChains(page).send_keys(*keys).perform()
        return shown.text

    every = marks()
    page.execute_script("arguments[0].focus({focusVisible: true})", chart)
    assert "next mark" in shown.text
    walked = [press(Keys.ARROW_RIGHT) for _ in every]
    assert walked == every, "each in its turn"
    at = page.find_element(By.CSS_SELECTOR, ".at")
    assert (
        at.get_attribute("data-tip") == every[-1]
        and at.value_of_css_property("outline-style") == "solid"
    )
    assert press(Keys.ARROW_RIGHT) == every[-1] == press(Keys.END)
    assert press(Keys.ARROW_LEFT) == every[-2]
    assert press(Keys.HOME) == every[0]
    names = [tip.partition(":")[0] for tip in every]
    place = next(n for n, name in enumerate(names) if name != names[0])
    assert press(Keys.ARROW_DOWN) == every[place], "the first mark of the next series"
    assert press(Keys.ARROW_UP) == every[0]
    vm = [arm["name"] for arm in run["arms"]].index("vm")
    page.find_element(By.CSS_SELECTOR, f"input[data-arm='{vm}']").send_keys(Keys.SPACE)
    left = marks()
    assert 0 < len(left) < len(every)
    page.execute_script("arguments[0].focus({focusVisible: true})", chart)
    assert press(Keys.END) == left[-1], "none of an arm that is not shown"
    assert press(Keys.TAB) != left[-1] and page.switch_to.active_element != chart
    assert not page.find_elements(By.CSS_SELECTOR, ".at")


def test_a_figure_leads_to_its_samples(page: webdriver.Chrome, files: dict[str, Path]) -> None:
    """From a cell to the appendix, from there to the lines of samples.csv with those values."""
    with files["csv"].open(newline="") as handle:
        lines = list(csv.reader(handle))
    page.find_element(By.CSS_SELECTOR, "input[data-filters=table-start-up]").send_keys(
        "redis start-up ready"
    )
    cells = page.find_elements(By.CSS_SELECTOR, "#table-start-up td.value a.raw")
    click(page, next(cell for cell in cells if cell.is_displayed()))
    group = page.find_element(By.CSS_SELECTOR, ":target")
    assert group.text.startswith("start-up to ready, redis")
    assert page.execute_script(
        "const r = arguments[0].getBoundingClientRect(); return r.top >= -1 && r.top < innerHeight",
        group,
    )
    seen = 0
    for entry in group.find_elements(By.CSS_SELECTOR, "tr:not(.group)"):
        arm, n, where, unit, values = (cell.text for cell in entry.find_elements(By.XPATH, "*"))
        first, last = map(int, where.split("–"))
        stored = lines[first - 1 : last]  # the header is line 1
        assert len(stored) == int(n) == len(values.split())
        for line, text in zip(stored, values.split(), strict=True):
            about = dict(zip(lines[0], line, strict=True))
            assert (about["metric"], about["workload"]) == ("startup_ready", "redis")
            assert arm.startswith(about["arm"])
            scale = {"s": 1.0, "ms": 1e3, "µs": 1e6}[unit]
            assert (text[0] == "(") is (about["counted"] == "False")
            shown = float(text.strip("()").replace(",", ""))
            assert shown == pytest.approx(float(about["value"]) * scale, rel=1e-3)
            seen += 1
    assert seen == 3 * BLOCKS - 1  # 3 arms, 1 timeout


def emulate(page: webdriver.Chrome, scheme: str) -> None:
    """The colour scheme of the reader's system."""
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )


def test_light_and_dark(page: webdriver.Chrome) -> None:
    """As the reader's system has it, until the button says otherwise; charts follow."""
    button = page.find_element(By.CSS_SELECTOR, "button.theme")
    mark = page.find_element(By.CSS_SELECTOR, "figure svg [data-arms='1'] path")

    def colours() -> tuple[str, str]:
        return (
            page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color"),
            mark.value_of_css_property("stroke"),
        )

    try:
        emulate(page, "light")
        light = colours()
        emulate(page, "dark")
        dark = colours()
        assert light[0] != dark[0] and light[1] != dark[1]
        assert page.find_element(By.CSS_SELECTOR, "html").get_attribute("data-theme") is None
        button.click()
        assert colours() == light and button.text == "Dark colours"
        emulate(page, "light")
        button.click()
        assert colours() == dark and button.text == "Light colours"
    finally:
        emulate(page, "light")


def opened(
    chromium: webdriver.Chrome, files: dict[str, Path], others: dict[str, Path], name: str
) -> webdriver.Chrome:
    """One of the kinds of report, freshly opened."""
    chromium.get("about:blank")
    chromium.get((files["html"] if name == "run" else others[name]).as_uri())
    return chromium


@pytest.mark.parametrize(
    ("name", "scheme"), [("run", "light"), ("run", "dark"), ("costs", "light"), ("runs", "light")]
)
def test_axe_finds_nothing_serious(
    chromium: webdriver.Chrome,
    files: dict[str, Path],
    others: dict[str, Path],
    name: str,
    scheme: str,
) -> None:
    """axe-core reports no serious and no critical violation, in both colour schemes."""
    page = opened(chromium, files, others, name)
    try:
        emulate(page, scheme)
        page.execute_script(AXE.read_text())
        found = page.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run(document, {resultTypes: ['violations']}).then(done)"
        )
    finally:
        emulate(page, "light")
    assert found["testEngine"]["name"] == "axe-core"
    bad = [
        (item["id"], item["impact"], item["nodes"][0]["html"][:200], len(item["nodes"]))
        for item in found["violations"]
        if item["impact"] in {"serious", "critical"}
    ]
    assert not bad


HEADINGS = {
    "run": ("With and without the blocks left out", "Did anything move while it ran?"),
    "costs": ("What one more instance costs", "Where the memory goes"),
    "runs": ("The same questions, run by run", "The runs as one: on this host"),
}
"""Of tables that only this kind of report has: what is not there cannot be found wrong."""


@pytest.mark.parametrize("name", HEADINGS)
def test_the_keyboard_reaches_everything(
    chromium: webdriver.Chrome, files: dict[str, Path], others: dict[str, Path], name: str
) -> None:
    """The first Tab offers to skip the contents; every control is reached, every table is named."""
    page = opened(chromium, files, others, name)
    body = page.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    first = page.switch_to.active_element
    assert first.text == "Skip to the report" and first.rect["x"] >= 0
    first.send_keys(Keys.ENTER)
    assert page.switch_to.active_element.get_attribute("id") == "main"
    controls = page.execute_script(
        "return [...document.querySelectorAll('button, input, .scroll')]"
        ".filter((e) => e.checkVisibility() && e.tabIndex < 0).length"
    )
    assert controls == 0
    regions = page.execute_script(
        "return [...document.querySelectorAll('.scroll')]"
        ".map((e) => [e.getAttribute('role'), e.getAttribute('aria-label')])"
    )
    assert {role for role, _ in regions} == {"region"}
    assert all(label for _, label in regions)
    assert len({label for _, label in regions}) == len(regions), "no two have one name"
    headings = page.execute_script(
        "return [...document.querySelectorAll('h2, h3')].map((e) => e.innerText.trim())"
    )
    assert set(HEADINGS[name]) <= set(headings)


@pytest.mark.parametrize("width", [390, 768])
def test_a_narrow_window_scrolls_tables_and_charts(page: webdriver.Chrome, width: int) -> None:
    """On a telephone the page is as wide as the window; what is wider scrolls, and can be read."""
    try:
        page.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True},
        )
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        letters = page.execute_script(
            "return [...document.querySelectorAll('figure svg text')]"
            ".map((text) => text.getBoundingClientRect().height)"
        )
        assert letters and min(letters) > 7, "pixels"
        cell = page.find_element(By.CSS_SELECTOR, "table.samples td.mono")
        assert cell.size["width"] >= 200
        for cells in ("table.keys td", "table.fields td.wrap", ".answers dd", ".glossary dd"):
            cell = page.find_element(By.CSS_SELECTOR, cells)
            assert cell.size["width"] >= 150, cells
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_arms_are_told_apart_without_colour() -> None:
    """No two arms share a line and a marker, so a print in black says the same."""
    assert len({(str(style.line)) for style in STYLES}) == len(STYLES)
    assert len({style.marker for style in STYLES}) == len(STYLES)
