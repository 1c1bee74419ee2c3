"""Reads the user's own data: tables with a text, a concept and a label per row, as CSV, Parquet or JSON lines.

The same text or concept may occur in any number of rows and files. Knows tables and their errors; nothing of sampling.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expertmine.concepts.labelling import Candidate
from expertmine.concepts.streams import lines
from expertmine.corpus.drafts import Refusals, brief, concept_name, remark, take_text
from expertmine.corpus.texts import Texts, normalise
from expertmine.errors import UserError
from expertmine.telemetry.progress import track

_BATCH = 1 << 14

Spelling = Literal["0 and 1", "true and false", "positive and negative"]

_WORDS: dict[str, tuple[Spelling, bool]] = {
    "1": ("0 and 1", True),
    "0": ("0 and 1", False),
    "true": ("true and false", True),
    "false": ("true and false", False),
    "positive": ("positive and negative", True),
    "negative": ("positive and negative", False),
}


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns."""

    text: str = "text"
    concept: str = "concept"
    label: str | None = "label"
    """None if there is none; then every row is a positive."""
    group: str = "group"
    """The table may lack it."""
    description: str = "description"
    """The table may lack it."""


@dataclass
class _Rows:
    """What has been read of one concept."""

    groups: set[str] = field(default_factory=set)
    descriptions: set[str] = field(default_factory=set)
    positives: array[int] = field(default_factory=lambda: array("i"))
    negatives: array[int] = field(default_factory=lambda: array("i"))


def read_tables(paths: Sequence[Path], columns: Columns, texts: Texts, refusals: Refusals) -> list[Candidate]:
    """Read concepts from tables: ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson`` (each also ``.gz``) and ``.parquet``.

    Labels are 0 and 1, true and false, or positive and negative, with one spelling per file. If a concept has several
    groups or descriptions, the alphabetically first is taken.

    Raises:
        UserError: a file is missing, empty or malformed, a column is absent, or a value is invalid; names the line.
    """
    found: dict[str, _Rows] = {}
    for path in paths:
        spelling: Spelling | None = None
        rows = 0
        for where, row in _read(path, columns):
            rows += 1
            text, name = (_text(row, column, where) for column in (columns.text, columns.concept))
            positive = True
            if columns.label is not None:
                positive, spelling = _label(row[columns.label], spelling, where)
            text_id = take_text(texts, text, where, refusals)
            concept = found.get(name)
            if concept is None:
                concept = found[name] = found.setdefault(concept_name(name, where), _Rows())
            for remarks, column in ((concept.groups, columns.group), (concept.descriptions, columns.description)):
                if row.get(column):
                    remarks.add(remark(row[column]))
            if text_id is not None:
                (concept.positives if positive else concept.negatives).append(text_id)
        if not rows:
            raise UserError(f"{path}: holds no row; expected a text, a concept and a label per row")
    return [
        Candidate(
            name=name,
            group=min(rows_.groups - {""}, default=""),
            description=min(rows_.descriptions - {""}, default=""),
            members=np.asarray(rows_.positives, np.int32),
            hard_negatives={"listed": partial(np.asarray, rows_.negatives, np.int32)},
        )
        for name, rows_ in found.items()
        if name == normalise(name)  # other spellings share the same _Rows
    ]


def _read(path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row of a table with its file and line."""
    name = path.name.lower().removesuffix(".gz")
    if not path.is_file():
        raise UserError(f"{path}: is not a file; expected a table of texts, concepts and labels")
    if name.endswith(".parquet"):
        return _read_parquet(path, columns)
    if name.endswith((".csv", ".tsv")):
        return _read_csv(path, columns, "\t" if name.endswith(".tsv") else ",")
    if name.endswith((".jsonl", ".ndjson")):
        return _read_json_lines(path, columns)
    raise UserError(f"{path}: expected a name that ends in .csv, .tsv, .jsonl, .ndjson (or these with .gz) or .parquet")


def _read_csv(path: Path, columns: Columns, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # The csv module's own limit would end the command at a long field; without it, the sentence is refused and counted.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line + "\n" for _, line in lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        _require_columns(path, header, columns)
        begins = reader.line_num + 1
        for fields in reader:
            if len(fields) != len(header) and fields:
                raise UserError(
                    f"{path}, line {begins}: {len(fields)} fields, expected {len(header)} as in the header; "
                    "quote texts that hold the delimiter"
                )
            if fields:
                yield f"{path}, line {begins}", dict(zip(header, fields, strict=True))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error}); correct that line") from error


def _read_json_lines(path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            fault = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise UserError(f"{path}, line {number}: not JSON ({fault}); expected an object per line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: {type(row).__name__}, expected an object per line")
        for column, option in _required(columns):
            if column not in row:
                raise UserError(f"{path}, line {number}: has no {column!r} among {brief(', '.join(row))}; {option}")
        yield f"{path}, line {number}", row


def _read_parquet(path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        file = pq.ParquetFile(path)
        _require_columns(path, file.schema_arrow.names, columns)
        wanted = [name for name in file.schema_arrow.names if name in _all_of(columns)]
        row_number = 0
        batches = file.iter_batches(_BATCH, columns=wanted)
        for batch in track(batches, f"read {path.name}", -(-file.metadata.num_rows // _BATCH)):
            for row in batch.to_pylist():
                row_number += 1
                yield f"{path}, row {row_number}", row
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}); write the file again") from error


def _all_of(columns: Columns) -> set[str]:
    """Return the names of all columns that are read."""
    return {columns.text, columns.concept, columns.label or columns.text, columns.group, columns.description}


def _require_columns(path: Path, header: Sequence[str], columns: Columns) -> None:
    for column, option in _required(columns):
        if column not in header:
            raise UserError(f"{path}: no column {column!r} among {brief(', '.join(header))}; {option}")
    for column in header:
        if header.count(column) > 1 and column in _all_of(columns):
            raise UserError(f"{path}: two columns are named {column!r}; remove one")


def _required(columns: Columns) -> Iterator[tuple[str, str]]:
    """Yield the required columns, each with the remedy if it is missing."""
    yield columns.text, "name it with --text-column"
    yield columns.concept, "name it with --concept-column"
    if columns.label is not None:
        yield columns.label, "name it with --label-column, or use --no-labels if every row is a positive"


def _text(row: dict[str, Any], column: str, where: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise UserError(f"{where}: {column} is {brief(value)} ({type(value).__name__}), expected text")
    return value


def _label(value: Any, spelling: Spelling | None, where: str) -> tuple[bool, Spelling]:
    """Return whether a label means positive, and its spelling.

    Raises:
        UserError: the label is invalid, or spelled differently from those before it.
    """
    word = str(int(value)) if isinstance(value, float) and value in (0.0, 1.0) else str(value).strip().lower()
    if word not in _WORDS:
        raise UserError(f"{where}: label is {brief(value)}; expected 0 or 1, true or false, or positive or negative")
    found, positive = _WORDS[word]
    if spelling is not None and found != spelling:
        raise UserError(f"{where}: label is {brief(value)}, but labels before it are {spelling}; use one spelling")
    return positive, found
