"""The user's settings: how responses are computed, compressed and scored. Knows only which values are valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from expertmine.specs.checks import require, require_word

BATCH_TOKENS = 4096
DEFAULT_TOP_K = 500
"""Experts kept per concept."""
ASSESSED = 100
"""Number of best units per concept that are assessed by resampling."""
Null = Literal["shared", "own"]
Pooling = Literal["max", "mean", "last", "reference"]
StoredType = Literal["float16", "float32"]
TooLong = Literal["drop", "truncate"]
Autocast = Literal["none", "bfloat16", "float16"]
WeightsType = Literal["float32", "bfloat16"]
Codec = Literal["zstd", "lz4", "none"]
Shuffle = Literal["bitshuffle", "shuffle", "noshuffle"]
MAX_REPEATS = 100_000
"""Shuffles of labels, and resamples of sentences."""
MAX_THREADS = 4096


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """How a sentence becomes one response per unit."""

    poolings: tuple[Pooling, ...] = ("max",)
    """How the values of its tokens become one number; several poolings are stored side by side. They pool real tokens,
    and special ones only if `special_tokens`. ``reference`` is the maximum over a text padded to `max_tokens`,
    including padding and special tokens, as in the code of Suau et al.; it needs forward passes of its own, and so
    excludes other poolings."""
    dtype: StoredType = "float16"
    """Stored type; every reported number is a function of the stored value."""
    max_tokens: int = 128
    """Longest sentence, in tokens, including special ones."""
    too_long: TooLong = "drop"
    """What happens to longer sentences."""
    special_tokens: bool = False
    """Whether tokens that the tokenizer adds (BOS, CLS, SEP) are pooled too."""
    weights: WeightsType = "float32"
    """Type of the loaded weights."""
    autocast: Autocast = "none"
    """PyTorch's autocast: lower precision for the operations that tolerate it."""
    batch_tokens: int = BATCH_TOKENS
    """Tokens per forward pass, including padding; in the plan because batches decide the last bits of a float."""
    threads: int = 1
    """CPU threads per extraction process; in the plan for the same reason."""

    def __post_init__(self) -> None:
        require(len(self.poolings) > 0, "no pooling is named; expected max, mean or last, or several")
        for pooling in self.poolings:
            require_word("pooling", pooling, Pooling)
        require(len(set(self.poolings)) == len(self.poolings), f"poolings are {self.poolings}: one is named twice")
        if "reference" in self.poolings:
            require(
                self.poolings == ("reference",),
                "pooling reference pads every sentence, which other poolings do not; ask for it alone",
            )
            require(
                self.too_long == "drop",
                f"too_long is {self.too_long!r}: pooling reference drops longer sentences; leave --too-long out",
            )
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
    """How chunks of responses are compressed; it does not change the values."""

    codec: Codec = "zstd"
    level: int = 1
    """Level of zstd and lz4, 1 (fast) to 9 (small)."""
    shuffle: Shuffle = "noshuffle"
    """What is regrouped across neighbouring values before compression: bits, bytes, or nothing."""

    def __post_init__(self) -> None:
        require_word("codec", self.codec, Codec)
        require_word("shuffle", self.shuffle, Shuffle)
        require(1 <= self.level <= 9, f"level is {self.level}: expected 1 to 9")


@dataclass(frozen=True, slots=True)
class ScoringSpec:
    """Which statistics of (concept, unit) pairs are stored beside average precision, and how results are assessed."""

    keep: int | None = None
    """Statistics are stored for this many best and worst units per block, by average precision; average precision
    itself is stored for all units. None stores every statistic of every pair."""
    permutations: int = 20
    """Shuffles of labels, which show what the best unit reaches by chance; 0 for none."""
    null: Null = "shared"
    """Whose labels are shuffled: those of one concept for all concepts of similar size, or each concept's own."""
    resamples: int = 100
    """Resamples of a concept's sentences, which show how certain its best units are; 0 for none."""
    seed: int = 0
    """Seed of shuffles and resamples."""

    def __post_init__(self) -> None:
        require(self.keep is None or self.keep >= 1, f"keep is {self.keep}: expected at least 1 unit per block")
        require_word("null", self.null, Null)
        for name, repeats in (("permutations", self.permutations), ("resamples", self.resamples)):
            require(0 <= repeats <= MAX_REPEATS, f"{name} is {repeats}: expected 0 or more, at most {MAX_REPEATS:,}")


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A user's settings for a run, without its corpus."""

    model: str
    revision: str | None = None
    patterns: tuple[str, ...] = ()
    responses: ResponseSpec = ResponseSpec()
    compression: Compression = Compression()
    scoring: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a `ScoringSpec`; absent ones keep the values of the existing plan, or else the defaults."""
    scoring_memory: int | None = None
    """Memory budget of a scoring process, in bytes, which bounds the units per block; None for the default block."""


def kept_columns(keep: int | None, block_units: int) -> int | None:
    """Units per block whose statistics other than average precision are stored; None for all.

    Args:
        keep: how many of the best, and as many of the worst, see `ScoringSpec.keep`.
    """
    return 2 * keep if keep is not None and 2 * keep < block_units else None
