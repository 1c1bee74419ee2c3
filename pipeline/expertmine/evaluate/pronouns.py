"""The probability that a text continues with given words: counted in generations, or as mass among next tokens.

Knows no steering.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from expertmine.errors import UserError
from expertmine.model.load import LoadedModel, tokenise
from expertmine.model.responses import padding_id

SHE = ("she", "her")
HE = ("he", "his")

WINDOW = 5
"""Characters of a generation to search; with a space on each side, ``she`` just fits."""
_MARKS = (" ", ".", ",", ";", ":", "'")


def begins_with(added: str, words: Sequence[str]) -> bool:
    """Whether a continuation begins with one of some words, by the rule of Suau et al. (2022).

    In lower case, its first `WINDOW` characters contain the word, preceded by a space and followed by a space or a
    punctuation mark.
    """
    window = added.lower()[:WINDOW]
    return any(f" {word}{mark}" in window for word in words for mark in _MARKS)


def word_tokens(loaded: LoadedModel, prompt: str, words: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The tokens of a prompt, and the tokens that each word adds to it.

    Raises:
        UserError: the tokenizer merges the end of the prompt and a word into one token.
    """
    tokenizer = loaded.tokenizer
    ids = tokenise(tokenizer, [prompt, *(f"{prompt} {word}" for word in words)], None)
    start = ids[0].without_end().ids
    added = []
    for word, text in zip(words, ids[1:], strict=True):
        whole = text.without_end().ids
        if whole[: len(start)] != start or len(whole) == len(start):
            raise UserError(
                f"the tokenizer of {loaded.identity.name!r} merges the end of {prompt!r} and {word!r} into one token, "
                "so the exact estimate is not possible; use --estimate sampled"
            )
        added.append(whole[len(start) :])
    return start, added


@torch.no_grad()
def next_word_mass(
    loaded: LoadedModel, prompt: Sequence[int], words: Sequence[Sequence[int]], copies: int
) -> torch.Tensor:
    """(copies, words) probability that the model continues with each word: the product over the word's tokens.

    Args:
        prompt: its tokens.
        words: the tokens of each word.
        copies: copies of the words in the batch; rows are ordered by copy, so that copies can be steered differently.
    """
    # The last token of a word is predicted, not read, so all words of one token share one row: the prompt.
    readings = list(dict.fromkeys(tuple(word[:-1]) for word in words))
    longest = len(prompt) + max(map(len, readings))
    fill = padding_id(loaded.tokenizer)
    rows = [[*prompt, *read] for read in readings]
    ids = torch.tensor([row + [fill] * (longest - len(row)) for row in rows], device=loaded.model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=loaded.model.device)
    logits = loaded.model(
        input_ids=ids.repeat(copies, 1), attention_mask=mask.repeat(copies, 1), use_cache=False
    ).logits
    shares = logits[:, len(prompt) - 1 :].double().log_softmax(-1).reshape(copies, len(rows), -1, logits.shape[-1])
    mass = [
        sum(shares[:, readings.index(tuple(word[:-1])), at, token] for at, token in enumerate(word)) for word in words
    ]
    return torch.stack([each.exp() for each in mass], dim=1).cpu()
