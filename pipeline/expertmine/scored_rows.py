"""Which rows of the store each concept is scored on: the mined, the held out, and those under shuffled labels.

Knows the corpus and where its sentences are stored; no responses and no kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expertmine import sentences
from expertmine.corpus import Corpus, membership
from expertmine.errors import UserError
from expertmine.sampling import Ids, draw, draw_others, lots
from expertmine.specs import Null, Plan, ScoringSpec
from expertmine.store import Store

CLASS_RATIO = 1.5
"""Concepts whose numbers of positives, and of negatives, differ by less than this factor share a null distribution."""


class Side:
    """The labels of every concept among some of a corpus's sentences: those mined, or those held out."""

    def __init__(self, corpus: Corpus, usable: NDArray[np.bool_]) -> None:
        """Look at the sentences for which `usable` (sentences,) is true."""
        self.corpus = corpus
        self.usable = usable
        self.positives, self.negatives = corpus.counts(usable)
        """(concepts,) how many there are."""
        self.pools = [pool[usable[pool]] for pool in corpus.pools]
        self.in_pool = membership(self.pools, len(usable))

    @property
    def concepts(self) -> NDArray[np.int64]:
        """Ids of those that have both positives and negatives here."""
        return np.flatnonzero((self.positives > 0) & (self.negatives > 0))

    def positives_of(self, concept_id: int) -> Ids:
        ids = self.corpus.labels(concept_id).positives
        return ids[self.usable[ids]]

    def pool_of(self, concept_id: int) -> tuple[int | None, Ids, Ids]:
        """The pool that a concept shares, its sentences, and which of them are not the concept's negatives.

        Where it has negatives of its own, the pool is nobody else's, None, and all of it is negative.
        """
        own = self.corpus.labels(concept_id)
        pool = self.corpus.concepts[concept_id].pool
        if pool is not None and not len(own.negatives):
            taken = np.concatenate([own.positives, own.neither])
            return pool, self.pools[pool], taken[self.in_pool[pool, taken]]
        negatives = self.corpus.rows(concept_id).negatives
        negatives = negatives[self.usable[negatives]]
        return None, negatives, negatives[:0]

    def negatives_of(self, concept_id: int, at_most: int, salt: str) -> Ids:
        """A concept's negatives, or so many of them, drawn by lot."""
        _, pool, removed = self.pool_of(concept_id)
        if len(pool) > at_most + len(removed):
            return draw_others(pool, removed, at_most, salt)
        negatives = np.setdiff1d(pool, removed, assume_unique=True)
        return draw(negatives, at_most, _lots_of(len(self.usable), salt)) if len(negatives) > at_most else negatives


@dataclass
class RowSets:
    """Sets of labels as the kernels take them: positives, and a pool of negatives less some rows."""

    rows_of: NDArray[np.int64]
    """(sentences,) the row of each sentence."""
    positives: list[NDArray[np.int64]] = field(default_factory=list)
    pools: list[NDArray[np.int64]] = field(default_factory=list)
    pool_of: list[int] = field(default_factory=list)
    removed: list[NDArray[np.int64]] = field(default_factory=list)
    _places: dict[object, int] = field(default_factory=dict)

    def add(self, positives: Ids, pool: Ids, removed: Ids, identity: object = None) -> None:
        """Add a set of labels.

        Args:
            identity: of the pool; where it is None, pools of the same sentences are the same.
        """
        known = pool.tobytes() if identity is None else identity
        if known not in self._places:
            self._places[known] = len(self.pools)
            self.pools.append(np.sort(self.rows_of[pool]))
        self.pool_of.append(self._places[known])
        self.positives.append(np.sort(self.rows_of[positives]))
        self.removed.append(np.sort(self.rows_of[removed]))


@dataclass(frozen=True)
class ScoredRows:
    """All sets of labels that a block of units is scored on, in this order: mined, held out, shuffled."""

    sets: RowSets
    mined: int
    """Sets of mined sentences, one a concept."""
    held_out: NDArray[np.int64]
    """The concepts that have held-out sentences of both kinds, a set for each."""
    shuffled: NDArray[np.int64]
    """The concept whose labels are shuffled, for each further set; as many sets for each as there are permutations."""


def mined_and_held_out(run: Path, plan: Plan, corpus: Corpus, store: Store) -> tuple[Side, Side, NDArray[np.int64]]:
    """The two sides of a run's corpus, among the sentences that the model was run on, and the row of each sentence.

    Raises:
        UserError: a concept has no positive or no negative mined sentence left.
    """
    rows_of = sentences.rows_of(run, plan, corpus)
    ran = (rows_of >= 0) & (store.read_tokens() > 0)[rows_of]
    mined = Side(corpus, ran & ~corpus.held_out)
    for concept_id in np.setdiff1d(np.arange(len(corpus.concepts)), mined.concepts):
        raise UserError(
            f"concept {corpus.concepts[concept_id].name!r} has no positive or no negative sentence of at most "
            f"{plan.responses.max_tokens} tokens; raise --max-tokens, or use --too-long truncate"
        )
    return mined, Side(corpus, ran & corpus.held_out), rows_of


def scored_rows(mined: Side, held_out: Side, rows_of: NDArray[np.int64], spec: ScoringSpec) -> ScoredRows:
    """Lay out every set of labels."""
    sets = RowSets(rows_of)
    for tag, side in (("mined", mined), ("held out", held_out)):
        for concept_id in side.concepts.tolist():
            pool, ids, removed = side.pool_of(concept_id)
            sets.add(side.positives_of(concept_id), ids, removed, None if pool is None else (tag, pool))
    shuffled: list[int] = []
    if spec.permutations:
        classes = null_classes(mined.positives, mined.negatives, spec.null)
        for concept_id in np.unique(classes).tolist():
            _add_shuffled(sets, mined, concept_id, spec)
            shuffled += [concept_id] * spec.permutations
    return ScoredRows(sets, len(mined.concepts), held_out.concepts, np.array(shuffled, np.int64))


def null_classes(positives: NDArray[np.int64], negatives: NDArray[np.int64], null: Null) -> NDArray[np.int64]:
    """(concepts,) the concept whose shuffled labels tell each one what chance can do.

    Shared, it is the one with the fewest positives among those of like size: chance does most for the smallest.

    Args:
        positives, negatives: (concepts,) how many each has.
    """
    if null == "own":
        return np.arange(len(positives))
    cells = [
        (math.floor(math.log(on, CLASS_RATIO)), math.floor(math.log(off, CLASS_RATIO)))
        for on, off in zip(positives.tolist(), negatives.tolist(), strict=True)
    ]
    smallest: dict[tuple[int, int], int] = {}
    for concept_id in np.lexsort([negatives, positives]).tolist():
        smallest.setdefault(cells[concept_id], concept_id)
    return np.array([smallest[cell] for cell in cells])


def _add_shuffled(sets: RowSets, mined: Side, concept_id: int, spec: ScoringSpec) -> None:
    """Add a concept's own sentences as often as there are permutations, each time with as many other positives."""
    positives = mined.positives_of(concept_id)
    pool, ids, removed = mined.pool_of(concept_id)
    neither = np.setdiff1d(removed, positives)
    if pool is not None and len(neither) + len(positives) == len(removed):  # the pool holds all of its positives
        identity: object = ("mined", pool)
        everything = np.setdiff1d(ids, neither, assume_unique=True)
    else:
        identity = ("shuffled", concept_id)
        ids = everything = np.union1d(positives, np.setdiff1d(ids, removed))
        neither = ids[:0]
    name = mined.corpus.concepts[concept_id].name
    for permutation in range(spec.permutations):
        drawn = everything[_lowest(everything, len(positives), f"shuffled {spec.seed} {permutation} {name}")]
        sets.add(drawn, ids, np.concatenate([neither, drawn]), identity)


def _lowest(ids: Ids, count: int, salt: str) -> NDArray[np.bool_]:
    """(ids,) whether each is among the `count` of lowest lot."""
    tickets = _lots_of_ids(ids, salt)
    among: NDArray[np.bool_] = tickets <= np.partition(tickets, count - 1)[count - 1]
    return among


def _lots_of_ids(ids: NDArray[np.integer], salt: str) -> NDArray[np.uint64]:
    numbers = ids.astype(np.uint64)
    return lots(np.stack([numbers, numbers], axis=1), salt)


def _lots_of(total: int, salt: str) -> NDArray[np.uint64]:
    return _lots_of_ids(np.arange(total), salt)
