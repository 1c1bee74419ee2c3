"""Intervals and tests over a few concepts, each with one figure. Knows nothing of what the figures measure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from expertmine.evaluate.results import Interval

RESAMPLES = 10_000
_EXACT = 14
"""Up to this many pairs, every combination of signs is tried."""


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean and its 95 % bootstrap percentile interval."""
    found = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = found[rng.integers(len(found), size=(RESAMPLES, len(found)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(found.mean()), float(low), float(high))


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of a mean difference of pairs: the share of sign flips with a mean at least as far from 0.

    Tries every combination of signs for few pairs, and `RESAMPLES` for more (one is the pairs as they are).
    """
    found: NDArray[np.float64] = np.asarray(differences, dtype=np.float64)
    if len(found) <= _EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=len(found))))
    else:
        drawn = np.random.default_rng(seed).choice((1.0, -1.0), size=(RESAMPLES - 1, len(found)))
        signs = np.vstack([np.ones(len(found)), drawn])
    # The tolerance keeps equal sums equal in spite of rounding.
    return float((np.abs(signs @ found) >= abs(found.sum()) - 1e-12).mean())
