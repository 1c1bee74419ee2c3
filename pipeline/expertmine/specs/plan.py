"""What a run is made of: frozen, validated when made, written to ``plan.json`` and read back.

Knows no model, no store and no cluster; only which settings belong together and which values make sense.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, get_args

from expertmine.errors import UserError
from expertmine.storage.untrusted import mismatch, shape_of

PLAN_FORMAT = 3
BATCH_TOKENS = 4096

Stage = Literal["extract", "score", "assess"]
STAGES: tuple[Stage, ...] = ("extract", "score", "assess")
"""Those that have tasks and receipts, in order."""
ASSESSED = 100
"""Best units of each concept that are assessed by resampling."""
Null = Literal["shared", "own"]
Pooling = Literal["max", "mean", "last", "reference"]
StoredType = Literal["float16", "float32"]
TooLong = Literal["drop", "truncate"]
Autocast = Literal["none", "bfloat16", "float16"]
WeightsType = Literal["float32", "bfloat16"]
Codec = Literal["zstd", "lz4", "none"]
Shuffle = Literal["bitshuffle", "shuffle", "noshuffle"]

MOST_TASKS = 1_000_000
"""Of a stage; each leaves files of its own."""
MOST_SEGMENTS = 1_000
"""Times that a corpus may grow, less one."""
MOST_CELLS = 2**31
"""Rows of a store, or numbers in one of its shards, which are held in memory."""
MOST_DRAWN = 100_000
"""Times that labels are shuffled, or sentences drawn anew."""
MOST_THREADS = 4096

_HASH = re.compile(r"[0-9a-z]{1,64}")
"""What a corpus may have as its fingerprint, which names a folder."""

LAYER = re.compile(r"(?:^|\.)(\d+)(?=[.#\[]|$)")
"""Finds a layer's number in a hookpoint's name."""


def layer_of(hookpoint: str) -> int | None:
    """The number of the layer that a hookpoint is in: the first number among the names of its path."""
    found = LAYER.search(hookpoint)
    return int(found[1]) if found else None


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
    """Hash of all parameters, see `expertmine.model.load.weights_hash`."""
    tokenizer: str
    """Hash of the tokenizer's own serialisation."""


def _require_word(name: str, value: str, words: object) -> None:
    known = get_args(words)
    _require(value in known, f"{name} is {value!r}: expected {', '.join(known[:-1])} or {known[-1]}")


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """How a sentence becomes one response a unit."""

    poolings: tuple[Pooling, ...] = ("max",)
    """How its tokens become one number, each way stored beside the others; over the real tokens, special ones only if
    `special_tokens`. ``reference`` is the maximum over a text filled up to `max_tokens`, filling and special tokens
    and all, as Suau et al.'s code has it; that needs passes of its own, and so stands alone."""
    dtype: StoredType = "float16"
    """Stored type; every reported number is a function of the stored value."""
    max_tokens: int = 128
    """Longest sentence, in tokens, special ones included."""
    too_long: TooLong = "drop"
    """What happens to longer sentences."""
    special_tokens: bool = False
    """Whether tokens that the tokenizer adds (BOS, CLS, SEP) are pooled too."""
    weights: WeightsType = "float32"
    """Type in which the model is loaded."""
    autocast: Autocast = "none"
    """Lower precision for the operations that bear it, as PyTorch's autocast has them."""
    batch_tokens: int = BATCH_TOKENS
    """Tokens a forward pass, padding included; part of the plan since batches decide the last bits of a float."""
    threads: int = 1
    """CPU threads of one extracting process; part of the plan for the same reason."""

    def __post_init__(self) -> None:
        _require(len(self.poolings) > 0, "no pooling is named; expected max, mean or last, or several")
        for pooling in self.poolings:
            _require_word("pooling", pooling, Pooling)
        _require(len(set(self.poolings)) == len(self.poolings), f"poolings are {self.poolings}: one is named twice")
        if "reference" in self.poolings:
            _require(
                self.poolings == ("reference",),
                "the reference's pooling fills every sentence up and so needs passes of its own; ask for it alone",
            )
            _require(self.too_long == "drop", "the reference's pooling drops longer sentences; leave --too-long out")
        _require_word("dtype", self.dtype, StoredType)
        _require_word("too_long", self.too_long, TooLong)
        _require_word("weights", self.weights, WeightsType)
        _require_word("autocast", self.autocast, Autocast)
        _require(self.max_tokens >= 2, f"max_tokens is {self.max_tokens}: expected at least 2")
        _require(
            self.batch_tokens >= self.max_tokens,
            f"batch_tokens is {self.batch_tokens}: expected at least one sentence of max_tokens, {self.max_tokens}",
        )
        _require(1 <= self.threads <= MOST_THREADS, f"threads is {self.threads}: expected 1 to {MOST_THREADS}")


@dataclass(frozen=True, slots=True)
class Compression:
    """How chunks of responses are compressed; the values are the same with any."""

    codec: Codec = "zstd"
    level: int = 1
    """Of zstd and lz4, 1 (fast) to 9 (small)."""
    shuffle: Shuffle = "noshuffle"
    """Which parts of neighbouring values are put side by side first: bits, bytes, or none."""

    def __post_init__(self) -> None:
        _require_word("codec", self.codec, Codec)
        _require_word("shuffle", self.shuffle, Shuffle)
        _require(1 <= self.level <= 9, f"level is {self.level}: expected 1 to 9")


@dataclass(frozen=True, slots=True)
class ScoringSpec:
    """What is computed of every (concept, unit) pair beside its average precision, and how it is put to the test."""

    keep: int | None = None
    """Statistics are stored of this many best and worst units of each block, by average precision, which itself is
    stored of all; None stores every statistic of every pair."""
    permutations: int = 20
    """Times that labels are shuffled to see what the best unit reaches by chance; 0 for not at all."""
    null: Null = "shared"
    """Whose labels are shuffled: those of one concept among others of like size, or each concept's own."""
    resamples: int = 100
    """Times that a concept's sentences are drawn anew to see how sure its best units are; 0 for not at all."""
    seed: int = 0
    """Of shuffling and drawing."""

    def __post_init__(self) -> None:
        _require(self.keep is None or self.keep >= 1, f"keep is {self.keep}: expected at least 1 unit a block")
        _require_word("null", self.null, Null)
        for name, drawn in (("permutations", self.permutations), ("resamples", self.resamples)):
            _require(0 <= drawn <= MOST_DRAWN, f"{name} are {drawn}: expected 0 or more, at most {MOST_DRAWN:,}")


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a user asks of a run, beside its corpus."""

    model: str
    revision: str | None = None
    patterns: tuple[str, ...] = ()
    responses: ResponseSpec = ResponseSpec()
    compression: Compression = Compression()
    scoring: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a `ScoringSpec`; those not named are as the run was planned, or else the defaults."""
    scoring_memory: int | None = None
    """Bytes that a scoring process may hold, which decides how many units a block has; None for as many as are good."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Sentences that came to a run together: those it began with, or those by which its corpus grew."""

    sentences: int
    keys: str
    """SHA-256 of their keys, in order."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the store is cut: rows are sentences, columns are units.

    Each segment begins with a partition of its own, so that what was stored before stays where it is.
    """

    segments: tuple[int, ...]
    """Sentences of each segment."""
    units: int
    """Columns that hold a unit."""
    partition_rows: int
    """Sentences an extraction task; a partition owns whole shards, since a shard is the write unit."""
    block_units: int
    """Units a scoring task, the width of a chunk: a block of chunks is read once, whole."""
    shard_units: int
    """Width of a shard, a multiple of `block_units`."""

    def __post_init__(self) -> None:
        sizes = (*self.segments, self.units, self.partition_rows, self.block_units, self.shard_units)
        _require(bool(self.segments) and min(sizes) >= 1, "layout: nothing to store")
        _require(self.shard_units % self.block_units == 0, "layout: a shard must hold whole chunks")
        _require(
            len(self.segments) <= MOST_SEGMENTS,
            f"layout: {len(self.segments):,} segments, at most {MOST_SEGMENTS:,}; plan the grown corpus as a new run",
        )
        tasks, cells = max(self.partitions, self.blocks), self.partition_rows * self.shard_units
        _require(tasks <= MOST_TASKS, f"layout: {tasks:,} tasks of a stage, at most {MOST_TASKS:,}; cut it coarser")
        _require(
            max(cells, self.padded_shape[0]) <= MOST_CELLS,
            f"layout: {self.padded_shape[0]:,} rows in shards of {cells:,} numbers, at most {MOST_CELLS:,} of each",
        )

    @property
    def sentences(self) -> int:
        """Rows that hold a sentence."""
        return sum(self.segments)

    @property
    def partitions(self) -> int:
        return sum(self._partitions_of(sentences) for sentences in self.segments)

    @property
    def blocks(self) -> int:
        return -(-self.units // self.block_units)

    @property
    def padded_shape(self) -> tuple[int, int]:
        """Rows and columns of the stored array: whole shards only."""
        return self.partitions * self.partition_rows, -(-self.units // self.shard_units) * self.shard_units

    @property
    def objects_a_partition(self) -> int:
        """Files that a partition writes for each pooling, beside that of its tokens."""
        return self.padded_shape[1] // self.shard_units

    def first_row(self, segment: int) -> int:
        """The row of a segment's first sentence."""
        return sum(self._partitions_of(sentences) for sentences in self.segments[:segment]) * self.partition_rows

    def segment_of(self, partition: int) -> int:
        """The segment that a partition belongs to."""
        row = partition * self.partition_rows
        return max(at for at in range(len(self.segments)) if self.first_row(at) <= row)

    def partition(self, index: int) -> range:
        """The rows of one extraction task."""
        segment = self.segment_of(index)
        start = index * self.partition_rows
        return range(start, min(start + self.partition_rows, self.first_row(segment) + self.segments[segment]))

    def block(self, index: int) -> range:
        """The units of one block."""
        start = index * self.block_units
        return range(start, min(start + self.block_units, self.units))

    def _partitions_of(self, sentences: int) -> int:
        return -(-sentences // self.partition_rows)


@dataclass(frozen=True, slots=True)
class CorpusIdentity:
    """Which sentences and concepts."""

    fingerprint: str
    sentences: int
    concepts: int

    def __post_init__(self) -> None:
        _require(
            bool(_HASH.fullmatch(self.fingerprint)),
            f"corpus fingerprint is {self.fingerprint[:80]!r}: expected a hash, which names a folder of the run",
        )
        least = min(self.sentences, self.concepts)
        _require(least >= 0, f"corpus: {self.sentences} sentences and {self.concepts} concepts, expected 0 or more")


@dataclass(frozen=True)
class Plan:
    """All that decides a run's results, frozen before the first sentence is run."""

    model: ModelIdentity
    patterns: tuple[str, ...]
    """Presets and globs that chose the hookpoints; none for the default rule."""
    hookpoints: tuple[Hookpoint, ...]
    corpus: CorpusIdentity
    responses: ResponseSpec
    compression: Compression
    segments: tuple[Segment, ...]
    """The stored sentences; those of earlier corpora too."""
    layout: Layout
    scoring: ScoringSpec = ScoringSpec()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything in the plan; receipts of scoring, and the index, carry it."""
        return _digest(self._body())

    @cached_property
    def extraction_fingerprints(self) -> tuple[str, ...]:
        """Of each segment: SHA-256 over what decides its responses and where they lie.

        Receipts of extraction carry that of their segment, and so outlive a growing corpus.
        """
        body = self._body()
        shared = {name: body[name] for name in ("model", "hookpoints", "responses", "compression")}
        cut = {name: value for name, value in body["layout"].items() if name != "segments"}
        return tuple(
            _digest({**shared, "layout": cut, "first_row": self.layout.first_row(at), "segment": asdict(segment)})
            for at, segment in enumerate(self.segments)
        )

    def tasks(self, stage: Stage) -> int:
        """How many tasks a stage has: one a partition, or one a block and pooling."""
        if stage == "extract":
            return self.layout.partitions
        if stage == "assess" and not self.scoring.resamples:
            return 0
        return self.layout.blocks * len(self.responses.poolings)

    @property
    def kept_columns(self) -> int | None:
        """Units of a block of which statistics other than average precision are stored; None for all."""
        keep = self.scoring.keep
        return 2 * keep if keep is not None and 2 * keep < self.layout.block_units else None

    def task_fingerprint(self, stage: Stage, task: int) -> str:
        """What a task's receipt must carry."""
        if stage == "extract":
            return self.extraction_fingerprints[self.layout.segment_of(task)]
        return self.fingerprint

    def scoring_task(self, task: int) -> tuple[Pooling, int]:
        """The pooling and the block of units that a task of scoring or assessing stands for."""
        return self.responses.poolings[task // self.layout.blocks], task % self.layout.blocks

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
        names = ", ".join(field.name for field in fields(cls))
        wrong = mismatch(document, _PLAN)
        _require(not wrong, f"{source}: not a plan ({wrong}); expected the sections {names}")
        try:
            plan = cls._of(document)
        except TypeError as error:  # something that no section has
            raise UserError(f"{source}: not a plan ({error}); expected the sections {names}") from error
        except UserError as error:
            raise UserError(f"{source}: no plan that could be carried out: {error}; plan a new run folder") from error
        fault = plan._contradiction()
        _require(not fault, f"{source}: contradicts itself: {fault}; plan a new run folder")
        _require(
            plan.fingerprint == document.get("fingerprint"),
            f"{source}: its contents do not match its fingerprint; it was edited or damaged. Plan a new run folder.",
        )
        return plan

    @classmethod
    def _of(cls, document: dict[str, Any]) -> Plan:
        responses, layout = document["responses"], document["layout"]
        return cls(
            model=ModelIdentity(**document["model"]),
            patterns=tuple(document["patterns"]),
            hookpoints=tuple(Hookpoint(**hookpoint) for hookpoint in document["hookpoints"]),
            corpus=CorpusIdentity(**document["corpus"]),
            responses=ResponseSpec(**{**responses, "poolings": tuple(responses["poolings"])}),
            compression=Compression(**document["compression"]),
            segments=tuple(Segment(**segment) for segment in document["segments"]),
            layout=Layout(**{**layout, "segments": tuple(layout["segments"])}),
            scoring=ScoringSpec(**document["scoring"]),
        )

    def _contradiction(self) -> str | None:
        """What does not fit together in sections that are sound each by itself."""
        first = 0
        for hookpoint in self.hookpoints:
            if hookpoint.first_unit != first or hookpoint.width < 1 or not hookpoint.name.isprintable():
                return f"hookpoint {hookpoint.name[:80]!r} does not follow those before it, or is no name"
            first += hookpoint.width
        if first != self.layout.units:
            return f"the hookpoints have {first} units, the layout {self.layout.units}"
        if len({hookpoint.name for hookpoint in self.hookpoints}) < len(self.hookpoints):
            return "two hookpoints have the same name"
        if tuple(segment.sentences for segment in self.segments) != self.layout.segments:
            return "its segments are not those of its layout"
        return None


_PLAN = shape_of(Plan)
"""The shape of ``plan.json``."""


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
