"""A corpus in memory while it is made: texts by id, concepts that label them, and what was refused.

Readers of concepts end here; `expertmine.corpus_writer` begins here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from expertmine.sampling import Ids
from expertmine.texts import BadText, Texts

LISTED = 10_000
"""Refusals that are listed for each kind and reason; the rest are only counted."""


def no_ids() -> Ids:
    return np.empty(0, np.int32)


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


def take_text(texts: Texts, text: str, place: str, refusals: Refusals) -> int | None:
    """The id of a text, or None when no corpus takes it; then it is among the refusals."""
    try:
        return texts.add(text)
    except BadText as fault:
        refusals.add(Refusal("sentence", place, str(fault)))
        return None
