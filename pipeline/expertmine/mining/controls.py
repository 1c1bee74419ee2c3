"""Units drawn at random, to compare experts with: any units of the model, or units of the experts' own hookpoints.

The draws depend only on a seed and the concept's number: raw words of a PCG64, which NumPy keeps stable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from expertmine.specs.hookpoints import Hookpoint

Ids = NDArray[np.int64]


def controls(experts: Ids, hookpoints: Sequence[Hookpoint], seed: int) -> tuple[Ids, Ids]:
    """Per concept, units drawn at random from all, and for each expert one drawn at random from its own hookpoint.

    No control is an expert and none comes twice, so that the first k are controls of the k best. If a hookpoint has too
    few other units, a matched unit is of any hookpoint; if the model has too few, experts themselves are repeated.

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
        for hookpoint in np.unique(at):
            (ranks,) = np.nonzero(at == hookpoint)
            drawn = _draw(words, hookpoints[hookpoint].units, len(ranks), own)
            found[ranks[: len(drawn)]] = drawn
        (absent,) = np.nonzero(found < 0)
        taken = np.concatenate([own, found[found >= 0]])
        found[absent] = _filled(_draw(words, range(units), len(absent), taken), own, absent)
        matched[concept] = found
    return random, matched


def _filled(drawn: Ids, experts: Ids, wanted: Ids) -> Ids:
    """As many units as wanted: the drawn ones, then the first experts."""
    return np.concatenate([drawn, experts])[: len(wanted)]


def _draw(words: np.random.PCG64, pool: range, count: int, excluded: Ids) -> Ids:
    """At most `count` different ids of a pool, in the order drawn, without the excluded ones."""
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
