"""Does a text contain a word of the concept? Searches for the lemmas of a WordNet synset and its hyponyms.

Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from expertmine.concepts.wordnet import WordNet

MIN_LETTERS = 3
"""Shorter lemmas are ignored: WordNet has ``in`` for inch, ``he`` for helium, ``a`` for ampere."""

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


class Lemmas:
    """Finds words of a concept in texts: whole words, ignoring case, plurals included."""

    def __init__(self, lemmas: Sequence[str]) -> None:
        """Take lemmas as WordNet writes them, with underscores for spaces."""
        split = {tuple(_words(lemma.replace("_", " "))) for lemma in lemmas if len(lemma) >= MIN_LETTERS}
        self.lemmas = split - {()}
        self.longest = max(map(len, self.lemmas), default=0)

    def __len__(self) -> int:
        return len(self.lemmas)

    def found_in(self, text: str) -> bool:
        """Whether the text contains one of the lemmas."""
        words = _words(text)
        return any(
            (*words[at : end - 1], last) in self.lemmas
            for at in range(len(words))
            for end in range(at + 1, min(at + self.longest, len(words)) + 1)
            for last in _singular(words[end - 1])
        )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _singular(word: str) -> Iterator[str]:
    """A word, and the singulars that it may be the plural of."""
    yield word
    if word.endswith("ies"):
        yield word[:-3] + "y"
    if word.endswith("es"):
        yield word[:-2]
    if word.endswith("s"):
        yield word[:-1]


@cache
def _wordnet() -> WordNet:
    return WordNet.load()


def lemmas_of(concept: str, sense_keys: Sequence[str]) -> Lemmas | None:
    """The lemmas of a concept's closure, found by its name as a synset or by its sense keys.

    None for a concept that WordNet does not have.
    """
    wordnet = _wordnet()
    tops = {concept} if concept in wordnet.synsets else {wordnet.resolve(key) for key in sense_keys} - {None}
    if not tops:
        return None
    below = wordnet.levels(*(top for top in tops if top is not None))
    return Lemmas([lemma for name in below for lemma in wordnet.synsets[name].lemmas])
