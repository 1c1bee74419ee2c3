"""The options shared by several commands of a run. Knows no command."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

import typer

from expertmine.errors import UserError
from expertmine.runtime.cluster import Cluster, ExecutorName, ModelExecutorName
from expertmine.specs.choices import Conflicts, Forcing, Tokens, Units
from expertmine.specs.settings import (
    BATCH_TOKENS,
    DEFAULT_TOP_K,
    Autocast,
    Codec,
    Compression,
    Null,
    PlanRequest,
    Pooling,
    ResponseSpec,
    Shuffle,
    StoredType,
    TooLong,
    WeightsType,
)
from expertmine.storage.locations import location

if TYPE_CHECKING:
    from expertmine.steering.assignment import Steering
    from expertmine.storage.locations import Location

    Where: TypeAlias = Location
else:
    Where = Path  # typer accepts no unions; `location` makes the values
"""Type of an option for a folder that may be on an object store; goes with ``parser=location``."""

Run = Annotated[
    Where, typer.Argument(parser=location, metavar="RUN", help="Run folder; may be s3://….", show_default=False)
]
TopK = Annotated[
    int | None, typer.Option("--top-k", help=f"Experts to keep per concept. [default: {DEFAULT_TOP_K}]", min=1)
]
WhichPooling = Annotated[
    Pooling | None, typer.Option("--pooling", help="Use the experts of this pooling. [default: the run's first]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.", min=0, max=2**32 - 1)]


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """The model and its hookpoints."""

    model: Annotated[str, typer.Option("--model", help="`embedded`, a local folder, or a Hugging Face model id.")] = (
        "embedded"
    )
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")] = None
    hookpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--hookpoint",
            help="Units to mine: `linear` (every linear map of the blocks, the default), `attention` or `mlp` (the "
            "linear maps there), `residual` (each block's output), or a glob over module names. Repeatable.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """How responses are computed and stored."""

    pooling: Annotated[
        str,
        typer.Option(
            "--pooling",
            help="How a sentence's tokens become one response: max, mean, last, or several separated by commas, from "
            "one pass; or reference, as in Suau et al.'s code (padded to --max-tokens, padding included).",
        ),
    ] = "max"
    dtype: Annotated[StoredType, typer.Option("--dtype", help="Type of stored responses.")] = "float16"
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Maximum length of a sentence, in tokens.")] = 128
    too_long: Annotated[TooLong, typer.Option("--too-long", help="Drop or truncate longer sentences.")] = "drop"
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="Also pool tokens that the tokenizer adds, such as BOS.")
    ] = False
    weights: Annotated[WeightsType, typer.Option("--weights", help="Type of weights in memory.")] = "float32"
    autocast: Annotated[
        Autocast, typer.Option("--autocast", help="Lower precision where operations tolerate it: faster.")
    ] = "none"
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", help=f"Tokens per forward pass. [default: {BATCH_TOKENS}]")
    ] = None
    threads: Annotated[int, typer.Option("--threads", help="CPU threads per extracting process.", min=1)] = 1
    codec: Annotated[Codec, typer.Option("--codec", help="Compression of stored responses.")] = "zstd"
    level: Annotated[int, typer.Option("--level", help="Compression level, 1 (fast) to 9 (small).")] = 1
    shuffle: Annotated[
        Shuffle, typer.Option("--shuffle", help="Group the bytes or bits of neighbouring values before compression.")
    ] = "noshuffle"


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """How responses are scored; options that are not given stay as the run was planned."""

    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            help="Units whose statistics are stored in addition to average precision: `all`, or a number N for the N "
            "best and N worst per block; --top-k is then at most N. [default: all]",
        ),
    ] = None
    permutations: Annotated[
        int | None,
        typer.Option(
            "--permutations",
            help="Number of label shuffles that estimate chance; a threshold needs at least 19. [default: 20]",
            min=0,
        ),
    ] = None
    null: Annotated[
        Null | None,
        typer.Option(
            "--null",
            help="Labels to shuffle: one concept's for all concepts of similar size (shared), or each concept's own. "
            "[default: shared]",
        ),
    ] = None
    resamples: Annotated[
        int | None,
        typer.Option("--resamples", help="Number of resamples that assess the best units. [default: 100]", min=0),
    ] = None
    scoring_seed: Annotated[
        int | None, typer.Option("--scoring-seed", help="Seed of shuffles and resamples. [default: 0]", min=0)
    ] = None

    def given(self) -> dict[str, Any]:
        """The options that were given, as fields of a `ScoringSpec`.

        Raises:
            UserError: `--keep` is neither a number nor `all`.
        """
        found: dict[str, Any] = {}
        if self.keep is not None:
            if self.keep != "all" and not self.keep.isdecimal():
                raise UserError(f"--keep is {self.keep!r}: expected `all`, or a number of units per block")
            found["keep"] = None if self.keep == "all" else int(self.keep)
        others = (("permutations", self.permutations), ("null", self.null), ("resamples", self.resamples))
        found |= {name: value for name, value in (*others, ("seed", self.scoring_seed)) if value is not None}
        return found


@dataclass(frozen=True, slots=True)
class ForcingOptions:
    """The values that experts are set to, and where."""

    forcing: Annotated[
        Forcing,
        typer.Option(
            "--forcing",
            help="Value of experts: mean, median (p50) or p90 of their responses to positives, or zero.",
        ),
    ] = "mean"
    strength: Annotated[
        float, typer.Option("--strength", help="How far experts move towards that value: 0 not at all, 1 all the way.")
    ] = 1.0
    tokens: Annotated[
        Tokens, typer.Option("--tokens", help="Set experts at all tokens, or only at the last one of each pass.")
    ] = "all"
    layers: Annotated[
        list[int] | None, typer.Option("--layer", help="Only experts in this layer; repeatable. [default: all]")
    ] = None

    def steering(self, k: int) -> Steering:
        """These options with k experts.

        Raises:
            UserError: a value out of range.
        """
        from expertmine.steering.assignment import Steering

        return Steering(k, self.forcing, self.strength, self.tokens, tuple(self.layers) if self.layers else None)


@dataclass(frozen=True, slots=True)
class ChoiceOptions:
    """The units that are set."""

    units: Annotated[
        Units,
        typer.Option("--units", help="Units of the concept to set; `worst`, `random` and `matched` are controls."),
    ] = "experts"
    block: Annotated[int, typer.Option("--block", help="1 for the best k experts, 2 for the next k, …", min=1)] = 1
    conflicts: Annotated[
        Conflicts,
        typer.Option(
            "--conflicts",
            help="Value of a unit that several concepts share: of the concept that it separates best, their mean, or "
            "of the concept named first.",
        ),
    ] = "best"


GpusEach = Annotated[
    float | None,
    typer.Option(
        "--gpus-each",
        help="GPUs per extracting actor: a fraction puts several actors on one GPU, 2 or more spread a model over "
        "several GPUs. [default: 1 if there is a GPU]",
    ),
]


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Where the stages of a run are executed."""

    extract_on: Annotated[
        ModelExecutorName, typer.Option("--extract-on", "--extract-executor", help="Where to extract.")
    ] = "ray"
    score_on: Annotated[ExecutorName, typer.Option("--score-on", "--score-executor", help="Where to score.")] = "dask"
    extract_address: Annotated[
        str | None,
        typer.Option("--ray-address", "--extract-address", help="A running Ray cluster; `auto` for this machine's."),
    ] = None
    score_address: Annotated[
        str | None,
        typer.Option(
            "--dask-address",
            "--score-address",
            help="A running Dask scheduler; with --score-on ray, a Ray cluster. [default: with ray, --ray-address]",
        ),
    ] = None
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes. [default: what the machine or cluster has]", min=1)
    ] = None
    extract_workers: Annotated[
        int | None, typer.Option("--extract-workers", help="Processes for extraction. [default: --workers]", min=1)
    ] = None
    score_workers: Annotated[
        int | None, typer.Option("--score-workers", help="Processes for scoring. [default: --workers]", min=1)
    ] = None
    gpus_each: GpusEach = None

    def extracting(self) -> tuple[ModelExecutorName, Cluster]:
        return self.extract_on, Cluster(self.extract_address, self.extract_workers or self.workers, self.gpus_each)

    def scoring(self, memory: int | None) -> tuple[ExecutorName, Cluster]:
        """Where scoring runs, with a memory budget in bytes per process."""
        address = self.score_address
        if address is None and self.score_on == "ray":
            address = self.extract_address
        return self.score_on, Cluster(address, self.score_workers or self.workers, memory=memory)


def parse_size(text: str | int) -> int:
    """Bytes from text such as ``800MB``, ``2GB`` or ``1.5GiB``.

    Raises:
        typer.BadParameter: the text is not a size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", str(text))
    if not found:
        raise typer.BadParameter(f"{text!r}: expected bytes such as 800MB, 2GB or 1.5GiB")
    value, prefix, binary = found.groups()
    power = ("", "k", "M", "G", "T").index(prefix)
    return int(float(value) * (1024 if binary else 1000) ** power)


Memory = Annotated[
    int | None,
    typer.Option(
        "--scoring-memory",
        parser=parse_size,
        metavar="SIZE",
        help="Memory budget of a scoring process, such as 800MB or 2GB. [default: see `plan`]",
    ),
]


def request(
    units: UnitOptions, responses: ResponseOptions, scoring: ScoringOptions, scoring_memory: int | None
) -> PlanRequest:
    """The request to plan that these options make.

    Raises:
        UserError: contradicting settings.
    """
    poolings = tuple(cast(Pooling, word.strip()) for word in responses.pooling.split(","))
    spec = ResponseSpec(
        poolings=poolings,
        dtype=responses.dtype,
        max_tokens=responses.max_tokens,
        too_long=responses.too_long,
        special_tokens=responses.special_tokens,
        weights=responses.weights,
        autocast=responses.autocast,
        batch_tokens=responses.batch_tokens or max(BATCH_TOKENS, responses.max_tokens),
        threads=responses.threads,
    )
    compression = Compression(responses.codec, responses.level, responses.shuffle)
    patterns = tuple(units.hookpoints or ())
    return PlanRequest(units.model, units.revision, patterns, spec, compression, scoring.given(), scoring_memory)
