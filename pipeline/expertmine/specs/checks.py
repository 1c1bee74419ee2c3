"""Validation helpers for settings. Knows no particular setting."""

from __future__ import annotations

from typing import get_args

from expertmine.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise a UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_word(name: str, value: str, words: object) -> None:
    """Raise a UserError unless the value is one of a Literal's words."""
    known = get_args(words)
    require(value in known, f"{name} is {value!r}: expected {', '.join(known[:-1])} or {known[-1]}")
