"""``expertmine serve``: steered generation over HTTP. Parse, compose, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from expertmine.cli.options import parse_size
from expertmine.specs.settings import Pooling
from expertmine.telemetry.progress import console

if TYPE_CHECKING:
    from expertmine.serving.server import Address


def serve(
    run: Annotated[str, typer.Argument(help="Run folder, expert index, or pack.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen on; the default lets in this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 for one that is free.", min=0, max=65535)] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File with the token of clients. [default: EXPERTMINE_TOKEN, or a new one]"),
    ] = None,
    pooling: Annotated[
        Pooling | None, typer.Option("--pooling", help="Experts by this pooling. [default: the run's first]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the model is, if not where it was mined; its weights must be the same.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Of the model. [default: a GPU if there is one]")] = None,
    executor: Annotated[
        Literal["serial", "ray"], typer.Option(help="The model in this process, or in a Ray actor.")
    ] = "serial",
    max_batch: Annotated[int, typer.Option(help="Continuations written at a time, and of one request.", min=1)] = 64,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.", min=1)] = 256,
    max_body: Annotated[
        int, typer.Option(help="Largest request, such as 64kB or 1MB.", parser=parse_size, metavar="SIZE")
    ] = 1_000_000,
    queue: Annotated[int, typer.Option(help="Requests that may wait; further ones are turned away.", min=1)] = 256,
) -> None:
    """Serve steered generation over HTTP, as OpenAI's completions with a concept; Ctrl-C ends it.

    Every path but /health needs the header `Authorization: Bearer TOKEN`.

    Example: `expertmine serve run --port 8000`
    """
    from expertmine.serving.completions import Limits
    from expertmine.serving.server import Settings, serve
    from expertmine.steering.generation import NewGenerator

    limits = Limits(rows=max_batch, new_tokens=max_new_tokens, body=max_body)
    settings = Settings(host, port, token_file, limits, queue, executor)
    serve(NewGenerator(run, pooling, device, model), settings, _announce)


def _announce(address: Address) -> None:
    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say(f"serving on {address.url}")
    say(f"token: {address.token}")
    if address.open_to_others:
        say("warning: other machines can reach this, and what they send and get is not encrypted")
