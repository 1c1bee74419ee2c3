"""Parquet tables, here or on an object store, and their checksums.

A few bytes of Parquet can say one value a billion times. A table is therefore taken in piece by piece, and refused as
soon as it holds more than any honest file of its size does. Knows nothing of what tables are about.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expertmine.storage.files import read_bytes, sha256_file, with_retries, write_atomically
from expertmine.storage.locations import Location, is_remote
from expertmine.storage.untrusted import visible

UNFOLDED = 1_000
"""Bytes in memory that a byte of a file may become; tables of ours stay below a tenth of that."""
ALWAYS = 64 * 2**20
"""Bytes in memory that any file may become."""
_PIECE, _CHUNK = 256, 1 << 16
"""Rows that are taken in at a time, and rows that lie together after that."""


def write_table(path: Location, table: pa.Table, **options: Any) -> str:
    """Write a table whole or not at all; returns the checksum of its file.

    Args:
        options: of `pyarrow.parquet.write_table`.

    Raises:
        UserError: the disk is full or refuses, or the object store cannot be reached.
    """
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", **options)
    content = buffer.getvalue()
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def read_table(
    path: Location,
    columns: Sequence[str] | None = None,
    row_group: int | None = None,
    schema: pa.Schema | None = None,
    rows: int | None = None,
) -> pa.Table:
    """A table, or some columns or one row group of it; no more than that is fetched.

    Args:
        schema: columns and types that the whole table must have; None where any will do.
        rows: that it must have, or its row group; None for any number.

    Raises:
        OSError: it is not there or cannot be read.
        pyarrow.ArrowException: it is torn, has other columns or rows, or unfolds to more than a file of its size may.
    """

    def read(file: pq.ParquetFile, size: int) -> pa.Table:
        if schema is not None:
            require_schema(file, schema)
        if rows is not None:
            _require_rows(file, row_group, rows)
        return read_all(file, size, columns, row_group)

    if is_remote(path):

        def fetch() -> pa.Table:
            # Without the client's own reading ahead, of many megabytes; the second reads ahead what was asked for.
            with (
                path.fs.open(path.path, "rb", cache_type="none") as remote,
                pq.ParquetFile(remote, pre_buffer=True) as file,
            ):
                return read(file, remote.size)

        return with_retries(path, fetch)
    with pq.ParquetFile(path, memory_map=True) as file:
        return read(file, path.stat().st_size)


def require_schema(file: pq.ParquetFile, schema: pa.Schema) -> None:
    """Refuse a table of other columns, from its footer alone; long text counts as text.

    Raises:
        pyarrow.ArrowInvalid: says which it has.
    """
    found = file.schema_arrow
    if _columns(found) != _columns(schema):
        has, expected = (", ".join(f"{name} {kind}" for name, kind in _columns(each)) for each in (found, schema))
        raise pa.ArrowInvalid(f"columns are {visible(has[:300])}, expected {expected}")


def _columns(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    kinds = [pa.string() if pa.types.is_large_string(kind) else kind for kind in schema.types]
    return list(zip(schema.names, kinds, strict=True))


def read_all(
    file: pq.ParquetFile, size: int, columns: Sequence[str] | None = None, row_group: int | None = None
) -> pa.Table:
    """All of an open table, or some columns or one row group of it.

    Args:
        size: bytes of the file.

    Raises:
        pyarrow.ArrowException: it is torn, or unfolds to more than a file of its size may.
    """
    allowed = ALWAYS + UNFOLDED * size
    schema = file.schema_arrow
    chosen = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    parts = _parts(file, row_group)
    groups = list(range(file.num_row_groups)) if row_group is None else [row_group]
    width = sum(map(_least_width, chosen.types))
    # Of text, a few rows may be much; of numbers, their count says all.
    piece_rows = _CHUNK if all(map(_is_number, chosen.types)) else _PIECE
    claimed = sum(max(part.total_byte_size, part.num_rows * width) for part in parts)
    held, chunks, pieces, rows = 0, [], [], 0
    for piece in () if claimed > allowed else file.iter_batches(piece_rows, groups, columns):
        held += piece.nbytes
        if held > allowed:
            break
        pieces.append(piece)
        rows += piece.num_rows
        if rows >= _CHUNK:
            chunks.append(pa.Table.from_batches(pieces).combine_chunks())
            pieces, rows = [], 0
    if max(held, claimed) > allowed:
        raise pa.ArrowInvalid(f"its {size:,} bytes unfold to more than {allowed:,}, which no table of ours does")
    return pa.concat_tables([chosen.empty_table(), *chunks, pa.Table.from_batches(pieces, chosen).combine_chunks()])


def _parts(file: pq.ParquetFile, row_group: int | None) -> list[pq.RowGroupMetaData]:
    """What the footer says of all row groups, or of one."""
    if row_group is None:
        return [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    if row_group >= file.num_row_groups:
        raise pa.ArrowInvalid(f"it has {file.num_row_groups} row groups, and number {row_group} is missing")
    return [file.metadata.row_group(row_group)]


def _require_rows(file: pq.ParquetFile, row_group: int | None, rows: int) -> None:
    found = sum(part.num_rows for part in _parts(file, row_group))
    if found != rows:
        raise pa.ArrowInvalid(f"it has {found:,} rows, and {rows:,} are promised")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_primitive(kind))


def _least_width(kind: pa.DataType) -> int:
    """Bytes that a row takes in memory at least."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _least_width(kind.value_type)
    try:
        return int(kind.bit_width) // 8
    except ValueError:  # text, lists
        return 4


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table's file that is read more than once; fetched where it lies on an object store."""

    path: Location
    content: bytes | None
    """None for a file of this machine."""

    @classmethod
    def of(cls, path: Location) -> TableFile:
        """Raises:
        FileNotFoundError: it is not there.
        """
        return cls(path, read_bytes(path) if is_remote(path) else None)

    def size(self) -> int:
        """Bytes of the file.

        Raises:
            FileNotFoundError: it is not there.
        """
        return self.path.stat().st_size if self.content is None else len(self.content)

    def checksum(self) -> str:
        """Raises:
        FileNotFoundError: it is not there.
        """
        return sha256_file(self.path) if self.content is None else hashlib.sha256(self.content).hexdigest()

    def open(self) -> pq.ParquetFile:
        """Raises:
        OSError: it cannot be read.
        pyarrow.ArrowException: it is torn.
        """
        return pq.ParquetFile(self.path if self.content is None else pa.BufferReader(self.content))
