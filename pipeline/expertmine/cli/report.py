"""``expertmine report``: a run as one page to read. Parse, compose, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expertmine.cli.options import Run
from expertmine.specs.settings import Pooling
from expertmine.telemetry.progress import console

if TYPE_CHECKING:
    from expertmine.report.page import Written


def report(
    run: Run,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    pooling: Annotated[
        Pooling | None, typer.Option("--pooling", help="Experts by this pooling. [default: the run's first]")
    ] = None,
    sentences: Annotated[
        int, typer.Option(help="Sentences of highest response, for each best unit; 0 does not load the model.", min=0)
    ] = 5,
    concept: Annotated[
        list[str] | None, typer.Option(help="Concept to show in full; repeatable. [default: see --concepts]")
    ] = None,
    concepts: Annotated[
        int | None,
        typer.Option(help="How many concepts to show in full, farthest above chance. [default: 300]", min=0),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the page. [default: the model's name]")] = None,
    device: Annotated[str | None, typer.Option(help="Of the model. [default: a GPU if there is one]")] = None,
) -> None:
    """Write what a run found as one HTML page, with figures, that needs no network.

    All concepts are in its table. Figures of steering come from what `expertmine evaluate` has left in the run.

    Example: `expertmine report run --out report.html`
    """
    from expertmine.report.page import ReportOptions, write_report

    asked = ReportOptions(title, sentences, tuple(concept or ()), concepts, device)
    _announce(write_report(run, out, asked, pooling))


def _announce(written: Written) -> None:
    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    size = written.path.stat().st_size / 1e6
    say(f"{written.path}: {written.concepts:,} concepts, {written.details:,} of them in full, {size:.2f} MB")
    if written.note:
        say(f"without sentences: {written.note}")
    if written.marks and written.marks.differing:
        say(f"{written.marks.differing:,} responses came out differently than they were stored, and are not marked")
