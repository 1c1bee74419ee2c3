"""Sentences of a useful length, for benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from transformers import PreTrainedTokenizerBase

from expertmine.concepts.wordnet import WordNet, wordnet_texts

TOKENS = 40


def glosses() -> Iterator[str]:
    """WordNet's definitions and examples, each once, in its order."""
    yield from dict.fromkeys(text.text for text in wordnet_texts(WordNet.load()))


def long_sentences(count: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Different texts of about TOKENS tokens, joined from short ones."""
    found = list(islice(_joined(tokenizer), count))
    assert len(found) == count, "WordNet is too short"
    return found


def _joined(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    parts: list[str] = []
    tokens = 0
    for text in glosses():
        parts.append(text)
        tokens += len(tokenizer(text)["input_ids"])
        if tokens >= TOKENS - 8:
            yield "; ".join(parts)
            parts, tokens = [], 0
