"""Prints tables, JSON and messages. Knows no command."""

from __future__ import annotations

import json
import logging
import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from expertmine.storage.untrusted import visible
from expertmine.telemetry import logs
from expertmine.telemetry.progress import console as stderr

if TYPE_CHECKING:
    from expertmine.steering.generation import GenerationRequest

out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
"""Standard output; a pipe has no width, and tables must not be truncated in it."""


def problem(message: str) -> None:
    """Print a message on standard error, and log it; untrusted text in it is escaped for terminals."""
    message = _lines(message)
    logs.event("problem", logging.ERROR, reason=message)
    if not logs.on_stderr():
        stderr.print(f"expertmine: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


def _lines(text: str) -> str:
    """Untrusted text of several lines, each escaped by `visible`."""
    return "\n".join(map(visible, text.split("\n")))


def as_json(document: Any) -> None:
    """Print JSON; NaN and infinities become null."""
    print(json.dumps(_without_nan(document), indent=2, ensure_ascii=False, default=str, allow_nan=False))


def _without_nan(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _without_nan(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_without_nan(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def table(*columns: str, left: int = 1) -> Table:
    """A plain table with its first `left` columns aligned left and the others right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for at, column in enumerate(columns):
        made.add_column(column, justify="left" if at < left else "right", no_wrap=at > 0 or left == 1)
    return made


def number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def texts(request: GenerationRequest, generated: list[str], json_: bool) -> None:
    if json_:
        as_json({"request": asdict(request), "texts": generated})
        return
    for text in generated:
        out.print(escape(_lines(f"{request.prompt}{text}".strip())), soft_wrap=True)
