"""The same page as a PDF, with page numbers, contents and bookmarks."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from bench.errors import HvctError

LOGGERS = ("weasyprint", "fontTools")


def render(page: str) -> bytes:
    """Turn the page made for print into a PDF; the same page gives the same bytes.

    Raises:
        HvctError: the page refers to something outside itself.
    """
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import weasyprint  # 0.7 s, and wanted for PDFs only

    document = weasyprint.HTML(
        string=page, base_url=None, url_fetcher=_refuse
    )
    made: bytes = document.write_pdf(
        # An identifier from the content: chance would make every file another one.
        pdf_identifier=hashlib.sha256(page.encode()).hexdigest()[:32].encode(),
    )
    return made


def _refuse(url: str, *_: Any, **__: Any) -> dict[str, Any]:
    raise HvctError(f"the report refers to {url[:80]}", "a report holds everything it shows")
