"""The average precision that one unit, and the best of very many units, reach by chance.

A concept's best unit is the maximum over 10⁵ or 10⁶ units, and high by chance alone. Its null distribution comes from
shuffled labels: per shuffle, the maximum over all units. Comparing every unit with the distribution of the maximum
controls the chance of even one false expert per concept (Westfall and Young 1993, the single-step max-T procedure).

Concepts of similar size share shuffles, of labels with the fewest positives and negatives that any of them has. The
maximum of a shuffle is transferred to each concept by the stricter of two measures: the *lift* over the expected
average precision of a random order, and the lift as a share of the largest possible lift.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
"""Chance of even one false expert per concept above its threshold."""


def expected_ap(positives: NDArray[np.integer], negatives: NDArray[np.integer]) -> NDArray[np.float64]:
    """Expected average precision of a random order without ties (Bestgen 2015, doi.org/10.1515/pralin-2015-0007).

    Args:
        positives, negatives: any one shape; at least one of each.
    """
    total = np.asarray(positives, np.int64) + np.asarray(negatives, np.int64)
    harmonic = np.cumsum(1 / np.arange(1, total.max(initial=1) + 1))[total - 1]
    found: NDArray[np.float64] = (harmonic + (positives - 1) / (total - 1) * (total - harmonic)) / total
    return found


def transferred_null(
    max_ap: NDArray[np.float64], expected: NDArray[np.float64], own_expected: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The average precision that the best unit under shuffled labels of a class would have reached for each concept.

    Args:
        max_ap: (concepts, permutations) the best average precision of each shuffle of the concept's class.
        expected: (concepts,) the expected average precision of those labels.
        own_expected: (concepts,) the expected average precision of the concept's own labels.

    Returns:
        (concepts, permutations) average precision; `max_ap` itself if both expectations are equal.
    """
    of_class, own = expected[:, np.newaxis], own_expected[:, np.newaxis]
    lift = max_ap - of_class
    found: NDArray[np.float64] = np.where(
        of_class == own, max_ap, own + np.maximum(lift, lift / (1 - of_class) * (1 - own))
    )
    return found


def p_values(ap: NDArray[np.floating[Any]], null: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chance that the best of all units reaches each of these values under shuffled labels; never 0.

    Args:
        ap: (concepts, units).
        null: (concepts, permutations) average precision of the best unit in each shuffle.

    Returns:
        (concepts, units), (1 + shuffles that reach it) / (1 + shuffles); NaN without shuffles.
    """
    concepts, permutations = null.shape
    if not permutations:
        return np.full(ap.shape, np.nan)
    ordered = np.sort(null, axis=1)
    below = np.array([np.searchsorted(ordered[at], ap[at], side="left") for at in range(concepts)])
    found: NDArray[np.float64] = (1 + permutations - below.reshape(ap.shape)) / (1 + permutations)
    return found


def thresholds(null: NDArray[np.float64], alpha: float = ALPHA) -> NDArray[np.float64]:
    """(concepts,) the average precision above which a unit's p-value is at most `alpha`.

    NaN if there are too few shuffles to tell: 1 / alpha - 1 are needed.

    Args:
        null: (concepts, permutations).
    """
    concepts, permutations = null.shape
    may_reach = int(alpha * (permutations + 1) + 1e-9)  # a float just under a whole number is that number
    if may_reach < 1:
        return np.full(concepts, np.nan)
    found: NDArray[np.float64] = np.sort(null, axis=1)[:, permutations - may_reach]
    return found
