"""What users choose: how responses are made, compressed and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from expertmine.specs.checks import require, require_word

BATCH_TOKENS = 4096
DEFAULT_TOP_K = 500
"""Experts kept per concept."""
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
MAX_DRAWN = 100_000
"""Times that labels are shuffled, or sentences drawn anew."""
MAX_THREADS = 4096


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
        require(len(self.poolings) > 0, "no pooling is named; expected max, mean or last, or several")
        for pooling in self.poolings:
            require_word("pooling", pooling, Pooling)
        require(len(set(self.poolings)) == len(self.poolings), f"poolings are {self.poolings}: one is named twice")
        if "reference" in self.poolings:
            require(
                self.poolings == ("reference",),
                "the reference's pooling fills every sentence up and so needs passes of its own; ask for it alone",
            )
            require(self.too_long == "drop", "the reference's pooling drops longer sentences; leave --too-long out")
        require_word("dtype", self.dtype, StoredType)
        require_word("too_long", self.too_long, TooLong)
        require_word("weights", self.weights, WeightsType)
        require_word("autocast", self.autocast, Autocast)
        require(self.max_tokens >= 2, f"max_tokens is {self.max_tokens}: expected at least 2")
        require(
            self.batch_tokens >= self.max_tokens,
            f"batch_tokens is {self.batch_tokens}: expected at least one sentence of max_tokens, {self.max_tokens}",
        )
        require(1 <= self.threads <= MAX_THREADS, f"threads is {self.threads}: expected 1 to {MAX_THREADS}")


@dataclass(frozen=True, slots=True)
class Compression:
    """How chunks of responses are compressed; the values are the same with any."""

    codec: Codec = "zstd"
    level: int = 1
    """Of zstd and lz4, 1 (fast) to 9 (small)."""
    shuffle: Shuffle = "noshuffle"
    """Which parts of neighbouring values are put side by side first: bits, bytes, or none."""

    def __post_init__(self) -> None:
        require_word("codec", self.codec, Codec)
        require_word("shuffle", self.shuffle, Shuffle)
        require(1 <= self.level <= 9, f"level is {self.level}: expected 1 to 9")


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
        require(self.keep is None or self.keep >= 1, f"keep is {self.keep}: expected at least 1 unit a block")
        require_word("null", self.null, Null)
        for name, drawn in (("permutations", self.permutations), ("resamples", self.resamples)):
            require(0 <= drawn <= MAX_DRAWN, f"{name} are {drawn}: expected 0 or more, at most {MAX_DRAWN:,}")


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
