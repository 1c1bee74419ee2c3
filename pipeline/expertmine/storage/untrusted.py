"""Validates untrusted JSON; escapes untrusted text for terminals.

Plans, receipts, indexes and corpora may come from others, and a fingerprint proves nothing when the attacker can write
it too. Knows types and their names in messages; nothing of what the documents mean.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

MAX_NUMBER = 2**53
"""Larger numbers in a document are refused; Python's integers have no bound of their own."""

EVERY = "*"
"""As the only key of an object's schema: allows any keys."""

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", None: "null"}

_DIRECTION_CONTROLS = frozenset("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Line separators and bidirectional controls: with them a terminal shows text other than the string holds."""


def mismatch(found: Any, schema: Any, where: str = "") -> str | None:
    """Describe where a document first differs from a schema; None if it does not.

    Args:
        schema: a type, a tuple of alternatives, a list with the schema of every item, or a dict of required keys.
    """
    inner: Iterable[tuple[Any, Any, str]]
    if isinstance(schema, tuple):
        if any(mismatch(found, each) is None for each in schema):
            return None
        return f"{where} is not {' or '.join(_WORDS[each] for each in schema)}"
    if isinstance(schema, list):
        if not isinstance(found, list):
            return f"{where or 'it'} is not a list"
        inner = ((each, schema[0], f"{where}[{at}]") for at, each in enumerate(found))
    elif isinstance(schema, dict):
        if not isinstance(found, dict):
            return f"{where or 'it'} is not an object"
        prefix = f"{where}." if where else ""
        if EVERY in schema:
            if any(not _is(name, str) for name in found):
                return f"{where or 'it'} has a key that is not text"
            inner = ((each, schema[EVERY], f"{prefix}{visible(name[:80])}") for name, each in found.items())
        elif absent := schema.keys() - found.keys():
            return f"{prefix}{min(absent)} is missing"
        else:
            inner = ((found[name], each, f"{prefix}{name}") for name, each in schema.items())
    else:
        return None if _is(found, schema) else f"{where} is not {_WORDS[schema]}"
    return next((words for part in inner if (words := mismatch(*part))), None)


def _is(found: Any, kind: type | None) -> bool:
    if kind is None:
        return found is None
    if kind is str:
        return isinstance(found, str) and (
            found.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in found)
        )
    if kind is bool or isinstance(found, bool):
        return kind is bool and isinstance(found, bool)
    # NaN fails both comparisons.
    return isinstance(found, int if kind is int else (int, float)) and -MAX_NUMBER <= found <= MAX_NUMBER


def _schema_of(kind: type) -> Any:
    """Return the schema of a dataclass as `dataclasses.asdict` and JSON write it: its tuples are lists."""
    hints = get_type_hints(kind)
    return {field.name: _schema_of_hint(hints[field.name]) for field in fields(kind)}


schema_of: Callable[[type], Any] = cache(_schema_of)


def record(content: bytes | None, kind: type[Record]) -> Record | None:
    """Read a dataclass that was written as JSON; None if the content is absent, torn or of another schema."""
    try:
        document = json.loads(content or b"")
        return None if mismatch(document, schema_of(kind)) else kind(**document)
    except (ValueError, TypeError, RecursionError):
        return None


def _schema_of_hint(hint: Any) -> Any:
    if is_dataclass(hint):
        return schema_of(hint)  # type: ignore[arg-type]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return str  # the dataclass itself checks which words it takes
    if origin in (Union, types.UnionType):
        return tuple(None if each is type(None) else _schema_of_hint(each) for each in inner)
    if origin in (tuple, list):
        return [_schema_of_hint(inner[0])]
    return {EVERY: _schema_of_hint(inner[1])} if origin is dict else hint


def visible(text: str) -> str:
    """Escape untrusted text for a terminal: escape sequences, line ends and bidirectional controls are spelled out.

    >>> visible("tame"), visible("\\x1b[2Jwild")
    ('tame', '\\\\x1b[2Jwild')
    """
    if text.isprintable():
        return text
    return "".join(_escaped(letter) if _is_control(letter) else letter for letter in text)


def _is_control(letter: str) -> bool:
    return letter < " " or "\x7f" <= letter <= "\x9f" or "\ud800" <= letter <= "\udfff" or letter in _DIRECTION_CONTROLS


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode() if letter != "\n" else "\\n"
