"""Error responses in the form that OpenAI's clients read. Knows nothing of steering."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.responses import JSONResponse


class Refusal(Exception):
    """A response with an error status."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Describe an error.

        Args:
            message: what was found, what was expected, and what to do.
            code: one word for programs.
            param: the field at fault.
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
    """The refusal for an error that pydantic found in one field of a body or query.

    Args:
        problem: one of a ValidationError's errors.
        known: the names of all fields.
    """
    location = [part for part in problem["loc"] if part not in ("body", "query", "path")]
    name = str(location[0]) if location else None
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(sorted(known))}"
        return Refusal(400, f"there is no field {name!r}; {hint}", "unknown_field", name)
    where = f"{name}[{location[1]}]" if len(location) > 1 and isinstance(location[1], int) else name
    match problem["type"]:
        case "too_short":
            expected = f"at least {problem['ctx']['min_length']}"
        case "too_long":
            expected = f"at most {problem['ctx']['max_length']}"
        case _:
            expected = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return Refusal(400, f"{where} is {_shown(problem['input'])}: expected {expected}", "invalid_value", name)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
