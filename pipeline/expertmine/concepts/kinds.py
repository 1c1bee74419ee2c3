"""The options that select concepts and their negatives: their words and the check of user input. Knows no reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar, get_args

from expertmine.errors import UserError

Word = TypeVar("Word", bound=str)

By = Literal["key", "synset", "closure"]
"""What becomes a concept: a sense key, a synset (all its keys), or a synset with all its hyponyms and instances."""

PartOfSpeech = Literal["noun", "verb", "adjective", "adverb"]
PARTS_OF_SPEECH: tuple[PartOfSpeech, ...] = get_args(PartOfSpeech)

WordNetText = Literal["definitions", "examples", "both"]
"""Which of a synset's texts are used as sentences."""

ListedNegatives = Literal["listed", "pool", "own", "others"]
"""Where negatives come from, for any source:

- ``listed``: the negatives that the source lists
- ``pool``: one sample of all texts, shared by all concepts; the cheapest to score
- ``own``: a sample of all texts per concept
- ``others``: every other text
"""

LISTED_NEGATIVES: tuple[ListedNegatives, ...] = get_args(ListedNegatives)

SenseNegatives = Literal["pool", "own", "others", "sisters", "homographs"]
"""Where negatives come from, for sources of senses: ``pool``, ``own`` and ``others`` as above, and hard negatives:

- ``sisters``: texts of synsets that share a hypernym with the concept
- ``homographs``: texts with other senses of the concept's words; the paper's fine-grained case
"""

SENSE_NEGATIVES: tuple[SenseNegatives, ...] = get_args(SenseNegatives)

Negatives = Literal["listed", "pool", "own", "others", "sisters", "homographs"]

SameName = Literal["refuse", "join"]
"""What happens to concepts of one name in several corpora: an error, or one concept with the sentences of all."""


def known(option: str, given: Iterable[str], words: Sequence[Word]) -> tuple[Word, ...]:
    """Return the given words without repeats, in the order of `words`.

    Raises:
        UserError: a word is unknown; names the option and the words that it takes.
    """
    found = dict.fromkeys(given)
    for one in found:
        if one not in words:
            raise UserError(f"{option} is {one!r}: expected {', '.join(words[:-1])} or {words[-1]}")
    return tuple(word for word in words if word in found)
