"""The options that several commands of a run share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

import typer

from expertmine.errors import UserError
from expertmine.runtime.cluster import Cluster, ExtractExecutor, ScoreExecutor
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
    Where = Path  # typer takes no unions; the places themselves come from `location`
"""Type of an option for a folder that may be on an object store; goes with ``parser=location``."""

Run = Annotated[
    Where, typer.Argument(parser=location, metavar="RUN", help="Run folder; may be s3://….", show_default=False)
]
TopK = Annotated[
    int | None, typer.Option("--top-k", help=f"Experts to keep a concept. [default: {DEFAULT_TOP_K}]", min=1)
]
WhichPooling = Annotated[
    Pooling | None, typer.Option("--pooling", help="Experts by this pooling. [default: the run's first]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(help="Of every random choice.", min=0, max=2**32 - 1)]


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """Which units of which model."""

    model: Annotated[str, typer.Option("--model", help="`embedded`, a local folder, or a Hugging Face model id.")] = (
        "embedded"
    )
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")] = None
    hookpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--hookpoint",
            help="Units to look at: `linear` (every linear map of the blocks, the default), `attention` or `mlp` "
            "(those of them there), `residual` (each block's output), or a glob over module names. Repeatable.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """What is stored of them."""

    pooling: Annotated[
        str,
        typer.Option(
            "--pooling",
            help="How a sentence's tokens become one response: max, mean, last, or several with commas, from one pass; "
            "or reference, as Suau et al.'s code has it (filled up to --max-tokens, filling and all).",
        ),
    ] = "max"
    dtype: Annotated[StoredType, typer.Option("--dtype", help="Type of a stored response.")] = "float16"
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest sentence, in tokens.")] = 128
    too_long: Annotated[TooLong, typer.Option("--too-long", help="What happens to longer ones.")] = "drop"
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="Pool the tokens that the tokenizer adds, such as BOS, as well.")
    ] = False
    weights: Annotated[WeightsType, typer.Option("--weights", help="Type in which the model is loaded.")] = "float32"
    autocast: Annotated[
        Autocast, typer.Option("--autocast", help="Lower precision for the operations that bear it: faster.")
    ] = "none"
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", help=f"Tokens a forward pass. [default: {BATCH_TOKENS}]")
    ] = None
    threads: Annotated[int, typer.Option("--threads", help="CPU threads of an extracting process.", min=1)] = 1
    codec: Annotated[Codec, typer.Option("--codec", help="Compression of stored responses.")] = "zstd"
    level: Annotated[int, typer.Option("--level", help="Of the codec, 1 (fast) to 9 (small).")] = 1
    shuffle: Annotated[
        Shuffle, typer.Option("--shuffle", help="Parts of neighbouring values that the codec sees side by side.")
    ] = "noshuffle"


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """What is computed of them; what is not given is as the run was planned."""

    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            help="Of which units statistics beside average precision are stored: `all`, or a number: so many best and "
            "worst of each block, and --top-k no more than that. [default: all]",
        ),
    ] = None
    permutations: Annotated[
        int | None,
        typer.Option(
            "--permutations",
            help="Shuffles of labels that show what chance does; 19 at least for a threshold. [default: 20]",
            min=0,
        ),
    ] = None
    null: Annotated[
        Null | None,
        typer.Option(
            "--null", help="Whose labels: one concept's for all of like size, or each one's own. [default: shared]"
        ),
    ] = None
    resamples: Annotated[
        int | None,
        typer.Option(
            "--resamples", help="Times that sentences are drawn anew for the best units. [default: 100]", min=0
        ),
    ] = None
    scoring_seed: Annotated[
        int | None, typer.Option("--scoring-seed", help="Of shuffling and drawing. [default: 0]", min=0)
    ] = None

    def given(self) -> dict[str, Any]:
        """Those that were given, as fields of a `ScoringSpec`.

        Raises:
            UserError: `--keep` is neither a number nor `all`.
        """
        found: dict[str, Any] = {}
        if self.keep is not None:
            if self.keep != "all" and not self.keep.isdecimal():
                raise UserError(f"--keep is {self.keep!r}: expected `all`, or a number of units a block")
            found["keep"] = None if self.keep == "all" else int(self.keep)
        others = (("permutations", self.permutations), ("null", self.null), ("resamples", self.resamples))
        found |= {name: value for name, value in (*others, ("seed", self.scoring_seed)) if value is not None}
        return found


@dataclass(frozen=True, slots=True)
class ForcingOptions:
    """To what the experts of a concept are set, and where."""

    forcing: Annotated[Forcing, typer.Option("--forcing", help="Value that experts are set to.")] = "mean"
    strength: Annotated[
        float, typer.Option("--strength", help="How far towards that value: 0 not at all, 1 all the way.")
    ] = 1.0
    tokens: Annotated[Tokens, typer.Option("--tokens", help="At all tokens, or at the last of a pass only.")] = "all"
    layers: Annotated[
        list[int] | None, typer.Option("--layer", help="Only experts in this layer; repeatable. [default: all]")
    ] = None

    def steering(self, k: int) -> Steering:
        """With so many experts.

        Raises:
            UserError: a value out of range.
        """
        from expertmine.steering.assignment import Steering

        return Steering(k, self.forcing, self.strength, self.tokens, tuple(self.layers) if self.layers else None)


@dataclass(frozen=True, slots=True)
class ChoiceOptions:
    """Which units are set."""

    units: Annotated[
        Units, typer.Option("--units", help="Other units of the concept than its experts are controls.")
    ] = "experts"
    block: Annotated[int, typer.Option("--block", help="The best k experts (1), the next k (2), …", min=1)] = 1
    conflicts: Annotated[
        Conflicts,
        typer.Option(
            "--conflicts",
            help="A unit that several concepts share is set as the one says that it tells best, as their mean, or as "
            "the one named first says.",
        ),
    ] = "best"


GpusEach = Annotated[
    float | None,
    typer.Option(
        "--gpus-each",
        help="GPUs an extracting actor: a fraction puts several actors on one, 2 or more spread a model over them. "
        "[default: 1 if any]",
    ),
]


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Where the stages of a whole run run."""

    extract_on: Annotated[ExtractExecutor, typer.Option("--extract-on", "--extract-executor", help="Who extracts.")] = (
        "ray"
    )
    score_on: Annotated[ScoreExecutor, typer.Option("--score-on", "--score-executor", help="Who scores.")] = "dask"
    extract_address: Annotated[
        str | None,
        typer.Option("--ray-address", "--extract-address", help="A running Ray cluster; `auto` for this machine's."),
    ] = None
    score_address: Annotated[
        str | None,
        typer.Option(
            "--dask-address",
            "--score-address",
            help="A running Dask scheduler; with --score-on ray a Ray cluster. [default: with it --ray-address]",
        ),
    ] = None
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes. [default: what the machine or cluster has]", min=1)
    ] = None
    extract_workers: Annotated[
        int | None, typer.Option("--extract-workers", help="Of them, those that extract. [default: --workers]", min=1)
    ] = None
    score_workers: Annotated[
        int | None, typer.Option("--score-workers", help="Those that score. [default: --workers]", min=1)
    ] = None
    gpus_each: GpusEach = None

    def extracting(self) -> tuple[ExtractExecutor, Cluster]:
        return self.extract_on, Cluster(self.extract_address, self.extract_workers or self.workers, self.gpus_each)

    def scoring(self, memory: int | None) -> tuple[ScoreExecutor, Cluster]:
        """Within so many bytes a process."""
        address = self.score_address
        if address is None and self.score_on == "ray":
            address = self.extract_address
        return self.score_on, Cluster(address, self.score_workers or self.workers, memory=memory)


def parse_size(text: str | int) -> int:
    """Bytes from text such as ``800MB``, ``2GB`` or ``1.5GiB``.

    Raises:
        typer.BadParameter: it is something else.
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
        help="Most that a scoring process may hold, such as 800MB or 2GB. [default: what `plan` says]",
    ),
]


def request(
    units: UnitOptions, responses: ResponseOptions, scoring: ScoringOptions, scoring_memory: int | None
) -> PlanRequest:
    """What these options ask for.

    Raises:
        UserError: settings that do not go together.
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
