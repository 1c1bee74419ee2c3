"""Parquet tables, local or on an object store, and their checksums. Knows nothing of what the tables mean.

A few bytes of Parquet can encode one value a billion times. A table is therefore read piece by piece, and refused as
soon as it takes more memory than any honest file of its size.
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

MAX_EXPANSION = 1_000
"""Bytes in memory that a byte of a file may become; our own tables stay below a tenth of that."""
ALWAYS_ALLOWED = 64 * 2**20
"""Bytes in memory that any file may become."""
_PIECE, _CHUNK = 256, 1 << 16
"""Rows that are read at a time, and rows of the contiguous chunks that they are joined to."""


def write_table(path: Location, table: pa.Table, **options: Any) -> str:
    """Write a table atomically; returns the SHA-256 of its file.

    Args:
        options: passed to `pyarrow.parquet.write_table`.

    Raises:
        UserError: the disk is full or not writable, or the object store cannot be reached.
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
    """Read a table, or some columns or one row group; nothing else is fetched.

    Args:
        schema: columns and types that the whole table must have; None for any.
        rows: number of rows that the table, or the row group, must have; None for any.

    Raises:
        OSError: the file is missing or cannot be read.
        pyarrow.ArrowException: it is torn, has other columns or rows, or expands to more than a file of its size may.
    """

    def read(file: pq.ParquetFile, size: int) -> pa.Table:
        if schema is not None:
            require_schema(file, schema)
        if rows is not None:
            _require_rows(file, row_group, rows)
        return read_all(file, size, columns, row_group)

    if is_remote(path):

        def fetch() -> pa.Table:
            # The client's own read-ahead, of many megabytes, is off; pre_buffer reads ahead only the chosen columns.
            with (
                path.fs.open(path.path, "rb", cache_type="none") as remote,
                pq.ParquetFile(remote, pre_buffer=True) as file,
            ):
                return read(file, remote.size)

        return with_retries(path, fetch)
    with pq.ParquetFile(path, memory_map=True) as file:
        return read(file, path.stat().st_size)


def require_schema(file: pq.ParquetFile, schema: pa.Schema) -> None:
    """Refuse a table of other columns, by its footer alone; large strings count as strings.

    Raises:
        pyarrow.ArrowInvalid: names the columns found and expected.
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
    """Read an open table, or some columns or one row group.

    Args:
        size: bytes of the file.

    Raises:
        pyarrow.ArrowException: it is torn, or expands to more than a file of its size may.
    """
    allowed = ALWAYS_ALLOWED + MAX_EXPANSION * size
    schema = file.schema_arrow
    chosen = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    parts = _parts(file, row_group)
    groups = list(range(file.num_row_groups)) if row_group is None else [row_group]
    width = sum(map(_min_width, chosen.types))
    # A few rows of text may take much memory; numbers take what their count says.
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
        raise pa.ArrowInvalid(f"its {size:,} bytes expand to more than {allowed:,}; expertmine writes no such table")
    return pa.concat_tables([chosen.empty_table(), *chunks, pa.Table.from_batches(pieces, chosen).combine_chunks()])


def _parts(file: pq.ParquetFile, row_group: int | None) -> list[pq.RowGroupMetaData]:
    """Return the footer's metadata of all row groups, or of one."""
    if row_group is None:
        return [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    if row_group >= file.num_row_groups:
        raise pa.ArrowInvalid(f"it has {file.num_row_groups} row groups; row group {row_group} is missing")
    return [file.metadata.row_group(row_group)]


def _require_rows(file: pq.ParquetFile, row_group: int | None, rows: int) -> None:
    found = sum(part.num_rows for part in _parts(file, row_group))
    if found != rows:
        raise pa.ArrowInvalid(f"it has {found:,} rows, expected {rows:,}")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_primitive(kind))


def _min_width(kind: pa.DataType) -> int:
    """Return the fewest bytes that a row can take in memory."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _min_width(kind.value_type)
    try:
        return int(kind.bit_width) // 8
    except ValueError:  # text, lists
        return 4


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table's file that is read more than once; one on an object store is fetched once."""

    path: Location
    content: bytes | None
    """None for a local file."""

    @classmethod
    def of(cls, path: Location) -> TableFile:
        """Prepare a file for reading.

        Raises:
            FileNotFoundError: a remote file does not exist.
        """
        return cls(path, read_bytes(path) if is_remote(path) else None)

    def size(self) -> int:
        """Return the file's bytes.

        Raises:
            FileNotFoundError: it does not exist.
        """
        return self.path.stat().st_size if self.content is None else len(self.content)

    def checksum(self) -> str:
        """Return the SHA-256 of the file.

        Raises:
            FileNotFoundError: it does not exist.
        """
        return sha256_file(self.path) if self.content is None else hashlib.sha256(self.content).hexdigest()

    def open(self) -> pq.ParquetFile:
        """Open the table.

        Raises:
            OSError: it cannot be read.
            pyarrow.ArrowException: it is torn.
        """
        return pq.ParquetFile(self.path if self.content is None else pa.BufferReader(self.content))
