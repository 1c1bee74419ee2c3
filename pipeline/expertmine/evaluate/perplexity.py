"""Perplexity of texts under a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from expertmine.models import LoadedModel, tokenise


@torch.inference_mode()
def perplexity(loaded: LoadedModel, texts: Sequence[str], batch: int = 64) -> float:
    """exp of the mean loss a token over all texts, each read on its own after the tokens that the tokenizer adds.

    Empty texts have no tokens and count for nothing; NaN when no token is left.
    """
    total = 0.0
    count = 0
    limit = getattr(loaded.model.config, "max_position_embeddings", None)
    tokenised = [text for text in tokenise(loaded.tokenizer, texts, limit) if len(text.ids) > 1 and any(text.real)]
    for start in range(0, len(tokenised), batch):
        rows = tokenised[start : start + batch]
        width = max(len(row.ids) for row in rows)
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        attended = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row.ids)] = torch.tensor(row.ids)
            attended[at, : len(row.ids)] = 1
        ids, attended = ids.to(loaded.model.device), attended.to(loaded.model.device)
        logits = loaded.model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, :-1]
        real = attended[:, 1:].bool()
        total += cross_entropy(logits[real].float(), ids[:, 1:][real], reduction="sum").item()
        count += int(real.sum())
    return math.exp(total / count) if count else math.nan
