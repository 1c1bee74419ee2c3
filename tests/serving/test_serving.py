"""The HTTP service: each client gets its own response, whatever other clients or the model do meanwhile.

Most tests use a writer whose text is known beforehand, a real index and a real server on loopback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from threading import Barrier, Event, Semaphore, Thread
from typing import Any, Literal
from urllib.parse import quote

import psutil
import pytest

from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.serving import app as paths
from expertmine.serving import server as serving
from expertmine.serving.app import Service, new_app
from expertmine.serving.batching import Batcher, Ended, Job
from expertmine.serving.completions import Limits
from expertmine.serving.guard import LOOPBACK_NAMES, Guard
from expertmine.steering.assignment import Steering
from expertmine.steering.generation import GenerationRequest, Generator, NewGenerator, Piece

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


JSON = {"Content_Type": "application/json"}


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


@pytest.fixture(scope="module")
def experts(mined: Path) -> Experts:
    return Experts.load(mined)


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


@pytest.fixture
def client(scribe: Scribe, experts: Experts) -> Iterator[Client]:
    with served(scribe, experts) as found:
        yield found


@pytest.fixture(scope="module")
def standing(experts: Experts) -> Iterator[Client]:
    """For tests that leave nothing behind."""
    with served(Scribe(), experts) as found:
        yield found


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)


# Responses


def test_a_completion_has_openais_shape(standing: Client) -> None:
    before = int(time.time())
    status, document = standing.complete(
        prompt=["one", "and two"], n=2, max_tokens=3, concept="animal", k=7, forcing="p90", strength=0.5, seed=11,
        user="someone", model="model",
    )  # fmt: skip
    assert status == 404  # the model has the name of its folder, which pytest made
    name = standing.get("/v1/models")[1]["data"][0]["id"]
    status, document = standing.complete(
        prompt=["one", "and two"], n=2, max_tokens=3, concept="animal", k=7, forcing="p90", strength=0.5, seed=11,
        user="someone", model=name, temperature=None,
    )  # fmt: skip
    assert status == 200
    assert re.fullmatch(r"cmpl-[0-9a-f]{24}", document.pop("id"))
    assert before <= document.pop("created") <= time.time()
    assert document == {
        "object": "text_completion",
        "model": name,
        "choices": [
            {
                "text": text(prompt, seed, 3, row, ("animal",), 7),
                "index": 2 * at + row,
                "finish_reason": "length",
                "logprobs": None,
            }
            for at, (prompt, seed) in enumerate([("one", 11), ("and two", 12)])
            for row in (0, 1)
        ],
        "seed": 11,
        "steering": {
            "concepts": ["animal"],
            "units": "experts",
            "k_from": "request",
            "k": 7,
            "forcing": "p90",
            "strength": 0.5,
            "tokens": "all",
            "layers": None,
            "block": 1,
            "conflicts": "best",
        },
        "usage": {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15},
    }


def test_a_stream_has_the_same_in_pieces(standing: Client) -> None:
    *chunks, last = standing.stream(prompt="go", n=2, max_tokens=3, concept=["animal", "tool"], k=2, seed=5)
    assert last == "[DONE]"
    documents = [json.loads(chunk) for chunk in chunks]
    assert len(documents) == 6
    assert len({document["id"] for document in documents}) == 1
    for row in (0, 1):
        own = [document["choices"][0] for document in documents if document["choices"][0]["index"] == row]
        assert "".join(choice["text"] for choice in own) == text("go", 5, 3, row, ("animal", "tool"), 2)
        assert [choice["finish_reason"] for choice in own] == [None, None, "length"]
    assert [document.get("usage") for document in documents[:-1]] == [None] * 5
    assert documents[-1]["usage"] == {"prompt_tokens": 1, "completion_tokens": 6, "total_tokens": 7}
    assert documents[0]["steering"]["concepts"] == ["animal", "tool"]


def test_a_stream_arrives_as_it_is_generated(client: Client, scribe: Scribe) -> None:
    scribe.steps = Semaphore(1)
    with client.begun(prompt="a", max_tokens=5, stream=True) as connection:
        received = receive(connection, b'/0"')  # the first token, before the second is written
        assert b'/1"' not in received
        scribe.steps.release(4)
        assert b'/4"' in receive(connection, b"[DONE]")


def test_defaults_are_chosen_and_reported(client: Client, scribe: Scribe, experts: Experts) -> None:
    _, plain = client.complete()
    _, other = client.complete()
    assert plain["steering"] is None
    assert plain["seed"] != other["seed"]
    assert plain["choices"][0]["text"] == text("", plain["seed"], 40)
    _, steered = client.complete(concept="animal")
    assert (steered["steering"]["k"], steered["steering"]["k_from"]) == (40, "default")  # as many as there are
    (request,) = scribe.batches[-1]
    assert (request.temperature, request.top_k, request.top_p, request.count) == (1.0, 10, 1.0, 1)


def test_k_is_what_evaluation_chose(mined: Path, tmp_path: Path) -> None:
    found = Experts.load(Path(shutil.copytree(mined / "experts", tmp_path / "experts")))
    found.keep_chosen({"animal": 12, "tool": None}, "a rule")
    with served(Scribe(), found) as client:
        steering = [
            client.complete(concept=concept)[1]["steering"] for concept in ("animal", "tool", ["animal", "tool"])
        ]
        assert [(each["k"], each["k_from"]) for each in steering] == [
            (12, "evaluation"),
            (40, "default"),
            (40, "default"),
        ]
        assert client.get("/v1/concepts/animal")[1]["chosen_k"] == 12


def test_concepts_are_listed_and_described(standing: Client, experts: Experts) -> None:
    status, found = standing.get("/v1/concepts")
    assert (status, found["total"]) == (200, 2)
    assert found["data"][0] == {
        "name": "animal", "description": "living things", "best_ap": experts["animal"][0].ap, "chosen_k": None
    }  # fmt: skip
    assert [each["name"] for each in standing.get("/v1/concepts?search=USEFUL")[1]["data"]] == ["tool"]
    assert [each["name"] for each in standing.get("/v1/concepts?limit=1&offset=1")[1]["data"]] == ["tool"]
    assert standing.get("/v1/concepts?search=nothing")[1]["data"] == []
    _, described = standing.get("/v1/concepts/" + quote("animal", safe=""))
    assert described["positives"] == experts.concept_metadata("animal")["positives"]
    assert [each["unit"] for each in described["experts"]] == [expert.unit for expert in experts["animal"].top(20)]
    status, document = standing.get("/v1/concepts/" + quote("anim/al", safe=""))
    assert status == 404
    assert "did you mean animal" in error_of(document)["message"]
    status, document = standing.get("/v1/concepts?limit=many")
    assert (status, error_of(document)["param"]) == (400, "limit")


# Authentication


def test_a_token_opens_all_but_health(standing: Client) -> None:
    health = {"ok": True, "model_loaded": True}
    for token in (None, "", "wrong", TOKEN[:-1], TOKEN + "x"):
        unknown = Client(standing.port, token)
        assert unknown.get("/health") == (200, health)
        for method, path in (
            ("GET", "/v1/models"), ("GET", "/v1/concepts"), ("GET", "/v1/concepts/animal"), ("GET", "/docs"),
            ("POST", "/v1/completions"), ("GET", "/openapi.json"), ("GET", "/nowhere"), ("GET", "/health/"),
            ("GET", "//health"),
        ):  # fmt: skip
            status, headers, document = unknown.ask(method, path)
            assert (status, error_of(document)["code"]) == (401, "invalid_token"), path
            assert headers["www-authenticate"] == "Bearer"
    assert Client(standing.port, None, {"Authorization": f"Basic {TOKEN}"}).get("/v1/models")[0] == 401
    assert Client(standing.port, None, {"Authorization": f"bearer {TOKEN}"}).get("/v1/models")[0] == 200
    assert standing.get("/v1/models")[0] == 200
    assert standing.get("/docs")[0] == standing.get("/openapi.json")[0] == 404


@pytest.mark.parametrize("host, status", [
    ("localhost", 200), ("LOCALHOST:80", 200), ("127.0.0.1:8000", 200), ("[::1]:9", 200), ("example.com", 403),
    ("localhost.example.com", 403), ("127.0.0.1.example.com:80", 403), ("", 403), ("localhost:80:80", 403),
])  # fmt: skip
def test_a_name_that_is_not_ours_is_refused(standing: Client, host: str, status: int) -> None:
    for path in ("/health", "/v1/models"):
        assert Client(standing.port, headers={"Host": host}).get(path)[0] == status


# Refusals


@pytest.mark.parametrize("body, code, said", [
    (b"", "malformed_json", "line 1, column 1"),
    (b'{"prompt": "a",\n "n" 1}', "malformed_json", "line 2, column 6"),
    (b'{"prompt": "\xff"}', "malformed_json", "byte 13"),
    (b"[" * 9000, "malformed_json", "nested"),
    (b'{"temperature": NaN}', "malformed_json", "NaN"),
    (b'{"n": ' + b"9" * 6000 + b"}", "malformed_json", "number"),
    (b'{"prompt": "\\ud800"}', "malformed_json", "surrogate"),
    (b'{"\\ud800": 1}', "malformed_json", "surrogate"),
    (b'"prompt"', "malformed_json", "expected an object"),
])  # fmt: skip
def test_a_body_that_is_no_json_is_refused(standing: Client, body: bytes, code: str, said: str) -> None:
    status, _, document = standing.ask("POST", "/v1/completions", body, **JSON)
    assert status == 400
    assert error_of(document)["type"] == "invalid_request_error"
    assert error_of(document)["code"] == code
    assert said in error_of(document)["message"]


@pytest.mark.parametrize("fields, param, said", [
    ({"max_token": 5}, "max_token", "did you mean 'max_tokens'?"),
    ({"zzz": 5}, "zzz", "max_tokens"),
    ({"logprobs": 5}, "logprobs", "logprobs"),
    ({"prompt": 5}, "prompt", "expected a string, or a list of strings"),
    ({"prompt": [1, 2]}, "prompt", "expected a string, or a list of strings"),
    ({"prompt": []}, "prompt", "expected at least 1"),
    ({"n": 0}, "n", "1"),
    ({"n": 1.5}, "n", "integer"),
    ({"n": True}, "n", "integer"),
    ({"n": "2"}, "n", "integer"),
    ({"n": 65}, "n", "at most 64 continuations"),
    ({"n": 22, "prompt": ["a", "b", "c"]}, "n", "at most 64 continuations"),
    ({"max_tokens": 0}, "max_tokens", "1"),
    ({"max_tokens": 257}, "max_tokens", "at most 256"),
    ({"temperature": -0.1}, "temperature", "expected 0"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "expected more than 0"),
    ({"top_k": -1}, "top_k", "expected at least 0"),
    ({"seed": -1}, "seed", "0"),
    ({"seed": 2**53}, "seed", "less than"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"concept": "animal", "k": 41}, "k", "expected 0 to 40"),
    ({"concept": "animal", "k": -1}, "k", "at least 0"),
    ({"concept": ["animal", "animal"]}, "concept", "twice"),
    ({"concept": [str(at) for at in range(33)]}, "concept", "at most 32"),
    ({"concept": {"name": "animal"}}, "concept", "expected a string, or a list of strings"),
    ({"forcing": "p91"}, "forcing", "'p90'"),
    ({"strength": 1.1}, "strength", "expected 0"),
    ({"tokens": "first"}, "tokens", "'last'"),
    ({"block": 0}, "block", "expected 1"),
    ({"layers": []}, "layers", "expected numbers from 0"),
    ({"layers": [0.5]}, "layers", "layers[0] is 0.5"),
    ({"conflicts": "worst"}, "conflicts", "'first'"),
    ({"units": "all"}, "units", "'matched'"),
])  # fmt: skip
def test_an_impossible_request_is_refused(
    standing: Client, fields: dict[str, Any], param: str | None, said: str
) -> None:
    found = standing.error(400, **fields)
    assert found["type"] == "invalid_request_error"
    assert said in found["message"]
    assert found["param"] == param


def test_unknown_names_are_refused_with_suggestions(standing: Client, experts: Experts) -> None:
    for name in ("animall", "", "a/b"):
        found = standing.error(404, concept=["tool", name])
        assert (found["code"], found["param"]) == ("concept_not_found", "concept")
        assert str(experts.folder) not in found["message"]
    assert "did you mean animal?" in standing.error(404, concept="animall")["message"]
    assert standing.error(404, model="gpt-4")["code"] == "model_not_found"


def test_other_paths_methods_and_types_are_refused(standing: Client) -> None:
    assert error_of(standing.get("/v1/nowhere")[1])["code"] == "not_found"
    assert standing.get("/v1/models/")[0] == 404
    status, headers, document = standing.ask("GET", "/v1/completions")
    assert (status, headers["allow"], error_of(document)["code"]) == (405, "POST", "method_not_allowed")
    assert standing.ask("DELETE", "/v1/models")[0] == 405
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonl"):
        status, _, document = standing.ask("POST", "/v1/completions", b"{}", Content_Type=kind)
        assert (status, error_of(document)["code"]) == (415, "unsupported_media_type")
    assert (
        standing.ask("POST", "/v1/completions", b'{"max_tokens": 1}', Content_Type="Application/JSON; charset=utf-8")[0]
        == 200
    )


def test_a_body_that_is_too_large_is_refused_before_all_of_it_arrives(standing: Client) -> None:
    assert standing.written(prompt="x" * 19_000, max_tokens=1, seed=0) == [text("x" * 19_000, 0, 1)]
    with standing.raw("POST /v1/completions HTTP/1.1\r\nContent-Length: 20001") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")  # before any of the body was sent
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    with standing.raw("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked", chunk * 4) as connection:
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(30)
        connection.sendall(chunk)
        assert receive(connection, b"body_too_large").startswith(b"HTTP/1.1 413 ")
    assert standing.get("/health")[0] == 200


def test_a_body_that_does_not_arrive_is_not_awaited_for_ever(standing: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "BODY_SECONDS", 0.2)
    with standing.raw("POST /v1/completions HTTP/1.1\r\nContent-Length: 20", b"{") as connection:
        assert receive(connection, b"timeout").startswith(b"HTTP/1.1 408 ")


# Many clients


def test_fifty_clients_at_once_each_get_their_own(client: Client, scribe: Scribe) -> None:
    scribe.pause = 0.005
    together = Barrier(50)

    def one(at: int) -> None:
        concept, k, tokens, streamed = ("animal", "tool")[at % 2], at % 40, 1 + at % 7, at % 3 == 0
        fields = {
            "prompt": f"client {at}",
            "concept": concept,
            "k": k,
            "seed": at,
            "max_tokens": tokens,
            "n": 1 + at % 2,
        }
        together.wait()
        if streamed:
            *chunks, last = client.stream(**fields)
            assert last == "[DONE]"
            texts = [""] * (1 + at % 2)
            for chunk in chunks:
                (choice,) = json.loads(chunk)["choices"]
                texts[choice["index"]] += choice["text"]
        else:
            texts = client.written(**fields)
        assert texts == [text(f"client {at}", at, tokens, row, (concept,), k) for row in range(1 + at % 2)]

    with ThreadPoolExecutor(50) as threads:
        list(threads.map(one, range(50)))
    assert sum(map(len, scribe.batches)) == 50
    assert len(scribe.batches) < 25
    assert max(sum(request.count for request in batch) for batch in scribe.batches) <= 64


def test_batches_take_jobs_in_order_of_arrival(experts: Experts) -> None:
    scribe = Scribe()
    scribe.open.clear()
    updates: list[Any] = []
    batcher = Batcher(scribe, max_rows=4, max_waiting=10)

    def submit(name: str, *counts: int) -> None:
        requests = [GenerationRequest(prompt=name, count=count, max_new_tokens=1) for count in counts]
        batcher.submit(Job(requests, lambda update: updates.append((name, update))))

    submit("first", 1)
    until(lambda: scribe.batches)
    for name, counts in (("b", (1, 2)), ("c", (2,)), ("d", (1,)), ("e", (4,)), ("f", (1,))):
        submit(name, *counts)
    scribe.open.set()
    until(lambda: sum(isinstance(update, Ended) for _, update in updates) == 6)
    assert [[request.prompt for request in batch] for batch in scribe.batches] == [
        ["first"],
        ["b", "b"],
        ["c", "d"],
        ["e"],
        ["f"],
    ]
    assert all(update == Ended("done") for _, update in updates if isinstance(update, Ended))
    own = [(update.request, update.row) for name, update in updates if name == "b" and isinstance(update, Piece)]
    assert own == [(0, 0), (1, 0), (1, 1)]
    batcher.close()
    batcher.join(5)
    assert not batcher.alive


def test_when_the_queue_is_full_the_next_request_is_rejected(experts: Experts) -> None:
    scribe = Scribe()
    scribe.open.clear()
    with served(scribe, experts, queue=2) as client, ThreadPoolExecutor(3) as threads:
        first = threads.submit(client.written, prompt="first", max_tokens=1, seed=0)
        until(lambda: scribe.batches)
        waiting = [threads.submit(client.written, prompt=name, max_tokens=1, seed=0) for name in ("second", "third")]
        until(lambda: client.waiting() == 2)
        status, headers, document = client.ask("POST", "/v1/completions", b'{"prompt": "fourth"}', **JSON)
        assert (status, error_of(document)["type"]) == (503, "server_error")
        assert int(headers["retry-after"]) > 0
        scribe.open.set()
        assert [task.result() for task in (first, *waiting)] == [
            [text(name, 0, 1)] for name in ("first", "second", "third")
        ]
        assert client.written(prompt="fifth", max_tokens=1, seed=0) == [text("fifth", 0, 1)]


# Failures


@pytest.mark.parametrize("stream", [True, False])
def test_rows_of_a_client_that_disconnects_stop_and_others_go_on(client: Client, scribe: Scribe, stream: bool) -> None:
    scribe.pause = 0.02
    scribe.open.clear()
    with ThreadPoolExecutor(2) as threads:
        threads.submit(client.complete, prompt="before", max_tokens=1)
        until(lambda: scribe.batches)
        with client.begun(prompt="fickle", max_tokens=250, stream=stream) as connection:
            other = threads.submit(client.written, prompt="faithful", max_tokens=50, seed=1)
            until(lambda: client.waiting() == 2)
            scribe.open.set()
            until(lambda: len(scribe.batches) == 2)
            if stream:
                receive(connection, b"fickle")
            else:
                time.sleep(0.1)
        until(lambda: scribe.called_off)
        assert other.result() == [text("faithful", 1, 50)]
    assert sorted(request.prompt for request in scribe.batches[1]) == ["faithful", "fickle"]
    assert scribe.called_off == ["fickle"]
    assert client.written(prompt="next", max_tokens=2, seed=0) == [text("next", 0, 2)]


def test_nothing_is_generated_for_a_client_that_disconnects_while_it_waits(client: Client, scribe: Scribe) -> None:
    scribe.open.clear()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(client.written, prompt="first", max_tokens=1, seed=0)
        until(lambda: scribe.batches)
        with client.begun(prompt="fickle"):
            until(lambda: client.waiting() == 1)
        until(lambda: client.waiting() == 0)
        scribe.open.set()
        first.result()
    assert client.written(prompt="next", max_tokens=1, seed=0) == [text("next", 0, 1)]
    assert [[request.prompt for request in batch] for batch in scribe.batches] == [["first"], ["next"]]


@pytest.mark.parametrize("prompt, status, code", [
    ("explode", 500, "internal_error"),
    ("explode later", 500, "internal_error"),
    ("fall silent", 500, "internal_error"),
    ("unforeseen", 500, "internal_error"),
    ("die", 503, "lost"),
    ("refuse", 400, "invalid_value"),
])  # fmt: skip
def test_an_error_in_the_model_is_reported_and_the_next_request_is_served(
    standing: Client, prompt: str, status: int, code: str
) -> None:
    found = standing.error(status, prompt=prompt, max_tokens=2)
    assert found["code"] == code
    assert SECRET not in found["message"] and "Traceback" not in found["message"] and ".py" not in found["message"]
    assert standing.written(prompt="next", max_tokens=1, seed=0) == [text("next", 0, 1)]


def test_a_stream_that_breaks_ends_with_an_error(standing: Client) -> None:
    piece, error = standing.stream(prompt="explode later", max_tokens=2)
    assert json.loads(piece)["choices"][0]["finish_reason"] is None
    assert error_of(json.loads(error))["code"] == "internal_error"
    assert SECRET not in error
    status, document = standing.complete(prompt="explode", stream=True)  # nothing was sent yet
    assert (status, error_of(document)["code"]) == (500, "internal_error")


@pytest.mark.parametrize("prompt, own, others", [("refuse", 400, 200), ("explode", 500, 500)])
def test_a_batch_with_one_bad_request(client: Client, scribe: Scribe, prompt: str, own: int, others: int) -> None:
    scribe.open.clear()
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(client.complete, prompt="first", max_tokens=1)
        until(lambda: scribe.batches)
        names = ("one", prompt, "two")
        waiting = [threads.submit(client.complete, prompt=name, max_tokens=1) for name in names]
        until(lambda: client.waiting() == 3)
        scribe.open.set()
        assert first.result()[0] == 200
        assert [task.result()[0] for task in waiting] == [others, own, others]
    assert sorted(request.prompt for request in scribe.batches[1]) == sorted(names)


@pytest.mark.parametrize("tokens, last", [(30, "[DONE]"), (250, "stopping")])
def test_running_requests_are_notified_when_the_server_stops(
    experts: Experts, tokens: int, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "GRACE", 1.5)
    scribe = Scribe(pause=0.02)
    with ThreadPoolExecutor(1) as threads:
        with served(scribe, experts) as client:
            streamed = threads.submit(client.stream, prompt="long", max_tokens=tokens)
            until(lambda: scribe.batches)
        found = streamed.result()[-1]
    assert found == last or error_of(json.loads(found))["code"] == last


# The command and the real model


@contextmanager
def command(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`expertmine serve` in its own process once it accepts connections, and its first lines of output."""
    process = subprocess.Popen(
        [sys.executable, "-m", "expertmine", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**{name: value for name, value in os.environ.items() if name != "EXPERTMINE_TOKEN"}, **environment},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = [process.stderr.readline(), process.stderr.readline()]
        assert said[0].startswith("serving on "), said + process.stderr.readlines()
        yield process, said
    finally:
        process.kill()
        process.communicate()


def port_of(said: list[str]) -> int:
    found = re.fullmatch(r"serving on http://127\.0\.0\.1:(\d+)\n", said[0])
    assert found
    return int(found[1])


@pytest.mark.slow
def test_the_command_serves_what_the_generator_writes_until_a_signal_ends_it(mined: Path) -> None:
    with command(mined, "--port", 0, "--device", "cpu") as (process, said):
        found = re.search(r"/\S*expertmine-token-[^\s,]+", said[1])
        assert found
        file = Path(found[0])
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        client = Client(port_of(said), file.read_text().strip())
        listening = [
            each.laddr for each in psutil.Process(process.pid).net_connections("inet") if each.status == "LISTEN"
        ]
        assert [tuple(each) for each in listening] == [("127.0.0.1", client.port)]

        generator = Generator(mined, "cpu")
        expected = generator(
            GenerationRequest(("animal",), Steering(7), prompt="the cat", count=3, max_new_tokens=12, seed=9)
        )
        fields = {"prompt": "the cat", "concept": "animal", "k": 7, "n": 3, "max_tokens": 12, "seed": 9}
        status, document = client.complete(**fields)
        assert status == 200
        assert [choice["text"] for choice in document["choices"]] == expected
        assert len(set(expected)) == 3
        assert document["usage"]["completion_tokens"] <= 36
        assert client.complete(**fields)[1]["choices"] == document["choices"]
        assert "41" in client.error(400, concept="animal", k=41)["message"]
        assert client.error(400, prompt="word " * 100)["code"] == "context_length_exceeded"

        taken = subprocess.run(
            [sys.executable, "-m", "expertmine", "serve", mined, "--port", str(client.port)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert taken.returncode == 2
        assert f"port {client.port}" in taken.stderr and "Traceback" not in taken.stderr

        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
        assert (process.returncode, output, errors) == (0, "", "")
        assert not file.exists()
        assert str(client.token) not in "".join(said)


@pytest.mark.slow
def test_the_token_may_be_given(mined: Path, tmp_path: Path) -> None:
    with command(mined, "--port", 0, EXPERTMINE_TOKEN=TOKEN) as (process, said):
        assert Client(port_of(said)).get("/v1/models")[0] == 200
        assert TOKEN not in "".join(said)
        process.send_signal(signal.SIGINT)
        process.wait(20)
        assert process.returncode == 0
    file = tmp_path / "token"
    for content, problem in (
        (None, "cannot be read"),
        ("", "0 characters"),
        ("short", "5 characters"),
        ("ä" * 20, "ASCII"),
    ):
        if content is not None:
            file.write_text(content)
        with pytest.raises(UserError, match=problem), serving.server_token(file):
            pass
    file.write_text(TOKEN + "\n")
    with serving.server_token(file) as (token, _, path):
        assert (token, path) == (TOKEN, file)


@pytest.mark.slow
def test_an_actor_generates_the_same_text_and_is_replaced_when_it_dies(
    mined: Path, experts: Experts, ray_address: str
) -> None:
    from expertmine.runtime import ray

    def new_worker() -> Any:
        generator = NewGenerator(mined, device="cpu")()
        steps: list[int] = []

        class Revealing:
            """A generator that reveals its process id, its modules, and how many steps it took slowly."""

            def check(self, request: GenerationRequest) -> int:
                import os
                import sys

                if request.prompt == "reveal":
                    unwanted = [name for name in ("zarr", "dask", "distributed", "numba") if name in sys.modules]
                    raise UserError(f"{os.getpid()} {len(steps)} {unwanted}")
                return generator.check(request)

            def stream(self, requests: Any, stopped: Any) -> Any:
                import time

                def slowed(at: int) -> bool:
                    if requests[at].prompt == "slowly":
                        steps.append(at)
                        time.sleep(0.2)
                    return bool(stopped(at))

                return generator.stream(requests, slowed)

        return Revealing()

    fields = {"prompt": "the cat", "concept": "animal", "k": 7, "n": 3, "max_tokens": 12, "seed": 9}
    with ray.cluster(ray_address), ray.hosted(new_worker, 1, 0) as writer, served(writer, experts) as client:
        expected = client.written(**fields)
        assert expected == [
            "".join(json.loads(chunk)["choices"][0]["text"] for chunk in client.stream(**fields)[:-1]
                    if json.loads(chunk)["choices"][0]["index"] == row)
            for row in range(3)
        ]  # fmt: skip
        pid, steps, unwanted = client.error(400, prompt="reveal")["message"].split(" ", 2)
        assert (steps, unwanted) == ("0", "[]")
        with client.begun(prompt="slowly", max_tokens=60, stream=True) as connection:
            receive(connection, b"data: ")
        assert client.written(**fields) == expected
        _, steps, _ = client.error(400, prompt="reveal")["message"].split(" ", 2)
        assert 0 < int(steps) < 60, "the request of the client that disconnected was stopped"
        with ThreadPoolExecutor(1) as threads:
            dying = threads.submit(client.stream, prompt="slowly", max_tokens=60)
            time.sleep(1)
            os.kill(int(pid), signal.SIGKILL)
            assert error_of(json.loads(dying.result()[-1]))["code"] == "lost"
        assert client.written(**fields) == expected
        assert client.error(400, prompt="reveal")["message"].split(" ")[0] != pid
