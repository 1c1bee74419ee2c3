"""The exceptions whose messages are written for users. Knows nothing of what raises them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """The user can fix this: the message names what was found, where, what was expected, and what to do.

    The command line prints only the message and exits with code 2.
    """

    def __str__(self) -> str:
        return str(self.args[0])


class StageError(UserError):
    """A failure that would hit every other task of the stage too, such as a full disk: the stage stops at once."""


class UnknownConcept(UserError, KeyError):
    """No concept has that name; the message suggests the nearest. Also a KeyError, as mappings promise."""

    @classmethod
    def among(cls, name: str, known: Sequence[str], where: str) -> UnknownConcept:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else f"; it has {len(known)}, the first is {known[0]!r}"
        return cls(f"no concept {name!r} in {where}{hint}")
