"""Reads WordNet's database files (WNDB: ``data.*`` and ``index.*``), as Debian and NLTK ship them.

Knows the file format and nothing else: no concepts, no sentences, no labels. The format is documented in wndb(5WN) and
senseidx(5WN) of the WordNet 3.0 reference manual.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PARTS_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}

# lexnames(5WN): the number in a data file's second column is an index into this list.
LEXICOGRAPHER_FILES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession",
    "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption",
    "verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession",
    "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip

_SENSE_TYPE = {"n": 1, "v": 2, "a": 3, "r": 4, "s": 5}
_SYNTACTIC_MARKER = re.compile(r"\((?:a|p|ip)\)$")
_EXAMPLE = re.compile(r'(?:^|[;:,])\s*"([^"]+)"?')


@dataclass(frozen=True, slots=True)
class Synset:
    """One set of synonyms."""

    name: str
    """``dog.n.01``: first lemma, part of speech (``s`` for satellite adjectives), sense number of that lemma."""
    pos: str
    """``n``, ``v``, ``a``, ``s`` or ``r``."""
    lexname: str
    """The lexicographer file, such as ``noun.animal``."""
    lemmas: tuple[str, ...]
    """In WordNet's order and spelling, with underscores for spaces."""
    sense_keys: tuple[str, ...]
    """One per lemma, as in ``index.sense``: ``dog%1:05:00::``."""
    definition: str
    examples: tuple[str, ...]
    hypernyms: tuple[str, ...]
    """Names of the synsets that this one is a kind of."""
    instance_hypernyms: tuple[str, ...]
    """Names of the synsets that this one is an instance of (Paris: a national capital)."""


@dataclass(frozen=True, slots=True)
class _Record:
    """A line of a data file, with unresolved pointers."""

    pos: str
    lex_file: int
    words: tuple[tuple[str, int], ...]
    hypernyms: tuple[int, ...]
    instance_hypernyms: tuple[int, ...]
    similar: tuple[int, ...]
    gloss: str


def read_wndb(folder: Path) -> Iterator[Synset]:
    """Yield every synset of a WNDB folder: nouns, verbs, adjectives, adverbs, each in file order.

    Raises:
        FileNotFoundError: a ``data.*`` or ``index.*`` file is missing.
        ValueError: a line is malformed; names the file and the byte offset.
    """
    for pos in PARTS_OF_SPEECH:
        records = dict(_read_data(folder / f"data.{PARTS_OF_SPEECH[pos]}"))
        names = _names(records, folder / f"index.{PARTS_OF_SPEECH[pos]}")
        for offset, record in records.items():
            try:
                yield _synset(offset, record, records, names)
            except (KeyError, IndexError) as error:
                path = folder / f"data.{PARTS_OF_SPEECH[pos]}"
                raise ValueError(f"{path}: the line at offset {offset:08d} points at nothing ({error})") from error


def _synset(offset: int, record: _Record, records: dict[int, _Record], names: dict[int, str]) -> Synset:
    definition, examples = split_gloss(record.gloss)
    return Synset(
        name=names[offset],
        pos=record.pos,
        lexname=LEXICOGRAPHER_FILES[record.lex_file],
        lemmas=tuple(word for word, _ in record.words),
        sense_keys=tuple(_sense_key(word, lex_id, record, records) for word, lex_id in record.words),
        definition=definition,
        examples=examples,
        hypernyms=tuple(names[target] for target in record.hypernyms),
        instance_hypernyms=tuple(names[target] for target in record.instance_hypernyms),
    )


def split_gloss(gloss: str) -> tuple[str, tuple[str, ...]]:
    """Split a gloss into its definition and its quoted examples.

    An example is a quotation that opens the gloss or follows ``;``, ``:`` or ``,``; other quotation marks belong to the
    definition.

    >>> split_gloss('a domesticated canid; "the dog barked all night"')
    ('a domesticated canid', ('the dog barked all night',))
    """
    first = _EXAMPLE.search(gloss)
    examples = tuple(text.strip(" ;") for text in _EXAMPLE.findall(gloss))
    definition = gloss[: first.start()] if first else gloss
    if not definition.strip(" ;:,"):
        definition = _EXAMPLE.sub("", gloss)
    return definition.strip(" ;:,"), tuple(text for text in examples if text)


def _read_data(path: Path) -> Iterator[tuple[int, _Record]]:
    with path.open(encoding="latin-1") as lines:
        for line in lines:
            if line.startswith("  "):  # the licence, at the head of each file
                continue
            try:
                yield _parse_data_line(line)
            except (ValueError, IndexError) as error:
                raise ValueError(f"{path}: not a WNDB data line at offset {line[:8]!r}: {error}") from error


def _parse_data_line(line: str) -> tuple[int, _Record]:
    head, _, gloss = line.partition("|")
    fields = head.split()
    word_count = int(fields[3], 16)
    words = tuple((_SYNTACTIC_MARKER.sub("", fields[4 + 2 * i]), int(fields[5 + 2 * i], 16)) for i in range(word_count))
    at = 4 + 2 * word_count
    pointers = [fields[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(fields[at]))]

    def targets(symbol: str) -> tuple[int, ...]:
        return tuple(int(pointer[1]) for pointer in pointers if pointer[0] == symbol)

    return int(fields[0]), _Record(
        pos=fields[2],
        lex_file=int(fields[1]),
        words=words,
        hypernyms=targets("@"),
        instance_hypernyms=targets("@i"),
        similar=targets("&"),
        gloss=gloss.strip(),
    )


def _names(records: dict[int, _Record], index_path: Path) -> dict[int, str]:
    """Map offsets to ``lemma.pos.nn``; the sense number is the synset's position in its first lemma's index line."""
    senses: dict[str, list[int]] = {}
    with index_path.open(encoding="latin-1") as lines:
        for line in lines:
            if not line.startswith(" "):
                fields = line.split()
                try:
                    senses[fields[0]] = [int(field) for field in fields[-int(fields[2]) :]]
                except (ValueError, IndexError) as error:
                    raise ValueError(f"{index_path}: not a WNDB index line: {line[:60]!r}") from error
    names: dict[int, str] = {}
    for offset, record in records.items():
        lemma = record.words[0][0].lower()
        if offset not in senses.get(lemma, ()):
            raise ValueError(f"{index_path}: lemma {lemma!r} does not lead to offset {offset:08d}")
        names[offset] = f"{lemma}.{record.pos}.{senses[lemma].index(offset) + 1:02d}"
    return names


def _sense_key(word: str, lex_id: int, record: _Record, records: dict[int, _Record]) -> str:
    """Return ``lemma%type:file:id:head:head_id`` (senseidx(5WN)); satellites name the first word of their head."""
    head = head_id = ""
    if record.pos == "s":
        head_word, head_lex_id = records[record.similar[0]].words[0]
        head, head_id = head_word.lower(), f"{head_lex_id:02d}"
    return f"{word.lower()}%{_SENSE_TYPE[record.pos]}:{record.lex_file:02d}:{lex_id:02d}:{head}:{head_id}"
