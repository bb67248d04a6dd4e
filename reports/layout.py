"""A page on standard input, its layout as a PDF on standard output, with where its charts go.

A program of its own: laying out takes longer than all else of a report, and so goes on while the
charts are drawn and the other files are written. It imports nothing of ours.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import sys

import weasyprint

CHART = "chart-"
"""What the ids of a page's empty boxes for charts begin with."""


def main() -> None:
    """Write one line of JSON, then the PDF.

    The line holds for each sheet the boxes for charts that are on it: id, and how far the left
    top corner is from the sheet's, in CSS pixels.
    """
    gc.disable()  # nothing here is garbage before the end
    for name in ("weasyprint", "fontTools"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    page = sys.stdin.buffer.read()
    laid_out = weasyprint.HTML(
        string=page.decode(),
        # Only what the page itself holds; anything else is an error, never a request.
        url_fetcher=weasyprint.URLFetcher(allowed_protocols=["data"], fail_on_errors=True),
    ).render()
    boxes = [
        {name: corner[:2] for name, corner in sheet.anchors.items() if name.startswith(CHART)}
        for sheet in laid_out.pages
    ]
    made = laid_out.write_pdf(
        # An identifier from the content: chance would make every file another one.
        pdf_identifier=hashlib.sha256(page).hexdigest()[:32].encode(),
        # It is compressed once, when the charts are in it.
        uncompressed_pdf=True,
    )
    sys.stdout.buffer.write(json.dumps(boxes).encode() + b"\n" + made)


if __name__ == "__main__":
    main()
