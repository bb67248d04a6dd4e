"""What `nox -s bench` prints and writes: estimates by kind, verdicts by bound, the page's parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from perf.page import write_page
from perf.table import Bound, Kind, Line, Missing, Part, Table, Unit, equivalent

pytestmark = pytest.mark.checkout

THEIRS = [0.010 + 0.0001 * n for n in range(12)]
PAGE = "a\n<!-- {0} -->\nold\n<!-- end of {0} -->\nz\n"


def test_a_ratio_a_difference_and_a_value() -> None:
    """Doubled values are a ratio of 2, two more of a unit are that difference, alone they stand."""
    doubled = [2 * value for value in THEIRS]
    later = [value + 0.002 for value in THEIRS]
    assert Line("r", Bound(3), doubled, THEIRS).estimate() == pytest.approx((2, 2, 2))
    difference = Line("d", Bound(3), later, THEIRS, kind=Kind.DIFFERENCE)
    assert difference.estimate() == pytest.approx((0.002, 0.002, 0.002))
    alone = Line("v", Bound(0.015), THEIRS, kind=Kind.VALUE)
    middle, low, high = alone.estimate()
    assert min(THEIRS) <= low < middle < high <= max(THEIRS)
    assert difference.cells()[2] == "2 [2, 2] ms" and alone.cells()[1] == "≤ 15 ms"


@pytest.mark.parametrize(
    ("bound", "reached", "missed"),
    [
        (Bound(1.0), (0.8, 0.9), (1.1, 1.2)),
        (Bound(least=1.0), (1.1, 1.2), (0.8, 0.9)),
        (Bound(1.05, 0.95), (0.96, 1.04), (1.06, 1.2)),
        (Bound(1.05, 0.95), (0.96, 1.04), (0.8, 0.94)),
    ],
    ids=["at most", "at least", "within, above", "within, below"],
)
def test_a_verdict_needs_the_whole_interval(
    bound: Bound, reached: tuple[float, float], missed: tuple[float, float]
) -> None:
    """On the right side reached, on the wrong side missed, across an end open."""
    assert bound.verdict(*reached) == "reached"
    assert bound.verdict(*missed) == "missed"
    both = sorted((*reached, *missed))
    assert bound.verdict(both[0], both[-1]) == "open"


def test_a_few_pairs_decide_nothing() -> None:
    """Below six pairs there is no interval, so no verdict; a figure that is read once has one."""
    assert Line("r", Bound(3), THEIRS[:5], THEIRS[:5]).verdict == "open"
    assert Line("r", Bound(3), THEIRS[:6], THEIRS[:6]).verdict == "reached"
    assert Line("v", Bound(3), THEIRS[:1], kind=Kind.VALUE).verdict == "reached"


def test_equivalence_is_the_larger_of_a_share_and_a_time() -> None:
    """3 % of a long baseline, 0.1 ms of a short one; the bounds of a ratio lie evenly about 1."""
    assert equivalent([1.0]).most == pytest.approx(1.03)
    assert equivalent([0.001]).most == pytest.approx(1.1)
    bound = equivalent([0.001])
    assert bound.most * bound.least == pytest.approx(1)


def test_the_page_keeps_its_prose(tmp_path: Path) -> None:
    """Only what is between marks is replaced; a row that is missing says why."""
    page = tmp_path / "page.md"
    page.write_text("".join(PAGE.format(name) for name in ("targets", "floor", "phases")))
    table = Table([Line("r", Bound(3), THEIRS, THEIRS), Missing("m", "no such arm")])
    table.parts.append(Part("clone3", [0.0001], [0.0002]))
    write_page(page, table, 75.0)
    text = page.read_text()
    assert "old" not in text and text.count("a\n<!--") == text.count("-->\nz") == 3
    assert "| m |  |  | not measured | no such arm |" in text and "in 1 min 15 s" in text
    assert "| clone3 | 100 µs | 200 µs | 2× |" in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="targets"):
        write_page(page, table, 75.0)


def test_units_are_shown_without_powers_of_ten() -> None:
    """Values of the base unit in ms, MiB and s."""
    assert Unit.MS.show(4.03) == "4030" and Unit.MIB.show(70 << 20) == "70"
