"""Turns texts into responses: selects sentences, batches them, runs the model, pools over tokens.

Knows the model's forward pass; nothing of partitions, stores or labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expertmine.errors import UserError
from expertmine.model import fused_maximum
from expertmine.model.hooks import reading
from expertmine.model.load import TokenisedText, tokenise
from expertmine.specs.hookpoints import Hookpoint
from expertmine.specs.settings import Pooling, ResponseSpec

FLOAT16_MAX = float(torch.finfo(torch.float16).max)
TYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}
"""PyTorch's types by their names in a plan."""
MAX_SPANS = 4
"""Most token spans of a batch that a GPU pools one by one; with more, kernel launches cost more than a mask."""


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Neighbouring sentences of a batch whose pooled tokens have the same positions, without a gap."""

    rows: slice
    tokens: slice


@dataclass(frozen=True, slots=True)
class Batch:
    """Sentences that go through the model together."""

    rows: tuple[int, ...]
    """Their positions in the partition."""
    ids: torch.Tensor
    """(sentences, tokens) int64, padded on the right."""
    attended: torch.Tensor | None
    """(sentences, tokens) int64 attention mask; None if all have the same length."""
    pooled: torch.Tensor
    """(sentences, tokens) bool: the tokens that are pooled."""
    spans: tuple[TokenSpan, ...] | None
    """The pooled tokens as slices, which need no mask; None if a sentence's pooled tokens have a gap."""

    def halves(self) -> tuple[Batch, Batch]:
        """Split the batch into its first and second half, without changing the padding."""
        middle = len(self.rows) // 2
        first, second = (self._part(part) for part in (slice(None, middle), slice(middle, None)))
        return first, second

    def _part(self, part: slice) -> Batch:
        attended = None if self.attended is None else self.attended[part]
        return Batch(self.rows[part], self.ids[part], attended, self.pooled[part], find_spans(self.pooled[part]))


@dataclass(frozen=True, slots=True)
class Pooled:
    """The result of one forward pass; on the model's device, and perhaps not computed yet."""

    responses: torch.Tensor
    """(poolings, sentences, units) of the stored type."""
    saturated: torch.Tensor
    """(hookpoints,) int64: number of responses beyond the range of the stored type."""
    not_a_number: torch.Tensor
    """Whether any response is NaN."""


def prepare(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], spec: ResponseSpec
) -> tuple[list[TokenisedText], list[int]]:
    """Tokenise texts; also return the rows to run, without texts that are too long or have no real token."""
    tokenised = tokenise(tokenizer, texts, spec.max_tokens if spec.too_long == "truncate" else None)
    kept = [row for row, text in enumerate(tokenised) if len(text.ids) <= spec.max_tokens and any(text.real)]
    return tokenised, kept


def pooled_tokens(text: TokenisedText, spec: ResponseSpec) -> int:
    """Count the tokens of a text that are pooled."""
    if "reference" in spec.poolings:
        return spec.max_tokens
    return len(text.ids) if spec.special_tokens else sum(text.real)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token id for padding: the tokenizer's own, else its end token, else 0."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in candidates if isinstance(token, int))


def make_batches(texts: Sequence[TokenisedText], rows: Sequence[int], spec: ResponseSpec, pad: int) -> list[Batch]:
    """Sort sentences by length and cut them into batches of at most `spec.batch_tokens` tokens, including padding.

    Args:
        rows: the texts to take, by position in `texts`; each has at least one real token.
        pad: token id for padding.
    """
    min_width = spec.max_tokens if "reference" in spec.poolings else 0
    by_length = sorted(rows, key=lambda row: (len(texts[row].ids), row))
    batches: list[Batch] = []
    start = 0
    for end in range(1, len(by_length) + 1):
        longest = max(len(texts[by_length[min(end, len(by_length) - 1)]].ids), min_width)
        if end == len(by_length) or (end + 1 - start) * longest > spec.batch_tokens:
            batches.append(_batch(texts, tuple(by_length[start:end]), spec, pad))
            start = end
    return batches


def _batch(texts: Sequence[TokenisedText], rows: tuple[int, ...], spec: ResponseSpec, pad: int) -> Batch:
    pools_padding = "reference" in spec.poolings
    lengths = torch.tensor([len(texts[row].ids) for row in rows])
    width = spec.max_tokens if pools_padding else int(lengths.max())
    ids = torch.full((len(rows), width), pad)
    pooled = torch.full((len(rows), width), pools_padding)
    for at, row in enumerate(rows):
        ids[at, : len(texts[row].ids)] = torch.tensor(texts[row].ids)
        if not pools_padding:
            pooled[at, : len(texts[row].ids)] = True if spec.special_tokens else torch.tensor(texts[row].real)
    same = bool((lengths == width).all())
    attended = None if same else (torch.arange(width) < lengths[:, None]).long()
    return Batch(rows, ids, attended, pooled, find_spans(pooled))


def find_spans(pooled: torch.Tensor) -> tuple[TokenSpan, ...] | None:
    """Return the pooled tokens (sentences, tokens) as spans, one per group of equal rows; None if a row has a gap."""
    first = pooled.int().argmax(1)
    counts = pooled.sum(1)
    last = pooled.shape[1] - pooled.flip(1).int().argmax(1)
    if not bool((last - first == counts).all()):
        return None
    bounds = list(zip(first.tolist(), last.tolist(), strict=True))
    spans: list[TokenSpan] = []
    start = 0
    for bound, alike in groupby(bounds):
        stop = start + len(list(alike))
        spans.append(TokenSpan(slice(start, stop), slice(*bound)))
        start = stop
    return tuple(spans)


@contextmanager
def forward_passes(
    model: PreTrainedModel, hookpoints: Sequence[Hookpoint], spec: ResponseSpec
) -> Iterator[Callable[[Batch], Pooled]]:
    """Yield a function that runs a batch through the base model and pools each hookpoint's response as it comes.

    The function raises UserError if a hookpoint does not run as often as when the hookpoints were found.
    """
    device = model.device
    units = sum(hookpoint.width for hookpoint in hookpoints)
    by_name = {hookpoint.name: (at, hookpoint.units) for at, hookpoint in enumerate(hookpoints)}
    running: tuple[Batch, torch.Tensor, torch.Tensor, Bounds | None] | None = None

    def record(name: str, output: torch.Tensor) -> None:
        assert running is not None  # hooks fire in our own passes only
        batch, responses, saturated, bounds = running
        at, own_units = by_name[name]
        tokens = output.reshape(*batch.pooled.shape, -1)
        largest = FLOAT16_MAX if spec.dtype == "float16" else None
        for index, pooling in enumerate(spec.poolings):
            own = responses[index, :, own_units.start : own_units.stop]
            if pooling in ("max", "reference") and bounds is not None and _fits_kernel(tokens, responses):
                fused_maximum.masked_maximum(tokens, *bounds, own, saturated[at], largest)
                continue
            pooled = pool(tokens, batch, pooling)
            if largest is not None:
                saturated[at] += (pooled.abs() > largest).sum().to(saturated.device, non_blocking=True)
                pooled = pooled.clamp(-largest, largest)
            own.copy_(pooled, non_blocking=True)

    with reading(model, [hookpoint.name for hookpoint in hookpoints], record):

        def run(batch: Batch) -> Pooled:
            nonlocal running
            shape = (len(spec.poolings), len(batch.rows), units)
            responses = torch.empty(shape, dtype=TYPES[spec.dtype], device=device)
            saturated = torch.zeros(len(hookpoints), dtype=torch.int64, device=device)
            # The mask of pooled tokens is copied to the device once, not for every hookpoint.
            marked = replace(batch, pooled=batch.pooled.to(device, non_blocking=True))
            running = (marked, responses, saturated, _bounds(batch, device))
            autocast = TYPES.get(spec.autocast)
            with torch.inference_mode(), torch.autocast(device.type, autocast, enabled=autocast is not None):
                model.base_model(
                    input_ids=batch.ids.to(device, non_blocking=True),
                    attention_mask=None if batch.attended is None else batch.attended.to(device, non_blocking=True),
                    use_cache=False,
                )
            responses += 0  # −0.0 becomes +0.0, also if it came from rounding
            return Pooled(responses, saturated, responses.isnan().any())

        yield run


Bounds = tuple[torch.Tensor, torch.Tensor]
"""Per sentence of a batch, (sentences,) int32 on a GPU: the first pooled token, and the token after the last."""


def _bounds(batch: Batch, device: torch.device) -> Bounds | None:
    """The pooled tokens of each sentence for the kernel; None where it cannot run or a sentence has gaps."""
    if device.type != "cuda" or batch.spans is None or not fused_maximum.available():
        return None
    bounds = torch.empty(2, len(batch.rows), dtype=torch.int32)
    for span in batch.spans:
        bounds[0, span.rows], bounds[1, span.rows] = span.tokens.start, span.tokens.stop
    first, last = bounds.to(device, non_blocking=True)
    return first, last


def _fits_kernel(tokens: torch.Tensor, responses: torch.Tensor) -> bool:
    """Whether an output is on the GPU that gathers the responses, with neighbouring channels side by side."""
    return tokens.device == responses.device and tokens.stride(-1) == 1


def pool(output: torch.Tensor, batch: Batch, pooling: Pooling) -> torch.Tensor:
    """Pool a module's output (sentences, tokens, channels) over the pooled tokens → (sentences, channels) float32."""
    if pooling == "last":
        last = batch.pooled.shape[1] - 1 - batch.pooled.flip(1).int().argmax(1)
        return output[torch.arange(len(output), device=output.device), last.to(output.device)].float()
    if batch.spans is not None and (output.device.type == "cpu" or len(batch.spans) <= MAX_SPANS):
        return torch.cat([_reduce(output[span.rows, span.tokens], pooling) for span in batch.spans])
    tokens = batch.pooled.to(output.device, non_blocking=True)
    outside = ~tokens.unsqueeze(-1)
    if pooling == "mean":
        return output.float().masked_fill(outside, 0).sum(1) / tokens.sum(1, keepdim=True)
    return output.masked_fill(outside, -torch.inf).amax(1).float()


def _reduce(tokens: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    return tokens.mean(1, dtype=torch.float32) if pooling == "mean" else tokens.amax(1).float()


def refuse_nan(responses: NDArray[np.floating], hookpoints: Sequence[Hookpoint], texts: Sequence[str]) -> None:
    """Refuse responses that hold a NaN.

    Args:
        responses: (sentences, units).
        texts: the sentences.

    Raises:
        UserError: names the sentence, the hookpoint and the unit of the first NaN.
    """
    found = np.argwhere(np.isnan(responses))
    if not len(found):
        return
    at, unit = found[0].tolist()
    hookpoint = next(hookpoint for hookpoint in hookpoints if unit in hookpoint.units)
    raise UserError(
        f"hookpoint {hookpoint.name!r}, unit {unit}: the response to {texts[at]!r} is NaN; "
        "check the model's weights, leave out the hookpoint, or remove the sentence from the corpus"
    )
