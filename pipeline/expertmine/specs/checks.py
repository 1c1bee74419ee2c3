"""How settings refuse a value."""

from __future__ import annotations

from typing import get_args

from expertmine.errors import UserError


def require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def require_word(name: str, value: str, words: object) -> None:
    known = get_args(words)
    require(value in known, f"{name} is {value!r}: expected {', '.join(known[:-1])} or {known[-1]}")
