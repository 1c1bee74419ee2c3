"""``expertmine generate``: steered text. Parse, compose, print."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from expertmine.cli.config import takes_config
from expertmine.cli.groups import with_groups
from expertmine.cli.options import (
    AsJson,
    ChoiceOptions,
    ForcingOptions,
    Seed,
    WhichPooling,
)
from expertmine.cli.show import console as show
from expertmine.runtime.cluster import ModelExecutorName
from expertmine.specs.choices import DEFAULT_K

# torch, transformers, ray and dask take seconds to import: commands import what they need.


@takes_config
@with_groups
def generate(
    run: Annotated[str, typer.Argument(help="Run folder, expert index or pack.", show_default=False)],
    forcing: ForcingOptions,
    choice: ChoiceOptions,
    concept: Annotated[
        list[str] | None,
        typer.Option(help="Concept to steer towards; repeatable, all at once. [default: none, unsteered]"),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("-k", help=f"Experts to set. [default: chosen by evaluation, or {DEFAULT_K}]", min=0),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    count: Annotated[int, typer.Option("-n", help="Number of continuations.", min=1)] = 5,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of a continuation, in tokens.", min=1)] = 40,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 always takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample among this many of the likeliest tokens; 0 for all.", min=0)] = 10,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens with this total probability.")] = 1.0,
    pooling: WhichPooling = None,
    model: Annotated[
        str | None, typer.Option(help="Location of the model if it has moved since mining; same weights.")
    ] = None,
    seed: Seed = 0,
    executor: Annotated[ModelExecutorName, typer.Option(help="Run in this process or in a Ray actor.")] = "serial",
    as_json: AsJson = False,
) -> None:
    """Generate text while the experts of a concept are set: do(c, k).

    Example: `expertmine generate run --concept bird.n.01 -k 50 -n 5`
    """
    from expertmine.index.experts import Experts
    from expertmine.serving.offline import run_generate
    from expertmine.steering.assignment import usual_k
    from expertmine.steering.generation import GenerationRequest

    concepts = tuple(concept or ())
    steering = replace(forcing.steering(k or 0), block=choice.block, conflicts=choice.conflicts)
    if k is None:
        steering = replace(steering, k=usual_k(Experts.load(run, pooling), concepts, steering, choice.units)[0])
    request = GenerationRequest(
        concepts=concepts,
        steering=steering,
        units=choice.units,
        prompt=prompt,
        count=count,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    (texts,) = run_generate(run, [request], executor, pooling, model)
    show.texts(request, texts, as_json)
