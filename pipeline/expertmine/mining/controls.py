"""Units drawn by lot, to compare experts with: any units of the model, or units of the experts' own hookpoints.

The draws are a function of a seed and the concept's number: raw words of a PCG64, which NumPy keeps the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from expertmine.specs.hookpoints import Hookpoint

Ids = NDArray[np.int64]


def controls(experts: Ids, hookpoints: Sequence[Hookpoint], seed: int) -> tuple[Ids, Ids]:
    """Of each concept, units drawn by lot from all, and for each expert one drawn by lot from its own hookpoint.

    None is an expert and none comes twice, so that any first k are a control of the k best. Where a hookpoint or the
    model has too few others, a matched unit is of any hookpoint, and in the end experts themselves fill up.

    Args:
        experts: (concepts, kept) unit ids, the best first.

    Returns:
        Two arrays of that shape.
    """
    units = hookpoints[-1].units.stop
    starts = np.array([hookpoint.first_unit for hookpoint in hookpoints])
    random, matched = np.empty_like(experts), np.empty_like(experts)
    for concept, own in enumerate(experts):
        words = np.random.PCG64(np.random.SeedSequence([seed, concept]))
        random[concept] = _filled(_draw(words, range(units), len(own), own), own, own)
        at = np.searchsorted(starts, own, side="right") - 1
        found = np.full(len(own), -1, np.int64)
        for place in np.unique(at):
            (ranks,) = np.nonzero(at == place)
            drawn = _draw(words, hookpoints[place].units, len(ranks), own)
            found[ranks[: len(drawn)]] = drawn
        (absent,) = np.nonzero(found < 0)
        taken = np.concatenate([own, found[found >= 0]])
        found[absent] = _filled(_draw(words, range(units), len(absent), taken), own, absent)
        matched[concept] = found
    return random, matched


def _filled(drawn: Ids, experts: Ids, wanted: Ids) -> Ids:
    """As many units as are wanted: those drawn, then the first experts."""
    return np.concatenate([drawn, experts])[: len(wanted)]


def _draw(words: np.random.PCG64, pool: range, count: int, excluded: Ids) -> Ids:
    """At most `count` different ids of a pool, in the order of the lot, none of those excluded."""
    outside = excluded[(excluded >= pool.start) & (excluded < pool.stop)]
    left = len(pool) - len(outside)
    if left <= 4 * count:
        others = np.setdiff1d(np.arange(pool.start, pool.stop), outside)
        return others[np.argsort(words.random_raw(len(others)), kind="stable")][:count]
    found = np.empty(0, np.int64)
    while len(found) < count:
        raw = (words.random_raw(2 * count) % np.uint64(len(pool))).astype(np.int64) + pool.start
        together = np.concatenate([found, raw[~np.isin(raw, outside)]])
        _, first = np.unique(together, return_index=True)
        found = together[np.sort(first)]
    return found[:count]
