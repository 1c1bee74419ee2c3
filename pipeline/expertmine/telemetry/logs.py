"""Logs events of long work: text lines for people, or JSON lines for programs. Knows no stage.

An event has a name and fields. Fields that many events share (run, stage) are set once, by `about`. Records go to
Python's logger ``expertmine``; a program that uses the library configures that logger itself, and finds ``event`` and
``fields`` on each record. The command line calls `configure`.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from io import TextIOBase
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from rich.console import Console
from rich.text import Text

from expertmine.errors import UserError

LogFormat = Literal["text", "json"]

logger = logging.getLogger("expertmine")
logger.addHandler(logging.NullHandler())

_about: ContextVar[Mapping[str, Any]] = ContextVar("about", default={})  # noqa: B039 (never mutated)
_json_on_stderr = False


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """While open, add these fields to every event."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event; costs almost nothing when no handler wants it. Fields that are None are left out."""
    if not logger.isEnabledFor(level):
        return
    present = {key: value for key, value in {**_about.get(), **fields}.items() if value is not None}
    logger.log(level, "%s%s", name, _Fields(present), extra={"event": name, "fields": present})


class _Fields:
    """An event's fields as part of a line, formatted only if a handler writes that line."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields

    def __str__(self) -> str:
        return "".join(f" {name}={_value(value)}" for name, value in self.fields.items())


def _value(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(_plain(value), ensure_ascii=False, default=str, separators=(",", ":"))
    quoted = not value or any(character.isspace() or character in '"=' for character in value)
    return json.dumps(value, ensure_ascii=False) if quoted else value


class JsonLines(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, event, and the event's fields.

    Records of other loggers become events ``log`` with a message and the logger's name.
    """

    def format(self, record: logging.LogRecord) -> str:
        head = {"time": _time(record), "level": record.levelname.lower()}
        if hasattr(record, "event"):
            document = {**head, "event": record.event, **record.__dict__["fields"]}
        else:
            document = {**head, "event": "log", "logger": record.name, "message": record.getMessage()}
        return json.dumps(_plain(document), ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """One line per event: time (ISO 8601, UTC), level, event, and fields as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().replace("\n", "\\n")
        return f"{_time(record)} {record.levelname:<7} {message}"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    """Convert a value to JSON's types; NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def configure(format_: LogFormat, file: Path | None, console: Console) -> None:
    """Set up this process's logging as the user asked.

    With a file, events are appended to it. Without one, JSON lines replace progress bars and messages on standard
    error; text is limited to warnings, since bars show the rest and an error ends the command with a message.

    Args:
        console: standard error.

    Raises:
        UserError: the file cannot be written.
    """
    logger.setLevel(logging.INFO)
    formatter = JsonLines() if format_ == "json" else TextLines()
    if file is not None:
        _add(_open(file), formatter)
    elif format_ == "json":
        global _json_on_stderr
        _json_on_stderr = True
        # Python's own warnings become events too.
        logging.captureWarnings(True)
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger("py.warnings").addHandler(handler)
        _add(handler, formatter)
        console.file = cast(TextIO, _MessageEvents())
    if not _json_on_stderr:
        warnings = _OnConsole(console)
        warnings.addFilter(lambda record: record.levelno == logging.WARNING)
        _add(warnings, TextLines())


def on_stderr() -> bool:
    """Return whether standard error carries JSON lines, so that nothing else may be written there."""
    return _json_on_stderr


def _add(handler: logging.Handler, formatter: logging.Formatter) -> None:
    handler.setFormatter(formatter)
    logger.addHandler(handler)


def _open(file: Path) -> logging.Handler:
    try:
        return logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{file}: the log cannot be written ({error.strerror or error}); set --log-file to a file in an existing, "
            "writable folder"
        ) from error


class _OnConsole(logging.Handler):
    """Prints lines above a terminal's progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class _MessageEvents(TextIOBase):
    """A text stream that logs each line printed to it as an event ``message``."""

    def __init__(self) -> None:
        self.unfinished = ""

    def write(self, text: str) -> int:
        *lines, self.unfinished = (self.unfinished + text).split("\n")
        for line in lines:
            if message := Text.from_ansi(line).plain.strip():
                event("message", message=message)
        return len(text)
