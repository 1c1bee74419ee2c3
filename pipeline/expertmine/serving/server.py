"""The service on a socket, from the first byte of the model to the signal that ends it."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import current_thread, main_thread
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.serving.app import Service, new_app
from expertmine.serving.batching import Batcher, Writer
from expertmine.serving.completions import Limits
from expertmine.serving.guard import LOOPBACK_NAMES, Guard
from expertmine.steering.generation import NewGenerator
from expertmine.storage.locations import absolute

Executor = Literal["serial", "ray"]

GRACE = 3.0
"""Seconds that clients who are being answered have left when a signal comes."""
SHORTEST_TOKEN = 16
TOKEN_VARIABLE = "EXPERTMINE_TOKEN"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve."""

    host: str
    port: int
    """0 for any that is free."""
    token_file: Path | None
    limits: Limits
    queue: int
    executor: Executor


@dataclass(frozen=True, slots=True)
class Address:
    """Where a service is found, and what opens it."""

    url: str
    token: str
    """Where the token is, in words."""
    token_path: Path | None
    open_to_others: bool
    """Machines other than this one reach it."""


def serve(new: NewGenerator, settings: Settings, announce: Callable[[Address], None]) -> None:
    """Load the model and answer until SIGINT or SIGTERM.

    Args:
        announce: called once, when clients are let in.

    Raises:
        UserError: the port is taken, the token or the index is not there, or the model cannot be loaded.
    """
    with (
        _at((signal.SIGTERM,), sys.exit),  # while it loads: what was taken is given back
        closing(bind(settings.host, settings.port)) as bound,
        server_token(settings.token_file) as (token, where, path),
    ):
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        loopback = ipaddress.ip_address(host).is_loopback
        address = Address(f"http://{shown}:{port}", where, path, open_to_others=not loopback)
        experts = Experts.load(new.index, new.pooling)
        # What was opened here is what the model is steered by, also where it was fetched, or an actor is elsewhere.
        new = replace(new, index=absolute(experts.folder), pooling=None)
        with _writing(new, settings.executor) as writer:
            batcher = Batcher(writer, settings.limits.rows, settings.queue)
            app = new_app(Service(writer, batcher, experts, settings.limits))
            guard = Guard(app, token, LOOPBACK_NAMES | {shown} if loopback else None)
            run(Server(guard, batcher, lambda: announce(address)), bound)


@contextmanager
def _writing(new: NewGenerator, executor: Executor) -> Iterator[Writer]:
    """While open, a model that writes: in this process, or in a Ray actor's."""
    if executor == "serial":
        yield new()
        return
    from expertmine.runtime import ray

    with (
        ray.cluster(None),
        _at((signal.SIGTERM,), sys.exit),  # once more: Ray has brought a handler of its own
        ray.hosted(new, ray.cpus(), 1.0 if ray.gpus() else 0.0) as hosted,
    ):
        yield hosted


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound, and does not listen yet: clients are refused until then.

    Raises:
        UserError: there is no such host here, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host is {host!r}: no address of this machine ({error})") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _not_free(host, port, error) from error
    return bound


def _not_free(host: str, port: int, error: OSError) -> UserError:
    return UserError(
        f"{host} port {port} cannot be served on ({os.strerror(error.errno or 0).lower()}): end what is there, or "
        "give another --port; 0 takes one that is free"
    )


@contextmanager
def server_token(file: Path | None) -> Iterator[tuple[str, str, Path | None]]:
    """The token, where it is in words, and its file: given, or made for as long as this is open.

    Raises:
        UserError: the one that is given is missing, or easily guessed.
    """
    if file is not None:
        try:
            found = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"--token-file {file}: cannot be read ({error}); expected a token") from error
        yield _strong(found, str(file)), f"in {file}", file
    elif TOKEN_VARIABLE in os.environ:
        yield _strong(os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE), f"what {TOKEN_VARIABLE} says", None
    else:
        handle, name = tempfile.mkstemp(prefix="expertmine-token-")  # which its owner alone may read
        made = secrets.token_urlsafe(32)
        try:
            with os.fdopen(handle, "w") as opened:
                opened.write(f"{made}\n")
            yield made, f"in {name}, which you alone can read and which goes when this ends", Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


def _strong(token: str, where: str) -> str:
    if len(token) < SHORTEST_TOKEN or not all("!" <= character <= "~" for character in token):
        raise UserError(
            f"the token of {where} has {len(token)} characters: expected {SHORTEST_TOKEN} or more, of ASCII and no "
            "blanks, such as `openssl rand -base64 32` prints"
        )
    return token


class Server(uvicorn.Server):
    """uvicorn, whose clients are told when it ends."""

    def __init__(self, app: ASGIApp, batcher: Batcher, ready: Callable[[], None]) -> None:
        """Nothing happens before it is run.

        Args:
            ready: called once clients are let in.
        """
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=int(GRACE) + 2,
            )
        )
        self.batcher = batcher
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.batcher.close()
        ending = asyncio.get_running_loop().call_later(GRACE, self.batcher.abandon)
        await super().shutdown(sockets)
        ending.cancel()


def run(server: Server, bound: socket.socket) -> None:
    """CompletionResponse until SIGINT or SIGTERM, or until the server is told that it should exit.

    Raises:
        UserError: another took the port meanwhile.
    """

    def end() -> None:
        server.should_exit = True

    try:
        # uvicorn has handlers of its own, and raises what they got again when it is done: to these.
        with _at((signal.SIGINT, signal.SIGTERM), end):
            server.run([bound])
    except OSError as error:
        host, port = bound.getsockname()[:2] if bound.fileno() >= 0 else ("the address", 0)
        raise _not_free(host, port, error) from error
    finally:
        server.batcher.abandon()
        server.batcher.join(GRACE)


@contextmanager
def _at(signals: Iterable[signal.Signals], do: Callable[[], None]) -> Iterator[None]:
    """While open, these signals have something done; in the main thread, which alone gets them."""
    if current_thread() is not main_thread():
        yield
        return
    before = {each: signal.signal(each, lambda *_: do()) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
