"""How well each unit detects each concept, from responses in memory. Knows nothing of stores, clusters or models.

A block's responses become ranks, unit by unit (ranks.py). A set of rows, the positives of a concept or a pool of
negatives, becomes a Tally: the levels that occur in it and how often. A pool is tallied once per unit; each concept
then costs one tally of its positives and one walk over their distinct levels, which gives every statistic. Rows that
the concept removes from the pool are counted between the levels of its positives, and subtracted during the walk.
No rows are sorted per concept, and nothing depends on the order of the rows.
"""

from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expertmine_kernels.bitmap import contains, index, insert, smaller, words_for
from expertmine_kernels.concepts import ConceptRows
from expertmine_kernels.jit import jit
from expertmine_kernels.keys import Floats, check_floats, first_nan, keys_and_nans
from expertmine_kernels.ranks import Ranked, rank_units
from expertmine_kernels.sums import Sum, add, empty_sum, is_exact, rounded

Integer = TypeVar("Integer", bound=np.signedinteger[Any])

_TILE = 1 << 15


def responses_at_once(sentences: int) -> int:
    """How many responses of a block are ranked at once, whole units of so many sentences: 8 units, or more if short."""
    return max(8 * sentences, 1 << 18)


class Expertise(NamedTuple):
    """Statistics of each unit on the sentences of each concept; every array is (concepts, units) float64."""

    ap: NDArray[np.float64]
    """Average precision of the unit as a detector of the concept."""
    auroc: NDArray[np.float64]
    """Area under the receiver operating characteristic; a tie counts half."""
    on_mean: NDArray[np.float64]
    """Mean response to the positives."""
    on_p50: NDArray[np.float64]
    """Median response to the positives."""
    on_p90: NDArray[np.float64]
    """90th percentile of the responses to the positives, linearly interpolated."""
    off_mean: NDArray[np.float64]
    """Mean response to the negatives."""


class Tally(NamedTuple):
    """How often each level of one unit occurs in a set of rows: d distinct levels, in arrays that may be longer."""

    words: NDArray[np.uint64]
    """The levels that occur, as a bitmap (bitmap.py)."""
    before: NDArray[np.uint32]
    """The bitmap's running count."""
    levels: NDArray[np.uint32]
    """(d,): the levels that occur, ascending."""
    counts: NDArray[np.int32]
    """(d,): how many rows have each level."""
    below: NDArray[np.int32]
    """(d + 1,): how many rows have a lower level; the last is the number of rows. Filled while walking the levels."""


class Sets(NamedTuple):
    """Sets of rows, concatenated."""

    indptr: NDArray[np.int64]
    """(sets + 1,): set s is rows[indptr[s] : indptr[s + 1]]."""
    rows: NDArray[np.int32]
    """Row indices."""


def expertise(responses: ArrayLike, rows: ConceptRows) -> Expertise:
    """Score every unit as a detector of every concept.

    The result depends on the sets of stored values alone: its bits do not depend on the order of the rows, on the
    other units, or on whether concepts share a pool of negatives or remove rows from it. Infinities are ranked like
    numbers; a mean or percentile that includes them is infinite or NaN, as in NumPy. Besides the result, memory is
    about 16 (float16), 48 (float32) or 72 (float64) bytes for each of max(2**18, 8 * sentences) responses. Runs on the
    calling thread only and releases the GIL.

    The time per concept grows with its positives and removed rows, not with the pool. Only if a unit's responses are
    infinite, float64, or so far apart that their sum may not fit 100 bits, it grows with the pool's levels too.

    Args:
        responses: (sentences, units) float16, float32 or float64; any layout, may be read-only. Unit-major memory
            (Fortran order) is read without a transposition.
        rows: which sentences are positive and negative for each concept.

    Raises:
        TypeError: responses of another dtype.
        ValueError: responses that are not two-dimensional, a NaN in any row (names its sentence and unit), or a
            concept with a row beyond the sentences.

    Source: expertise is the average precision of Suau et al. 2022 (arXiv 2110.02802), computed without interpolation
    as scikit-learn's average_precision_score; AUROC is the Mann-Whitney statistic.

    >>> responses = np.array([[0.9], [0.4], [0.5], [0.1]], np.float16)
    >>> expertise(responses, ConceptRows.from_lists([[0, 1]], [[2, 3]])).ap.round(3)
    array([[0.833]])
    """
    block = check_floats(responses)
    if block.ndim != 2:
        raise ValueError(f"responses have shape {block.shape}; expected (sentences, units)")
    sentences, units = block.shape
    rows.check_within(sentences)
    statistics = np.empty((len(Expertise._fields), rows.concepts, units))
    at_once = responses_at_once(sentences) // max(sentences, 1)
    positives = Sets(_read_only(rows.positive_indptr), _read_only(rows.positive_rows))
    pools = Sets(_read_only(rows.pool_indptr), _read_only(rows.pool_rows))
    removed = Sets(_read_only(rows.removed_indptr), _read_only(rows.removed_rows))
    order, starts = rows.by_pool()
    users = Sets(starts, order.astype(np.int32))
    for first in range(0, units, at_once):
        ranked = _ranked(_unit_major(block[:, first : first + at_once]), first)
        _score_units(ranked, positives, pools, removed, users, first, statistics)
    return Expertise(*statistics)


def average_precision(responses: ArrayLike, labels: ArrayLike) -> np.float64 | NDArray[np.float64]:
    """Return the average precision of responses as detectors of labels, like scikit-learn's average_precision_score.

    Args:
        responses: (sentences,) or (sentences, units) float16, float32 or float64; no value is rounded.
        labels: (sentences,) bool, or numbers that are 0 or 1.

    Returns:
        A float64, or (units,) float64: the sum over distinct thresholds of the gain in recall times the precision.

    Raises:
        TypeError: responses of another dtype.
        ValueError: labels that are all positive or all negative or neither 0 nor 1, shapes that do not fit, or a NaN.

    >>> average_precision(np.array([0.9, 0.5, 0.4, 0.1]), np.array([1, 0, 1, 0])).round(3)
    np.float64(0.833)
    """
    scores, truth = check_floats(responses), np.asarray(labels)
    if scores.ndim not in (1, 2):
        raise ValueError(f"responses have shape {scores.shape}; expected (sentences,) or (sentences, units)")
    if truth.shape != scores.shape[:1]:
        raise ValueError(f"labels have shape {truth.shape}; expected {scores.shape[:1]}, one per sentence")
    for row in np.flatnonzero((truth != 0) & (truth != 1)):
        raise ValueError(f"labels[{row}] is {truth[row]}; expected 0 or 1")
    positives, negatives = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    if positives.size == 0 or negatives.size == 0:
        raise ValueError(f"labels hold {positives.size} positives and {negatives.size} negatives; both are needed")
    units = scores if scores.ndim == 2 else scores[:, np.newaxis]
    ap: NDArray[np.float64] = expertise(units, ConceptRows.from_lists([positives], [negatives])).ap[0]
    return ap if scores.ndim == 2 else np.float64(ap[0])


def _read_only(array: NDArray[Integer]) -> NDArray[Integer]:
    """Return a read-only view: unpickled rows are writable, and would make Numba compile the kernel a second time."""
    view = array.view()
    view.setflags(write=False)
    return view


def _unit_major(block: Floats) -> Floats:
    """Return a block (sentences, units) as (units, sentences) in C order, transposed in tiles that fit the cache."""
    sentences, units = block.shape
    if block.T.flags.c_contiguous:
        return block.T
    transposed = np.empty((units, sentences), block.dtype)
    step = max(32, _TILE // units)
    for first in range(0, sentences, step):
        transposed[:, first : first + step] = block[first : first + step].T
    return transposed


def _ranked(block: Floats, first_unit: int) -> Ranked:
    """Rank a block (units, sentences) that starts at first_unit, or raise a ValueError that names a NaN."""
    keys, nans = keys_and_nans(block)
    if nans:
        sentence, unit = first_nan(block.T)
        raise ValueError(f"the response of unit {first_unit + unit} to sentence {sentence} is NaN; a NaN has no rank")
    return rank_units(keys)


@jit
def _score_units(
    ranked: Ranked,
    positives: Sets,
    pools: Sets,
    removed: Sets,
    users: Sets,
    first_unit: int,
    statistics: NDArray[np.float64],
) -> None:
    """Fill statistics (6, concepts, units), in the order of Expertise's fields, for the ranked units.

    positives and removed have a set per concept, pools a set per pool; users holds the concepts of each pool.
    """
    sentences = ranked.ranks.shape[1]
    positive = _empty_tally(sentences, positives.indptr)
    negative = _empty_tally(sentences, pools.indptr)
    others = _empty_tally(sentences, pools.indptr)
    gaps = np.empty(2 * positive.counts.size + 1, np.int32)
    for unit in range(ranked.ranks.shape[0]):
        ranks, levels, limit = ranked.ranks[unit], ranked.levels[unit], ranked.level_counts[unit]
        exact = removed.rows.size > 0 and is_exact(levels[:limit], sentences, ranked.precision)
        for pool in range(pools.indptr.size - 1):
            concepts = users.rows[users.indptr[pool] : users.indptr[pool + 1]]
            if concepts.size == 0:
                continue
            rows = pools.rows[pools.indptr[pool] : pools.indptr[pool + 1]]
            pool_size, pool_levels = rows.size, _tally(negative, ranks, limit, rows)
            pool_sum = _accumulate(negative, pool_levels, pool_size, levels)
            pool_mean = rounded(pool_sum) / pool_size
            for concept in concepts:
                rows = positives.rows[positives.indptr[concept] : positives.indptr[concept + 1]]
                out = removed.rows[removed.indptr[concept] : removed.indptr[concept + 1]]
                distinct = _tally(positive, ranks, limit, rows)
                out_gaps = gaps[: 2 * distinct + 1 if out.size else 0]
                off_mean, negatives = pool_mean, pool_size - out.size
                if out.size:
                    _count_between(positive, ranks, out, out_gaps)
                    if exact:
                        off_sum = _take_out(pool_sum, ranks, out, levels)
                    else:
                        other_levels = _tally_others(others, negative, pool_levels, ranks, out)
                        off_sum = _accumulate(others, other_levels, negatives, levels)
                    off_mean = rounded(off_sum) / negatives
                ap, auroc, on_mean = _walk(positive, distinct, rows.size, negative, negatives, out_gaps, levels)
                column = first_unit + unit
                statistics[0, concept, column] = ap
                statistics[1, concept, column] = auroc
                statistics[2, concept, column] = on_mean
                statistics[3, concept, column] = _quantile(0.5, positive, distinct, rows.size, levels)
                statistics[4, concept, column] = _quantile(0.9, positive, distinct, rows.size, levels)
                statistics[5, concept, column] = off_mean


@jit
def _empty_tally(sentences: int, indptr: NDArray[np.int64]) -> Tally:
    """Allocate a tally large enough for any of these sets of rows."""
    words = words_for(sentences)
    size = 0
    for i in range(indptr.size - 1):
        size = max(size, indptr[i + 1] - indptr[i])
    return Tally(
        np.empty(words, np.uint64),
        np.empty(words, np.uint32),
        np.empty(size, np.uint32),
        np.empty(size, np.int32),
        np.empty(size + 1, np.int32),
    )


@jit
def _tally(tally: Tally, ranks: NDArray[np.uint32], limit: int, rows: NDArray[np.int32]) -> int:
    """Tally the levels of rows, except below; all levels are under limit. Return the number of distinct levels."""
    words = tally.words[: words_for(limit)]
    words[:] = 0
    for i in range(rows.size):
        insert(words, ranks[np.uint32(rows[i])])
    distinct = index(words, tally.before)
    tally.counts[:distinct] = 0
    for i in range(rows.size):
        level = ranks[np.uint32(rows[i])]
        position = smaller(words, tally.before, level)
        tally.levels[position] = level
        tally.counts[position] += 1
    return distinct


@jit
def _tally_others(
    others: Tally, pool: Tally, distinct: int, ranks: NDArray[np.uint32], removed: NDArray[np.int32]
) -> int:
    """Tally a pool without its removed rows, except bitmap and below; return the number of distinct levels."""
    for i in range(removed.size):
        pool.counts[smaller(pool.words, pool.before, ranks[np.uint32(removed[i])])] -= 1
    left = 0
    for i in range(distinct):
        others.levels[left], others.counts[left] = pool.levels[i], pool.counts[i]
        left += pool.counts[i] > 0
    for i in range(removed.size):
        pool.counts[smaller(pool.words, pool.before, ranks[np.uint32(removed[i])])] += 1
    return left


@jit
def _accumulate(tally: Tally, distinct: int, size: int, levels: NDArray[np.float64]) -> Sum:
    """Fill below; return the sum of the responses of the tallied rows (their number is size), in ascending order."""
    largest = max(abs(levels[tally.levels[0]]), abs(levels[tally.levels[distinct - 1]]))
    below, total = 0, empty_sum(size * largest)
    for i in range(distinct):
        tally.below[i] = below
        below += tally.counts[i]
        total = add(total, tally.counts[i] * levels[tally.levels[i]])
    tally.below[distinct] = below
    return total


@jit
def _take_out(total: Sum, ranks: NDArray[np.uint32], rows: NDArray[np.int32], levels: NDArray[np.float64]) -> Sum:
    """Subtract the responses of some rows from an exact sum."""
    for i in range(rows.size):
        total = add(total, -levels[ranks[np.uint32(rows[i])]])
    return total


@jit
def _count_between(tally: Tally, ranks: NDArray[np.uint32], rows: NDArray[np.int32], gaps: NDArray[np.int32]) -> None:
    """Fill gaps (2d + 1,): rows at the tally's level i are counted in 2i + 1, rows between it and level i - 1 in 2i."""
    gaps[:] = 0
    for i in range(rows.size):
        level = ranks[np.uint32(rows[i])]
        gaps[2 * smaller(tally.words, tally.before, level) + contains(tally.words, level)] += 1


@jit
def _walk(
    positive: Tally,
    distinct: int,
    positives: int,
    negative: Tally,
    negatives: int,
    removed_gaps: NDArray[np.int32],
    levels: NDArray[np.float64],
) -> tuple[float, float, float]:
    """Fill positive's below; return average precision, AUROC and mean response.

    Each distinct level of the positives is a threshold: positives at or above it are true, negatives false. The
    negatives are the tallied ones without those in removed_gaps (_count_between), which is empty if none is removed.
    """
    below, precisions, wins, total, removed = 0, 0.0, 0, 0.0, 0
    for i in range(distinct):
        level, count = positive.levels[i], positive.counts[i]
        position = smaller(negative.words, negative.before, level)
        negatives_below = negative.below[position]
        negatives_up_to = negative.below[position + contains(negative.words, level)]
        if removed_gaps.size:
            removed += removed_gaps[2 * i]
            negatives_below -= removed
            removed += removed_gaps[2 * i + 1]
            negatives_up_to -= removed
        true, false = positives - below, negatives - negatives_below
        precisions += count * true / (true + false)
        wins += count * (negatives_below + negatives_up_to)
        total += count * levels[level]
        positive.below[i] = below
        below += count
    positive.below[distinct] = below
    return precisions / positives, wins / (2 * positives * negatives), total / positives


@jit
def _quantile(fraction: float, tally: Tally, distinct: int, size: int, levels: NDArray[np.float64]) -> float:
    """Return a quantile of the responses, interpolated linearly and rounded as in NumPy."""
    position = fraction * (size - 1)
    row = int(position)
    lower = float(levels[_level_of(row, tally, distinct)])
    upper = float(levels[_level_of(min(row + 1, size - 1), tally, distinct)])
    part = position - row
    if lower == upper:
        return lower
    return lower + (upper - lower) * part if part < 0.5 else upper - (upper - lower) * (1 - part)


@jit
def _level_of(row: int, tally: Tally, distinct: int) -> np.uint32:
    """Return the level of the row-th smallest response, counted from 0: the last level with below <= row."""
    low, high = 0, distinct
    while high - low > 1:
        middle = (low + high) // 2
        if tally.below[middle] <= row:
            low = middle
        else:
            high = middle
    return np.uint32(tally.levels[low])
