"""The rows of each concept's positive and negative sentences. Knows nothing of responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class ConceptRows:
    """The rows of each concept's positives, and of its negatives: a pool, shared or its own, without some rows.

    Thousands of concepts can share a pool from which each removes a few rows, such as its positives if the pool is all
    sentences. Validation takes time in proportion to the given rows, not to concepts times pool. The arrays are
    read-only copies.

    Raises:
        ValueError: a concept without a positive or a negative, a row given twice or as positive and negative, a
            removed row that is not in the pool, a negative index, or arrays that do not fit together. Concepts and
            pools are named by their index.

    >>> ConceptRows.from_lists(positives=[[0, 1], [2]], negatives=[[3, 4], [4, 3]]).pool_of
    array([0, 0], dtype=int32)
    >>> everything, positives = [0, 1, 2, 3, 4], [[0, 1], [2]]
    >>> ConceptRows.from_pools(positives, [everything], [0, 0], removed=positives).negatives(0)
    array([2, 3, 4], dtype=int32)
    """

    positive_indptr: NDArray[np.int64]
    """(concepts + 1,): concept c's positives are positive_rows[positive_indptr[c] : positive_indptr[c + 1]]."""
    positive_rows: NDArray[np.int32]
    """Row indices of positive sentences, concept by concept."""
    pool_of: NDArray[np.int32]
    """(concepts,): the index of each concept's pool of negatives."""
    pool_indptr: NDArray[np.int64]
    """(pools + 1,): like positive_indptr, for pool_rows."""
    pool_rows: NDArray[np.int32]
    """Row indices of negative sentences, pool by pool."""
    removed_indptr: NDArray[np.int64]
    """(concepts + 1,): like positive_indptr, for removed_rows."""
    removed_rows: NDArray[np.int32]
    """Row indices in a concept's pool that are not its negatives, concept by concept."""

    def __post_init__(self) -> None:
        for name in ("positive_indptr", "pool_indptr", "removed_indptr"):
            object.__setattr__(self, name, _integers(name, getattr(self, name), np.int64))
        for name in ("positive_rows", "pool_of", "pool_rows", "removed_rows"):
            object.__setattr__(self, name, _integers(name, getattr(self, name), np.int32))
        _check_ranges("positive", self.positive_indptr, self.positive_rows)
        _check_ranges("pool", self.pool_indptr, self.pool_rows)
        _check_ranges("removed", self.removed_indptr, self.removed_rows)
        if self.pool_of.size != self.concepts:
            raise ValueError(f"pool_of has the pools of {self.pool_of.size} concepts; there are {self.concepts}")
        if self.removed_indptr.size != self.positive_indptr.size:
            given = self.removed_indptr.size - 1
            raise ValueError(f"removed_indptr has ranges for {given} concepts; there are {self.concepts}")
        for concept in np.flatnonzero((self.pool_of < 0) | (self.pool_of >= self.pools)):
            raise ValueError(f"concept {concept} uses pool {self.pool_of[concept]}; there are {self.pools} pools")
        self._check_sets()

    @classmethod
    def from_lists(cls, positives: Sequence[ArrayLike], negatives: Sequence[ArrayLike]) -> Self:
        """Build from one array of positive and one of negative rows per concept; equal sets of negatives share a pool.

        Raises:
            ValueError: as for the class, or the two sequences differ in length.
        """
        if len(positives) != len(negatives):
            raise ValueError(f"positives are given for {len(positives)} concepts, negatives for {len(negatives)}")
        pools: dict[bytes, int] = {}
        pool_sets: list[NDArray[np.int32]] = []
        pool_of = np.empty(len(negatives), np.int32)
        for concept, rows in enumerate(negatives):
            pool = _sorted_rows(f"the negatives of concept {concept}", rows)
            pool_of[concept] = pools.setdefault(pool.tobytes(), len(pools))
            if len(pools) > len(pool_sets):
                pool_sets.append(pool)
        return cls.from_pools(positives, pool_sets, pool_of, removed=[()] * len(positives))

    @classmethod
    def from_pools(
        cls,
        positives: Sequence[ArrayLike],
        pools: Sequence[ArrayLike],
        pool_of: ArrayLike,
        removed: Sequence[ArrayLike],
    ) -> Self:
        """Build from arrays of rows; a concept's negatives are its pool without its removed rows.

        Args:
            positives: each concept's positive rows.
            pools: each pool's rows.
            pool_of: (concepts,) the index of each concept's pool.
            removed: each concept's rows of its pool that are not its negatives; they must include every positive that
                is in the pool.

        Raises:
            ValueError: as for the class, or positives and removed differ in length.
        """
        if len(positives) != len(removed):
            raise ValueError(f"positives are given for {len(positives)} concepts, removed for {len(removed)}")
        return cls(
            *_concatenate([_sorted_rows(f"the positives of concept {c}", rows) for c, rows in enumerate(positives)]),
            _integers("pool_of", pool_of, np.int32),
            *_concatenate([_sorted_rows(f"pool {pool}", rows) for pool, rows in enumerate(pools)]),
            *_concatenate([_sorted_rows(f"the removed rows of concept {c}", rows) for c, rows in enumerate(removed)]),
        )

    @property
    def concepts(self) -> int:
        """Number of concepts."""
        return self.positive_indptr.size - 1

    @property
    def pools(self) -> int:
        """Number of pools of negatives."""
        return self.pool_indptr.size - 1

    def positives(self, concept: int) -> NDArray[np.int32]:
        """Return the rows of a concept's positive sentences."""
        return self.positive_rows[self.positive_indptr[concept] : self.positive_indptr[concept + 1]]

    def negatives(self, concept: int) -> NDArray[np.int32]:
        """Return the rows of a concept's negative sentences, ascending; takes time in proportion to its pool."""
        return np.setdiff1d(self._pool(int(self.pool_of[concept])), self.removed(concept))

    def removed(self, concept: int) -> NDArray[np.int32]:
        """Return the rows of a concept's pool that are not its negatives."""
        return self.removed_rows[self.removed_indptr[concept] : self.removed_indptr[concept + 1]]

    def check_within(self, sentences: int) -> None:
        """Raise a ValueError if a concept has a row at or beyond the number of sentences; names the first such concept.

        Removed rows of its pool count too; pools that no concept uses do not.
        """
        if max(self.positive_rows.max(initial=-1), self.pool_rows.max(initial=-1)) < sentences:
            return
        last_of_pool = [self._pool(pool).max() for pool in range(self.pools)]
        for concept in range(self.concepts):
            last = max(self.positives(concept).max(), last_of_pool[self.pool_of[concept]])
            if last >= sentences:
                raise ValueError(f"concept {concept} uses row {last}, but the responses have {sentences} sentences")

    def by_pool(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the concepts ordered by pool, (concepts,), and the start of each pool's concepts, (pools + 1,)."""
        order = np.argsort(self.pool_of, kind="stable").astype(np.int64)
        return order, np.searchsorted(self.pool_of[order], np.arange(self.pools + 1)).astype(np.int64)

    def _pool(self, pool: int) -> NDArray[np.int32]:
        return self.pool_rows[self.pool_indptr[pool] : self.pool_indptr[pool + 1]]

    def _check_sets(self) -> None:
        """Refuse empty sets, negative indices, repeated rows, and rows that are both positive and negative."""
        limit = 1 + max(rows.max(initial=-1) for rows in (self.positive_rows, self.pool_rows, self.removed_rows))
        scratch = np.empty(limit, np.int64)
        is_negative = np.zeros(limit, np.bool_)
        order, starts = self.by_pool()
        for pool in range(self.pools):
            users = order[starts[pool] : starts[pool + 1]]
            negatives = self._pool(pool)
            _check_set(f"the negatives of concept {users[0]}" if users.size else f"pool {pool}", negatives, scratch)
            is_negative[negatives] = True
            for concept in users:
                _check_set(f"the positives of concept {concept}", self.positives(concept), scratch)
                self._check_removed(concept, is_negative, scratch)
                self._check_disjoint(concept, is_negative)
            is_negative[negatives] = False

    def _check_removed(self, concept: int, in_pool: NDArray[np.bool_], scratch: NDArray[np.int64]) -> None:
        """Refuse removed rows unless they are a proper subset of the concept's pool."""
        removed, pool = self.removed(concept), self.pool_of[concept]
        _check_distinct(f"the removed rows of concept {concept}", removed, scratch)
        for row in removed[~in_pool[removed]]:
            raise ValueError(f"concept {concept} removes row {row}, which is not in its pool {pool}")
        if removed.size == self._pool(pool).size:
            raise ValueError(f"concept {concept} removes all {removed.size} rows of its pool {pool}; one must be left")

    def _check_disjoint(self, concept: int, in_pool: NDArray[np.bool_]) -> None:
        """Refuse a positive that is in the pool and not removed; changes in_pool temporarily."""
        positives, removed = self.positives(concept), self.removed(concept)
        in_pool[removed] = False
        for row in positives[in_pool[positives]]:
            raise ValueError(f"concept {concept} has row {row} among its positives and its negatives")
        in_pool[removed] = True


def _check_set(name: str, rows: NDArray[np.int32], scratch: NDArray[np.int64]) -> None:
    """Raise unless rows is a non-empty set of indices; scratch has an element for every row."""
    if rows.size == 0:
        raise ValueError(f"{name}: no row; at least one is needed")
    _check_distinct(name, rows, scratch)


def _check_distinct(name: str, rows: NDArray[np.int32], scratch: NDArray[np.int64]) -> None:
    """Raise unless rows is a set of indices; scratch has an element for every row."""
    if rows.min(initial=0) < 0:
        raise ValueError(f"{name}: row {rows.min()} is negative; rows count from 0")
    index = np.arange(rows.size)
    scratch[rows] = index
    for row in rows[scratch[rows] != index]:  # a later index has overwritten this one
        raise ValueError(f"{name}: row {row} is given twice")


def _integers(name: str, values: ArrayLike, dtype: type[np.signedinteger[Any]]) -> NDArray[Any]:
    """Return a read-only, one-dimensional copy of integers in the dtype, or raise."""
    given = np.asarray(values)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(f"{name}: dtype {given.dtype}, shape {given.shape}; expected integers in one dimension")
    limits = np.iinfo(dtype)
    for outside in given[(given < limits.min) | (given > limits.max)]:
        raise ValueError(f"{name}: {outside} does not fit {dtype.__name__}")
    copy = np.array(given, dtype=dtype, order="C")
    copy.setflags(write=False)
    return copy


def _check_ranges(what: str, indptr: NDArray[np.int64], rows: NDArray[np.int32]) -> None:
    """Raise unless indptr splits rows into consecutive ranges."""
    if indptr.size == 0 or indptr[0] != 0 or indptr[-1] != rows.size or (np.diff(indptr) < 0).any():
        raise ValueError(f"{what}_indptr must rise from 0 to the number of {what}_rows, {rows.size}; it is {indptr}")


def _sorted_rows(name: str, rows: ArrayLike) -> NDArray[np.int32]:
    """Return row indices ascending as int32."""
    return np.sort(_integers(name, rows, np.int32))


def _concatenate(sets: list[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Concatenate sets; return the ranges and the rows."""
    indptr = np.cumsum([0, *(rows.size for rows in sets)], dtype=np.int64)
    return indptr, np.concatenate([np.empty(0, np.int32), *sets])
