"""Clients that disconnect, a model that fails, a server that stops: what the others are answered."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.http_clients import (
    SECRET,
    Client,
    Scribe,
    error_of,
    receive,
    served,
    text,
    until,
)

from expertmine.index.experts import Experts
from expertmine.serving import server as serving


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
