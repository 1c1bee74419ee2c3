"""The distribution of average precision over a model: per concept and hookpoint, summed by layer or kind of module.

Knows neither how average precision is computed nor where its tables are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from expertmine.specs.choices import Grouping
from expertmine.specs.hookpoints import LAYER, Hookpoint, layer_of

BINS = 20
EDGES = np.arange(BINS + 1) / BINS
"""Bin b counts units with EDGES[b] <= average precision < EDGES[b + 1]; the last bin includes 1."""

SHOWN_EDGES = (10, 14, 18)
"""Edges at and above which printed tables count pairs: 0.5, 0.7, 0.9."""

SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("hookpoint", pa.string()),
        ("layer", pa.int32()),
        ("units", pa.int32()),
        ("mean_ap", pa.float64()),
        ("max_ap", pa.float64()),
        ("above_chance", pa.int32()),
        ("bins", pa.list_(pa.int32(), BINS)),
    ]
)


class Distribution:
    """Counts and sums over blocks of units. Add blocks in order: the last bits of a sum depend on it."""

    def __init__(self, concepts: int, hookpoints: Sequence[Hookpoint], thresholds: NDArray[np.float64]) -> None:
        """Start with empty counts.

        Args:
            thresholds: (concepts,) average precision that exceeds chance; NaN if not known.
        """
        self.hookpoints = hookpoints
        self.thresholds = thresholds
        shape = (concepts, len(hookpoints))
        self.bins = np.zeros((*shape, BINS), np.int32)
        self.above = np.zeros(shape, np.int32)
        self.highest = np.full(shape, -np.inf)
        self.totals = np.zeros(shape)

    def add(self, ap: NDArray[np.floating[Any]], units: range) -> None:
        """Add a block's average precision, (concepts, units)."""
        concepts = len(ap)
        rows = np.arange(concepts)[:, np.newaxis] * BINS
        for at, hookpoint in enumerate(self.hookpoints):
            first, last = max(hookpoint.units.start, units.start), min(hookpoint.units.stop, units.stop)
            if first >= last:
                continue
            part = ap[:, first - units.start : last - units.start]
            bins = np.minimum(np.searchsorted(EDGES, part, side="right") - 1, BINS - 1)
            counted = np.bincount((rows + bins).ravel(), minlength=concepts * BINS)
            self.bins[:, at] += counted.reshape(concepts, BINS).astype(np.int32)
            self.above[:, at] += (part > self.thresholds[:, np.newaxis]).sum(axis=1, dtype=np.int32)
            self.highest[:, at] = np.maximum(self.highest[:, at], part.max(axis=1))
            self.totals[:, at] += part.sum(axis=1)

    def table(self, names: Sequence[str]) -> pa.Table:
        """One row per concept and hookpoint.

        Args:
            names: (concepts,) their names.
        """
        concepts, hookpoints = self.above.shape
        widths = np.array([hookpoint.width for hookpoint in self.hookpoints], np.int32)
        layers = [layer_of(hookpoint.name) for hookpoint in self.hookpoints]
        columns = {
            "concept": pa.array(np.repeat(np.array(names, dtype=object), hookpoints)),
            "hookpoint": pa.array([hookpoint.name for hookpoint in self.hookpoints] * concepts),
            "layer": pa.array(layers * concepts, pa.int32()),
            "units": pa.array(np.tile(widths, concepts)),
            "mean_ap": pa.array((self.totals / widths).ravel()),
            "max_ap": pa.array(self.highest.ravel()),
            "above_chance": pa.array(self.above.ravel(), mask=np.repeat(np.isnan(self.thresholds), hookpoints)),
            "bins": pa.FixedSizeListArray.from_arrays(pa.array(self.bins.ravel()), BINS),
        }
        return pa.table(columns, schema=SCHEMA)


@dataclass(frozen=True, slots=True)
class Group:
    """Average precision over a group of units, for one concept or for all concepts together."""

    name: str
    pairs: int
    """(concept, unit) pairs."""
    mean_ap: float
    max_ap: float
    above_chance: int | None
    """Pairs whose unit is above its concept's threshold; None if too few shuffles were made to know it."""
    at_least: dict[str, int]
    """Pairs by the average precision that they reach at least."""
    bins: list[int]
    """Pairs in each twentieth of 0 to 1."""


def grouped(table: pa.Table, concept: str | None, by: Grouping) -> list[Group]:
    """Sum a distribution by groups, in the order of the model's hookpoints.

    Args:
        table: from `Distribution.table`.
        concept: the concept to sum for; None for all concepts together.
    """
    rows = table if concept is None else table.filter(pc.equal(table["concept"], concept))
    of_row = [_group_of(name, by) for name in rows["hookpoint"].to_pylist()]
    positions = {name: position for position, name in enumerate(dict.fromkeys(of_row))}
    group = np.array([positions[name] for name in of_row])
    chance_known = rows["above_chance"].null_count == 0
    columns = {name: rows[name].to_numpy() for name in ("units", "mean_ap", "max_ap", "above_chance")}
    bins = rows["bins"].combine_chunks().flatten().to_numpy().reshape(-1, BINS)
    found = []
    for name, position in positions.items():
        own = group == position
        pairs, counts = int(columns["units"][own].sum()), bins[own].sum(axis=0, dtype=np.int64)
        found.append(
            Group(
                name=name,
                pairs=pairs,
                mean_ap=float((columns["mean_ap"][own] * columns["units"][own]).sum() / pairs),
                max_ap=float(columns["max_ap"][own].max()),
                above_chance=int(columns["above_chance"][own].sum()) if chance_known else None,
                at_least={f"{EDGES[edge]:.1f}": int(counts[edge:].sum()) for edge in SHOWN_EDGES},
                bins=counts.tolist(),
            )
        )
    return found


def _group_of(hookpoint: str, by: Grouping) -> str:
    if by == "hookpoint":
        return hookpoint
    if by == "kind":
        return LAYER.sub(lambda found: found[0].replace(found[1], "*"), hookpoint, count=1)
    layer = layer_of(hookpoint)
    return "outside of layers" if layer is None else f"layer {layer}"
