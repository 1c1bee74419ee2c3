"""Makes concepts from sense-tagged texts: one per sense key, per synset, or per synset's hyponym closure.

The texts may come from annotated corpora, from WordNet itself, or from both. Knows no file format.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from expertmine.concepts.kinds import PARTS_OF_SPEECH, By, Negatives, PartOfSpeech
from expertmine.concepts.labelling import Candidate, Labelling, label
from expertmine.concepts.sense_corpora import TaggedText
from expertmine.concepts.wordnet import WordNet, hypernyms
from expertmine.corpus.drafts import Draft, Refusal, Refusals, name_fault, no_ids, take_text
from expertmine.corpus.draws import Ids
from expertmine.corpus.texts import Texts
from expertmine.errors import UnknownConcept, UserError

_PARTS: Mapping[str, PartOfSpeech] = {
    "n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb",
    "1": "noun", "2": "verb", "3": "adjective", "5": "adjective", "4": "adverb",
}  # fmt: skip
"""Parts of speech by a synset's letter and by a sense key's digit."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which senses become concepts."""

    by: By = "closure"
    parts: tuple[PartOfSpeech, ...] = PARTS_OF_SPEECH
    names: tuple[str, ...] = ()
    """Only these senses, whatever their part of speech and depth; empty for all."""
    under: str | None = None
    """Only this synset and the synsets below it."""
    min_depth: int = 0
    """Levels below `under`, or below WordNet's top synsets; ``entity.n.01`` has depth 0."""
    max_depth: int | None = None

    def __post_init__(self) -> None:
        if self.max_depth is not None and self.max_depth < self.min_depth:
            raise UserError(f"depths are {self.min_depth} to {self.max_depth}: expected min <= max")


@dataclass(frozen=True, slots=True)
class SenseTexts:
    """The texts that carry each sense."""

    by_sense: Mapping[str, Ids]
    """Text ids by sense key or by synset; ascending, without repeats."""

    def of(self, senses: Iterable[str]) -> Ids:
        """Return the ids of texts that carry any of the senses, ascending."""
        found = [self.by_sense[sense] for sense in senses if sense in self.by_sense]
        return found[0] if len(found) == 1 else np.unique(np.concatenate([no_ids(), *found]))


def sense_draft(
    tagged: Iterable[TaggedText], wordnet: WordNet, selection: Selection, labelling: Labelling, sources: Sequence[str],
    refusals: Refusals,
) -> Draft:  # fmt: skip
    """Make a draft of the selected senses that occur in the texts.

    Raises:
        UserError: a selected name is not in WordNet or in the texts, or was refused; or no sense is left.
    """
    _check_names(selection, wordnet)
    texts = Texts()
    carried = gather(tagged, texts, refusals)
    candidates = _by_key if selection.by == "key" else _by_synset
    found = list(candidates(carried, wordnet, selection, refusals))
    if not found and not selection.names:
        raise UserError(
            f"no sentence of {', '.join(sources)} carries a selected sense; widen --pos, --under, --min-depth or "
            "--max-depth"
        )
    draft = label(found, texts, labelling, refusals, sources)
    _require_names(selection, {candidate.name for candidate in found}, refusals)
    return draft


def _require_names(selection: Selection, found: Collection[str], refusals: Refusals) -> None:
    """Raise a UserError if a concept selected by name cannot be made."""
    why = {refusal.name: refusal for refusal in refusals.listed if refusal.kind == "concept"}
    for name in selection.names:
        if name in why:
            detail = f" ({why[name].detail})" if why[name].detail else ""
            raise UserError(f"concept {name!r} cannot be made: {why[name].reason}{detail}")
        if name not in found:
            raise UserError(f"concept {name!r} cannot be made: no sentence carries it")


def gather(tagged: Iterable[TaggedText], texts: Texts, refusals: Refusals) -> SenseTexts:
    """Add the texts, and record which senses each carries."""
    occurrences: dict[str, array[int]] = defaultdict(lambda: array("i"))
    for one in tagged:
        text_id = take_text(texts, one.text, one.where, refusals)
        if text_id is not None:
            for key in one.sense_keys:
                occurrences[key].append(text_id)
    return SenseTexts({key: np.unique(np.asarray(ids, np.int32)) for key, ids in occurrences.items()})


def _check_names(selection: Selection, wordnet: WordNet) -> None:
    """Refuse synsets that WordNet does not have; a corpus may have sense keys of its own."""
    for name in selection.names:
        if name in wordnet.synsets if selection.by == "key" else "%" in name:
            expected = "sense keys such as dog%1:05:00::" if selection.by == "key" else "synsets such as dog.n.01"
            raise UserError(f"concept {name!r}: with --by {selection.by}, concepts are {expected}")
    names = (() if selection.by == "key" else selection.names) + ((selection.under,) if selection.under else ())
    for name in names:
        if name not in wordnet.synsets:
            raise UnknownConcept.among(name, list(wordnet.synsets), wordnet.source)


def _by_key(carried: SenseTexts, wordnet: WordNet, selection: Selection, refusals: Refusals) -> Iterator[Candidate]:
    depths = _allowed_depths(wordnet, selection)
    of_lemma: dict[str, list[str]] = defaultdict(list)
    for key in carried.by_sense:
        of_lemma[_lemma(key)].append(key)
    for key, members in carried.by_sense.items():
        name = wordnet.resolve(key)
        if name is None:
            refusals.add(Refusal("sense key", key, "not in WordNet; kept without a gloss", _sentences(members)))
        if not _is_chosen(key, _part_of_key(key), name, selection, depths):
            continue
        if fault := name_fault(key):
            refusals.add(Refusal("sense key", key, fault, _sentences(members)))
            continue
        hard_negatives: dict[Negatives, Callable[[], Ids]] = {
            "homographs": partial(_without, carried, of_lemma[_lemma(key)], key)
        }
        if name is not None:
            hard_negatives["sisters"] = partial(_of_sister_keys, carried, wordnet, name)
        definition = wordnet.synsets[name].definition if name else ""
        yield Candidate(key, "sense", definition, members, hard_negatives, (key,))


def _of_sister_keys(carried: SenseTexts, wordnet: WordNet, name: str) -> Ids:
    return carried.of(key for sister in wordnet.sisters(name) for key in wordnet.synsets[sister].sense_keys)


def _by_synset(carried: SenseTexts, wordnet: WordNet, selection: Selection, refusals: Refusals) -> Iterator[Candidate]:
    depths = _allowed_depths(wordnet, selection)
    of_synset = _texts_of_synsets(carried, wordnet, refusals)
    of_lemma: dict[str, list[str]] = defaultdict(list)
    for synset in wordnet.synsets.values():
        for lemma in synset.lemmas:
            of_lemma[lemma.lower()].append(synset.name)

    def reach(name: str) -> Iterable[str]:
        return wordnet.closure(name) if selection.by == "closure" else (name,)

    def of_sisters(name: str) -> Ids:
        return of_synset.of(dict.fromkeys(below for sister in wordnet.sisters(name) for below in reach(sister)))

    for synset in wordnet.synsets.values():
        if not _is_chosen(synset.name, _PARTS[synset.pos], synset.name, selection, depths):
            continue
        members = of_synset.of(reach(synset.name))
        if not len(members):
            continue
        same_words = [other for lemma in synset.lemmas for other in of_lemma[lemma.lower()]]
        hard_negatives: dict[Negatives, Callable[[], Ids]] = {
            "sisters": partial(of_sisters, synset.name),
            "homographs": partial(_without, of_synset, same_words, synset.name),
        }
        yield Candidate(synset.name, "wordnet", synset.definition, members, hard_negatives, synset.sense_keys)


def _without(texts: SenseTexts, senses: Iterable[str], one: str) -> Ids:
    return texts.of(dict.fromkeys(sense for sense in senses if sense != one))


def _texts_of_synsets(carried: SenseTexts, wordnet: WordNet, refusals: Refusals) -> SenseTexts:
    """Group texts by synset; keys that resolve to none are refused."""
    keys_of: dict[str, list[str]] = defaultdict(list)
    for key, ids in carried.by_sense.items():
        name = wordnet.resolve(key)
        if name is None:
            refusals.add(Refusal("sense key", key, "not in WordNet; dropped", _sentences(ids)))
        else:
            keys_of[name].append(key)
    return SenseTexts({name: carried.of(keys) for name, keys in keys_of.items()})


def _allowed_depths(wordnet: WordNet, selection: Selection) -> Mapping[str, int] | None:
    """Return the depth of every synset that the selection allows; None if it allows all."""
    if selection.under is None and selection.min_depth == 0 and selection.max_depth is None:
        return None
    tops = [selection.under] if selection.under else _tops(wordnet)
    most = float("inf") if selection.max_depth is None else selection.max_depth
    return {name: depth for name, depth in wordnet.levels(*tops).items() if selection.min_depth <= depth <= most}


def _tops(wordnet: WordNet) -> list[str]:
    return [synset.name for synset in wordnet.synsets.values() if not hypernyms(synset)]


def _is_chosen(
    sense: str,
    part: PartOfSpeech | None,
    synset: str | None,
    selection: Selection,
    depths: Mapping[str, int] | None,
) -> bool:
    """Return whether a sense is selected by its name, or by its part of speech and depth."""
    if selection.names:
        return sense in selection.names
    # All parts of speech together also select keys of no known part.
    fits = part in selection.parts or selection.parts == PARTS_OF_SPEECH
    return fits and (depths is None or synset in depths)


def _part_of_key(key: str) -> PartOfSpeech | None:
    return _PARTS.get(key.partition("%")[2][:1])


def _lemma(key: str) -> str:
    return key.partition("%")[0].lower()


def _sentences(ids: Ids) -> str:
    return f"{len(ids):,} sentences"
