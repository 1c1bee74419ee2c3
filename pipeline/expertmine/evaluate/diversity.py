"""Measures how repetitive generated texts are, within themselves and among each other. Knows no model."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

_WORDS = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return _WORDS.findall(text.lower())


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words as a share of all, over all texts (Li et al., NAACL 2016); 0 if there are none."""
    grams = [
        tuple(words[at : at + n])
        for text in texts
        for words in [text.lower().split()]
        for at in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str], n: int, max_texts: int = 50, seed: int = 0) -> float | None:
    """Mean BLEU of each text against all others, n-grams up to `n` (Zhu et al., SIGIR 2018); None for fewer than two.

    Counts of 0 are smoothed by a small number (method 1 of Chen and Cherry, 2014), as Suau et al. do.

    Args:
        max_texts: texts to compare; of more, this many are sampled by seed.
    """
    chosen = list(texts) if len(texts) <= max_texts else random.Random(seed).sample(list(texts), max_texts)
    split = [words(text) for text in chosen]
    split = [each for each in split if each]
    if len(split) < 2:
        return None
    smooth = SmoothingFunction().method1
    weights = (1 / n,) * n
    scores = [
        sentence_bleu(split[:at] + split[at + 1 :], each, weights, smoothing_function=smooth)
        for at, each in enumerate(split)
    ]
    return float(sum(scores) / len(scores))
