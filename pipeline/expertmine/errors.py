"""The exceptions that users are meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """Something in the user's hands is wrong: says what was found, where, what was expected, and what to do.

    The command line prints the message alone and exits with code 2.
    """

    def __str__(self) -> str:
        return str(self.args[0])


class StageError(UserError):
    """Trouble that every other task of a stage would meet as well, such as a full disk: the stage stops at once."""


class UnknownConcept(UserError, KeyError):
    """A concept of that name is not there; suggests the nearest. A KeyError too, as mappings promise."""

    @classmethod
    def among(cls, name: str, known: Sequence[str], where: str) -> UnknownConcept:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else f"; it has {len(known)}, the first is {known[0]!r}"
        return cls(f"no concept {name!r} in {where}{hint}")
