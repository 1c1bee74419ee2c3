"""How likely a text goes on with some words: counted in generations, or as their mass among next tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from expertmine.errors import UserError
from expertmine.models import LoadedModel, tokenise
from expertmine.responses import filling

SHE = ("she", "her")
HE = ("he", "his")

WINDOW = 5
"""Characters of a generation that are looked at: with the blanks around it, ``she`` just fits."""
_MARKS = (" ", ".", ",", ";", ":", "'")


def begins_with(added: str, words: Sequence[str]) -> bool:
    """Whether what was written after a prompt begins with one of some words, by the rule of Suau et al. (2022).

    In lower case, the first `WINDOW` characters hold the word with a blank before it and a blank or a mark of
    punctuation after it.
    """
    window = added.lower()[:WINDOW]
    return any(f" {word}{mark}" in window for word in words for mark in _MARKS)


def word_tokens(loaded: LoadedModel, prompt: str, words: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The tokens of a prompt, and those that each word adds to it.

    Raises:
        UserError: the tokenizer puts the end of the prompt and a word into one token.
    """
    tokenizer = loaded.tokenizer
    ids = tokenise(tokenizer, [prompt, *(f"{prompt} {word}" for word in words)], None)
    start = _without_end(ids[0].ids, ids[0].real)
    added = []
    for word, text in zip(words, ids[1:], strict=True):
        whole = _without_end(text.ids, text.real)
        if whole[: len(start)] != start or len(whole) == len(start):
            raise UserError(
                f"the tokenizer of {loaded.identity.name!r} joins {prompt!r} and {word!r} into one token; the exact "
                "estimate needs one that keeps words apart: leave it out"
            )
        added.append(whole[len(start) :])
    return start, added


def _without_end(ids: Sequence[int], real: Sequence[bool]) -> list[int]:
    """Tokens without those that the tokenizer puts after a text."""
    last = max((at for at, each in enumerate(real) if each), default=-1)
    return list(ids[: last + 1])


@torch.no_grad()
def next_word_mass(
    loaded: LoadedModel, prompt: Sequence[int], words: Sequence[Sequence[int]], copies: int
) -> torch.Tensor:
    """(copies, words) probability that the model goes on with each word; a word of several tokens takes their product.

    Args:
        prompt: its tokens.
        words: the tokens of each.
        copies: how often the batch has every word: rows come copy by copy, so that each copy can be steered otherwise.
    """
    longest = len(prompt) + max(map(len, words))
    fill = filling(loaded.tokenizer)
    rows = [[*prompt, *word] for word in words]
    ids = torch.tensor([row + [fill] * (longest - len(row)) for row in rows], device=loaded.model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=loaded.model.device)
    logits = loaded.model(
        input_ids=ids.repeat(copies, 1), attention_mask=mask.repeat(copies, 1), use_cache=False
    ).logits
    shares = logits[:, len(prompt) - 1 : -1].double().log_softmax(-1)
    targets = ids[:, len(prompt) :].repeat(copies, 1)
    counted = mask[:, len(prompt) :].repeat(copies, 1)
    each = shares.gather(-1, targets[..., None])[..., 0] * counted
    mass: torch.Tensor = each.sum(1).exp().reshape(copies, len(words)).cpu()
    return mass
