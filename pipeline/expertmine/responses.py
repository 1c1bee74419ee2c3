"""From texts to responses: which sentences are run, in which batches, pooled over which tokens, stored as what.

Knows the model's forward pass; nothing of partitions, stores or labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expertmine.errors import UserError
from expertmine.models import TokenisedText, tokenise
from expertmine.specs import Hookpoint, Pooling, ResponseSpec, StoredType
from expertmine.taps import reading


@dataclass(frozen=True, slots=True)
class Batch:
    """Sentences that go through the model together."""

    rows: tuple[int, ...]
    """Where they stand in their partition."""
    ids: torch.Tensor
    """(sentences, tokens) int64, short ones filled up on the right."""
    attended: torch.Tensor | None
    """(sentences, tokens) int64 attention mask; None when all have the same length."""
    pooled: torch.Tensor
    """(sentences, tokens) bool: the tokens that enter the pool."""


def prepare(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], spec: ResponseSpec
) -> tuple[list[TokenisedText], list[int]]:
    """Tokens of each text, and which of the texts will be run: not those too long or without a real token."""
    tokenised = tokenise(tokenizer, texts, spec.max_tokens if spec.too_long == "truncate" else None)
    kept = [row for row, text in enumerate(tokenised) if len(text.ids) <= spec.max_tokens and any(text.real)]
    return tokenised, kept


def make_batches(texts: list[TokenisedText], rows: list[int], batch_tokens: int, fill: int) -> list[Batch]:
    """Cut sentences, sorted by length, into batches of at most `batch_tokens` tokens with filling.

    Args:
        rows: the texts to take, by position in `texts`; each has at least one real token.
        fill: token id that fills short sentences up.
    """
    by_length = sorted(rows, key=lambda row: (len(texts[row].ids), row))
    batches: list[Batch] = []
    start = 0
    for end in range(1, len(by_length) + 1):
        longest = len(texts[by_length[min(end, len(by_length) - 1)]].ids)
        if end == len(by_length) or (end + 1 - start) * longest > batch_tokens:
            batches.append(_batch(texts, tuple(by_length[start:end]), fill))
            start = end
    return batches


def _batch(texts: list[TokenisedText], rows: tuple[int, ...], fill: int) -> Batch:
    lengths = torch.tensor([len(texts[row].ids) for row in rows])
    width = int(lengths.max())
    ids = torch.full((len(rows), width), fill)
    pooled = torch.zeros((len(rows), width), dtype=torch.bool)
    for at, row in enumerate(rows):
        ids[at, : len(texts[row].ids)] = torch.tensor(texts[row].ids)
        pooled[at, : len(texts[row].ids)] = torch.tensor(texts[row].real)
    same = bool((lengths == width).all())
    attended = None if same else (torch.arange(width) < lengths[:, None]).long()
    return Batch(rows, ids, attended, pooled)


def run_batch(
    model: PreTrainedModel, hookpoints: Sequence[Hookpoint], batch: Batch, pooling: Pooling
) -> list[torch.Tensor]:
    """One forward pass of the base model, pooled as it goes.

    Returns:
        (sentences, channels) of each hookpoint, on the model's device.
    """
    marked = batch.pooled.to(model.device)
    pooled: dict[str, torch.Tensor] = {}

    def record(name: str, output: torch.Tensor) -> None:
        pooled[name] = pool(output.reshape(*marked.shape, -1), marked, pooling)

    with reading(model, [hookpoint.name for hookpoint in hookpoints], record), torch.inference_mode():
        model.base_model(
            input_ids=batch.ids.to(model.device),
            attention_mask=None if batch.attended is None else batch.attended.to(model.device),
            use_cache=False,
        )
    return [pooled[hookpoint.name] for hookpoint in hookpoints]


def pool(output: torch.Tensor, tokens: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Pool a module's output (sentences, tokens, channels) over the marked tokens → (sentences, channels)."""
    if pooling == "last":
        last = tokens.shape[1] - 1 - tokens.flip(1).int().argmax(1)
        return output[torch.arange(len(output), device=output.device), last]
    if bool((tokens == tokens[0]).all()):  # the same tokens of each: no mask needed
        chosen = output[:, tokens[0]]
        return chosen.amax(1) if pooling == "max" else chosen.float().mean(1)
    outside = ~tokens.unsqueeze(-1)
    if pooling == "max":
        return output.masked_fill(outside, -torch.inf).amax(1)
    return output.float().masked_fill(outside, 0).sum(1) / tokens.sum(1, keepdim=True)


def to_stored(responses: NDArray[np.float32], dtype: StoredType) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Responses as they are stored, and which of them saturated.

    float16 saturates at ±65504; −0.0 becomes +0.0, also where rounding made it.
    """
    if dtype == "float32":
        return responses + np.float32(0), np.zeros(responses.shape, np.bool_)
    largest = np.float32(np.finfo(np.float16).max)
    saturated = np.abs(responses) > largest
    stored = np.clip(responses, -largest, largest).astype(np.float16)
    stored += np.float16(0)
    return stored, saturated


def refuse_nan(responses: NDArray[np.floating], hookpoint: Hookpoint, texts: list[str]) -> None:
    """Stop at a response that is not a number.

    Args:
        responses: (sentences, channels) of one hookpoint.
        texts: the sentences.

    Raises:
        UserError: names the sentence, the hookpoint and the unit.
    """
    if not np.isnan(responses).any():
        return
    at, channel = np.argwhere(np.isnan(responses))[0]
    raise UserError(
        f"hookpoint {hookpoint.name!r}, unit {hookpoint.first_unit + channel}: the response to "
        f"{texts[at]!r} is NaN; check the model's weights, or leave the hookpoint out"
    )
