"""The statistics that a run stores per (concept, unit), their types and their size. Needs no zarr."""

from __future__ import annotations

import numpy as np

from expertmine.specs.layout import Layout
from expertmine.specs.settings import kept_columns

STATISTICS = {
    "ap": "float64",
    "auroc": "float64",
    "held_out_ap": "float64",
    "on_mean": "float32",
    "on_p50": "float32",
    "on_p90": "float32",
    "off_mean": "float32",
}
"""Types of the statistics stored per (concept, unit); ``held_out_ap`` is NaN for concepts without held-out labels."""


KEPT = "unit"
"""If only some units' statistics are kept: their unit ids, by concept and column; -1 where a block has no more."""


def statistics_of(block_units: int, keep: int | None) -> dict[str, tuple[str, int]]:
    """The stored statistics of a plan: their types, and columns per block."""
    kept = kept_columns(keep, block_units)
    every = {name: (dtype, block_units) for name, dtype in STATISTICS.items()}
    if kept is None:
        return every
    some = {name: (dtype, kept) for name, dtype in STATISTICS.items() if name != "ap"}
    return {"ap": every["ap"], KEPT: ("int64", kept), **some}


def expertise_bytes(layout: Layout, concepts: int, poolings: int, keep: int | None) -> int:
    """Bytes of all stored statistics before compression."""
    columns = statistics_of(layout.block_units, keep).values()
    return concepts * poolings * layout.blocks * sum(count * np.dtype(dtype).itemsize for dtype, count in columns)
