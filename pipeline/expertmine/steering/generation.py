"""Stage 4: generates text while experts of concepts are set. Reads only the expert index and the model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, Literal, get_args

import torch
from transformers import GenerationConfig

from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.model.load import LoadedModel, load_identical, refuse_encoder, tokenise
from expertmine.model.responses import padding_id
from expertmine.specs.choices import Units
from expertmine.specs.settings import Pooling
from expertmine.steering.assignment import Steering
from expertmine.steering.decoding import Decoding, RowSampler, StepStreamer, Stopper
from expertmine.steering.interventions import Steered, steer_rows
from expertmine.storage.locations import Location


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt, the concepts to steer towards, and how to sample."""

    concepts: tuple[str, ...] = ()
    """Concepts whose experts are set together; none leaves the model as it is."""
    steering: Steering = field(default_factory=Steering)
    units: Units = "experts"
    """Which units of the concepts; all but experts are controls."""
    prompt: str = ""
    count: int = 1
    """Continuations of the prompt."""
    max_new_tokens: int = 40
    temperature: float = 1.0
    """0 always takes the likeliest token."""
    top_k: int = 10
    """Sample among this many of the likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens whose probabilities add up to this."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.units not in get_args(Units):
            raise UserError(f"units is {self.units!r}: expected one of {', '.join(get_args(Units))}")
        for name, least in (("count", 1), ("max_new_tokens", 1), ("top_k", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: expected at least {least}")
        if self.seed >= 2**63:
            raise UserError(f"seed is {self.seed}: expected less than 2^63")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}: expected 0 (the likeliest token) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: expected more than 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of text added to one continuation."""

    request: int
    """Index of the request in the batch."""
    row: int
    """Which of the request's continuations."""
    text: str
    """May be empty: a character can take several tokens."""
    tokens: int
    """Number of new tokens in it."""
    finished: Literal["stop", "length"] | None
    """Why the continuation ends with this piece: the model ended it, or it has the requested length; else None."""


@dataclass(frozen=True, slots=True)
class NewGenerator:
    """Builds a `Generator` in the process that calls it; picklable, so it can be sent to an actor."""

    index: Location | str
    pooling: Pooling | None = None
    device: str | None = None
    model: str | None = None

    def __call__(self) -> Generator:
        return Generator(self.index, self.device, self.pooling, self.model)


LONGEST_CHARACTER = 4
"""Maximum bytes of a character, and so its maximum tokens if a tokenizer has tokens of one byte."""


def never(request: int) -> bool:
    """Let no request stop early."""
    return False


class Generator:
    """Holds a model and the expert index; each call generates continuations. A plain class that may be a Ray actor.

    Runs one batch at a time, because the steering hooks are set on the shared model.
    """

    def __init__(
        self,
        index: Location | str,
        device: str | None = None,
        pooling: Pooling | None = None,
        model: str | None = None,
    ) -> None:
        """Load the index and the model that it names.

        Args:
            pooling: which of a run's indexes; by default that of its first pooling.
            model: location of the model if it has moved since mining; its weights must be the same.

        Raises:
            UserError: there is no index, the model is not the one that was mined, or it cannot generate text.
        """
        self.experts = Experts.load(index, pooling)
        identity = self.experts.model
        if model is not None:
            identity = replace(identity, name=model, revision=None)
        self.loaded: LoadedModel = load_identical(identity, device)
        refuse_encoder(self.loaded)

    def __call__(self, request: GenerationRequest) -> list[str]:
        """The continuations of one request, without the prompt.

        Raises:
            UserError: unknown concept, k out of range, or a prompt too long for the model.
        """
        return self.write([request])[0]

    def check(self, request: GenerationRequest) -> int:
        """Check a request before anything is computed; returns the prompt's number of tokens.

        Raises:
            UserError: unknown concept, k out of range, or a prompt too long for the model.
        """
        ids = self._prompt(request)
        _steered(self.experts, request)
        return len(ids)

    def write(self, requests: Sequence[GenerationRequest]) -> list[list[str]]:
        """The continuations of each request, generated in one batch; up to rounding, each is as if generated alone.

        Raises:
            UserError: as in `check`, for the first invalid request.
        """
        batch = _Batch(self, requests)
        rows = batch.run(never, lambda step: None)
        texts = [batch.whole_text(row, rows[row]) for row in range(len(rows))]
        return [texts[start:end] for start, end in pairwise(batch.starts)]

    def stream(self, requests: Sequence[GenerationRequest], stopped: Callable[[int], bool] = never) -> Iterator[Piece]:
        """Like `write`, but piece by piece as tokens are generated. Closing the iterator ends the batch.

        Args:
            stopped: called for each request at every step; True ends the request without further pieces.

        Raises:
            UserError: as in `check`, for the first invalid request.
        """
        batch = _Batch(self, requests)
        news: queue.SimpleQueue[list[int] | BaseException | None] = queue.SimpleQueue()
        closed = threading.Event()
        ended: set[int] = set()

        def ends(request: int) -> bool:
            if request not in ended and (closed.is_set() or stopped(request)):
                ended.add(request)
            return request in ended

        def work() -> None:
            try:
                batch.run(ends, news.put)
                news.put(None)
            except BaseException as error:  # raised again in the caller's thread
                news.put(error)

        thread = threading.Thread(target=work, name="generate", daemon=True)
        thread.start()
        try:
            for piece in batch.pieces(iter(news.get, None)):
                # An ended request's rows still get padding, which is not text.
                if piece.request not in ended:
                    yield piece
        finally:
            closed.set()
            thread.join()

    def _prompt(self, request: GenerationRequest) -> list[int]:
        """The tokens of a request's prompt."""
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        (text,) = tokenise(tokenizer, [request.prompt], None)
        ids = text.without_end().ids or [tokenizer.bos_token_id]
        if ids[0] is None:
            raise UserError(f"{self.experts.model.name!r} has no start token; give a prompt")
        context = getattr(model.config, "max_position_embeddings", None)
        if context is not None and len(ids) + request.max_new_tokens > context:
            raise UserError(
                f"the prompt has {len(ids)} tokens and {request.max_new_tokens} new tokens are requested, but the "
                f"model's context has {context}; shorten the prompt or request fewer"
            )
        return ids


class _Batch:
    """Runs requests as one batch, with `count` rows per request."""

    def __init__(self, generator: Generator, requests: Sequence[GenerationRequest]) -> None:
        self.loaded = generator.loaded
        self.requests = requests
        self.starts = list(accumulate((request.count for request in requests), initial=0))
        """The first row of each request, then the number of rows."""
        self.owners = [at for at, request in enumerate(requests) for _ in range(request.count)]
        self.prompts = [generator._prompt(request) for request in requests]
        # An invalid request raises here, before anything is computed.
        self.steered = [_steered(generator.experts, request) for request in requests]
        self.decoding = Decoding(self.loaded.tokenizer)

    def text(self, row: int, tokens: Sequence[int]) -> str:
        """The text that a row's new tokens add to its prompt."""
        return self.decoding.added(self.prompts[self.owners[row]], tokens)

    def whole_text(self, row: int, tokens: Sequence[int]) -> str:
        """The text of a finished row, without a last character that the length limit cut."""
        for end in range(len(tokens), max(len(tokens) - LONGEST_CHARACTER, 0), -1):
            text = self.text(row, tokens[:end])
            if not text.endswith("\ufffd"):
                return text
        return self.text(row, tokens)

    def run(self, stopped: Callable[[int], bool], on_step: Callable[[list[int]], None]) -> list[list[int]]:
        """The new tokens of each row, up to its end.

        Args:
            on_step: called with the next token of every row, ended rows included.
        """
        model: Any = self.loaded.model  # `generate` is typed for a protocol that no model class declares
        pad = padding_id(self.loaded.tokenizer)
        longest = max(map(len, self.prompts))
        rows = [self.prompts[owner] for owner in self.owners]
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
        each = [self.requests[owner] for owner in self.owners]
        sampler = RowSampler(
            [request.temperature for request in each],
            [request.top_k for request in each],
            [request.top_p for request in each],
            [(request.seed, request.count) for request in self.requests],
        )
        ends = _end_tokens(self.loaded)
        stopper = Stopper([request.max_new_tokens for request in each], longest, self.owners, stopped)
        with torch.inference_mode(), self._steering(), _plain_settings(model):
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,  # the sampler has already chosen and leaves one token
                num_beams=1,
                logits_processor=[sampler],
                stopping_criteria=[stopper],
                streamer=StepStreamer(on_step),
                max_new_tokens=max(request.max_new_tokens for request in self.requests),
                pad_token_id=pad,
            )
        assert isinstance(output, torch.Tensor)
        new = output[:, longest:].tolist()
        return [_until_end(row[: request.max_new_tokens], ends) for row, request in zip(new, each, strict=True)]

    @contextmanager
    def _steering(self) -> Iterator[None]:
        # The weights were checked when the generator loaded them.
        with steer_rows(self.loaded.model, [self.steered[owner] for owner in self.owners], check=False):
            yield

    def pieces(self, steps: Iterator[list[int] | BaseException | None]) -> Iterator[Piece]:
        """Turn the next tokens of all rows into pieces of text as they arrive."""
        ends = _end_tokens(self.loaded)
        tokens: list[list[int]] = [[] for _ in self.owners]
        sent = [""] * len(self.owners)
        pending = [0] * len(self.owners)
        running = set(range(len(self.owners)))
        for step in steps:
            if isinstance(step, BaseException):
                raise step
            assert step is not None
            for row in sorted(running):
                owner, token = self.owners[row], step[row]
                finished: Literal["stop", "length"] | None = None
                if token in ends:
                    finished = "stop"
                else:
                    tokens[row].append(token)
                    pending[row] += 1
                    if len(tokens[row]) == self.requests[owner].max_new_tokens:
                        finished = "length"
                text = (self.whole_text if finished else self.text)(row, tokens[row])
                if finished is None and (text.endswith("\ufffd") or not text.startswith(sent[row])):
                    continue  # the character's last token is still to come
                yield Piece(owner, row - self.starts[owner], text[len(sent[row]) :], pending[row], finished)
                sent[row], pending[row] = text, 0
                if finished is not None:
                    running.discard(row)


def _steered(experts: Experts, request: GenerationRequest) -> Steered | None:
    """The steering of a request; None if it sets nothing.

    Raises:
        UserError: unknown concept, k out of range, or the run did not keep a unit's value.
    """
    made = Steered(tuple(experts.units(name, request.units) for name in request.concepts), request.steering)
    return made if made.assignment else None


@contextmanager
def _plain_settings(model: Any) -> Iterator[None]:
    """While open, the model's generation settings, such as a repetition penalty, are off; special tokens stay.

    They would silently change the samples, and some count padding as text.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    try:
        yield
    finally:
        model.generation_config = own


def _end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """Tokens that end a text."""
    model: Any = loaded.model
    ends = model.generation_config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(ends if isinstance(ends, list | tuple) else [ends])


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    return next((tokens[:at] for at, token in enumerate(tokens) if token in ends), tokens)
