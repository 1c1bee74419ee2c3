"""Who may come in: by token and by the server's name."""

from __future__ import annotations

import pytest
from support.http_clients import (
    TOKEN,
    Client,
    error_of,
)


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
