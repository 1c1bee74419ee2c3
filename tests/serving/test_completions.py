"""What a client is answered: completions, streams, concepts, and refusals."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from threading import Semaphore
from typing import Any
from urllib.parse import quote

import pytest
from support.http_clients import (
    JSON,
    Client,
    Scribe,
    error_of,
    receive,
    served,
    text,
)

from expertmine.index.experts import Experts
from expertmine.serving import app as paths


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
