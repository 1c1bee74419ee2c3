"""What a client is told that gets nothing: errors in the shape that OpenAI's clients read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.responses import JSONResponse


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Say what was found, what was expected, and what to do.

        Args:
            code: one word for programs.
            param: the field to blame.
        """
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers

    def document(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 401:
            kind = "authentication_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.document(), self.status, self.headers)


def of_field(problem: Mapping[str, Any], known: Iterable[str]) -> Refusal:
    """What pydantic found wrong with one field of a body or query.

    Args:
        problem: one of a ValidationError's.
        known: names of all fields.
    """
    place = [part for part in problem["loc"] if part not in ("body", "query", "path")]
    name = str(place[0]) if place else None
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(sorted(known))}"
        return Refusal(400, f"no field is called {name!r}; {hint}", "unknown_field", name)
    where = f"{name}[{place[1]}]" if len(place) > 1 and isinstance(place[1], int) else name
    match problem["type"]:
        case "too_short":
            expected = f"{problem['ctx']['min_length']} or more"
        case "too_long":
            expected = f"{problem['ctx']['max_length']} at most"
        case _:
            expected = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return Refusal(400, f"{where} is {_shown(problem['input'])}: expected {expected}", "invalid_value", name)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
