"""Builds corpora from lists of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expertmine.corpus.drafts import Draft, DraftConcept, Refusals, take_text
from expertmine.corpus.draws import Ids
from expertmine.corpus.reader import Corpus
from expertmine.corpus.texts import Texts
from expertmine.corpus.writer import write_corpus
from expertmine.specs.identity import CorpusIdentity


@dataclass(frozen=True)
class LabelledTexts:
    """A concept as lists of positive and negative texts, with an optional pool and texts that are neither."""

    name: str
    group: str
    description: str
    positives: Sequence[str]
    negatives: Sequence[str]
    pool: int | None = None
    neither: Sequence[str] = ()


def draft_of(
    concepts: Sequence[LabelledTexts], sources: Sequence[str] = (), pools: Sequence[Sequence[str]] = ()
) -> Draft:
    texts, refusals = Texts(), Refusals()

    def ids(given: Sequence[str]) -> Ids:
        taken = (take_text(texts, text, f"text {at}", refusals) for at, text in enumerate(given))
        return np.array([text_id for text_id in taken if text_id is not None], np.int32)

    made = [
        DraftConcept(c.name, c.group, c.description, ids(c.positives), ids(c.negatives), c.pool, ids(c.neither))
        for c in concepts
    ]
    return Draft(texts, made, sources, [ids(pool) for pool in pools], refusals)


def write_lists(
    concepts: Sequence[LabelledTexts],
    folder: Path,
    held_out_percent: float = 0,
    pools: Sequence[Sequence[str]] = (),
) -> CorpusIdentity:
    return write_corpus(draft_of(concepts, ["test"], pools), folder, held_out_percent)


def labels_of(corpus: Corpus, name: str) -> tuple[set[str], set[str]]:
    """Positive and negative texts of a concept."""
    rows = corpus.rows(corpus.concept(name).concept_id)
    texts = corpus.texts(range(corpus.identity.sentences))
    return {texts[row] for row in rows.positives}, {texts[row] for row in rows.negatives}
