"""Average precision of the same units on many resamples of the same rows. Knows nothing of stores or concepts.

A resample is a count per row. Rows are ordered by response once per unit; one walk then serves all resamples, whose
running counts are adjacent in memory, so that the compiler can add several at a time.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expertmine_kernels.jit import jit
from expertmine_kernels.keys import check_floats, first_nan, keys_and_nans
from expertmine_kernels.ranks import rank_units

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def draw_with_replacement(rows: int, resamples: int, seed: int) -> NDArray[np.int32]:
    """Return (rows, resamples): how often each row occurs when as many rows are drawn with replacement.

    The result is the same on every machine: a counter mixed by the finaliser of SplitMix64 (Steele, Lea and Flood
    2014).

    Args:
        seed: 0 to 2**64 - 1; resample r of a seed does not depend on the number of resamples.

    >>> draw_with_replacement(3, 2, seed=1).sum(axis=0).tolist()
    [3, 3]
    """
    counts = np.zeros((resamples, rows), np.int32)  # contiguous per resample while it is drawn
    _draw(counts, np.uint64(seed))
    return np.ascontiguousarray(counts.T)


@jit
def _draw(counts: NDArray[np.int32], seed: np.uint64) -> None:
    resamples, rows = counts.shape
    for resample in range(resamples):
        state = _scatter(seed + np.uint64(resample) * _GOLDEN)
        for _ in range(rows):
            state += _GOLDEN
            counts[resample, ((_scatter(state) >> np.uint64(32)) * np.uint64(rows)) >> np.uint64(32)] += 1


@jit
def _scatter(number: np.uint64) -> np.uint64:
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


def resampled_average_precision(responses: ArrayLike, labels: ArrayLike, counts: ArrayLike) -> NDArray[np.float64]:
    """Return the average precision of each unit on each resample.

    Args:
        responses: (rows, units) float16, float32 or float64.
        labels: (rows,) bool, True for positives.
        counts: (rows, resamples) integers, how often each resample has each row; or (positives, resamples) for the
            positives in their order, and then each resample has every negative once. Every resample needs a positive.

    Returns:
        (units, resamples): the same as `average_precision` with every row repeated as often as counted.

    Raises:
        TypeError: responses of another dtype.
        ValueError: shapes that do not fit, a NaN, negative counts, or a resample without a positive.

    >>> responses = np.array([[0.9], [0.5], [0.4], [0.1]])
    >>> resampled_average_precision(responses, [True, False, True, False], [[1, 2], [1, 1], [1, 0], [1, 1]]).round(3)
    array([[0.833, 1.   ]])
    """
    scores, truth, times = check_floats(responses), np.asarray(labels, np.bool_), np.asarray(counts)
    of_all = times.ndim == 2 and len(times) == len(scores)
    fits = times.ndim == 2 and len(times) in (len(scores), truth.sum())
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or not fits:
        raise ValueError(
            f"responses {scores.shape}, labels {truth.shape} and counts {times.shape} do not fit; "
            "expected (rows, units), (rows,) and (rows or positives, resamples)"
        )
    if times.size and (times.dtype.kind not in "iu" or times.min() < 0):
        raise ValueError("counts must be integers of at least 0")
    weights = np.ascontiguousarray(times, np.int32)
    positives = (weights[truth] if of_all else weights).sum(axis=0, dtype=np.int64)
    for resample in np.flatnonzero(positives == 0):
        raise ValueError(f"resample {resample} has no positive")
    keys, nans = keys_and_nans(scores.T)
    if nans:
        raise ValueError(f"the response at row, unit {first_nan(scores)} is NaN; a NaN has no rank")
    ranked = rank_units(keys)
    found = np.zeros((scores.shape[1], weights.shape[1]))
    weight_rows = np.arange(len(truth)) if of_all else np.where(truth, np.cumsum(truth) - 1, -1)
    _walk_all(ranked.ranks, ranked.level_counts, truth, weight_rows, weights, found)
    found /= positives
    return found


@jit
def _walk_all(
    ranks: NDArray[np.uint32],
    level_counts: NDArray[np.int64],
    labels: NDArray[np.bool_],
    weight_rows: NDArray[np.int64],
    weights: NDArray[np.int32],
    found: NDArray[np.float64],
) -> None:
    """Fill found (units, resamples), initially zero, with the sum over positives of the precision at their level.

    weight_rows (rows,) holds each row's index in weights, -1 for a negative that each resample has once.
    """
    rows, resamples = labels.size, weights.shape[1]
    order = np.empty(rows, np.int64)
    starts = np.empty(rows + 2, np.int64)
    true = np.empty(resamples, np.int32)
    false = np.empty(resamples, np.int32)
    here = np.empty(resamples, np.int32)
    for unit in range(ranks.shape[0]):
        _order_descending(ranks[unit], level_counts[unit], starts, order)
        true[:] = 0
        false[:] = 0
        here[:] = 0
        always_false = 0
        some_here = False
        for i in range(rows):
            row = order[i]
            weight_row = weight_rows[row]
            if labels[row]:
                some_here = True
                for b in range(resamples):
                    here[b] += weights[weight_row, b]
            elif weight_row < 0:
                always_false += 1
            else:
                for b in range(resamples):
                    false[b] += weights[weight_row, b]
            last_of_level = i == rows - 1 or ranks[unit, order[i + 1]] != ranks[unit, row]
            if last_of_level and some_here:
                for b in range(resamples):
                    true[b] += here[b]
                    seen = max(true[b] + false[b] + always_false, 1)  # avoids 0 / 0 before the first drawn row
                    found[unit, b] += here[b] * (true[b] / seen)
                    here[b] = 0
                some_here = False


@jit
def _order_descending(
    ranks: NDArray[np.uint32], levels: int, starts: NDArray[np.int64], order: NDArray[np.int64]
) -> None:
    """Fill order (rows,) with the rows from the highest rank to the lowest, by counting; starts is scratch."""
    starts[: levels + 1] = 0
    for row in range(ranks.size):
        starts[levels - ranks[row]] += 1
    for level in range(levels):
        starts[level + 1] += starts[level]
    for row in range(ranks.size):
        from_top = levels - 1 - np.int64(ranks[row])
        order[starts[from_top]] = row
        starts[from_top] += 1
