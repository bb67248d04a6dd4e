"""The same page as a PDF, with page numbers, contents and bookmarks."""

from __future__ import annotations

import hashlib
import logging

LOGGERS = ("weasyprint", "fontTools")


def render(page: str) -> bytes:
    """Turn the page made for print into a PDF; the same page gives the same bytes."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import weasyprint  # 0.7 s, and wanted for PDFs only

    made: bytes = weasyprint.HTML(
        string=page,
        # Only what the page itself holds; anything else is an error, never a request.
        url_fetcher=weasyprint.URLFetcher(allowed_protocols=["data"], fail_on_errors=True),
    ).write_pdf(
        # An identifier from the content: chance would make every file another one.
        pdf_identifier=hashlib.sha256(page.encode()).hexdigest()[:32].encode(),
    )
    return made
