"""A corpus: unique sentences, concepts, and the labels that join them, as three Parquet files.

Knows nothing of where concepts come from nor of models. On disk (``CORPUS/``):

- ``sentences.parquet``: ``sentence_id`` (= row), ``text``, ``key`` (hash of the text), ``held_out``
- ``concepts.parquet``: ``concept_id`` (= row), ``name``, ``group``, ``description``
- ``labels.parquet``: ``concept_id``, ``sentence_id``, ``label`` (1 positive, 0 negative), sorted by both ids
- ``corpus.json``: counts, sources, fingerprint

Order carries no meaning: concepts are sorted by name; sentences lie negatives-of-many first, then concept by concept,
each run in the order of the keys. The fingerprint is therefore that of the content.
"""

from __future__ import annotations

import hashlib
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expertmine.errors import UnknownConcept, UserError
from expertmine.files import read_json, write_atomically, write_json
from expertmine.specs import CorpusIdentity

FORMAT = 1
COLUMNS = {
    "sentences": ["sentence_id", "text", "key", "held_out"],
    "concepts": ["concept_id", "name", "group", "description"],
    "labels": ["concept_id", "sentence_id", "label"],
}
FILES = ("corpus.json", *(f"{name}.parquet" for name in COLUMNS))
"""What a corpus folder consists of."""


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """A concept as its reader hands it over: two sets of texts."""

    name: str
    group: str
    description: str
    positives: Sequence[str]
    negatives: Sequence[str]


@dataclass(frozen=True, slots=True)
class Concept:
    """A concept of a corpus."""

    concept_id: int
    name: str
    group: str
    description: str


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Sentence ids of one concept, ascending, int32."""

    positives: NDArray[np.int32]
    negatives: NDArray[np.int32]


def normalise(text: str) -> str:
    """The text as it is stored: Unicode NFC, each run of white space one blank, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def text_key(text: str) -> str:
    """Content hash of a normalised text: 128 bits of BLAKE2b, in hexadecimal."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def is_held_out(key: str, percent: float) -> bool:
    """Whether the sentence is kept from mining: depends on its text alone, so no text is on both sides."""
    return int(key[:8], 16) < percent / 100 * 2**32


def write_corpus(
    concepts: Iterable[LabelledTexts], out: Path, sources: Sequence[str], held_out_percent: float = 0.0
) -> CorpusIdentity:
    """Write a corpus folder; ``corpus.json`` goes first and comes back last: without it there is no corpus.

    A text that a concept calls both positive and negative counts as positive. Repeats count once.

    Args:
        held_out_percent: share of the unique sentences, 0 to 90, that mining will not see.

    Raises:
        UserError: an empty or repeated name, an empty text, a concept without positive or negative sentences, or a
            folder that belongs to a run.
    """
    if (out.parent / "plan.json").exists():
        raise UserError(f"{out} belongs to the run {out.parent}, which would be lost; write the corpus elsewhere")
    if not 0 <= held_out_percent <= 90:
        raise UserError(f"held-out share is {held_out_percent} %: expected 0 to 90")
    members, keys, counts = _collect(concepts, held_out_percent)
    order = _row_order(members, keys)
    row_of = {text: row for row, text in enumerate(order)}

    concept_ids: list[NDArray[np.int32]] = []
    sentence_ids: list[NDArray[np.int32]] = []
    labels: list[NDArray[np.int8]] = []
    for concept_id, (_, positives, negatives) in enumerate(members):
        rows = np.array([row_of[text] for texts in (positives, negatives) for text in texts], np.int32)
        marks = np.repeat(np.array([1, 0], np.int8), [len(positives), len(negatives)])
        by_row = np.argsort(rows)
        concept_ids.append(np.full(len(rows), concept_id, np.int32))
        sentence_ids.append(rows[by_row])
        labels.append(marks[by_row])

    sentences = pa.table(
        {
            "sentence_id": pa.array(range(len(order)), pa.int32()),
            "text": pa.array(order, pa.string()),
            "key": pa.array([keys[text] for text in order], pa.string()),
            "held_out": pa.array([is_held_out(keys[text], held_out_percent) for text in order], pa.bool_()),
        }
    )
    concept_table = pa.table(
        {
            "concept_id": pa.array(range(len(members)), pa.int32()),
            "name": [concept.name for concept, _, _ in members],
            "group": [concept.group for concept, _, _ in members],
            "description": [concept.description for concept, _, _ in members],
        }
    )
    label_table = pa.table(
        {
            "concept_id": np.concatenate(concept_ids),
            "sentence_id": np.concatenate(sentence_ids),
            "label": np.concatenate(labels),
        }
    )
    (out / "corpus.json").unlink(missing_ok=True)
    for name, table in (("sentences", sentences), ("concepts", concept_table), ("labels", label_table)):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        write_atomically(out / f"{name}.parquet", buffer.getvalue())
    identity = CorpusIdentity(_fingerprint(sentences, concept_table, label_table), len(order), len(members))
    write_json(
        out / "corpus.json",
        {
            "format": FORMAT,
            "fingerprint": identity.fingerprint,
            "sentences": identity.sentences,
            "concepts": identity.concepts,
            "labels": label_table.num_rows,
            "held_out_sentences": int(pc.sum(sentences["held_out"]).as_py() or 0),
            "held_out_percent": held_out_percent,
            "sources": list(sources),
            **counts,
        },
    )
    return identity


_Member = tuple[LabelledTexts, list[str], list[str]]


def _collect(
    concepts: Iterable[LabelledTexts], held_out_percent: float
) -> tuple[list[_Member], dict[str, str], dict[str, int]]:
    """Normalised texts of each concept without repeats and conflicts, sorted by concept name; text → key; counts."""
    members: dict[str, _Member] = {}
    keys: dict[str, str] = {}
    counts = {"repeats_dropped": 0, "conflicts_resolved": 0}
    for concept in concepts:
        if not concept.name.strip() or not concept.name.isprintable():
            raise UserError(f"concept name {concept.name!r}: expected a printable, non-empty name")
        if concept.name in members:
            raise UserError(f"concept {concept.name!r} appears twice; rename one of them")
        positives = _unique(concept, concept.positives, "positive")
        negatives = _unique(concept, concept.negatives, "negative")
        counts["repeats_dropped"] += len(concept.positives) + len(concept.negatives) - len(positives) - len(negatives)
        counts["conflicts_resolved"] += len(negatives.keys() & positives.keys())
        negatives = {text: None for text in negatives if text not in positives}
        for texts, kind in ((positives, "positive"), (negatives, "negative")):
            keys.update((text, text_key(text)) for text in texts if text not in keys)
            if not any(not is_held_out(keys[text], held_out_percent) for text in texts):
                held = f" ({len(texts)} held out)" if texts else ""
                raise UserError(
                    f"concept {concept.name!r} has no {kind} sentence to mine{held}; "
                    "average precision needs at least one positive and one negative"
                )
        members[concept.name] = (concept, list(positives), list(negatives))
    if not members:
        raise UserError("no concept to write: the source gave none")
    return [members[name] for name in sorted(members)], keys, counts


def _unique(concept: LabelledTexts, texts: Sequence[str], kind: str) -> dict[str, None]:
    """The normalised texts, once each."""
    unique = dict.fromkeys(map(normalise, texts))
    for at, text in enumerate(unique):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(
                f"concept {concept.name!r}: {kind} sentence {at} holds half a character ({text!r}); mend it"
            )
    if "" in unique:
        at = next(i for i, text in enumerate(texts) if not normalise(text))
        raise UserError(f"concept {concept.name!r}: {kind} sentence {at} is empty; remove it")
    return unique


def _row_order(members: list[_Member], keys: dict[str, str]) -> list[str]:
    """All texts: those that several concepts use as negatives, then what each concept adds; by key in each run."""
    uses = Counter(text for _, _, negatives in members for text in negatives)
    order = dict.fromkeys(sorted((text for text, n in uses.items() if n > 1), key=keys.__getitem__))
    for _, positives, negatives in members:
        for texts in (positives, negatives):
            order.update(dict.fromkeys(sorted((t for t in texts if t not in order), key=keys.__getitem__)))
    return list(order)


def _fingerprint(sentences: pa.Table, concepts: pa.Table, labels: pa.Table) -> str:
    """SHA-256 over concepts, keys, the held-out split and the labels, independent of Parquet's encoding."""
    digest = hashlib.sha256()
    for column in (concepts["name"], concepts["group"], concepts["description"], sentences["key"]):
        digest.update("\0".join(column.to_pylist()).encode() + b"\1")
    digest.update(np.packbits(sentences["held_out"].to_numpy()).tobytes())
    for name, dtype in (("concept_id", "<i4"), ("sentence_id", "<i4"), ("label", "<i1")):
        digest.update(labels[name].to_numpy().astype(dtype).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Corpus:
    """A corpus folder, opened; tables are read when first asked for."""

    path: Path
    facts: dict[str, Any]
    """``corpus.json``."""

    @classmethod
    def open(cls, path: Path) -> Corpus:
        """Open a corpus folder.

        Raises:
            UserError: there is none, or it is of another format.
        """
        facts = read_json(path / "corpus.json", "a corpus made by `expertmine concepts …`")
        needed = {"fingerprint", "sentences", "concepts", "labels", "held_out_sentences"}
        if not isinstance(facts, dict) or facts.get("format") != FORMAT or not needed <= facts.keys():
            raise UserError(f"{path / 'corpus.json'}: not a corpus of format {FORMAT}; build it again")
        return cls(path, facts)

    @property
    def identity(self) -> CorpusIdentity:
        return CorpusIdentity(self.facts["fingerprint"], self.facts["sentences"], self.facts["concepts"])

    def check(self) -> None:
        """Compare the tables with the recorded fingerprint, and every text with its key.

        Raises:
            UserError: they differ: the folder is torn or was edited.
        """
        found = _fingerprint(self._sentences, self._table("concepts"), self._table("labels"))
        keys = zip(self._sentences["text"].to_pylist(), self._sentences["key"].to_pylist(), strict=True)
        if found != self.identity.fingerprint or any(text_key(text) != key for text, key in keys):
            raise UserError(f"{self.path}: tables do not match corpus.json's fingerprint; build the corpus again")

    def texts(self, rows: range) -> list[str]:
        texts: list[str] = self._sentences["text"].slice(rows.start, len(rows)).to_pylist()
        return texts

    @cached_property
    def held_out(self) -> NDArray[np.bool_]:
        """(sentences,) which of them mining does not see."""
        flags: NDArray[np.bool_] = self._sentences["held_out"].to_numpy()
        return flags

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        return tuple(Concept(**row) for row in self._table("concepts").to_pylist())

    def concept(self, name: str) -> Concept:
        """Look a concept up by name.

        Raises:
            UnknownConcept: there is none of that name; suggests the nearest.
        """
        for concept in self.concepts:
            if concept.name == name:
                return concept
        raise UnknownConcept.among(name, [concept.name for concept in self.concepts], str(self.path))

    def rows(self, concept_id: int) -> LabelledRows:
        """Every labelled sentence of a concept, held out or not."""
        indptr, sentence_ids, labels = self._labels
        span = slice(indptr[concept_id], indptr[concept_id + 1])
        positive = labels[span] == 1
        return LabelledRows(sentence_ids[span][positive], sentence_ids[span][~positive])

    @cached_property
    def _sentences(self) -> pa.Table:
        return self._table("sentences")

    @cached_property
    def _labels(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int8]]:
        table = self._table("labels")
        indptr = np.searchsorted(table["concept_id"].to_numpy(), np.arange(self.identity.concepts + 1))
        return indptr, table["sentence_id"].to_numpy(), table["label"].to_numpy()

    def _table(self, name: str) -> pa.Table:
        path = self.path / f"{name}.parquet"
        try:
            table = pq.read_table(path, memory_map=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path}: cannot be read ({error}); build the corpus again") from error
        if table.column_names != COLUMNS[name]:
            raise UserError(
                f"{path}: columns are {table.column_names}, expected {COLUMNS[name]}; build the corpus again"
            )
        return table
