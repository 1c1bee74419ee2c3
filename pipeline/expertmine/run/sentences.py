"""The sentences of a run in the order in which they are stored: which text is in which row.

A run begins with the sentences of its corpus, in their order. When the corpus grows, its new sentences are appended as
another segment; stored rows stay where they are. On disk (``RUN/sentences/``): one Parquet file per segment, with
``key`` and ``text``, and a row group per partition, so that an extracting process reads no more than its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from expertmine.corpus.reader import Corpus
from expertmine.corpus.texts import text_key
from expertmine.errors import UserError
from expertmine.run import paths
from expertmine.run.open_run import OpenRun
from expertmine.specs.identity import Segment
from expertmine.storage.locations import Location
from expertmine.storage.tables import read_table, write_table

SCHEMA = pa.schema([("key", pa.large_string()), ("text", pa.large_string())])
_BATCH = 1 << 16


def segment_of(table: pa.Table) -> Segment:
    """The segment that a plan has for a table of keys and texts."""
    digest = hashlib.sha256()
    for keys in table["key"].chunks:
        for start in range(0, len(keys), _BATCH):
            digest.update("".join(keys.slice(start, _BATCH).to_pylist()).encode())
    return Segment(table.num_rows, digest.hexdigest())


def of_corpus(corpus: Corpus) -> pa.Table:
    """Keys and texts of a corpus, in its order."""
    return corpus.table("sentences").select(["key", "text"]).cast(SCHEMA)


def write_segment(run: Location, at: int, table: pa.Table, partition_rows: int) -> None:
    """Write the sentences of a segment, whole or not at all.

    Raises:
        UserError: the disk is full or refuses.
    """
    write_table(paths.sentences_file(run, at), table, row_group_size=partition_rows, use_dictionary=False)


def texts(run: OpenRun, partition: int) -> list[str]:
    """The sentences of one partition, in order of their rows.

    Raises:
        UserError: the file is missing or torn, or its texts do not match their keys.
    """
    layout = run.plan.layout
    segment = layout.segment_of(partition)
    group = partition - layout.first_row(segment) // layout.partition_rows
    path = paths.sentences_file(run.path, segment)
    try:
        table = read_table(path, row_group=group, schema=SCHEMA, rows=len(layout.partition(partition)))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error}); plan the run again in another folder") from error
    found: list[str] = table["text"].to_pylist()
    if [text_key(text) for text in found] != table["key"].to_pylist():
        raise UserError(f"{path}: texts do not match their keys; plan the run again in another folder")
    return found


def rows_of(run: OpenRun, corpus: Corpus) -> NDArray[np.int64]:
    """(sentences,) the row in which each sentence of a corpus is stored, −1 if it is not stored.

    Raises:
        UserError: the run's sentences cannot be read, or are not those of its plan.
    """
    segments = list(_keys(run))
    at = pc.index_in(corpus.table("sentences")["key"].cast(pa.large_string()), pa.chunked_array(segments))
    first = np.concatenate(
        [run.plan.layout.first_row(segment) + np.arange(len(keys)) for segment, keys in enumerate(segments)]
    )  # the row of each key
    found = at.fill_null(-1).to_numpy().astype(np.int64)
    return np.where(found >= 0, first[found], -1)


def _keys(run: OpenRun) -> Iterator[pa.Array]:
    for at, segment in enumerate(run.plan.segments):
        path = paths.sentences_file(run.path, at)
        try:
            table = read_table(path, columns=["key"], schema=SCHEMA, rows=segment.sentences)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: cannot be read ({error}); plan the run again in another folder") from error
        if segment_of(table) != segment:
            raise UserError(f"{path}: not the sentences of this run's plan; plan the run again in another folder")
        yield table["key"].combine_chunks()
