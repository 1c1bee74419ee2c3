"""A server on loopback whose generated text is known beforehand, and clients by the standard library alone."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from threading import Event, Semaphore, Thread
from typing import Any, Literal

from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.serving import server as serving
from expertmine.serving.app import Service, new_app
from expertmine.serving.batching import Batcher
from expertmine.serving.completions import Limits
from expertmine.serving.guard import LOOPBACK_NAMES, Guard
from expertmine.steering.assignment import Steering
from expertmine.steering.generation import GenerationRequest, Piece

TOKEN = "a-token-for-tests-alone"


SECRET = "/somewhere/private"


class Scribe:
    """Writes words that name their request, with a pause between them; fails when a prompt says so."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.steps: Semaphore | None = None
        """Permits to write one token more; None for any number."""
        self.open = Event()
        self.open.set()
        self.batches: list[list[GenerationRequest]] = []
        self.called_off: list[str] = []

    def check(self, request: GenerationRequest) -> int:
        if request.prompt == "unforeseen":
            raise RuntimeError(SECRET)
        if request.steering.k > 40:
            raise UserError(f"k is {request.steering.k}: expected 0 to 40")
        return len(request.prompt.split())

    def stream(self, requests: Sequence[GenerationRequest], stopped: Callable[[int], bool]) -> Iterator[Piece]:
        self.batches.append(list(requests))
        self.open.wait()
        for request in requests:
            match request.prompt:
                case "refuse":
                    raise UserError("strength is strange: expected another")
                case "explode":
                    raise RuntimeError(SECRET)
                case "die":
                    raise ConnectionError("lost")
                case "fall silent":
                    return
        left = set(range(len(requests)))
        step = 0
        while left:
            time.sleep(self.pause)
            if self.steps is not None:
                self.steps.acquire()
            for at in sorted(left):
                request = requests[at]
                if stopped(at):
                    self.called_off.append(request.prompt)
                    left.discard(at)
                    continue
                finished: Literal["length"] | None = "length" if step + 1 == request.max_new_tokens else None
                for row in range(request.count):
                    yield Piece(at, row, word(request, row, step), 1, finished)
                if finished:
                    left.discard(at)
                if request.prompt == "explode later":
                    raise RuntimeError(SECRET)
            step += 1


def word(request: GenerationRequest, row: int, step: int) -> str:
    who = "+".join(request.concepts) or "nobody"
    return f" {request.prompt}/{who}/{request.steering.k}/{request.seed}/{row}/{step}"


def text(prompt: str, seed: int, tokens: int, row: int = 0, concepts: tuple[str, ...] = (), k: int = 40) -> str:
    request = GenerationRequest(concepts=concepts, steering=Steering(k=k), prompt=prompt, seed=seed)
    return "".join(word(request, row, step) for step in range(tokens))


JSON = {"Content_Type": "application/json"}


@dataclass
class Client:
    """Talks to a server with the standard library only."""

    port: int
    token: str | None = TOKEN
    headers: dict[str, str] = field(default_factory=dict)
    waiting: Callable[[], int] = lambda: 0
    """Number of jobs waiting in the server."""

    def ask(
        self, method: str, path: str, body: bytes | None = None, timeout: float = 30, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers, and the JSON document, or the text if it is not JSON."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        authorization = {"Authorization": f"Bearer {self.token}"} if self.token is not None else {}
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {**authorization, **self.headers, **given})
        response = connection.getresponse()
        content = response.read().decode()
        connection.close()
        assert response.headers["x-content-type-options"] == "nosniff"
        is_json = response.headers["content-type"] == "application/json"
        return response.status, dict(response.headers.items()), json.loads(content) if is_json else content

    def get(self, path: str) -> tuple[int, Any]:
        status, _, document = self.ask("GET", path)
        return status, document

    def complete(self, **fields: Any) -> tuple[int, Any]:
        status, _, document = self.ask("POST", "/v1/completions", json.dumps(fields).encode(), **JSON)
        return status, document

    def written(self, **fields: Any) -> list[str]:
        status, document = self.complete(**fields)
        assert status == 200, document
        return [choice["text"] for choice in document["choices"]]

    def error(self, status: int, **fields: Any) -> dict[str, Any]:
        found, document = self.complete(**fields)
        assert found == status, document
        return error_of(document)

    def stream(self, **fields: Any) -> list[str]:
        """The data of a stream's events."""
        body = json.dumps({**fields, "stream": True}).encode()
        status, headers, content = self.ask("POST", "/v1/completions", body, **JSON)
        assert status == 200, content
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        return events(content)

    @contextmanager
    def raw(self, head: str, body: bytes = b"") -> Iterator[socket.socket]:
        """A connection after this was sent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            lines = [head, "Host: localhost", f"Authorization: Bearer {self.token}", "Content-Type: application/json"]
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            yield connection

    @contextmanager
    def begun(self, **fields: Any) -> Iterator[socket.socket]:
        """A connection after a completion was requested."""
        body = json.dumps(fields).encode()
        with self.raw(f"POST /v1/completions HTTP/1.1\r\nContent-Length: {len(body)}", body) as connection:
            yield connection


def receive(connection: socket.socket, sought: bytes) -> bytes:
    """Receive until the bytes contain what is sought."""
    found = b""
    while sought not in found:
        found += (come := connection.recv(65536))
        assert come, found
    return found


def error_of(document: Any) -> dict[str, Any]:
    assert list(document) == ["error"]
    found: dict[str, Any] = document["error"]
    assert list(found) == ["message", "type", "param", "code"]
    return found


def events(content: str) -> list[str]:
    assert content.endswith("\n\n")
    found = content[:-2].split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in found)
    return [event.removeprefix("data: ") for event in found]


@contextmanager
def served(
    writer: Any, experts: Experts, rows: int = 64, new_tokens: int = 256, body: int = 20_000, queue: int = 256
) -> Iterator[Client]:
    bound = serving.bind("127.0.0.1", 0)
    batcher = Batcher(writer, rows, queue)
    app = new_app(Service(writer, batcher, experts, Limits(rows, new_tokens, body)))
    ready = Event()
    server = serving.Server(Guard(app, TOKEN, LOOPBACK_NAMES), batcher, ready.set)
    port = bound.getsockname()[1]
    thread = Thread(target=serving.run, args=(server, bound))
    thread.start()
    try:
        assert ready.wait(10)
        yield Client(port, waiting=lambda: batcher.waiting)
    finally:
        if isinstance(writer, Scribe):
            writer.open.set()
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()
        assert not batcher.alive


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)
