"""Intervals and tests over concepts: few, and each with figures of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from expertmine.evaluate.results import Interval

RESAMPLES = 10_000
_EXACT = 14
"""Pairs up to which every combination of signs is tried."""


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean, and its 95 % percentile interval when the values are drawn anew with replacement."""
    found = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = found[rng.integers(len(found), size=(RESAMPLES, len(found)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(found.mean()), float(low), float(high))


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of a mean difference of pairs: the share of sign flips that give one as far from 0.

    Every combination of signs for few pairs, `RESAMPLES` drawn ones for more (the pairs as they are count as one).
    """
    found: NDArray[np.float64] = np.asarray(differences, dtype=np.float64)
    if len(found) <= _EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=len(found))))
    else:
        drawn = np.random.default_rng(seed).choice((1.0, -1.0), size=(RESAMPLES - 1, len(found)))
        signs = np.vstack([np.ones(len(found)), drawn])
    # A hair below, so that rounding does not part the same sums.
    return float((np.abs(signs @ found) >= abs(found.sum()) - 1e-12).mean())
