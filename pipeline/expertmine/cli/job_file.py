"""The job file: options of all commands in one YAML file, read safely and checked against the known keys.

Knows nothing of commands or of the types of options: it is given the keys, and returns every value as text, as if it
were typed, with its line. No objects are constructed from YAML: only the parser's events are read, so every value is
text, and tags, anchors and aliases are refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from expertmine.errors import UserError
from expertmine.storage.files import with_retries
from expertmine.storage.locations import Location

MAX_BYTES = 1 << 16
"""Maximum size of a job file."""

Value = str | tuple[str, ...]
"""The text of an option, or a list of texts."""

_NOTHING = frozenset({"", "~", "null", "Null", "NULL"})
"""Plain scalars that mean no value in YAML."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The known keys of a job file and their settings; several keys may mean the same setting."""

    top: Mapping[str, str]
    """Setting by key, outside of sections."""
    sections: Mapping[str, Mapping[str, str]]
    """Setting by section and key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One option in a job file."""

    key: str
    """As in the file: ``model``, or ``extract.workers`` in a section."""
    value: Value
    line: int
    """Counted from 1."""


@dataclass(frozen=True, slots=True)
class Job:
    """The contents of a job file."""

    where: Location
    settings: Mapping[str, Entry]
    """Entries by setting, in the file's order."""

    def error(self, entry: Entry, reason: str) -> UserError:
        """An error about one of the file's options."""
        return UserError(f"{self.where}, line {entry.line}: {entry.key}{reason}")


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of one option, and its origin."""

    section: str | None
    """Of the job file; None outside of sections."""
    key: str
    value: Any
    """Text, number, bool, location, a list of these, or None if it is decided when the command runs."""
    origin: str
    """``command line``, ``default``, or the file and line."""
    decided: str = ""
    """How it will be decided, in words."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A value of the file with its line; None if empty, a dict for a section."""

    line: int
    value: Value | dict[str, _Node] | None


def read_job(where: Location, vocabulary: Vocabulary) -> Job:
    """Read a job file.

    Raises:
        UserError: the file cannot be read, is not plain YAML, or has unknown, repeated or empty keys; names the line,
            and suggests the nearest known key.
    """
    settings: dict[str, Entry] = {}

    def add(setting: str, key: str, node: _Node) -> None:
        if node.value is None:
            raise _wrong(where, node.line, f"{key} has no value; give one, or remove the key")
        if isinstance(node.value, dict):
            raise _wrong(where, node.line, f"{key} has options below it; expected a value, or a list of values")
        if setting in settings:
            first = settings[setting]
            raise _wrong(where, node.line, f"{key} is the same option as {first.key} in line {first.line}; keep one")
        settings[setting] = Entry(key, node.value, node.line)

    for key, node in _document(where, _text(where)).items():
        if key in vocabulary.sections:
            for inner, below in _section(where, key, node).items():
                if inner not in vocabulary.sections[key]:
                    raise _wrong(where, below.line, _unknown(inner, key, vocabulary))
                add(vocabulary.sections[key][inner], f"{key}.{inner}", below)
        elif key in vocabulary.top:
            add(vocabulary.top[key], key, node)
        else:
            raise _wrong(where, node.line, _unknown(key, None, vocabulary))
    return Job(where, settings)


def without_password(text: str) -> str:
    """The text with user and password in URLs replaced by asterisks."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _wrong(where: Location, line: int, what: str) -> UserError:
    return UserError(f"{where}, line {line}: {what}")


def _section(where: Location, key: str, node: _Node) -> dict[str, _Node]:
    if node.value is None:  # all options are commented out
        return {}
    if not isinstance(node.value, dict):
        raise _wrong(where, node.line, f"{key} is a section; expected options below it, each with a value")
    return node.value


def _unknown(key: str, section: str | None, vocabulary: Vocabulary) -> str:
    """The message for an unknown key, with the nearest known keys, here or elsewhere in the file."""
    here = vocabulary.top if section is None else vocabulary.sections[section]
    found = {name: name for name in here}
    if section is None:
        found |= {name: f"the section {name}" for name in vocabulary.sections}
    else:
        found |= {name: f"{name}, outside of sections" for name in vocabulary.top if name not in here}
    for name in dict.fromkeys(name for keys in vocabulary.sections.values() for name in keys):
        having = [other for other, keys in vocabulary.sections.items() if name in keys]
        found.setdefault(name, f"{name}, in a section ({', '.join(having)})")
    near = [key] if key in found else difflib.get_close_matches(key, found, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(found[name] for name in near)}?" if near else f"expected {', '.join(here)}"
    return f"unknown key {key!r}{f' in the section {section}' if section else ''}; {hint}"


def _text(where: Location) -> str:
    def read() -> bytes:
        with where.open("rb") as file:
            found: bytes = file.read(MAX_BYTES + 1)
            return found

    try:
        content = with_retries(where, read)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file; --config takes a job file in YAML") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror or error})") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{where}: more than {MAX_BYTES:,} bytes; expected a job file with a page of options")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _wrong(where, line, "not UTF-8 text; expected a job file in YAML") from None


def _document(where: Location, text: str) -> dict[str, _Node]:
    """The mapping in the file.

    Raises:
        UserError: there is no mapping or more than one, or the file is not plain YAML.
    """
    try:
        events = _Events(where, yaml.parse(text, Loader=yaml.SafeLoader))
        first = events.take()
        if not isinstance(first, yaml.DocumentStartEvent):
            return {}  # nothing but comments
        found = events.node(0)
        events.take()
        if not isinstance(events.take(), yaml.StreamEndEvent):
            raise UserError(f"{where}: has several documents, separated by `---`; expected one")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # The parser's own message quotes the file, which may contain secrets.
        quote = "; quote what begins with *" if error.context == "while scanning an alias" else ""
        raise _wrong(
            where, mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}{quote}"
        ) from None
    except yaml.YAMLError:
        raise UserError(f"{where}: not YAML: it has characters that are not valid text") from None
    if found.value is None:
        return {}
    if not isinstance(found.value, dict):
        raise _wrong(where, found.line, "expected options as `name: value`, one per line")
    return found.value


def _is_nothing(scalar: Any) -> bool:
    return scalar.style is None and scalar.value in _NOTHING


def _as_written(tag: str) -> str:
    return re.sub("^tag:yaml.org,2002:", "!!", tag)


class _Events:
    """The parser's events, assembled into nodes no deeper than a job file needs."""

    def __init__(self, where: Location, events: Iterable[Any]) -> None:
        self._where = where
        self._events: Iterator[Any] = iter(events)
        self.take()  # the stream's start

    def take(self) -> Any:
        return next(self._events)

    def node(self, depth: int) -> _Node:
        """Read the next value.

        Args:
            depth: number of mappings around it; options are in the first or in the second.
        """
        event = self.take()
        line: int = event.start_mark.line + 1
        self._require_plain(event, line)
        if isinstance(event, yaml.ScalarEvent):
            return _Node(line, None if _is_nothing(event) else event.value)
        if isinstance(event, yaml.SequenceStartEvent):
            return _Node(line, tuple(self._items(line)))
        if depth == 2:
            raise _wrong(self._where, line, "an option in a section has options below it; expected a value or a list")
        return _Node(line, dict(self._pairs(depth)))

    def _require_plain(self, event: Any, line: int) -> None:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            raise _wrong(
                self._where,
                line,
                f"{sign}{event.anchor}: anchors and aliases are not allowed; write the value out, or quote it",
            )
        if event.tag is not None:
            raise _wrong(
                self._where,
                line,
                f"the tag {_as_written(event.tag)}: tags are not allowed; remove it, or quote it",
            )

    def _items(self, line: int) -> Iterator[str]:
        while not isinstance(event := self.take(), yaml.SequenceEndEvent):
            self._require_plain(event, event.start_mark.line + 1)
            if not isinstance(event, yaml.ScalarEvent) or _is_nothing(event):
                raise _wrong(self._where, line, "expected only plain values in a list")
            yield event.value

    def _pairs(self, depth: int) -> Iterator[tuple[str, _Node]]:
        lines: dict[str, int] = {}
        while not isinstance(event := self.take(), yaml.MappingEndEvent):
            line: int = event.start_mark.line + 1
            self._require_plain(event, line)
            if not isinstance(event, yaml.ScalarEvent):
                raise _wrong(self._where, line, "expected the name of an option before the colon")
            key = event.value.replace("_", "-")
            if key in lines:
                raise _wrong(self._where, line, f"{key} occurs twice, first in line {lines[key]}; keep one")
            lines[key] = line
            # An error in a value is reported with the line of its key.
            yield key, _Node(line, self.node(depth + 1).value)
