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
    run: Annotated[str, typer.Argument(help="Run folder, expert index or pack.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen on; default: loopback only.")] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File with the clients' token. [default: $EXPERTMINE_TOKEN, or a new token]"),
    ] = None,
    pooling: Annotated[
        Pooling | None, typer.Option("--pooling", help="Use the experts of this pooling. [default: the run's first]")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Location of the model if it has moved since mining; same weights."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device for the model. [default: a GPU if there is one]")] = None,
    executor: Annotated[
        Literal["serial", "ray"], typer.Option(help="Run the model in this process (serial), or in a Ray actor (ray).")
    ] = "serial",
    max_batch: Annotated[int, typer.Option(help="Maximum continuations per batch, and so per request.", min=1)] = 64,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of a continuation, in tokens.", min=1)] = 256,
    max_body: Annotated[
        int,
        typer.Option(help="Maximum size of a request, such as 64kB or 1MB.", parser=parse_size, metavar="SIZE"),
    ] = 1_000_000,
    queue: Annotated[int, typer.Option(help="Maximum requests waiting; further requests are rejected.", min=1)] = 256,
) -> None:
    """Serve steered generation over HTTP with OpenAI's completions API; Ctrl-C stops it.

    A request may name concepts to steer towards. Every path but /health needs the header `Authorization: Bearer TOKEN`.

    Example: `expertmine serve run --port 8000`
    """
    from expertmine.serving.completions import Limits
    from expertmine.serving.server import Settings, serve
    from expertmine.steering.generation import NewGenerator

    limits = Limits(rows=max_batch, new_tokens=max_new_tokens, body=max_body)
    settings = Settings(host, port, token_file, limits, queue, executor)
    serve(NewGenerator(run, pooling, device, model), settings, _announce)


def _announce(address: Address) -> None:
    def show(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    show(f"serving on {address.url}")
    show(f"token: {address.token}")
    if address.open_to_others:
        show("warning: other machines can reach this server, and the traffic is not encrypted")
