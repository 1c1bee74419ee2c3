"""Concepts from WordNet: a noun synset's positives are the definitions of its hyponym closure.

Each concept draws a sample of its closure. Labels are complete: whatever any concept drew counts as a positive of every
concept that it belongs to. Negatives are a pool of definitions of other synsets, drawn once and shared by all concepts;
what of it belongs to a concept is a positive there. Every choice is a seeded hash of the synset's name, so that it does
not depend on order, and concepts that overlap draw the same sentences.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq

from expertmine.concepts.wndb import Synset, read_wndb
from expertmine.corpus import LabelledTexts
from expertmine.errors import UnknownConcept, UserError

EMBEDDED = Path(__file__).parents[1] / "embedded" / "wordnet.parquet"


@dataclass(frozen=True)
class WordNet:
    """Synsets by name."""

    synsets: Mapping[str, Synset]

    @classmethod
    def load(cls, dictionary: Path | None = None) -> WordNet:
        """The embedded WordNet 3.0, or a WNDB folder.

        Raises:
            UserError: the folder is not one of WordNet's.
        """
        if dictionary is None:
            return cls({row["name"]: _from_row(row) for row in pq.read_table(EMBEDDED).to_pylist()})
        try:
            return cls({synset.name: synset for synset in read_wndb(dictionary)})
        except OSError as error:
            raise UserError(
                f"{error.filename}: {error.strerror}; --dict expects a folder of data.* and index.*"
            ) from error
        except ValueError as error:
            raise UserError(str(error)) from error

    @cached_property
    def hyponyms(self) -> Mapping[str, tuple[str, ...]]:
        """Direct hyponyms and instances of each synset that has some."""
        below: dict[str, list[str]] = defaultdict(list)
        for synset in self.synsets.values():
            for above in (*synset.hypernyms, *synset.instance_hypernyms):
                below[above].append(synset.name)
        return {name: tuple(names) for name, names in below.items()}

    def closure(self, name: str) -> frozenset[str]:
        """The synset and all below it, instances included."""
        seen = {name}
        front = [name]
        while front:
            front = [below for above in front for below in self.hyponyms.get(above, ()) if below not in seen]
            seen.update(front)
        return frozenset(seen)


@dataclass(frozen=True, slots=True)
class Mining:
    """Which synsets become concepts, and with how many sentences."""

    min_positives: int = 100
    """Smallest hyponym closure, in synsets, that becomes a concept."""
    max_positives: int = 5000
    """Largest; above it lie abstractions such as ``entity.n.01``."""
    sample: int = 300
    """Positives that a concept draws from its closure; those that others draw come on top."""
    negatives: int = 1000
    """Size of the shared pool of negatives."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_positives <= self.max_positives:
            raise UserError(
                f"bounds on positives are {self.min_positives} to {self.max_positives}: expected 1 <= min <= max"
            )
        if min(self.sample, self.negatives) < 1:
            raise UserError("the sample of positives and the pool of negatives need at least one sentence each")


def noun_concepts(
    wordnet: WordNet, mining: Mining, names: Sequence[str] = (), limit: int | None = None
) -> Iterator[LabelledTexts]:
    """Noun concepts with definitions as sentences.

    Args:
        names: the synsets to take, whatever the size of their closures; none means all within the bounds.
        limit: keep this many of them, drawn by seed.

    Raises:
        UserError: a name is no noun synset, or nothing is within the bounds.
    """
    chosen = list(names) if names else _within_bounds(wordnet, mining)
    for name in chosen:
        if name not in wordnet.synsets or wordnet.synsets[name].pos != "n":
            nouns = [synset.name for synset in wordnet.synsets.values() if synset.pos == "n"]
            raise UnknownConcept.among(name, nouns, "WordNet's nouns")
    if not chosen:
        raise UserError(f"no noun of WordNet has {mining.min_positives} to {mining.max_positives} hyponyms")
    pool = _draw(wordnet.synsets, mining.negatives, f"pool {mining.seed}")
    closures = {name: wordnet.closure(name) for name in _draw(chosen, limit, f"concepts {mining.seed}")}
    salt = f"positives {mining.seed}"
    members = {member for closure in closures.values() for member in _draw(closure, mining.sample, salt)}.union(pool)
    for name, closure in closures.items():
        positives = {wordnet.synsets[member].definition for member in members & closure}
        negatives = {wordnet.synsets[member].definition for member in pool if member not in closure}
        elsewhere = {wordnet.synsets[member].definition for member in closure}
        yield LabelledTexts(
            name=name,
            group="wordnet",
            description=wordnet.synsets[name].definition,
            positives=sorted(positives),
            negatives=sorted(negatives - elsewhere),
        )


def _within_bounds(wordnet: WordNet, mining: Mining) -> list[str]:
    """Noun synsets whose closure has a size within the bounds."""
    nouns = (name for name in wordnet.hyponyms if wordnet.synsets[name].pos == "n")
    return [name for name in nouns if mining.min_positives <= len(wordnet.closure(name)) <= mining.max_positives]


def _draw(names: Iterable[str], count: int | None, salt: str) -> list[str]:
    """The `count` names of lowest hash, a sample without replacement that is the same for any order of the names."""
    return sorted(names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8, key=salt.encode()).digest())[
        :count
    ]


def _from_row(row: dict[str, object]) -> Synset:
    return Synset(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})  # type: ignore[arg-type]
