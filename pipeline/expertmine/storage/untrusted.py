"""What a document of JSON must look like before it is believed, and how a stranger's text is shown.

Plans, receipts, indexes and corpora come from others, and a fingerprint proves nothing to whoever could write it as
well. Knows types and how they are said in words; nothing of what the documents mean.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

LARGEST = 2**53
"""No number in a document has a reason to be larger; Python's whole numbers have no bound of their own."""

EVERY = "*"
"""As the only key of a shape: any text may be one."""

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", None: "null"}

_TURNS = frozenset("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""End a line, or turn the direction of what follows: a terminal then shows another text than is there."""


def mismatch(found: Any, shape: Any, where: str = "") -> str | None:
    """Where a document first differs from a shape, in words; None where it does not.

    Args:
        shape: a type, a tuple of alternatives, a list of one shape for all its items, or a dict of keys that must be
            there.
    """
    inner: Iterable[tuple[Any, Any, str]]
    if isinstance(shape, tuple):
        if any(mismatch(found, each) is None for each in shape):
            return None
        return f"{where} is no {' or '.join(_WORDS[each] for each in shape)}"
    if isinstance(shape, list):
        if not isinstance(found, list):
            return f"{where or 'it'} is no list"
        inner = ((each, shape[0], f"{where}[{at}]") for at, each in enumerate(found))
    elif isinstance(shape, dict):
        if not isinstance(found, dict):
            return f"{where or 'it'} is no object"
        prefix = f"{where}." if where else ""
        if EVERY in shape:
            if any(not _is(name, str) for name in found):
                return f"{where or 'it'} has a name that is no text"
            inner = ((each, shape[EVERY], f"{prefix}{visible(name[:80])}") for name, each in found.items())
        elif absent := shape.keys() - found.keys():
            return f"{prefix}{min(absent)} is missing"
        else:
            inner = ((found[name], each, f"{prefix}{name}") for name, each in shape.items())
    else:
        return None if _is(found, shape) else f"{where} is not {_WORDS[shape]}"
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
    # Not a number fails both comparisons.
    return isinstance(found, int if kind is int else (int, float)) and -LARGEST <= found <= LARGEST


def _shape_of(kind: type) -> Any:
    """The shape of what `dataclasses.asdict` makes of a dataclass, once JSON has made lists of its tuples."""
    hints = get_type_hints(kind)
    return {field.name: _shape_of_hint(hints[field.name]) for field in fields(kind)}


schema_of: Callable[[type], Any] = cache(_shape_of)


def record(content: bytes | None, kind: type[Record]) -> Record | None:
    """A small record that a dataclass was written as, in JSON; None where there is none that is whole."""
    try:
        document = json.loads(content or b"")
        return None if mismatch(document, schema_of(kind)) else kind(**document)
    except (ValueError, TypeError, RecursionError):
        return None


def _shape_of_hint(hint: Any) -> Any:
    if is_dataclass(hint):
        return schema_of(hint)  # type: ignore[arg-type]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return str  # which words, the dataclass says itself
    if origin in (Union, types.UnionType):
        return tuple(None if each is type(None) else _shape_of_hint(each) for each in inner)
    if origin in (tuple, list):
        return [_shape_of_hint(inner[0])]
    return {EVERY: _shape_of_hint(inner[1])} if origin is dict else hint


def visible(text: str) -> str:
    """A stranger's text for a terminal: what would steer it (escapes, returns, turns of direction) is spelled out.

    >>> visible("tame"), visible("\\x1b[2Jwild")
    ('tame', '\\\\x1b[2Jwild')
    """
    if text.isprintable():
        return text
    return "".join(_escaped(letter) if _steers(letter) else letter for letter in text)


def _steers(letter: str) -> bool:
    return letter < " " or "\x7f" <= letter <= "\x9f" or "\ud800" <= letter <= "\udfff" or letter in _TURNS


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode() if letter != "\n" else "\\n"
