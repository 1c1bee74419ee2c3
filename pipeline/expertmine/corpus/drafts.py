"""A corpus in memory while it is made: texts by id, concepts that label them, and what was refused.

Readers of concepts end here; `expertmine.corpus.writer` begins here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from expertmine.corpus.draws import Ids
from expertmine.corpus.texts import BadText, Texts, normalise
from expertmine.errors import UserError

LONGEST_NAME = 200
LISTED = 10_000
"""Refusals that are listed for each kind and reason; the rest are only counted."""


Keys = NDArray[np.uint64]
"""(texts, 2) content hashes, high half first."""


def no_ids() -> Ids:
    return np.empty(0, np.int32)


def no_keys() -> Keys:
    return np.empty((0, 2), np.uint64)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that was not taken."""

    kind: str
    """``sentence``, ``concept``, ``sense key``, ``instance`` or ``key``."""
    name: str
    """Its name, or its place in a file."""
    reason: str
    detail: str = ""


@dataclass
class Refusals:
    """What was not taken, and why: all of it counted, the first of each reason listed."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and reason."""
    listed: list[Refusal] = field(default_factory=list)

    def add(self, refusal: Refusal) -> None:
        kind = refusal.kind, refusal.reason
        self.counts[kind] += 1
        if self.counts[kind] <= LISTED:
            self.listed.append(refusal)


@dataclass(frozen=True, slots=True)
class DraftConcept:
    """A concept and the texts that it labels. Order and repeats within the arrays mean nothing."""

    name: str
    group: str
    description: str
    positives: Ids
    negatives: Ids = field(default_factory=no_ids)
    """Negatives beside those of the pool."""
    pool: int | None = None
    """The pool of negatives that it shares: all of it but the positives and `neither`."""
    neither: Ids = field(default_factory=no_ids)
    """Texts that are not its negatives, though they may lie in its pool: members that were not drawn, for instance."""
    neither_elsewhere: Keys = field(default_factory=no_keys)
    """The same, for texts that are not at hand: should they come along when corpora are joined."""
    sense_keys: tuple[str, ...] = ()
    """WordNet's sense keys, where it has some."""


@dataclass(frozen=True, slots=True)
class Draft:
    """All that a corpus will hold."""

    texts: Texts
    concepts: Sequence[DraftConcept]
    sources: Sequence[str]
    pools: Sequence[Ids] = ()
    refusals: Refusals = field(default_factory=Refusals)


def name_fault(name: str) -> str | None:
    """What is wrong with a concept's name: it must be printable, short, and no path that leads elsewhere."""
    if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        return f"expected a printable, non-empty name of at most {LONGEST_NAME} characters"
    if any(path.root or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name))):
        return "is a path that leads elsewhere; rename the concept"
    return None


def concept_name(name: str, place: str) -> str:
    """A concept's name, normalised.

    Raises:
        UserError: it is none; names the place.
    """
    if fault := name_fault(normalise(name)):
        raise UserError(f"{place}: concept name {brief(name)} {fault}")
    return normalise(name)


def remark(value: object) -> str:
    """A group or a description as it is stored: normalised text, empty for what is absent."""
    return "" if value is None or value != value else normalise(storable(str(value)))


def storable(text: str) -> str:
    """The text, with what UTF-8 cannot hold (lone surrogates) replaced."""
    return text.encode("utf-8", "replace").decode()


def brief(value: object) -> str:
    """A value in a message: its repr, cut to what one reads."""
    words = repr(value[:100] if isinstance(value, str) else value)
    return words if len(words) <= 80 else words[:79] + "…"


def take_text(texts: Texts, text: str, place: str, refusals: Refusals) -> int | None:
    """The id of a text, or None when no corpus takes it; then it is among the refusals."""
    try:
        return texts.add(text)
    except BadText as fault:
        refusals.add(Refusal("sentence", place, str(fault)))
        return None
