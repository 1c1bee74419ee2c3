"""The command and the real model."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.http_clients import (
    TOKEN,
    Client,
    error_of,
    receive,
    served,
)

from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.serving import server as serving
from expertmine.steering.assignment import Steering
from expertmine.steering.generation import GenerationRequest, Generator, NewGenerator


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
