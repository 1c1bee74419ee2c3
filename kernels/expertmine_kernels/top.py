"""Ranks units by expertise. Knows nothing of how expertise was computed."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def top_k(ap: ArrayLike, k: int) -> NDArray[np.int64]:
    """Return the units of highest average precision, ties by ascending unit.

    Args:
        ap: (units,) of one concept.
        k: how many units, 1 to units.

    Returns:
        (k,) int64 unit numbers, by (ap descending, unit ascending).

    Raises:
        ValueError: k out of range, a NaN, or ap of another shape.

    >>> top_k(np.array([0.5, 0.9, 0.5, 0.1]), 2)
    array([1, 0])
    """
    scores = np.asarray(ap)
    if scores.ndim != 1:
        raise ValueError(f"ap has shape {scores.shape}; expected (units,)")
    if not 1 <= k <= scores.size:
        raise ValueError(f"k is {k}; expected 1 to {scores.size}, the number of units")
    for unit in np.flatnonzero(np.isnan(scores)):
        raise ValueError(f"ap of unit {unit} is NaN")
    last = np.partition(scores, scores.size - k)[scores.size - k]
    above = np.flatnonzero(scores > last)
    ordered = above[np.argsort(-scores[above], kind="stable")]
    return np.concatenate([ordered, np.flatnonzero(scores == last)[: k - above.size]]).astype(np.int64)
