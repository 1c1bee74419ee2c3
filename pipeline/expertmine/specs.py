"""What a run is made of: frozen, validated when made, written to ``plan.json`` and read back.

Knows no model, no store and no cluster; only which settings belong together and which values make sense.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from expertmine.errors import UserError

PLAN_FORMAT = 1
BATCH_TOKENS = 4096

Pooling = Literal["max", "mean", "last"]
StoredType = Literal["float16", "float32"]
TooLong = Literal["drop", "truncate"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


@dataclass(frozen=True, slots=True)
class Hookpoint:
    """The output of one module of the model."""

    name: str
    """The module's path in the model, such as ``transformer.h.0.mlp.c_fc``."""
    width: int
    """Channels, each of them a unit."""
    first_unit: int
    """Unit id of channel 0."""

    @property
    def units(self) -> range:
        return range(self.first_unit, self.first_unit + self.width)


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model, by a hash of its weights; a run accepts no other."""

    name: str
    """``embedded``, a local folder, or a Hugging Face model id."""
    revision: str | None
    """Branch, tag or commit on the hub; None for its default or for a folder."""
    architecture: str
    """Class name of the model, such as ``GPT2LMHeadModel``."""
    weights: str
    """Hash of all parameters, see `expertmine.models.weights_hash`."""
    tokenizer: str
    """Hash of the tokenizer's own serialisation."""


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """How a sentence becomes one response a unit."""

    pooling: Pooling = "max"
    """Over the real tokens of the sentence; special tokens that the tokenizer adds stay out."""
    dtype: StoredType = "float16"
    """Stored type; every reported number is a function of the stored value."""
    max_tokens: int = 128
    """Longest sentence, in tokens, special ones included."""
    too_long: TooLong = "drop"
    """What happens to longer sentences."""
    batch_tokens: int = BATCH_TOKENS
    """Tokens a forward pass, padding included; part of the plan since batches decide the last bits of a float."""
    threads: int = 1
    """CPU threads of one extracting process; part of the plan for the same reason."""

    def __post_init__(self) -> None:
        _require(self.pooling in get_args(Pooling), f"pooling is {self.pooling!r}: expected one of {get_args(Pooling)}")
        _require(self.dtype in get_args(StoredType), f"dtype is {self.dtype!r}: expected one of {get_args(StoredType)}")
        _require(self.too_long in get_args(TooLong), f"too_long is {self.too_long!r}: expected drop or truncate")
        _require(self.max_tokens >= 2, f"max_tokens is {self.max_tokens}: expected at least 2")
        _require(self.batch_tokens >= self.max_tokens, "batch_tokens must hold at least one sentence of max_tokens")
        _require(self.threads >= 1, f"threads is {self.threads}: expected at least 1")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the store is cut: rows are sentences, columns are units."""

    sentences: int
    """Rows that hold a sentence."""
    units: int
    """Columns that hold a unit."""
    partition_rows: int
    """Sentences an extraction task; a partition owns whole shards, since a shard is the write unit."""
    block_units: int
    """Units a scoring task, the width of a chunk: a block of chunks is read once, whole."""
    shard_units: int
    """Width of a shard, a multiple of `block_units`."""

    def __post_init__(self) -> None:
        _require(
            min(self.sentences, self.units, self.partition_rows, self.block_units) >= 1, "layout: nothing to store"
        )
        _require(self.shard_units % self.block_units == 0, "layout: a shard must hold whole chunks")

    @property
    def partitions(self) -> int:
        return -(-self.sentences // self.partition_rows)

    @property
    def blocks(self) -> int:
        return -(-self.units // self.block_units)

    @property
    def padded_shape(self) -> tuple[int, int]:
        """Rows and columns of the stored array: whole shards only."""
        return self.partitions * self.partition_rows, -(-self.units // self.shard_units) * self.shard_units

    def partition(self, index: int) -> range:
        """The sentences of one extraction task."""
        start = index * self.partition_rows
        return range(start, min(start + self.partition_rows, self.sentences))

    def block(self, index: int) -> range:
        """The units of one scoring task."""
        start = index * self.block_units
        return range(start, min(start + self.block_units, self.units))


@dataclass(frozen=True, slots=True)
class CorpusIdentity:
    """Which sentences and concepts."""

    fingerprint: str
    sentences: int
    concepts: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides a run's results, frozen before the first sentence is run."""

    model: ModelIdentity
    hookpoints: tuple[Hookpoint, ...]
    corpus: CorpusIdentity
    responses: ResponseSpec
    layout: Layout

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything in the plan; receipts carry it."""
        return hashlib.sha256(json.dumps(self._body(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"format": PLAN_FORMAT, "fingerprint": self.fingerprint, **self._body()}

    def _body(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any], source: str) -> Plan:
        """Read a plan back.

        Raises:
            UserError: the document is of another format, incomplete, or does not match its own fingerprint.
        """
        found = document.get("format")
        _require(found == PLAN_FORMAT, f"{source}: plan format {found!r}, expected {PLAN_FORMAT}; plan the run again")
        try:
            plan = cls(
                model=ModelIdentity(**document["model"]),
                hookpoints=tuple(Hookpoint(**hookpoint) for hookpoint in document["hookpoints"]),
                corpus=CorpusIdentity(**document["corpus"]),
                responses=ResponseSpec(**document["responses"]),
                layout=Layout(**document["layout"]),
            )
        except (KeyError, TypeError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise UserError(f"{source}: not a plan ({error}); expected the sections {names}") from error
        _require(
            plan.fingerprint == document.get("fingerprint"),
            f"{source}: its contents do not match its fingerprint; it was edited or damaged. Plan a new run folder.",
        )
        return plan
