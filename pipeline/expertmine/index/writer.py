"""Writes an expert index: tables first, then index.json, which completes it. Does not know how units were ranked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from expertmine.index.experts import FORMAT, TABLES
from expertmine.index.names import METADATA
from expertmine.specs.plan import Plan
from expertmine.specs.settings import Pooling
from expertmine.storage.files import write_json
from expertmine.storage.locations import Location
from expertmine.storage.tables import write_table


def write_index(
    folder: Location,
    tables: Mapping[str, pa.Table],
    plan: Plan,
    pooling: Pooling,
    concepts: list[dict[str, Any]],
    alpha: float,
) -> Location:
    """Write an index folder of a run.

    Args:
        alpha: significance level of the concepts' thresholds.
    """
    metadata = {
        "units": plan.layout.units,
        "plan": plan.fingerprint,
        "pooling": pooling,
        "model": asdict(plan.model),
        "corpus": asdict(plan.corpus),
        "responses": asdict(plan.responses),
        "scoring": {**asdict(plan.scoring), "alpha": alpha},
        "hookpoints": [asdict(hookpoint) for hookpoint in plan.hookpoints],
        "concepts": concepts,
    }
    return write_tables(folder, tables, metadata)


def write_tables(folder: Location, tables: Mapping[str, pa.Table], metadata: Mapping[str, Any]) -> Location:
    """Write an index folder; ``index.json`` is written last and completes it.

    Args:
        tables: by name, each of `TABLES`.
        metadata: the contents of ``index.json``; format, checksums and top_k are taken from the tables.

    Raises:
        UserError: the disk is full, or the files cannot be written.
    """
    own = {
        "format": FORMAT,
        "checksums": {name: write_table(folder / f"{name}.parquet", tables[name]) for name in TABLES},
        "top_k": tables["experts"].num_rows // len(metadata["concepts"]),
    }
    write_json(folder / METADATA, {**own, **{name: value for name, value in metadata.items() if name not in own}})
    return folder
