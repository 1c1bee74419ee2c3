"""Parses completion requests: OpenAI's fields, and steering. Knows neither HTTP nor the generator."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from expertmine.errors import UnknownConcept, UserError
from expertmine.index.experts import Experts
from expertmine.serving.refusals import Refusal, of_field
from expertmine.specs.choices import Conflicts, Forcing, Tokens, Units
from expertmine.steering.assignment import Steering, usual_k
from expertmine.steering.generation import GenerationRequest

MAX_CONCEPTS = 32
"""Maximum concepts per request."""


def _several(value: object) -> object:
    """Turn one text into a list of one."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError("a string, or a list of strings")
    return found


Texts = Annotated[list[str], BeforeValidator(_several)]


class Body(BaseModel):
    """The fields of a request, OpenAI's first. Checks that depend on several fields come later."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Texts = Field([""], min_length=1)
    n: int = Field(1, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = Field(None, ge=0, lt=2**53)  # exact in every JSON reader
    stream: bool = False
    model: str | None = None
    user: str | None = None
    concept: Texts = Field([], max_length=MAX_CONCEPTS)
    k: int | None = None
    forcing: Forcing = "mean"
    strength: float = 1.0
    top_k: int = 10
    tokens: Tokens = "all"
    block: int = 1
    layers: list[int] | None = None
    conflicts: Conflicts = "best"
    units: Units = "experts"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one request."""

    rows: int
    """Maximum of prompts × n."""
    new_tokens: int
    body: int
    """In bytes."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A parsed and validated request."""

    requests: tuple[GenerationRequest, ...]
    """One per prompt."""
    stream: bool
    seed: int
    """Seed of the first prompt; it increases by one per prompt."""
    k_from: str
    """Where k comes from: request, evaluation or default."""


def served_name(experts: Experts) -> str:
    """The model's public name; of a local folder, only the last part of its path."""
    name = experts.model.name
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name


def parse(body: bytes, experts: Experts, limits: Limits) -> CompletionRequest:
    """Parse the body of a request.

    Raises:
        Refusal: the body is not JSON, a field is unknown or invalid, or there is no such concept.
    """
    # OpenAI's clients send null for a field that is not set.
    given = {name: value for name, value in _load(body).items() if value is not None}
    try:
        read = Body.model_validate(given)
    except ValidationError as error:
        raise of_field(error.errors(include_url=False)[0], Body.model_fields) from None
    name = served_name(experts)
    if read.model not in (None, name):
        raise Refusal(404, f"model is {read.model!r}: expected {name!r}", "model_not_found", "model")
    rows = len(read.prompt) * read.n
    if rows > limits.rows:
        found = f"n is {read.n}" if len(read.prompt) == 1 else f"n is {read.n} for {len(read.prompt)} prompts"
        raise Refusal(400, f"{found}: expected at most {limits.rows} continuations", "too_many", "n")
    new_tokens = min(40, limits.new_tokens) if read.max_tokens is None else read.max_tokens
    if new_tokens > limits.new_tokens:
        message = f"max_tokens is {new_tokens}: expected at most {limits.new_tokens}"
        raise Refusal(400, message, "too_many", "max_tokens")
    seed = secrets.randbelow(2**32) if read.seed is None else read.seed
    try:
        steering = Steering(
            k=0,
            forcing=read.forcing,
            strength=read.strength,
            tokens=read.tokens,
            layers=None if read.layers is None else tuple(read.layers),
            block=read.block,
            conflicts=read.conflicts,
        )
        k, k_from = _choose_k(read, experts, steering)
        steering = replace(steering, k=k)
        requests = tuple(
            GenerationRequest(
                concepts=tuple(read.concept),
                steering=steering,
                units=read.units,
                prompt=prompt,
                count=read.n,
                max_new_tokens=new_tokens,
                temperature=read.temperature,
                top_k=read.top_k,
                top_p=read.top_p,
                seed=seed + at,
            )
            for at, prompt in enumerate(read.prompt)
        )
    except UserError as error:
        raise of_request(error) from None
    return CompletionRequest(requests, read.stream, seed, k_from)


def _load(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        Refusal: the body is not a JSON object.
    """
    try:
        document = json.loads(body.decode(), parse_constant=_refuse_constant)
        json.dumps(document, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
        raise Refusal(400, f"the body is not valid JSON: {error.msg} at {position}", "malformed_json") from None
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not valid UTF-8 at byte {error.start + 1}", "malformed_json") from None
    except UnicodeEncodeError:
        raise Refusal(400, "the body has half of a surrogate pair: expected valid text", "malformed_json") from None
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply", "malformed_json") from None
    except ValueError as error:  # NaN, and numbers of thousands of digits
        raise Refusal(400, f"the body has an invalid number ({error})", "malformed_json") from None
    if not isinstance(document, dict):
        raise Refusal(400, f"the body is a JSON {type(document).__name__}: expected an object", "malformed_json")
    return document


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _choose_k(read: Body, experts: Experts, steering: Steering) -> tuple[int, str]:
    """The number of experts to set per concept, and where it comes from.

    Raises:
        Refusal: a concept is repeated or unknown.
    """
    for at, concept in enumerate(read.concept):
        if concept in read.concept[:at]:
            raise Refusal(400, f"concept has {concept!r} twice: expected it once", "invalid_value", "concept")
        if concept not in experts:
            raise unknown_concept(concept, experts)
    if read.k is not None:
        return read.k, "request"
    k, evaluated = usual_k(experts, read.concept, steering, read.units)
    return k, "evaluation" if evaluated else "default"


def unknown_concept(name: str, experts: Experts) -> Refusal:
    found = UnknownConcept.among(name, list(experts), "this index")
    return Refusal(404, str(found), "concept_not_found", "concept")


def of_request(error: UserError) -> Refusal:
    """The refusal of a request that the generator refuses; the message begins with the name of the field at fault."""
    message = str(error)
    if message.startswith("the prompt has"):
        return Refusal(400, message, "context_length_exceeded", "prompt")
    first = message.split(" ", 1)[0]
    return Refusal(400, message, "invalid_value", first if first in Body.model_fields else None)
