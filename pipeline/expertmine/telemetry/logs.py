"""Events of long work as log records: lines for people, or JSON for programs. Knows no stage.

An event has a name and fields. What is under way (run, stage) is said once, by `about`, and is part of every event
within. Records go to Python's logger ``expertmine``; a program that uses the library configures that as it likes, and
finds ``event`` and ``fields`` on each record. The command line calls `configure`.
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

_about: ContextVar[Mapping[str, Any]] = ContextVar("about", default={})  # noqa: B039 (never changed)
_json_on_stderr = False


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """While open, these fields are part of every event."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event; costs nothing where nobody listens. Fields that are None are left out."""
    if not logger.isEnabledFor(level):
        return
    present = {key: value for key, value in {**_about.get(), **fields}.items() if value is not None}
    logger.log(level, "%s%s", name, _Fields(present), extra={"event": name, "fields": present})


class _Fields:
    """Fields as a line shows them, written out only where somebody wants a line."""

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
    """One JSON object a line: time (ISO 8601, UTC), level, event, and the event's fields.

    Records of other loggers are events ``log``, with their message and logger.
    """

    def format(self, record: logging.LogRecord) -> str:
        head = {"time": _time(record), "level": record.levelname.lower()}
        if hasattr(record, "event"):
            document = {**head, "event": record.event, **record.__dict__["fields"]}
        else:
            document = {**head, "event": "log", "logger": record.name, "message": record.getMessage()}
        return json.dumps(_plain(document), ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """One line an event: time (ISO 8601, UTC), level, event, and fields as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().replace("\n", "\\n")
        return f"{_time(record)} {record.levelname:<7} {message}"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    """What JSON has: a number that is none becomes null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def configure(format_: LogFormat, file: Path | None, console: Console) -> None:
    """Have this process log as its user asked.

    With a file, events go there, behind what it has. Without one, JSON takes the place of bars and messages on standard
    error; with text only warnings are shown there, since bars say the rest, and errors end the command with a message.

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
        # Python's own warnings, too.
        logging.captureWarnings(True)
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger("py.warnings").addHandler(handler)
        _add(handler, formatter)
        console.file = cast(TextIO, _Said())
    if not _json_on_stderr:
        warnings = _OnConsole(console)
        warnings.addFilter(lambda record: record.levelno == logging.WARNING)
        _add(warnings, TextLines())


def on_stderr() -> bool:
    """Whether standard error has JSON lines, and nothing else is to be written there."""
    return _json_on_stderr


def _add(handler: logging.Handler, formatter: logging.Formatter) -> None:
    handler.setFormatter(formatter)
    logger.addHandler(handler)


def _open(file: Path) -> logging.Handler:
    try:
        return logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{file}: no log can be written there ({error.strerror or error}); give --log-file a file in a folder "
            "that exists"
        ) from error


class _OnConsole(logging.Handler):
    """Lines above the bar of a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class _Said(TextIOBase):
    """Takes what is printed for people, and makes each line of it an event ``message``."""

    def __init__(self) -> None:
        self.begun = ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        for line in lines:
            if said := Text.from_ansi(line).plain.strip():
                event("message", message=said)
        return len(text)
