"""Which rows of the store each concept is scored on: mined, held out, and with shuffled labels.

Knows the corpus and where its sentences are stored; no responses and no kernels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from expertmine.corpus.draws import Ids, hash_priorities
from expertmine.corpus.reader import Corpus, membership
from expertmine.errors import UserError
from expertmine.run import sentences
from expertmine.run.open_run import OpenRun
from expertmine.run.store import Store
from expertmine.specs.settings import Null, ScoringSpec

CLASS_RATIO = 1.5
"""Concepts whose numbers of positives, and of negatives, differ by less than this factor may share a null
distribution."""


class LabelSplit:
    """The labels of every concept among some of a corpus's sentences: the mined or the held-out ones."""

    def __init__(self, corpus: Corpus, usable: NDArray[np.bool_]) -> None:
        """Use the sentences for which `usable` (sentences,) is true."""
        self.corpus = corpus
        self.usable = usable
        self.positives, self.negatives = corpus.counts(usable)
        """(concepts,) how many of each there are."""
        self.pools = [pool[usable[pool]] for pool in corpus.pools]
        self.in_pool = membership(self.pools, len(usable))

    @property
    def concepts(self) -> NDArray[np.int64]:
        """Ids of the concepts that have both positives and negatives here."""
        return np.flatnonzero((self.positives > 0) & (self.negatives > 0))

    def positives_of(self, concept_id: int) -> Ids:
        ids = self.corpus.labels(concept_id).positives
        return ids[self.usable[ids]]

    def pool_of(self, concept_id: int) -> tuple[int | None, Ids, Ids]:
        """The pool that a concept shares, its sentences, and those among them that are not its negatives.

        A concept with negatives of its own shares no pool: None, its negatives, and none removed.
        """
        own = self.corpus.labels(concept_id)
        pool = self.corpus.concepts[concept_id].pool
        if pool is not None and not len(own.negatives):
            taken = np.concatenate([own.positives, own.neither])
            return pool, self.pools[pool], taken[self.in_pool[pool, taken]]
        negatives = self.corpus.rows(concept_id).negatives
        negatives = negatives[self.usable[negatives]]
        return None, negatives, negatives[:0]

    def negatives_of(self, concept_id: int) -> Ids:
        """A concept's negatives, ascending."""
        _, pool, removed = self.pool_of(concept_id)
        return np.setdiff1d(pool, removed, assume_unique=True)


@dataclass
class RowSets:
    """Sets of labels as the kernels take them: positives, and a pool of negatives without some rows."""

    rows_of: NDArray[np.int64]
    """(sentences,) the row of each sentence."""
    positives: list[NDArray[np.int64]] = field(default_factory=list)
    pools: list[NDArray[np.int64]] = field(default_factory=list)
    pool_of: list[int] = field(default_factory=list)
    removed: list[NDArray[np.int64]] = field(default_factory=list)
    _known: dict[object, int] = field(default_factory=dict)

    def add(self, positives: Ids, pool: Ids, removed: Ids, identity: object = None) -> None:
        """Add a set of labels.

        Args:
            identity: of the pool; if it is None, pools of the same sentences are the same.
        """
        key = pool.tobytes() if identity is None else identity
        if key not in self._known:
            self._known[key] = len(self.pools)
            self.pools.append(np.sort(self.rows_of[pool]))
        self.pool_of.append(self._known[key])
        self.positives.append(np.sort(self.rows_of[positives]))
        self.removed.append(np.sort(self.rows_of[removed]))


@dataclass(frozen=True)
class ScoredRows:
    """All sets of labels that a block of units is scored on, in this order: mined, held out, shuffled."""

    sets: RowSets
    mined: int
    """Sets of mined sentences, one per concept."""
    held_out: NDArray[np.int64]
    """The concepts that have held-out sentences of both kinds; one set each."""
    shuffled: NDArray[np.int64]
    """The concept whose labels are shuffled, for each further set; each has as many sets as there are permutations."""


def mined_and_held_out(run: OpenRun, corpus: Corpus, store: Store) -> tuple[LabelSplit, LabelSplit, NDArray[np.int64]]:
    """The mined and the held-out labels among the sentences that the model was run on, and the row of each sentence.

    Raises:
        UserError: a concept has no positive or no negative mined sentence left.
    """
    rows_of = sentences.rows_of(run, corpus)
    ran = (rows_of >= 0) & (store.read_tokens() > 0)[rows_of]
    mined = LabelSplit(corpus, ran & ~corpus.held_out)
    for concept_id in np.setdiff1d(np.arange(len(corpus.concepts)), mined.concepts):
        raise UserError(
            f"concept {corpus.concepts[concept_id].name!r} has no positive or no negative sentence of at most "
            f"{run.plan.responses.max_tokens} tokens; raise --max-tokens, or use --too-long truncate"
        )
    return mined, LabelSplit(corpus, ran & corpus.held_out), rows_of


def scored_rows(mined: LabelSplit, held_out: LabelSplit, rows_of: NDArray[np.int64], spec: ScoringSpec) -> ScoredRows:
    """Lay out every set of labels."""
    sets = RowSets(rows_of)
    for tag, split in (("mined", mined), ("held out", held_out)):
        for concept_id in split.concepts.tolist():
            pool, ids, removed = split.pool_of(concept_id)
            sets.add(split.positives_of(concept_id), ids, removed, None if pool is None else (tag, pool))
    shuffled: list[int] = []
    if spec.permutations:
        classes = null_classes(mined.positives, mined.negatives, spec.null)
        for concept_id in np.unique(classes.shuffled).tolist():
            _add_shuffled(sets, mined, concept_id, int(classes.negatives[concept_id]), spec)
            shuffled += [concept_id] * spec.permutations
    return ScoredRows(sets, len(mined.concepts), held_out.concepts, np.array(shuffled, np.int64))


@dataclass(frozen=True, slots=True)
class NullClasses:
    """Whose labels are shuffled to give the null distribution of each concept; each (concepts,)."""

    shuffled: NDArray[np.int64]
    """The concept whose labels are shuffled: one of the same class, with the fewest positives."""
    positives: NDArray[np.int64]
    """Positives of each shuffle: the fewest of any concept of the class."""
    negatives: NDArray[np.int64]
    """Negatives of each shuffle: the fewest of any concept of the class, perhaps another one."""


def null_classes(positives: NDArray[np.int64], negatives: NDArray[np.int64], null: Null) -> NullClasses:
    """Group concepts of similar size, so that they can share a null distribution.

    Chance reaches more with fewer positives, and with fewer negatives. So that no concept is tested against too little
    chance, a class has the fewest of either.

    Args:
        positives, negatives: (concepts,) how many each has.
    """
    if null == "own":
        return NullClasses(np.arange(len(positives)), positives, negatives)
    classes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for concept_id, sizes in enumerate(zip(positives.tolist(), negatives.tolist(), strict=True)):
        on, off = (math.floor(math.log(size, CLASS_RATIO)) for size in sizes)
        classes[on, off].append(concept_id)
    found = NullClasses(*(np.empty(len(positives), np.int64) for _ in range(3)))
    for members in classes.values():
        found.shuffled[members] = min(members, key=lambda member: (positives[member], negatives[member], member))
        found.positives[members] = positives[members].min()
        found.negatives[members] = negatives[members].min()
    return found


def _add_shuffled(sets: RowSets, mined: LabelSplit, concept_id: int, negatives: int, spec: ScoringSpec) -> None:
    """Add a concept's sentences once per permutation, each time with as many positives drawn at random.

    Args:
        negatives: how many a shuffle has; if the concept has more, so many are drawn at random.
    """
    name = mined.corpus.concepts[concept_id].name
    positives = mined.positives_of(concept_id)
    pool, ids, removed = mined.pool_of(concept_id)
    neither = np.setdiff1d(removed, positives)
    identity: object = ("mined", pool)
    everything = np.setdiff1d(ids, neither, assume_unique=True)
    all_in_pool = pool is not None and len(neither) + len(positives) == len(removed)
    if not all_in_pool or len(everything) != len(positives) + negatives:
        own = mined.negatives_of(concept_id)
        own = own[_lowest(own, negatives, f"negatives {spec.seed} {name}")]
        identity, neither = ("shuffled", concept_id), ids[:0]
        ids = everything = np.union1d(positives, own)
    for permutation in range(spec.permutations):
        drawn = everything[_lowest(everything, len(positives), f"shuffled {spec.seed} {permutation} {name}")]
        sets.add(drawn, ids, np.concatenate([neither, drawn]), identity)


def _lowest(ids: Ids, count: int, salt: str) -> NDArray[np.bool_]:
    """(ids,) whether each is among the `count` with the lowest hash priorities."""
    numbers = ids.astype(np.uint64)
    priorities = hash_priorities(np.stack([numbers, numbers], axis=1), salt)
    among: NDArray[np.bool_] = priorities <= np.partition(priorities, count - 1)[count - 1]
    return among
