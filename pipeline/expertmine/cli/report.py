"""``expertmine report``: a run as one HTML page. Parse, compose, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expertmine.cli.options import Run
from expertmine.specs.settings import Pooling
from expertmine.telemetry.progress import console

if TYPE_CHECKING:
    from expertmine.report.page import WrittenReport


def report(
    run: Run,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    pooling: Annotated[
        Pooling | None, typer.Option("--pooling", help="Use the experts of this pooling. [default: the run's first]")
    ] = None,
    sentences: Annotated[
        int, typer.Option(help="Sentences with the highest response, per best unit; 0 does not load the model.", min=0)
    ] = 5,
    concept: Annotated[
        list[str] | None, typer.Option(help="Concept to show in full; repeatable. [default: see --concepts]")
    ] = None,
    concepts: Annotated[
        int | None,
        typer.Option(help="Number of concepts to show in full, farthest above chance first. [default: 300]", min=0),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page. [default: the model's name]")] = None,
    device: Annotated[str | None, typer.Option(help="Device for the model. [default: a GPU if there is one]")] = None,
) -> None:
    """Write a run's results as one self-contained HTML page with figures.

    Its table has all concepts. Figures of steering show the results of `expertmine evaluate`.

    Example: `expertmine report run --out report.html`
    """
    from expertmine.report.page import ReportOptions, write_report

    options = ReportOptions(title, sentences, tuple(concept or ()), concepts, device)
    _announce(write_report(run, out, options, pooling))


def _announce(written: WrittenReport) -> None:
    def show(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    size = written.path.stat().st_size / 1e6
    show(f"{written.path}: {written.concepts:,} concepts, {written.details:,} of them in full, {size:.2f} MB")
    if written.note:
        show(f"without sentences: {written.note}")
    if written.marks and written.marks.differing:
        show(f"{written.marks.differing:,} responses differ from their stored values and are not marked")
