"""Perplexity of texts under a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from expertmine.models import LoadedModel, tokenise
from expertmine.responses import filling, make_batches
from expertmine.specs import ResponseSpec

DEFAULT = ResponseSpec()


@torch.inference_mode()
def perplexity(loaded: LoadedModel, texts: Sequence[str], spec: ResponseSpec = DEFAULT) -> float:
    """exp of the mean loss a token over all texts, each read on its own after the tokens that the tokenizer adds.

    Empty texts have no tokens and count for nothing; NaN when no token is left.

    Args:
        spec: its `batch_tokens` bound a pass.
    """
    total = 0.0
    count = 0
    limit = getattr(loaded.model.config, "max_position_embeddings", None)
    tokenised = tokenise(loaded.tokenizer, texts, limit)
    kept = [row for row, text in enumerate(tokenised) if len(text.ids) > 1 and any(text.real)]
    for batch in make_batches(tokenised, kept, spec, filling(loaded.tokenizer)):
        ids = batch.ids.to(loaded.model.device)
        attended = torch.ones_like(ids) if batch.attended is None else batch.attended.to(ids)
        logits = loaded.model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, :-1]
        real = attended[:, 1:].bool()
        total += cross_entropy(logits[real].float(), ids[:, 1:][real], reduction="sum").item()
        count += int(real.sum())
    return math.exp(total / count) if count else math.nan
