"""The same page as a PDF, with page numbers, contents and bookmarks.

Charts do not go through the layout: it would read and draw each of their thousands of elements
in Python, which took as long as everything else. The page made for print has empty boxes in their
places, and the charts, drawn as PDF by the library that made them, are laid over these.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.command import begun

if TYPE_CHECKING:
    import pikepdf

POINTS_PER_PIXEL = 0.75
LAYOUT = Path(__file__).with_name("layout.py")


def layout() -> AbstractContextManager[Callable[[bytes], bytes]]:
    """What lays out a page made for print, for `with_charts`.

    It is a process of its own, which loads its libraries while the page is made.
    """
    # -P: this folder has modules with names of the standard library's.
    return begun([sys.executable, "-P", LAYOUT])


def with_charts(laid_out: bytes, places: Mapping[str, int], charts: bytes) -> bytes:
    """The PDF, with each chart in its place; the same page and charts give the same bytes.

    Args:
        laid_out: from `layout`.
        places: id of each box for a chart → number of its page among the charts, from 0.
        charts: one page for each chart; it becomes as wide as the text.
    """
    import pikepdf

    line, _, sheets = laid_out.partition(b"\n")
    written = io.BytesIO()
    with pikepdf.open(io.BytesIO(sheets)) as pdf:
        if places:  # else the charts are a PDF without a page, which cannot be opened
            with pikepdf.open(io.BytesIO(charts)) as drawn:
                for sheet, boxes in zip(pdf.pages, json.loads(line), strict=True):
                    _lay_over(pdf, sheet, boxes, drawn, places)
        pdf.save(written, deterministic_id=True)
    return written.getvalue()


def _lay_over(
    pdf: pikepdf.Pdf,
    sheet: pikepdf.Page,
    boxes: Mapping[str, Sequence[float]],
    drawn: pikepdf.Pdf,
    places: Mapping[str, int],
) -> None:
    """Put the charts of one sheet into its boxes."""
    import pikepdf

    _, _, sheet_width, sheet_height = map(float, sheet.mediabox)
    if boxes:  # the layout leaves its own coordinates behind
        sheet.contents_add(b"q\n", prepend=True)
        sheet.contents_add(b"Q\n")
    for name, (x, y) in boxes.items():
        chart = drawn.pages[places[name]]
        _, _, width, height = map(float, chart.mediabox)
        left, top = x * POINTS_PER_PIXEL, sheet_height - y * POINTS_PER_PIXEL
        right = sheet_width - left  # margins are alike at both sides
        bottom = top - (right - left) * height / width
        # Not `add_overlay`: it names what it lays over by chance.
        form = pdf.copy_foreign(chart.as_form_xobject())
        own = sheet.add_resource(form, pikepdf.Name.XObject, pikepdf.Name(f"/Chart{places[name]}"))
        where = pikepdf.Rectangle(left, bottom, right, top)
        sheet.contents_add(sheet.calc_form_xobject_placement(form, own, where))
    sheet.contents_coalesce()
