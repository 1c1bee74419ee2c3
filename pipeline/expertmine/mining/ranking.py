"""The best and the worst units of every concept, found block by block, in any order of blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from expertmine.run.store import Store
from expertmine.specs.settings import Pooling
from expertmine.telemetry.progress import track

_SPARE = 1 << 21
"""Candidates that are gathered before the best are selected."""


class Extremes:
    """The k best units of every concept so far: by average precision descending, unit id ascending.

    Or the k worst: by average precision ascending, unit id ascending.
    """

    def __init__(self, concepts: int, k: int, worst: bool = False) -> None:
        self.concepts, self.k = concepts, k
        self._sign = 1.0 if worst else -1.0
        self._bar = np.full(concepts, np.inf)
        """The key that a unit must reach to be among them; better units have lower keys."""
        self._owners, self._units, self._keys = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        self._new: list[tuple[NDArray[Any], ...]] = []
        self._waiting = 0

    def add(self, ap: NDArray[np.floating[Any]], first_unit: int) -> None:
        """Add units: ap (concepts, units), numbered from `first_unit`."""
        keys = self._sign * ap
        owners, columns = np.nonzero(keys <= self._bar[:, np.newaxis])
        self._new.append((owners, columns + first_unit, keys[owners, columns]))
        self._waiting += len(owners)
        if self._waiting > max(_SPARE, self.concepts * self.k):
            self._select()

    def found(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Unit ids and average precisions, both (concepts, at most k), the first the best (or the worst)."""
        self._select()
        ap = self._sign * self._keys + 0.0
        return self._units.reshape(self.concepts, -1), ap.reshape(self.concepts, -1)

    def _select(self) -> None:
        """Drop all candidates but k per concept."""
        parts = [(self._owners, self._units, self._keys), *self._new]
        owners, units, keys = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.lexsort([units, keys, owners])
        owners, units, keys = owners[order], units[order], keys[order]
        starts = np.searchsorted(owners, np.arange(self.concepts))
        among = np.arange(len(owners)) - starts[owners] < self.k
        self._owners, self._units, self._keys = owners[among], units[among], keys[among]
        self._new, self._waiting = [], 0
        counts = np.bincount(self._owners, minlength=self.concepts)
        full = counts == self.k
        self._bar[full] = self._keys[np.cumsum(counts)[full] - 1]


def best_units(store: Store, pooling: Pooling, k: int) -> NDArray[np.int64]:
    """(concepts, k) the best units of every concept, from the stored average precisions."""
    plan = store.plan
    best = Extremes(plan.corpus.concepts, k)
    for block in track(range(plan.layout.blocks), "select", plan.layout.blocks):
        units = plan.layout.block(block)
        best.add(store.read_scores(pooling, "ap", units), units.start)
    return best.found()[0]
