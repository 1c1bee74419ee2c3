"""Measures how a corpus's concepts overlap and how long its sentences are. Knows nothing of how they are shown."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from expertmine.corpus.draws import Ids
from expertmine.corpus.reader import Corpus

FRACTIONS = (0.0, 0.5, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Similar:
    """Two concepts that share positives."""

    concept: str
    other: str
    shared: int
    """Number of sentences that are positives of both."""
    jaccard: float
    """Shared positives divided by the positives of either."""


def lengths(corpus: Corpus, rows: Ids | None = None) -> tuple[int, ...]:
    """Return the words of the shortest, median, 90th percentile and longest sentence.

    Args:
        rows: the sentences; None for all.
    """
    texts = corpus.table("sentences")["text"]
    words = pc.add(pc.count_substring(texts if rows is None else texts.take(rows), " "), 1).to_numpy()
    return tuple(int(length) for length in np.quantile(words, FRACTIONS, method="lower"))


class Overlap:
    """An index from sentences to the concepts of which they are positives."""

    def __init__(self, corpus: Corpus) -> None:
        self.names = [concept.name for concept in corpus.concepts]
        self._positives = [corpus.labels(concept.concept_id).positives for concept in corpus.concepts]
        self._sizes = np.array([len(rows) for rows in self._positives])
        rows = np.concatenate(self._positives)
        by_row = np.argsort(rows, kind="stable")
        self._owners = np.repeat(np.arange(len(self.names)), self._sizes)[by_row]
        self._starts = np.searchsorted(rows[by_row], np.arange(corpus.identity.sentences + 1))

    @cached_property
    def served(self) -> NDArray[np.int64]:
        """(sentences,) number of concepts of which each is a positive."""
        counts: NDArray[np.int64] = np.diff(self._starts)
        return counts

    def nearest(self, concept_id: int, count: int) -> list[Similar]:
        """Return the concepts with the highest Jaccard index to one, then by name; only those that share positives."""
        shared, jaccard = self._with_all(concept_id)
        jaccard[concept_id] = -1
        best = heapq.nsmallest(count, np.flatnonzero(shared), key=lambda other: (-jaccard[other], self.names[other]))
        return [self._similar(concept_id, int(other), shared, jaccard) for other in best if other != concept_id]

    def most_similar(self, count: int) -> list[Similar]:
        """Return the pairs of concepts with the highest Jaccard index."""
        best: list[Similar] = []
        for concept_id in range(len(self.names)):
            shared, jaccard = self._with_all(concept_id)
            later = np.flatnonzero(shared[concept_id + 1 :]) + concept_id + 1
            if len(later) > count:
                later = later[np.argsort(-jaccard[later], kind="stable")[:count]]
            found = [self._similar(concept_id, int(other), shared, jaccard) for other in later]
            best = heapq.nsmallest(count, best + found, key=lambda pair: (-pair.jaccard, pair.concept, pair.other))
        return best

    def _with_all(self, concept_id: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the sentences shared with each concept and the Jaccard index, both (concepts,)."""
        rows = self._positives[concept_id]
        starts, sizes = self._starts[rows], self.served[rows]
        positions = np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        shared = np.bincount(self._owners[positions], minlength=len(self.names))
        return shared, shared / (self._sizes + self._sizes[concept_id] - shared)

    def _similar(self, concept_id: int, other: int, shared: NDArray[np.int64], jaccard: NDArray[np.float64]) -> Similar:
        return Similar(self.names[concept_id], self.names[other], int(shared[other]), float(jaccard[other]))
