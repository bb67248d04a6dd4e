"""Reports from stored runs: the only module the command line calls."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bench import archive
from bench.errors import BadInput, HvctError, oserror
from bench.owner import hand_over, make_folder
from reports import export, joint, pytest_benchmark, wording
from reports.analysis import analyse
from reports.data import Run, read
from reports.merged import merge
from reports.method import GLOSSARY, METHOD
from reports.model import ReportData

if TYPE_CHECKING:
    from rich.console import RenderableType

    from reports.html import Pictures

FORMATS = {
    "html": "report.html",
    "pdf": "report.pdf",
    "json": "report.json",
    "csv": "samples.csv",
    "parquet": "samples.parquet",
    "pytest-benchmark": "pytest-benchmark.json",
}


def build(
    run_dirs: Sequence[Path],
    formats: Sequence[str] = ("html", "pdf", "json", "csv"),
    into: Path | None = None,
) -> dict[str, Path]:
    """Write reports about stored runs, each file whole or not at all.

    Args:
        run_dirs: one run, or several to stand side by side; directories or archives.
        formats: any of `FORMATS`.
        into: where to write; None: beside a single run's data, for an archive or several runs
            into a new folder beside the first.

    Returns:
        The file written for each format.

    Raises:
        BadInput: a directory is no run, is damaged, or a format is unknown.
        HvctError: a file could not be written; or all are, but nothing was measured in a run.
    """
    for name in formats:
        if name not in FORMATS:
            raise BadInput(f"there is no format {name!r}", f"choose from {', '.join(FORMATS)}")
    from reports.pdf import layout

    with _uncollected(), layout() if "pdf" in formats else nullcontext() as lay_out:
        return _build(run_dirs, formats, into, lay_out)


def _build(
    run_dirs: Sequence[Path],
    formats: Sequence[str],
    into: Path | None,
    lay_out: Callable[[bytes], bytes] | None,
) -> dict[str, Path]:
    runs = _read(run_dirs)
    folder = into or _folder(run_dirs, runs)
    try:
        make_folder(folder)
    except OSError as error:
        raise oserror("mkdir", folder, error) from error
    with ThreadPoolExecutor(1) as beside:
        makers = _Makers(runs, beside)
        if lay_out:
            makers.begin_pdf(lay_out)
        for name in sorted(formats, key=lambda name: name == "pdf"):  # it is ready last
            _write(folder / FORMATS[name], getattr(makers, name.replace("-", "_")))
            hand_over(folder / FORMATS[name])
    _refuse_unmeasured(run_dirs, runs, f"the report in {folder} says so too; ")
    return {name: folder / FORMATS[name] for name in formats}


def as_json(run_dirs: Sequence[Path]) -> str:
    """The report's numbers as JSON text.

    Raises:
        BadInput: see `build`.
    """
    with _uncollected():
        return export.as_json(_data(_read(run_dirs)))


def write_json(run_dirs: Sequence[Path], write: Callable[[str], object]) -> None:
    """Hand over the report's numbers as JSON text.

    Raises:
        BadInput: see `build`.
        HvctError: it was handed over, but nothing was measured in a run.
    """
    with _uncollected():
        runs = _read(run_dirs)
        write(export.as_json(_data(runs)))
    _refuse_unmeasured(run_dirs, runs)


def _refuse_unmeasured(run_dirs: Sequence[Path], runs: Sequence[Run], written: str = "") -> None:
    for run_dir, run in zip(run_dirs, runs, strict=True):
        if nothing := wording.nothing_measured(run):
            hint = f"{written}hvct resume goes on with a run cut short"
            raise HvctError(f"{run_dir}: {nothing}", hint)


def summary(run_dir: Path, *, accelerator: bool = True) -> RenderableType:
    """The run in one table, for the terminal.

    Args:
        accelerator: begin with how virtual machines were executed.

    Raises:
        BadInput: see `build`.
    """
    from reports import terminal

    return terminal.summary(_data(_read([run_dir])).runs[0], accelerator=accelerator)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the cyclic collector: it would walk millions of live objects again and again.

    That is a fifth of a quick report's time, and a third of a large one's.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read(run_dirs: Sequence[Path]) -> list[Run]:
    if not run_dirs:
        raise BadInput("no run was named", "hvct list shows the runs")
    return [read(Path(path)) for path in run_dirs]


def _data(runs: Sequence[Run]) -> ReportData:
    first_lines = itertools.accumulate((len(run.samples) for run in runs), initial=2)
    made = tuple(analyse(run, line) for run, line in zip(runs, first_lines, strict=False))
    rows = joint.rows(made)
    names = " and ".join(run.id for run in made)
    return ReportData(
        title=f"hvct report: {names}",
        runs=made,
        joint=rows,
        agreement=joint.agreement(rows, len(made)),
        likeness=joint.likeness(made),
        merged=merge(runs),
        method=METHOD,
        glossary=GLOSSARY,
    )


def _folder(run_dirs: Sequence[Path], runs: Sequence[Run]) -> Path:
    first = Path(run_dirs[0])
    if len(run_dirs) == 1:
        return first.with_name(f"{archive.stem(first)}-report") if first.is_file() else first
    names = "+".join(Path(str(run.record["id"])).name or "run" for run in runs)
    return first.resolve().parent / f"report-{names}"[:200]


class _Makers:
    """What writes each format to a path; numbers and charts are made once, when needed.

    Args:
        beside: waits for the layout of the PDF while the other formats are written.
    """

    def __init__(self, runs: Sequence[Run], beside: Executor) -> None:
        self.runs = runs
        self.beside = beside
        self.laid_out: Future[bytes] | None = None

    @cached_property
    def data(self) -> ReportData:
        return _data(self.runs)

    @cached_property
    def pictures(self) -> Pictures:
        from reports.html import draw

        return draw(self.data)

    def html(self, path: Path) -> None:
        from reports.html import document

        path.write_text(document(self.data, self.pictures), encoding="utf-8")

    def begin_pdf(self, lay_out: Callable[[bytes], bytes]) -> None:
        from reports.html import document

        page = document(self.data, self.pictures, for_print=True)
        self.laid_out = self.beside.submit(lay_out, page.encode())

    def pdf(self, path: Path) -> None:
        from reports.charts import as_pdf
        from reports.html import place
        from reports.pdf import with_charts

        assert self.laid_out is not None
        shown = self.pictures.every
        places = {place(picture): number for number, picture in enumerate(shown)}
        charts = as_pdf(shown)
        path.write_bytes(with_charts(self.laid_out.result(), places, charts))

    def json(self, path: Path) -> None:
        path.write_text(export.as_json(self.data), encoding="utf-8")

    def csv(self, path: Path) -> None:
        export.write_csv(self.runs, path)

    def parquet(self, path: Path) -> None:
        export.write_parquet(self.runs, path)

    def pytest_benchmark(self, path: Path) -> None:
        path.write_text(pytest_benchmark.text(self.runs), encoding="utf-8")


def _write(path: Path, make: Callable[[Path], None]) -> None:
    """Make a file beside its place, then rename it into place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make(beside)
        os.replace(beside, path)
    except OSError as error:
        failure = oserror("write", path, error)
        failure.hint = failure.hint or "move away what is in its place"
        raise failure from error
    finally:
        beside.unlink(missing_ok=True)
