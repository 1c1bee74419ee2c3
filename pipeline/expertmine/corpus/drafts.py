"""A corpus under construction, in memory: texts by id, concepts that label them, and refusals.

Readers of concepts produce a draft; `expertmine.corpus.writer` writes it. Knows neither sources nor files.
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

MAX_NAME = 200
"""Characters of a concept's name."""
LISTED = 10_000
"""Refusals that are listed per kind and reason; the rest are only counted."""


Keys = NDArray[np.uint64]
"""(texts, 2) content hashes, high half first."""


def no_ids() -> Ids:
    """Return an empty array of text ids."""
    return np.empty(0, np.int32)


def no_keys() -> Keys:
    """Return an empty array of content hashes."""
    return np.empty((0, 2), np.uint64)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something in a source that the corpus does not take."""

    kind: str
    """``sentence``, ``concept``, ``sense key``, ``instance`` or ``key``."""
    name: str
    """Its name, or its file and line."""
    reason: str
    detail: str = ""


@dataclass
class Refusals:
    """Refusals with their reasons: all are counted, the first of each reason are listed."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of refusals by kind and reason."""
    listed: list[Refusal] = field(default_factory=list)

    def add(self, refusal: Refusal) -> None:
        """Count a refusal, and list it while there are few of its kind and reason."""
        kind = refusal.kind, refusal.reason
        self.counts[kind] += 1
        if self.counts[kind] <= LISTED:
            self.listed.append(refusal)


@dataclass(frozen=True, slots=True)
class DraftConcept:
    """A concept and the texts that it labels. Order and repeats within the arrays do not matter."""

    name: str
    group: str
    description: str
    positives: Ids
    negatives: Ids = field(default_factory=no_ids)
    """Negatives in addition to the pool's."""
    pool: int | None = None
    """Index of the pool whose texts, except the positives and `neither`, are negatives too."""
    neither: Ids = field(default_factory=no_ids)
    """Texts that are not negatives although its pool may hold them, such as members that were not drawn."""
    neither_elsewhere: Keys = field(default_factory=no_keys)
    """The same for texts outside this corpus, by hash; they matter when corpora are merged."""
    sense_keys: tuple[str, ...] = ()
    """WordNet's sense keys, if it has any."""


@dataclass(frozen=True, slots=True)
class Draft:
    """The full content of a corpus."""

    texts: Texts
    concepts: Sequence[DraftConcept]
    sources: Sequence[str]
    pools: Sequence[Ids] = ()
    refusals: Refusals = field(default_factory=Refusals)


def name_fault(name: str) -> str | None:
    """Describe what is wrong with a concept's name; None if it is printable, short, and not a path out of a folder."""
    if not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
        return f"expected a printable, non-empty name of at most {MAX_NAME} characters"
    if any(path.root or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name))):
        return "is a path that leads elsewhere; rename the concept"
    return None


def concept_name(name: str, where: str) -> str:
    """Normalise a concept's name.

    Args:
        where: file and line, for the message.

    Raises:
        UserError: the name is invalid.
    """
    if fault := name_fault(normalise(name)):
        raise UserError(f"{where}: concept name {brief(name)} {fault}")
    return normalise(name)


def remark(value: object) -> str:
    """Normalise a group or a description; an absent one is empty."""
    return "" if value is None or value != value else normalise(storable(str(value)))


def storable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()


def brief(value: object) -> str:
    """Format a value for a message: its repr, cut to 80 characters."""
    words = repr(value[:100] if isinstance(value, str) else value)
    return words if len(words) <= 80 else words[:79] + "…"


def take_text(texts: Texts, text: str, where: str, refusals: Refusals) -> int | None:
    """Add a text and return its id; a text that cannot be stored is refused and gives None.

    Args:
        where: file and line, for the refusal.
    """
    try:
        return texts.add(text)
    except BadText as fault:
        refusals.add(Refusal("sentence", where, str(fault)))
        return None
