"""Builds completion responses: the JSON of OpenAI's text completions, with seed and steering. Knows no HTTP."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from expertmine.serving.completions import CompletionRequest

if TYPE_CHECKING:
    from expertmine.steering.generation import Piece


@dataclass
class CompletionResponse:
    """The response to one request, as a whole or in chunks."""

    request: CompletionRequest
    model: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    completion_tokens: int = 0

    def __post_init__(self) -> None:
        rows = sum(request.count for request in self.request.requests)
        self.texts = [""] * rows
        self.reasons: list[str | None] = [None] * rows

    def add(self, piece: Piece) -> int:
        """Add a piece; returns the index of its choice."""
        at = piece.request * self.request.requests[0].count + piece.row
        self.texts[at] += piece.text
        self.reasons[at] = piece.finished
        self.completion_tokens += piece.tokens
        return at

    def whole(self) -> dict[str, Any]:
        choices = [_choice(text, at, self.reasons[at]) for at, text in enumerate(self.texts)]
        return {**self._document(choices), "usage": self._usage()}

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Add a piece and return its event; the last event includes the usage."""
        at = self.add(piece)
        document = self._document([_choice(piece.text, at, piece.finished)])
        return {**document, "usage": self._usage()} if all(self.reasons) else document

    def _document(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "seed": self.request.seed,
            "steering": self._steering(),
        }

    def _steering(self) -> Mapping[str, Any] | None:
        first = self.request.requests[0]
        if not first.concepts:
            return None
        steering = {"k_from": self.request.k_from, **asdict(first.steering)}
        return {"concepts": first.concepts, "units": first.units, **steering}

    def _usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


def _choice(text: str, at: int, reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": at, "finish_reason": reason, "logprobs": None}
