"""WordNet as a graph of synsets, and as a source of sentences: definitions and quoted examples.

Knows synsets, senses and texts; `expertmine.concepts.senses` decides which become concepts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq

from expertmine.concepts.kinds import WordNetText
from expertmine.concepts.sense_corpora import TaggedText
from expertmine.concepts.wndb import Synset, read_wndb
from expertmine.errors import UserError

EMBEDDED = Path(__file__).parents[1] / "embedded" / "wordnet.parquet"

_HEAD_MARKER = re.compile(r"\((?:a|p|ip)\)(?=:\d*$)")


@dataclass(frozen=True)
class WordNet:
    """Synsets by name."""

    synsets: Mapping[str, Synset]
    source: str = "WordNet"
    """Where it was read from, for messages."""

    @classmethod
    def load(cls, dictionary: Path | None = None) -> WordNet:
        """Load the embedded WordNet 3.0, or a WNDB folder.

        Raises:
            UserError: the folder does not hold WordNet's files, or they are damaged.
        """
        if dictionary is None:
            synsets = {row["name"]: _from_row(row) for row in pq.read_table(EMBEDDED).to_pylist()}
            return cls(synsets, "WordNet 3.0 (embedded)")
        try:
            return cls({synset.name: synset for synset in read_wndb(dictionary)}, f"WNDB {dictionary.name}")
        except OSError as error:
            raise UserError(
                f"{error.filename}: {error.strerror}; --dict expects a folder of data.* and index.*"
            ) from error
        except ValueError as error:
            raise UserError(f"{dictionary} is damaged: {error}; --dict expects WordNet's own files") from error

    @cached_property
    def hyponyms(self) -> Mapping[str, tuple[str, ...]]:
        """Direct hyponyms and instances of each synset that has any."""
        below: dict[str, list[str]] = defaultdict(list)
        for synset in self.synsets.values():
            for above in hypernyms(synset):
                below[above].append(synset.name)
        return {name: tuple(names) for name, names in below.items()}

    def closure(self, name: str) -> frozenset[str]:
        """Return a synset and all synsets below it, including instances."""
        return frozenset(self.levels(name))

    def levels(self, *tops: str) -> Mapping[str, int]:
        """Map the synsets at or below the tops to their number of levels below the nearest top."""
        levels = dict.fromkeys(tops, 0)
        front = list(levels)
        depth = 0
        while front:
            depth += 1
            front = list(
                dict.fromkeys(below for above in front for below in self.hyponyms.get(above, ()) if below not in levels)
            )
            levels.update(dict.fromkeys(front, depth))
        return levels

    def sisters(self, name: str) -> frozenset[str]:
        """Return the other synsets that share a direct hypernym with this one."""
        above = hypernyms(self.synsets[name])
        return frozenset(sister for parent in above for sister in self.hyponyms[parent] if sister != name)

    def resolve(self, sense_key: str) -> str | None:
        """Return the synset of a sense key, or None.

        Sources differ in whether a satellite's head word keeps its syntactic marker (``all(a)``); both forms resolve.
        """
        return self._synset_of_key.get(_HEAD_MARKER.sub("", sense_key))

    @cached_property
    def _synset_of_key(self) -> Mapping[str, str]:
        return {key: synset.name for synset in self.synsets.values() for key in synset.sense_keys}


def hypernyms(synset: Synset) -> tuple[str, ...]:
    """Return the synsets that this one is a kind or an instance of."""
    return (*synset.hypernyms, *synset.instance_hypernyms)


def wordnet_texts(
    wordnet: WordNet, sentences: WordNetText = "definitions", with_lemma: bool = False
) -> Iterator[TaggedText]:
    """Yield WordNet's own texts as sense-tagged sentences; a synset's text carries all its sense keys.

    Args:
        with_lemma: prefix each definition with the synset's first word: ``dog: a member of the genus Canis``.
    """
    for synset in wordnet.synsets.values():
        texts: list[str] = []
        if sentences != "examples":
            lemma = f"{synset.lemmas[0].replace('_', ' ')}: " if with_lemma else ""
            texts.append(lemma + synset.definition)
        if sentences != "definitions":
            texts += synset.examples
        for text in texts:
            yield TaggedText(text, synset.sense_keys, synset.name)


def _from_row(row: dict[str, object]) -> Synset:
    return Synset(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})  # type: ignore[arg-type]
