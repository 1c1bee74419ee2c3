"""Perplexity of texts under a model. Knows no steering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from expertmine.model.load import LoadedModel, tokenise
from expertmine.model.responses import make_batches, padding_id
from expertmine.specs.settings import ResponseSpec

DEFAULT = ResponseSpec()


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one text."""

    total: float
    """Sum over its tokens, in nats."""
    tokens: int
    """Predicted tokens; 0 for an empty text."""

    @property
    def perplexity(self) -> float | None:
        """exp of the mean loss per token; None if there are no tokens."""
        return math.exp(min(self.total / self.tokens, 700.0)) if self.tokens else None


@torch.inference_mode()
def losses(loaded: LoadedModel, texts: Sequence[str], spec: ResponseSpec = DEFAULT) -> list[Loss]:
    """The loss of each text on its own, after any start tokens that the tokenizer adds.

    Args:
        spec: its `batch_tokens` limits the size of a pass.
    """
    found = [Loss(0.0, 0)] * len(texts)
    limit = getattr(loaded.model.config, "max_position_embeddings", None)
    tokenised = [text.without_end() for text in tokenise(loaded.tokenizer, texts, limit)]
    kept = [row for row, text in enumerate(tokenised) if len(text.ids) > 1 and any(text.real)]
    for batch in make_batches(tokenised, kept, spec, padding_id(loaded.tokenizer)):
        ids = batch.ids.to(loaded.model.device)
        attended = torch.ones_like(ids) if batch.attended is None else batch.attended.to(ids)
        logits = loaded.model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, :-1]
        real = attended[:, 1:].bool()
        each = cross_entropy(logits[real].float(), ids[:, 1:][real], reduction="none").double()
        counts = real.sum(1).tolist()
        totals = [float(own.sum()) for own in each.split(counts)]
        for row, total, count in zip(batch.rows, totals, counts, strict=True):
            found[row] = Loss(total, count)
    return found


def perplexity(each: Sequence[Loss]) -> float | None:
    """exp of the mean loss per token over all texts; None if no text has tokens."""
    return Loss(math.fsum(loss.total for loss in each), sum(loss.tokens for loss in each)).perplexity


def mean_perplexity(each: Sequence[Loss]) -> float | None:
    """The mean of the texts' perplexities, as in Suau et al. (2022); None if no text has tokens."""
    own = [loss.perplexity for loss in each if loss.perplexity is not None]
    return math.fsum(own) / len(own) if own else None
