"""Validates an expert index before it is used.

An index may come from anywhere, and a checksum proves nothing when its author could have written it too. So everything
that is read is checked: the schema of ``index.json``, that its counts agree with each other, and that its tables have
the promised columns and rows, and name units that the model has. Knows the format, and nothing of how an index is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from expertmine.errors import UserError
from expertmine.specs.settings import Pooling
from expertmine.storage.locations import Location
from expertmine.storage.tables import TableFile, read_all
from expertmine.storage.untrusted import EVERY, mismatch

_CONCEPT = {
    "name": str,
    "group": str,
    "description": str,
    "positives": int,
    "negatives": int,
    "held_out": int,
    "chance": {
        "expected_ap": float,
        "threshold": (float, None),
        "units_above": (int, None),
        "labels_of": (str, None),
    },
    "stability": {EVERY: float},
}
_SCHEMA = {
    "format": int,
    "checksums": {EVERY: str},
    "top_k": int,
    "units": int,
    "plan": str,
    "pooling": str,
    "model": {"name": str, "revision": (str, None), "architecture": str, "weights": str, "tokenizer": str},
    "corpus": {"fingerprint": str, "sentences": int, "concepts": int},
    "responses": {"poolings": [str], "dtype": str, "max_tokens": int, "special_tokens": bool},
    "scoring": {"permutations": int, "resamples": int, "seed": int, "alpha": float},
    "hookpoints": [{"name": str, "width": int, "first_unit": int}],
    "concepts": [_CONCEPT],
}


def check_metadata(metadata: Any, path: Location) -> None:
    """Refuse an ``index.json`` that readers cannot trust.

    Raises:
        UserError: names the fault and its position in the document.
    """
    wrong = mismatch(metadata, _SCHEMA) or _contradiction(metadata)
    if wrong:
        raise UserError(
            f"{path} is damaged, or is not an expert index: {wrong}; reduce the run, or get the pack, again"
        )


def _contradiction(metadata: Mapping[str, Any]) -> str | None:
    """The first contradiction in a document that fits the schema."""
    if metadata["pooling"] not in get_args(Pooling):
        return f"pooling is {metadata['pooling']!r}"
    first = 0
    for hookpoint in metadata["hookpoints"]:
        if hookpoint["first_unit"] != first or hookpoint["width"] < 1:
            return f"the units of hookpoint {hookpoint['name']!r} do not follow those of the hookpoint before it"
        first += hookpoint["width"]
    if not 0 < first == metadata["units"]:
        return f"units is {metadata['units']}, but the hookpoints have {first} units"
    if len({hookpoint["name"] for hookpoint in metadata["hookpoints"]}) < len(metadata["hookpoints"]):
        return "two hookpoints have the same name"
    if not 1 <= metadata["top_k"] <= metadata["units"]:
        return f"top_k is {metadata['top_k']}: expected 1 to {metadata['units']}, the number of units"
    concepts = metadata["concepts"]
    if not concepts:
        return "it has no concepts"
    for named in (*metadata["hookpoints"], *concepts):
        if not named["name"].isprintable():
            return f"the name {named['name'][:80]!r} cannot be printed"
    if len({concept["name"] for concept in concepts}) < len(concepts):
        return "two concepts have the same name"
    for concept in concepts:
        if (concept["chance"]["threshold"] is None) != (concept["chance"]["units_above"] is None):
            return f"concept {concept['name']!r} has only one of threshold and units_above"
        if concept["stability"].keys() != concepts[0]["stability"].keys():
            return f"the stability of concept {concept['name']!r} has other keys than that of the first concept"
    return None


def check_rows(table: TableFile, rows: int, schema: pa.Schema) -> None:
    """Refuse a table without the promised rows and columns; reads only its footer.

    Raises:
        UserError: rows or columns differ, or the file is not Parquet.
    """
    path = table.path
    try:
        with table.open() as file:
            found, columns = file.metadata, file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}); reduce the run, or get the pack, again") from error
    if not columns.equals(schema):
        raise UserError(f"{path} does not have the columns of an expert index; reduce the run, or get the pack, again")
    if found.num_rows != rows:
        raise UserError(
            f"{path} has {found.num_rows:,} rows, but index.json promises {rows:,}; reduce the run, or get the pack, "
            "again"
        )


def read_units(file: TableFile, metadata: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """Read and check a table of units, one row per concept and rank.

    Raises:
        UserError: the table is damaged.
    """
    path = file.path
    kept, concepts = metadata["top_k"], [concept["name"] for concept in metadata["concepts"]]
    table = _read(file, kept * len(concepts), schema)
    if any(column.null_count for column in table.columns):
        raise _damaged(path, "it has null values")
    if (_positions(table["concept"], concepts) != np.repeat(np.arange(len(concepts)), kept)).any():
        raise _damaged(path, "its concepts differ from index.json in names or order")
    if (table["rank"].to_numpy().reshape(-1, kept) != np.arange(1, kept + 1)).any():
        raise _damaged(path, "its ranks do not count from 1")
    units = table["unit"].to_numpy()
    if units.min() < 0 or units.max() >= metadata["units"]:
        raise _damaged(path, f"it names units outside the model's {metadata['units']:,}")
    starts = np.array([hookpoint["first_unit"] for hookpoint in metadata["hookpoints"]])
    at = np.searchsorted(starts, units, side="right") - 1
    names = [hookpoint["name"] for hookpoint in metadata["hookpoints"]]
    if (_positions(table["hookpoint"], names) != at).any() or (table["channel"].to_numpy() != units - starts[at]).any():
        raise _damaged(path, "unit ids do not match their hookpoints and channels")
    if kept > 1 and (np.diff(np.sort(units.reshape(-1, kept), axis=1), axis=1) == 0).any():
        raise _damaged(path, "a unit occurs twice for one concept")
    return table


def read_distribution(file: TableFile, metadata: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """Read and check the table of the distribution of average precision.

    Raises:
        UserError: the table is damaged.
    """
    path = file.path
    concepts = [concept["name"] for concept in metadata["concepts"]]
    hookpoints = [hookpoint["name"] for hookpoint in metadata["hookpoints"]]
    table = _read(file, len(concepts) * len(hookpoints), schema)
    if any(table[name].null_count for name in schema.names if name not in ("layer", "above_chance")):
        raise _damaged(path, "it has null values")
    if (_positions(table["concept"], concepts) != np.repeat(np.arange(len(concepts)), len(hookpoints))).any():
        raise _damaged(path, "its concepts differ from index.json in names or order")
    if (_positions(table["hookpoint"], hookpoints) != np.tile(np.arange(len(hookpoints)), len(concepts))).any():
        raise _damaged(path, "its hookpoints differ from index.json in names or order")
    widths = np.tile([hookpoint["width"] for hookpoint in metadata["hookpoints"]], len(concepts))
    bins = table["bins"].combine_chunks().flatten()
    if bins.null_count or (table["units"].to_numpy() != widths).any():
        raise _damaged(path, "its hookpoints have other widths")
    counts = bins.to_numpy().reshape(len(widths), -1)
    if counts.min() < 0 or (counts.sum(axis=1) != widths).any():
        raise _damaged(path, "its bins do not hold every unit once")
    return table


def _positions(column: pa.ChunkedArray, names: list[str]) -> NDArray[np.int64]:
    """(rows,) position of each row's text among names; -1 if it is not one of them."""
    found: NDArray[np.int64] = pc.fill_null(pc.index_in(column, pa.array(names)), -1).to_numpy().astype(np.int64)
    return found


def _read(table: TableFile, rows: int, schema: pa.Schema) -> pa.Table:
    check_rows(table, rows, schema)
    try:
        with table.open() as file:
            found = read_all(file, table.size())
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{table.path} cannot be read ({error}); reduce the run, or get the pack, again") from error
    if found.num_rows != rows:
        raise _damaged(table.path, f"it has {found.num_rows:,} rows, but its footer says {rows:,}")
    return found


def _damaged(path: Location, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}; reduce the run, or get the pack, again")
