"""Streams sentences with sense keys from annotated corpora: all-words XML with a key file, and lexical samples.

Knows the two formats and nothing of concepts. The all-words layout is that of Raganato, Camacho-Collados and Navigli
(2017), which SemCor and OneSeC use: ``<sentence>`` with ``<wf>`` and ``<instance id>``, and a text file with an
instance id and its sense keys per line. Attributes of lemma and part of speech are ignored: the sense keys have both.
A lexical sample has ``<instance>`` with ``<answer senseid>`` and ``<context>``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import ClassVar
from xml.parsers import expat

from expertmine.concepts.streams import chunks, lines
from expertmine.corpus.drafts import Refusal, Refusals
from expertmine.errors import UserError

WINDOW = 500_000
"""Most instances of a key file held in memory while the data lags behind; about 150 MB if the files do not match."""


@dataclass(frozen=True, slots=True)
class TaggedText:
    """A text and the senses that occur in it."""

    text: str
    sense_keys: tuple[str, ...]
    where: str
    """File and line, or synset, for messages."""


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str | None
    line: int
    senses: tuple[str, ...] = ()
    """Instance ids; in a lexical sample, sense keys."""


@dataclass
class _Reader(ABC):
    """Turns the parser's events into sentences, for one XML format."""

    element: ClassVar[str]
    """The element that a file must have."""
    path: Path
    ready: list[_Sentence] = field(default_factory=list)
    """Complete sentences that have not been taken yet."""
    line: int = 0
    """First line of the current sentence."""

    @abstractmethod
    def start(self, name: str, attributes: dict[str, str], line: int) -> None: ...
    @abstractmethod
    def end(self, name: str) -> None: ...
    @abstractmethod
    def text(self, text: str) -> None: ...


def read_all_words(data: Path, keys: Path, refusals: Refusals) -> Iterator[TaggedText]:
    """Read sentences of a corpus in the all-words layout, with the sense keys of their instances.

    Both files are read once and in parallel; either may be gzip. Instances without keys and keys without instances
    are added to the refusals.

    Raises:
        UserError: a file is missing, damaged or malformed (names the line), or the two do not belong together.
    """
    senses = _KeyFile(keys)
    instances = found = 0
    for sentence in _parse(data, _AllWords(data)):
        own: dict[str, None] = {}
        for instance in sentence.senses:
            instances += 1
            given = senses.take(instance)
            found += bool(given)
            own.update(dict.fromkeys(given))
            if not given:
                refusals.add(Refusal("instance", instance, "no line in the key file", f"{data}, line {sentence.line}"))
        yield TaggedText(sentence.text or "", tuple(own), f"{data}, line {sentence.line}")
    if not found:
        raise UserError(
            f"{keys}: matches none of the {instances:,} instances of {data}; expected an instance id and its "
            "sense keys per line, in the order of the data; check that the two files belong together"
        )
    for instance, line in senses.rest():
        refusals.add(Refusal("key", instance, "no such instance in the data", f"{keys}, line {line}"))


def read_lexical_sample(data: Path, refusals: Refusals) -> Iterator[TaggedText]:
    """Read contexts of a lexical sample with the senses of their word; instances without context are refused.

    Raises:
        UserError: the file is missing, damaged or malformed; names the line.
    """
    for sentence in _parse(data, _LexicalSample(data)):
        where = f"{data}, line {sentence.line}"
        if sentence.text is None:
            refusals.add(Refusal("instance", where, "no <context>"))
            continue
        if not sentence.senses:
            refusals.add(Refusal("instance", where, "no <answer>"))
        yield TaggedText(sentence.text, sentence.senses, where)


def _parse(path: Path, reader: _Reader) -> Iterator[_Sentence]:
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = lambda name, given: reader.start(name, given, parser.CurrentLineNumber)
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text

    def refuse_entity(name: str, *_: object) -> None:
        raise UserError(
            f"{path}, line {parser.CurrentLineNumber}: defines the entity {name!r}, which is not allowed; remove it"
        )

    parser.EntityDeclHandler = refuse_entity
    seen = False
    try:
        for chunk in chunks(path):
            parser.Parse(chunk, False)
            seen = seen or bool(reader.ready)
            yield from reader.ready
            reader.ready.clear()
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        what = expat.errors.messages[error.code]
        if error.code == expat.errors.codes[expat.errors.XML_ERROR_INVALID_TOKEN]:
            what += ", perhaps bytes that are not in the file's encoding"
        raise UserError(f"{path}, line {error.lineno}: not well-formed XML ({what}); correct that line") from error
    except LookupError as error:
        raise UserError(f"{path}: {error}; save the file as UTF-8") from error
    if not seen:
        raise UserError(f"{path}: holds no <{reader.element}>; expected XML with at least one")


@dataclass
class _AllWords(_Reader):
    element = "sentence"
    tokens: list[str] = field(default_factory=list)
    instances: list[str] = field(default_factory=list)
    token: list[str] | None = None
    """Pieces of the current token."""

    def start(self, name: str, attributes: dict[str, str], line: int) -> None:
        if name == "sentence":
            self.line, self.tokens, self.instances = line, [], []
        elif name in ("wf", "instance"):
            self.token = []
            if name == "instance":
                if "id" not in attributes:
                    raise UserError(f"{self.path}, line {line}: <instance> without an id; its keys cannot be found")
                self.instances.append(attributes["id"])

    def end(self, name: str) -> None:
        if name in ("wf", "instance") and self.token is not None:
            self.tokens.append("".join(self.token))
            self.token = None
        elif name == "sentence":
            self.ready.append(_Sentence(" ".join(self.tokens), self.line, tuple(self.instances)))

    def text(self, text: str) -> None:
        if self.token is not None:
            self.token.append(text)


@dataclass
class _LexicalSample(_Reader):
    element = "instance"
    senses: list[str] = field(default_factory=list)
    pieces: list[str] | None = None
    in_context: bool = False

    def start(self, name: str, attributes: dict[str, str], line: int) -> None:
        if name == "instance":
            self.line, self.senses, self.pieces = line, [], None
        elif name == "answer":
            if "senseid" not in attributes:
                raise UserError(f"{self.path}, line {line}: <answer> without a senseid; expected a sense key")
            self.senses.append(attributes["senseid"])
        elif name == "context":
            self.in_context, self.pieces = True, []

    def end(self, name: str) -> None:
        if name == "context":
            self.in_context = False
        elif name == "instance":
            text = None if self.pieces is None else "".join(self.pieces)
            self.ready.append(_Sentence(text, self.line, tuple(dict.fromkeys(self.senses))))

    def text(self, text: str) -> None:
        if self.in_context and self.pieces is not None:
            self.pieces.append(text)


class _KeyFile:
    """Looks up sense keys by instance id, for instances in roughly the order of the file.

    Lines whose instances have not come yet wait in a window. Neither file needs to fit in memory, but orders that
    differ by more than the window are refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = self._entries()
        self.window: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.misses = 0
        """Consecutive instances without an entry."""

    def take(self, instance: str) -> tuple[str, ...]:
        """Return the keys of an instance; none if the file has no entry for it.

        Raises:
            UserError: the file is malformed, or in another order than the data.
        """
        if instance not in self.window:
            self._read_until(instance)
        if instance in self.window:
            self.misses = 0
            return self.window.pop(instance)[1]
        self.misses += 1
        if len(self.window) >= WINDOW and self.misses >= WINDOW:
            first, (line, _) = next(iter(self.window.items()))
            raise UserError(
                f"{self.path}: {WINDOW:,} entries from line {line} ({first}) on match no instance of the data, "
                f"which is at {instance!r}; sort the key file in the order of the data"
            )
        return ()

    def rest(self) -> Iterator[tuple[str, int]]:
        """Yield the ids that no instance took, with their lines."""
        yield from ((instance, line) for instance, (line, _) in self.window.items())
        yield from ((instance, line) for line, instance, _ in self.entries)

    def _read_until(self, instance: str) -> None:
        """Read entries into the window until the instance's entry is read or the window is full."""
        for number, found, keys in islice(self.entries, WINDOW - len(self.window)):
            line, before = self.window.get(found, (number, ()))
            self.window[found] = line, before + keys
            if found == instance:
                return

    def _entries(self) -> Iterator[tuple[int, str, tuple[str, ...]]]:
        """Yield line, instance and keys; consecutive lines of one instance are one entry."""
        for instance, same in groupby(self._fields(), key=itemgetter(1)):
            parts = list(same)
            yield parts[0][0], instance, tuple(key for _, _, keys in parts for key in keys)

    def _fields(self) -> Iterator[tuple[int, str, list[str]]]:
        for number, line in lines(self.path, show_progress=False):
            instance, *keys = line.split() or [""]
            if not keys and instance:
                raise UserError(
                    f"{self.path}, line {number}: {line[:80]!r} has no sense key; expected an instance id and its keys"
                )
            if instance:
                yield number, instance, keys
