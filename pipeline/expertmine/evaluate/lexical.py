"""Does a text have a word of the concept? The lemmas of a WordNet synset and of all below it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from expertmine.concepts.wordnet import WordNet

SHORTEST = 3
"""Letters of a lemma at least: WordNet has ``in`` for the inch, ``he`` for helium, ``a`` for the ampere."""

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


class Lemmas:
    """Finds words of a concept in texts: whole words, in any case, nouns in the plural too."""

    def __init__(self, lemmas: Sequence[str]) -> None:
        """Begin with lemmas as WordNet writes them, blanks as underscores."""
        split = {tuple(_words(lemma.replace("_", " "))) for lemma in lemmas if len(lemma) >= SHORTEST}
        self.lemmas = split - {()}
        self.longest = max(map(len, self.lemmas), default=0)

    def __len__(self) -> int:
        return len(self.lemmas)

    def found_in(self, text: str) -> bool:
        """Whether the text has one of them."""
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
    """A word, and what it may be the plural of."""
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
    """The lemmas of a concept's closure: of the synset that it is named for, or that its sense keys are of.

    None for a concept that WordNet does not know.
    """
    wordnet = _wordnet()
    tops = {concept} if concept in wordnet.synsets else {wordnet.resolve(key) for key in sense_keys} - {None}
    if not tops:
        return None
    below = wordnet.levels(*(top for top in tops if top is not None))
    return Lemmas([lemma for name in below for lemma in wordnet.synsets[name].lemmas])
