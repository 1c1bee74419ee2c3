"""Finds the token that a stored response comes from, by running a few sentences through the model again, unpooled.

Needs the model of the run. A response that differs from its stored value is not marked. Knows no page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from expertmine.errors import UserError
from expertmine.model.hooks import reading
from expertmine.model.load import load_identical
from expertmine.model.responses import FLOAT16_MAX, TYPES, Batch, make_batches, padding_id, pool, prepare
from expertmine.specs.hookpoints import Hookpoint
from expertmine.specs.plan import Plan
from expertmine.specs.settings import Pooling, ResponseSpec
from expertmine.telemetry.progress import track

Span = tuple[int, int]
"""Start and end of a part of a text, in characters."""

PRECISION = {"none": 1e-4, "bfloat16": 2.0**-6, "float16": 2.0**-9}
"""By kind of autocast: the rounding error allowed between batches, as a share of the response or of 1."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A response whose token is to be found."""

    sentence_id: int
    unit: int
    response: float
    """As stored."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The parts of texts that responses come from."""

    spans: Mapping[tuple[int, int], Span]
    """By sentence id and unit; without responses that come from no token of the text."""
    differing: int
    """Responses that differ from their stored values."""
    sentences: int
    """Sentences run through the model."""


def find_marks(
    plan: Plan, pooling: Pooling, texts: Mapping[int, str], wanted: Collection[Wanted], device: str | None = None
) -> Marks:
    """Run sentences through the model of a plan and find the token that each response comes from.

    It is the token with the highest response; with mean pooling this adds the most, and with last pooling the last
    token is taken instead.

    Args:
        texts: by sentence id.
        device: by default a GPU if there is one.

    Raises:
        UserError: the model is missing or is not the one that was mined.
    """
    spec = plan.responses
    loaded = load_identical(plan.model, device, TYPES[spec.weights])
    ids = sorted(texts)
    listed = [texts[each] for each in ids]
    tokenised, kept = prepare(loaded.tokenizer, listed, spec)
    offsets = _offsets(loaded.tokenizer, listed, [text.ids for text in tokenised], spec)
    by_sentence: dict[int, list[Wanted]] = defaultdict(list)
    for each in wanted:
        by_sentence[each.sentence_id].append(each)
    channels = _channels(plan.hookpoints, {each.unit for each in wanted})
    spans: dict[tuple[int, int], Span] = {}
    differing = 0
    values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    running: list[Batch] = []

    def record(name: str, output: torch.Tensor) -> None:
        units, columns = channels[name]
        (batch,) = running
        tokens = output.reshape(*batch.pooled.shape, -1)[..., columns.to(output.device)]
        pooled = stored_as(pool(tokens, batch, pooling), spec)
        positions = _positions(tokens.float(), batch.pooled.to(tokens.device), pooling)
        for at, unit in enumerate(units):
            values[unit] = pooled[:, at].cpu(), positions[:, at].cpu()

    batches = make_batches(tokenised, kept, spec, padding_id(loaded.tokenizer))
    with reading(loaded.model, list(channels), record):
        for batch in track(batches, "tokens", len(batches)):
            running[:] = [batch]
            _forward(loaded.model.base_model, batch, loaded.model.device, spec)
            for row, index in enumerate(batch.rows):
                for each in by_sentence[ids[index]]:
                    pooled, positions = values[each.unit]
                    if not same_response(float(pooled[row]), each.response, spec):
                        differing += 1
                        continue
                    at = int(positions[row])
                    if at < len(offsets[index]) and offsets[index][at] is not None:
                        spans[each.sentence_id, each.unit] = offsets[index][at]  # type: ignore[assignment]
    return Marks(spans, differing, len(kept))


def _channels(hookpoints: Sequence[Hookpoint], units: set[int]) -> dict[str, tuple[list[int], torch.Tensor]]:
    """The wanted units and their channels, by hookpoint."""
    found = {}
    for hookpoint in hookpoints:
        own = sorted(unit for unit in units if unit in hookpoint.units)
        if own:
            found[hookpoint.name] = own, torch.tensor(own) - hookpoint.first_unit
    return found


def _forward(model: torch.nn.Module, batch: Batch, device: torch.device, spec: ResponseSpec) -> None:
    """Run a batch as extraction does."""
    autocast = TYPES.get(spec.autocast)
    with torch.inference_mode(), torch.autocast(device.type, autocast, enabled=autocast is not None):
        model(
            input_ids=batch.ids.to(device),
            attention_mask=None if batch.attended is None else batch.attended.to(device),
            use_cache=False,
        )


def _positions(tokens: torch.Tensor, pooled: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(sentences, units) position of the token that a response comes from; the first of equals.

    Args:
        tokens: (sentences, tokens, units).
        pooled: (sentences, tokens) whether a token is pooled.
    """
    if pooling == "last":
        last = pooled.shape[1] - 1 - pooled.flip(1).int().argmax(1)
        return last[:, None].expand(-1, tokens.shape[2])
    among = tokens.masked_fill(~pooled.unsqueeze(-1), -torch.inf)
    highest = among.amax(1, keepdim=True)
    return (among == highest).int().argmax(1)


def stored_as(pooled: torch.Tensor, spec: ResponseSpec) -> torch.Tensor:
    """Pooled responses rounded as the store rounds them, in float64."""
    if spec.dtype == "float16":
        pooled = pooled.clamp(-FLOAT16_MAX, FLOAT16_MAX)
    return pooled.to(TYPES[spec.dtype]).double()


def same_response(found: float, stored: float, spec: ResponseSpec) -> bool:
    """Whether a response equals the stored one, up to the rounding of storage and of sums in other batches."""
    step = float(np.spacing(np.abs(np.array(stored, spec.dtype)).clip(max=FLOAT16_MAX / 2)))
    rounding = max(PRECISION[spec.autocast], PRECISION["bfloat16"] if spec.weights == "bfloat16" else 0.0)
    return abs(found - stored) <= step + rounding * max(1.0, abs(stored))


def _offsets(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], expected: Sequence[list[int]], spec: ResponseSpec
) -> list[list[Span | None]]:
    """The characters of each token of each text; empty if the tokenizer cannot report them.

    Raises:
        UserError: the tokenizer gives different tokens the second time.
    """
    truncate = spec.too_long == "truncate"
    try:
        encoded = tokenizer(
            list(texts),
            truncation=truncate,
            max_length=spec.max_tokens if truncate else None,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
    except NotImplementedError:  # raised by slow tokenizers
        return [[] for _ in texts]
    if list(encoded["input_ids"]) != list(expected):
        raise UserError(
            "the tokenizer gives different tokens the second time; make the report without sentences (--sentences 0)"
        )
    return [
        [_trimmed(text, *pair) for pair in pairs] for text, pairs in zip(texts, encoded["offset_mapping"], strict=True)
    ]


def _trimmed(text: str, start: int, stop: int) -> Span | None:
    """A span without the spaces at its ends; None if nothing is left."""
    while start < stop and text[start].isspace():
        start += 1
    while stop > start and text[stop - 1].isspace():
        stop -= 1
    return (start, stop) if stop > start else None
