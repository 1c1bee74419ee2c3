"""Many clients at a time share batches, and each gets its own."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from support.http_clients import (
    JSON,
    Client,
    Scribe,
    error_of,
    served,
    text,
    until,
)

from expertmine.index.experts import Experts
from expertmine.serving.batching import Batcher, Ended, Job
from expertmine.steering.generation import GenerationRequest, Piece


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
