"""Parquet tables, here or on an object store, and their checksums."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expertmine.files import persistently, read_bytes, sha256_file, write_atomically
from expertmine.places import Place, is_remote


def write_table(path: Place, table: pa.Table, **options: Any) -> str:
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


def read_table(path: Place, columns: Sequence[str] | None = None, row_group: int | None = None) -> pa.Table:
    """A table, or some columns or one row group of it; no more than that is fetched.

    Raises:
        OSError: it is not there or cannot be read.
        pyarrow.ArrowException: it is torn.
    """
    wanted = None if columns is None else list(columns)

    def read(file: pq.ParquetFile) -> pa.Table:
        return file.read(wanted) if row_group is None else file.read_row_group(row_group, wanted)

    def fetch() -> pa.Table:
        with path.open("rb") as remote, pq.ParquetFile(remote) as file:
            return read(file)

    if is_remote(path):
        return persistently(path, fetch)
    with pq.ParquetFile(path, memory_map=True) as file:
        return read(file)


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table's file that is read more than once; fetched where it lies on an object store."""

    path: Place
    content: bytes | None
    """None for a file of this machine."""

    @classmethod
    def of(cls, path: Place) -> TableFile:
        """Raises:
        FileNotFoundError: it is not there.
        """
        return cls(path, read_bytes(path) if is_remote(path) else None)

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
