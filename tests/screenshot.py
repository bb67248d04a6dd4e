"""Two pages of a run's report as one picture, for the README: `nox -s picture`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from reports import report

BEHIND = "Start-up to ready: every trial"
"""What the second page shows."""

DOTS_PER_INCH = 100
GAP = 16  # pixels between the pages


def main(run: Path, picture: Path) -> None:
    """Write the picture from a report made anew; the run stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        pdf = report.build([run], ("pdf",), Path(folder))["pdf"]
        pages = [_drawn(pdf, number) for number in (1, _page_of(pdf, BEHIND))]
    width = sum(page.width for page in pages) + GAP
    both = Image.new("RGB", (width, max(page.height for page in pages)), "#d0d7de")
    both.paste(pages[0], (0, 0))
    both.paste(pages[1], (pages[0].width + GAP, 0))
    both.quantize(256).save(picture, optimize=True)


def _page_of(pdf: Path, words: str) -> int:
    done = subprocess.run(["pdftotext", str(pdf), "-"], capture_output=True, check=True, text=True)
    pages = [" ".join(page.split()) for page in done.stdout.split("\f")]
    return next(number for number, page in enumerate(pages, 1) if words in page)


def _drawn(pdf: Path, number: int) -> Image.Image:
    page, resolution = str(number), str(DOTS_PER_INCH)
    stem = pdf.with_name(f"page-{page}")
    subprocess.run(
        ["pdftoppm", "-png", "-singlefile", "-r", resolution, "-f", page, "-l", page, pdf, stem],
        check=True,
    )
    with Image.open(stem.with_suffix(".png")) as image:
        return image.convert("RGB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
