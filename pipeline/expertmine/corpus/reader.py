"""Reads a corpus: unique sentences, concepts, and the labels that connect them, in Parquet files.

Knows neither the sources of concepts, nor how a corpus is written, nor models. On disk (``CORPUS/``):

- ``sentences.parquet``: ``sentence_id`` (= row), ``text``, ``key`` (hash of the text), ``held_out``
- ``concepts.parquet``: ``concept_id`` (= row), ``name``, ``group``, ``description``, ``sense_keys``, ``pool`` (or null)
- ``labels.parquet``: ``concept_id``, ``sentence_id``, ``label`` (1 positive, 0 negative, -1 neither), by both ids
- ``pools.parquet``: ``pool_id``, ``sentence_id``, sorted: negatives that concepts share
- ``left_out.parquet``: ``concept_id``, ``key``: hashes of further texts labelled neither, which matter in a merge
- ``refused.parquet``: refused input with the reasons; for people
- ``corpus.json``: counts, sources, fingerprint

A concept's negatives are the sentences that it labels 0, and the sentences of its pool that it does not label. Ten
thousand concepts with all other sentences of a million as negatives thus cost no more than their positives.

The order is canonical, so the fingerprint depends on the content alone: concepts are sorted by name; sentences shared
as negatives come first, then each concept's own, each group sorted by key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from expertmine.corpus.draws import Ids
from expertmine.corpus.texts import text_key
from expertmine.errors import UnknownConcept, UserError
from expertmine.specs.identity import CorpusIdentity
from expertmine.storage.files import read_json
from expertmine.storage.locations import Location
from expertmine.storage.tables import read_table
from expertmine.storage.untrusted import mismatch

FORMAT = 2
SCHEMAS = {
    "sentences": pa.schema(
        [
            ("sentence_id", pa.int32()),
            ("text", pa.large_string()),
            ("key", pa.string()),
            ("held_out", pa.bool_()),
        ]
    ),
    "concepts": pa.schema(
        [
            ("concept_id", pa.int32()),
            ("name", pa.string()),
            ("group", pa.string()),
            ("description", pa.string()),
            ("sense_keys", pa.list_(pa.string())),
            ("pool", pa.int32()),
        ]
    ),
    "labels": pa.schema([("concept_id", pa.int32()), ("sentence_id", pa.int32()), ("label", pa.int8())]),
    "pools": pa.schema([("pool_id", pa.int32()), ("sentence_id", pa.int32())]),
    "left_out": pa.schema([("concept_id", pa.int32()), ("key", pa.binary(16))]),
    "refused": pa.schema([(name, pa.string()) for name in ("kind", "name", "reason", "detail")]),
}
COLUMNS = {name: schema.names for name, schema in SCHEMAS.items()}
FILES = ("corpus.json", *(f"{name}.parquet" for name in COLUMNS))
"""The files of a corpus folder."""
METADATA: dict[str, Any] = {
    "format": int,
    "fingerprint": str,
    "sentences": int,
    "concepts": int,
    "labels": int,
    "pools": [int],
    "held_out_sentences": int,
    "held_out_percent": float,
    "sources": [str],
    "repeats_dropped": int,
    "conflicts_resolved": int,
    "texts_not_used": int,
    "refused": [{"kind": str, "reason": str, "count": int}],
}
"""The schema of ``corpus.json``."""

_BATCH = 1 << 16


@dataclass(frozen=True, slots=True)
class Concept:
    """A concept of a corpus."""

    concept_id: int
    name: str
    group: str
    description: str
    sense_keys: tuple[str, ...]
    """WordNet's sense keys, if it has any."""
    pool: int | None
    """Id of the pool of negatives that it shares with other concepts."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of one concept without its pool; sentence ids, ascending."""

    positives: Ids
    negatives: Ids
    """Negatives in addition to the pool's."""
    neither: Ids
    """Sentences of its pool that are neither negatives nor positives."""


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """All labels of one concept; sentence ids, ascending."""

    positives: Ids
    negatives: Ids
    """All negatives, including the pool's."""


def membership(sets: Sequence[Ids], total: int) -> NDArray[np.bool_]:
    """Return (sets, total): whether each set holds each id below `total`."""
    holds = np.zeros((len(sets), total), np.bool_)
    for at, ids in enumerate(sets):
        holds[at, ids] = True
    return holds


def fingerprint(tables: dict[str, pa.Table]) -> str:
    """Return the SHA-256 of concepts, keys, held-out split, labels and pools, whatever Parquet's encoding."""
    digest = hashlib.sha256()
    concepts, sentences = tables["concepts"], tables["sentences"]
    for column in (concepts["name"], concepts["group"], concepts["description"], sentences["key"]):
        _digest_texts(digest, column)
    for keys in concepts["sense_keys"].to_pylist():
        digest.update("\0".join(keys).encode() + b"\1")
    digest.update(np.packbits(sentences["held_out"].to_numpy()).tobytes())
    digest.update(concepts["pool"].fill_null(-1).to_numpy().astype("<i4").tobytes())
    for table, name, dtype in (
        ("labels", "concept_id", "<i4"),
        ("labels", "sentence_id", "<i4"),
        ("labels", "label", "<i1"),
        ("pools", "pool_id", "<i4"),
        ("pools", "sentence_id", "<i4"),
        ("left_out", "concept_id", "<i4"),
    ):
        digest.update(tables[table][name].to_numpy().astype(dtype).tobytes() + b"\1")
    digest.update(b"".join(tables["left_out"]["key"].to_pylist()))
    return digest.hexdigest()


def _digest_texts(digest: hashlib._Hash, column: pa.ChunkedArray) -> None:
    for start in range(0, len(column), _BATCH):
        digest.update("".join(f"{text}\0" for text in column.slice(start, _BATCH).to_pylist()).encode())
    digest.update(b"\1")


@dataclass(frozen=True)
class Corpus:
    """An open corpus folder; tables are read on first use."""

    path: Location
    metadata: dict[str, Any]
    """``corpus.json``."""

    @classmethod
    def open(cls, path: Location) -> Corpus:
        """Open a corpus folder.

        Raises:
            UserError: it is missing, or has another format.
        """
        metadata = read_json(path / "corpus.json", "a corpus made by `expertmine concepts …`")
        wrong = mismatch(metadata, METADATA)
        if wrong or metadata["format"] != FORMAT:
            raise UserError(
                f"{path / 'corpus.json'}: not a corpus of format {FORMAT}{f' ({wrong})' if wrong else ''}; "
                "build the corpus again"
            )
        corpus = cls(path, metadata)
        try:
            _ = corpus.identity
        except UserError as error:
            raise UserError(f"{path / 'corpus.json'}: {error}; build the corpus again") from error
        return corpus

    @property
    def identity(self) -> CorpusIdentity:
        """Its fingerprint and counts."""
        return CorpusIdentity(self.metadata["fingerprint"], self.metadata["sentences"], self.metadata["concepts"])

    def check(self) -> None:
        """Compare the tables with the recorded fingerprint, and every text with its key.

        Raises:
            UserError: they differ, so the folder is torn or was edited.
        """
        tables = {name: self.table(name) for name in COLUMNS}
        texts, keys = tables["sentences"]["text"], tables["sentences"]["key"]
        sound = fingerprint(tables) == self.identity.fingerprint and all(
            text_key(text) == key
            for start in range(0, len(texts), _BATCH)
            for text, key in zip(
                texts.slice(start, _BATCH).to_pylist(), keys.slice(start, _BATCH).to_pylist(), strict=True
            )
        )
        if not sound:
            raise UserError(f"{self.path}: tables do not match corpus.json's fingerprint; build the corpus again")

    def texts(self, rows: range) -> list[str]:
        """Return the texts of some consecutive sentences."""
        texts: list[str] = self._sentences["text"].slice(rows.start, len(rows)).to_pylist()
        return texts

    @cached_property
    def held_out(self) -> NDArray[np.bool_]:
        """(sentences,) whether each is held out from mining."""
        flags: NDArray[np.bool_] = self._sentences["held_out"].to_numpy()
        return flags

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        """All concepts, by id."""
        rows = self.table("concepts").to_pylist()
        if unprintable := [row["name"] for row in rows if not row["name"].isprintable()]:
            raise self._damaged("concepts", f"the name {unprintable[0][:80]!r} is not printable")
        return tuple(Concept(**{**row, "sense_keys": tuple(row["sense_keys"])}) for row in rows)

    def concept(self, name: str) -> Concept:
        """Return the concept of a name.

        Raises:
            UnknownConcept: no concept has it; the message suggests the nearest.
        """
        for concept in self.concepts:
            if concept.name == name:
                return concept
        raise UnknownConcept.among(name, [concept.name for concept in self.concepts], str(self.path))

    @cached_property
    def pools(self) -> tuple[Ids, ...]:
        """Sentence ids of each pool of shared negatives, ascending."""
        table = self.table("pools")
        owners, ids = table["pool_id"].to_numpy(), table["sentence_id"].to_numpy()
        count = int(owners[-1]) + 1 if len(owners) else 0
        return tuple(np.split(ids, np.searchsorted(owners, np.arange(1, count)))) if count else ()

    def labels(self, concept_id: int) -> Labels:
        """Return the labels of a concept without its pool, held out or not."""
        indptr, sentence_ids, labels = self._labels
        span = slice(indptr[concept_id], indptr[concept_id + 1])
        ids, label = sentence_ids[span], labels[span]
        return Labels(ids[label == 1], ids[label == 0], ids[label == -1])

    def left_out(self, concept_id: int) -> NDArray[np.uint64]:
        """Return the hashes (texts, 2) of texts outside a concept's pool, or the corpus, that are not its negatives."""
        owners, keys = self._left_out
        return keys[slice(*np.searchsorted(owners, [concept_id, concept_id + 1]))]

    @cached_property
    def _left_out(self) -> tuple[Ids, NDArray[np.uint64]]:
        table = self.table("left_out")
        joined = b"".join(table["key"].to_pylist())
        return table["concept_id"].to_numpy(), np.frombuffer(joined, ">u8").reshape(-1, 2).astype(np.uint64)

    def rows(self, concept_id: int) -> LabelledRows:
        """Return every sentence of a concept, held out or not; with a large pool, prefer `labels` or `counts`."""
        own = self.labels(concept_id)
        pool = self.concepts[concept_id].pool
        if pool is None:
            return LabelledRows(own.positives, own.negatives)
        indptr, sentence_ids, _ = self._labels
        labelled = sentence_ids[indptr[concept_id] : indptr[concept_id + 1]]
        shared = np.setdiff1d(self.pools[pool], labelled, assume_unique=True)
        return LabelledRows(own.positives, np.union1d(shared, own.negatives))

    def counts(self, among: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count each concept's positives and negatives among some sentences; both (concepts,).

        Args:
            among: (sentences,) which sentences count.
        """
        indptr, sentence_ids, labels = self._labels
        no_pool = np.empty(0, np.int32)  # becomes the last row, which index -1 finds
        in_pool = membership([*self.pools, no_pool], len(among)) & among
        pools = np.array([-1 if concept.pool is None else concept.pool for concept in self.concepts], np.int64)
        owner = np.repeat(np.arange(len(pools)), np.diff(indptr))
        usable = among[sentence_ids]

        def of_each_concept(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
            return np.bincount(owner[chosen], minlength=len(pools))

        labelled_in_pool = of_each_concept(in_pool[pools[owner], sentence_ids])
        negatives = of_each_concept(usable & (labels == 0)) + in_pool.sum(axis=1)[pools] - labelled_in_pool
        return of_each_concept(usable & (labels == 1)), negatives

    def table(self, name: str) -> pa.Table:
        """Read one of the tables.

        Raises:
            UserError: it is missing, torn, or does not match corpus.json.
        """
        expected = None if name == "refused" else {**self.metadata, "pools": sum(self.metadata["pools"])}.get(name)
        try:
            table = read_table(self.path / f"{name}.parquet", schema=SCHEMAS[name], rows=expected)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.path / name}.parquet: cannot be read ({error}); build the corpus again") from error
        if any(table[column].null_count for column in table.column_names if column != "pool"):
            raise self._damaged(name, "it has null values")
        counts = {"concept_id": "concepts", "sentence_id": "sentences", "pool_id": "pools", "pool": "pools"}
        for column in table.column_names:
            if column in counts and table.num_rows:
                of = self.metadata[counts[column]]
                self._require_ids(name, table[column], len(of) if isinstance(of, list) else of)
        return table

    def _require_ids(self, table: str, ids: pa.ChunkedArray, count: int) -> None:
        bounds = pc.min_max(ids).as_py()
        if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < count:
            found = f"it has ids from {bounds['min']} to {bounds['max']}"
            raise self._damaged(table, f"{found}, expected ids below {count:,}")

    def _damaged(self, table: str, why: str) -> UserError:
        return UserError(f"{self.path / table}.parquet is damaged: {why}; build the corpus again")

    @cached_property
    def _sentences(self) -> pa.Table:
        return self.table("sentences")

    @cached_property
    def _labels(self) -> tuple[NDArray[np.int64], Ids, NDArray[np.int8]]:
        table = self.table("labels")
        indptr = np.searchsorted(table["concept_id"].to_numpy(), np.arange(self.identity.concepts + 1))
        return indptr, table["sentence_id"].to_numpy(), table["label"].to_numpy()
