"""The command that writes steered text."""

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
from expertmine.runtime.cluster import ExtractExecutor
from expertmine.specs.choices import DEFAULT_K

# torch, transformers, ray and dask take seconds to import: commands import what they need.


@takes_config
@with_groups
def generate(
    run: Annotated[str, typer.Argument(help="Run folder, expert index, or pack.", show_default=False)],
    forcing: ForcingOptions,
    choice: ChoiceOptions,
    concept: Annotated[
        list[str] | None,
        typer.Option(help="Concept to steer to; repeatable: all at once. None leaves the model as it is."),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("-k", help=f"Experts to set. [default: what evaluation chose, or {DEFAULT_K}]", min=0),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Text to go on from.")] = "",
    count: Annotated[int, typer.Option("-n", help="Continuations.", min=1)] = 5,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.", min=1)] = 40,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Tokens that sampling chooses among; 0 for all.", min=0)] = 10,
    top_p: Annotated[float, typer.Option(help="Probability that these add up to.")] = 1.0,
    pooling: WhichPooling = None,
    model: Annotated[
        str | None, typer.Option(help="Where the model is, if not where it was mined; its weights must be the same.")
    ] = None,
    seed: Seed = 0,
    executor: Annotated[ExtractExecutor, typer.Option(help="In this process, or as a Ray actor.")] = "serial",
    as_json: AsJson = False,
) -> None:
    """Write text while the experts of a concept are set: do(c, k).

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
    asked = GenerationRequest(
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
    (texts,) = run_generate(run, [asked], executor, pooling, model)
    show.texts(asked, texts, as_json)
