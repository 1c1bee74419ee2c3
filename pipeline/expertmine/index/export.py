"""Exports tables of an index as CSV or Parquet for other programs. Needs no run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.index.lookup import k_or_all
from expertmine.specs.choices import Units
from expertmine.storage.files import write_atomically

TableFormat = Literal["csv", "parquet"]
Format = Literal["selfcond", "csv", "parquet"]


def export_table(
    experts: Experts,
    out: Path,
    form: TableFormat,
    concepts: Sequence[str] = (),
    which: Units = "experts",
    k: int | None = None,
) -> int:
    """Write a table of an index as one file; returns its number of rows.

    Args:
        concepts: the concepts to export; rows keep the index's order. All by default.
        which: which of their units.
        k: units per concept; by default all that the index has.

    Raises:
        UnknownConcept: a concept is not in the index.
        UserError: k out of range, or the file cannot be written.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder; give a file, such as {out / f'{which}.{form}'}")
    table = cut(experts, experts.units_table(which), concepts, k_or_all(experts, k))
    buffer = io.BytesIO()
    if form == "csv":
        pyarrow.csv.write_csv(table, buffer)
    else:
        pq.write_table(table, buffer, compression="zstd")
    write_atomically(out, buffer.getvalue())
    return int(table.num_rows)


def cut(experts: Experts, table: pa.Table, concepts: Sequence[str], k: int) -> pa.Table:
    """The first k rows of each given concept in a table of units; all concepts if none is given.

    Raises:
        UnknownConcept: a concept is not in the index.
    """
    for name in concepts:
        experts.concept_metadata(name)  # raises UnknownConcept
    wanted = set(concepts or experts)
    chosen = np.array([name in wanted for name in experts])
    return table.filter(pa.array((chosen[:, np.newaxis] & (np.arange(experts.top_k) < k)).ravel()))
