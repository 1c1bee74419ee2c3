"""The options that several commands of a run share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

import typer

from expertmine.specs import (
    BATCH_TOKENS,
    Autocast,
    Codec,
    Compression,
    PlanRequest,
    Pooling,
    ResponseSpec,
    Shuffle,
    StoredType,
    TooLong,
    WeightsType,
)


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


def request(units: UnitOptions, responses: ResponseOptions) -> PlanRequest:
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
    return PlanRequest(units.model, units.revision, tuple(units.hookpoints or ()), spec, compression)
