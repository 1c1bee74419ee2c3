"""What average precision reaches by chance: of one unit, and of the best of very many.

A concept's best unit is the maximum over 10⁵ or 10⁶ of them, and high by chance alone. Its null distribution comes from
shuffled labels: of each shuffle, the maximum over all units. Comparing every unit with the distribution of the maximum
controls the chance of even one false expert a concept (Westfall and Young 1993, the single-step max-T procedure).

Maxima are compared as *lifts*, average precision less what a random order is expected to have, so that concepts of like
size can share a distribution though their prevalences differ a little.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
"""Chance of even one false expert of a concept above its threshold."""


def expected_ap(positives: NDArray[np.integer], negatives: NDArray[np.integer]) -> NDArray[np.float64]:
    """Expected average precision of a random order without ties (Bestgen 2015, doi.org/10.1515/pralin-2015-0007).

    Args:
        positives, negatives: any one shape; at least one of each.
    """
    total = np.asarray(positives, np.int64) + np.asarray(negatives, np.int64)
    harmonic = np.cumsum(1 / np.arange(1, total.max(initial=1) + 1))[total - 1]
    found: NDArray[np.float64] = (harmonic + (positives - 1) / (total - 1) * (total - harmonic)) / total
    return found


def p_values(lifts: NDArray[np.float64], null: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chance that the best of all units would do as well as each of these under shuffled labels; never 0.

    Args:
        lifts: (concepts, units).
        null: (concepts, permutations) lift of the best unit in each shuffle.

    Returns:
        (concepts, units), (1 + shuffles that reach the lift) / (1 + shuffles); NaN without any.
    """
    concepts, permutations = null.shape
    if not permutations:
        return np.full(lifts.shape, np.nan)
    ordered = np.sort(null, axis=1)
    below = np.array([np.searchsorted(ordered[at], lifts[at], side="left") for at in range(concepts)])
    found: NDArray[np.float64] = (1 + permutations - below.reshape(lifts.shape)) / (1 + permutations)
    return found


def thresholds(null: NDArray[np.float64], alpha: float = ALPHA) -> NDArray[np.float64]:
    """(concepts,) the lift above which a unit's p-value is at most `alpha`.

    NaN where the shuffles are too few to tell: that takes 1 / alpha - 1 of them.

    Args:
        null: (concepts, permutations).
    """
    concepts, permutations = null.shape
    may_reach = int(alpha * (permutations + 1) + 1e-9)  # a float just under a whole number is that number
    if may_reach < 1:
        return np.full(concepts, np.nan)
    found: NDArray[np.float64] = np.sort(null, axis=1)[:, permutations - may_reach]
    return found
