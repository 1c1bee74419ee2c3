"""Runs the service on a socket: loads the model, serves, and stops on a signal. Knows nothing of the routes."""

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

import uvicorn
from starlette.types import ASGIApp

from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.runtime.cluster import ModelExecutorName
from expertmine.serving.app import Service, new_app
from expertmine.serving.batching import Batcher, Writer
from expertmine.serving.completions import Limits
from expertmine.serving.guard import LOOPBACK_NAMES, Guard
from expertmine.steering.generation import NewGenerator
from expertmine.storage.locations import absolute

GRACE = 3.0
"""Seconds that running requests may take after a signal to stop."""
MIN_TOKEN_LENGTH = 16
TOKEN_VARIABLE = "EXPERTMINE_TOKEN"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve."""

    host: str
    port: int
    """0 for any free port."""
    token_file: Path | None
    limits: Limits
    queue: int
    executor: ModelExecutorName


@dataclass(frozen=True, slots=True)
class Address:
    """The URL of a service and the source of its token."""

    url: str
    token: str
    """Where to find the token, in words."""
    token_path: Path | None
    open_to_others: bool
    """Whether other machines can reach it."""


def serve(new: NewGenerator, settings: Settings, announce: Callable[[Address], None]) -> None:
    """Load the model and serve until SIGINT or SIGTERM.

    Args:
        announce: called once, when the server accepts connections.

    Raises:
        UserError: the port is in use, the token or the index is missing, or the model cannot be loaded.
    """
    with (
        _on_signals((signal.SIGTERM,), sys.exit),  # while loading, exit through the context managers
        closing(bind(settings.host, settings.port)) as bound,
        server_token(settings.token_file) as (token, where, path),
    ):
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        loopback = ipaddress.ip_address(host).is_loopback
        address = Address(f"http://{shown}:{port}", where, path, open_to_others=not loopback)
        experts = Experts.load(new.index, new.pooling)
        # The generator must open this very index, also if it was downloaded or if an actor runs in another directory.
        new = replace(new, index=absolute(experts.folder), pooling=None)
        with _new_writer(new, settings.executor) as writer:
            batcher = Batcher(writer, settings.limits.rows, settings.queue)
            app = new_app(Service(writer, batcher, experts, settings.limits))
            guard = Guard(app, token, LOOPBACK_NAMES | {shown} if loopback else None)
            run(Server(guard, batcher, lambda: announce(address)), bound)


@contextmanager
def _new_writer(new: NewGenerator, executor: ModelExecutorName) -> Iterator[Writer]:
    """While open, a generator in this process or in a Ray actor."""
    if executor == "serial":
        yield new()
        return
    from expertmine.runtime import ray

    with (
        ray.cluster(None),
        _on_signals((signal.SIGTERM,), sys.exit),  # again, since Ray has set a handler of its own
        ray.hosted(new, ray.cpus(), 1.0 if ray.gpus() else 0.0) as hosted,
    ):
        yield hosted


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet, so clients are refused until the server is ready.

    Raises:
        UserError: the host is not an address of this machine, or the port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host is {host!r}: expected an address of this machine ({error})") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _cannot_bind(host, port, error) from error
    return bound


def _cannot_bind(host: str, port: int, error: OSError) -> UserError:
    return UserError(
        f"cannot listen on {host} port {port} ({os.strerror(error.errno or 0).lower()}): stop the program that uses "
        "it, or give another --port; 0 takes a free one"
    )


@contextmanager
def server_token(file: Path | None) -> Iterator[tuple[str, str, Path | None]]:
    """The token, its source in words, and its file; unless a token is given, a new one that exists while this is open.

    Raises:
        UserError: the given token is missing or too weak.
    """
    if file is not None:
        try:
            found = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"--token-file {file}: cannot be read ({error}); expected a token") from error
        yield _require_strong(found, str(file)), f"in {file}", file
    elif TOKEN_VARIABLE in os.environ:
        yield _require_strong(os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE), f"in {TOKEN_VARIABLE}", None
    else:
        handle, name = tempfile.mkstemp(prefix="expertmine-token-")  # readable only by its owner
        made = secrets.token_urlsafe(32)
        try:
            with os.fdopen(handle, "w") as opened:
                opened.write(f"{made}\n")
            yield made, f"in {name}, readable only by you and deleted when the server stops", Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


def _require_strong(token: str, source: str) -> str:
    if len(token) < MIN_TOKEN_LENGTH or not all("!" <= character <= "~" for character in token):
        raise UserError(
            f"the token in {source} has {len(token)} characters: expected {MIN_TOKEN_LENGTH} or more, all ASCII and no "
            "spaces; make one with `openssl rand -base64 32`"
        )
    return token


class Server(uvicorn.Server):
    """A uvicorn server that notifies its clients when it stops."""

    def __init__(self, app: ASGIApp, batcher: Batcher, ready: Callable[[], None]) -> None:
        """Configure the server; nothing happens until it is run.

        Args:
            ready: called once the server accepts connections.
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
    """Serve until SIGINT or SIGTERM, or until `server.should_exit` is set.

    Raises:
        UserError: another program has taken the port meanwhile.
    """

    def end() -> None:
        server.should_exit = True

    try:
        # uvicorn sets its own handlers, and raises the signals they caught again when it is done; these catch them.
        with _on_signals((signal.SIGINT, signal.SIGTERM), end):
            server.run([bound])
    except OSError as error:
        host, port = bound.getsockname()[:2] if bound.fileno() >= 0 else ("the address", 0)
        raise _cannot_bind(host, port, error) from error
    finally:
        server.batcher.abandon()
        server.batcher.join(GRACE)


@contextmanager
def _on_signals(signals: Iterable[signal.Signals], do: Callable[[], None]) -> Iterator[None]:
    """While open, these signals call a function; does nothing outside of the main thread, which alone gets signals."""
    if current_thread() is not main_thread():
        yield
        return
    before = {each: signal.signal(each, lambda *_: do()) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
