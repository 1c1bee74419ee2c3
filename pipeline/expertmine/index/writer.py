"""Write an expert index: its tables first, and last index.json, which makes it whole."""

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
        alpha: of the thresholds that concepts are said to have.
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
    """Write an index folder; ``index.json`` comes last and makes it whole.

    Args:
        tables: each of `TABLES`.
        metadata: what the index says of itself; format, checksums and top_k are those of the tables.

    Raises:
        UserError: the disk is full or refuses.
    """
    own = {
        "format": FORMAT,
        "checksums": {name: write_table(folder / f"{name}.parquet", tables[name]) for name in TABLES},
        "top_k": tables["experts"].num_rows // len(metadata["concepts"]),
    }
    write_json(folder / METADATA, {**own, **{name: each for name, each in metadata.items() if name not in own}})
    return folder
