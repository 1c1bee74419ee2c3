"""Concepts by sense key, by synset and by closure, from annotated sentences and from WordNet's own text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.corpora import labels_of

from expertmine.concepts.labelling import Labelling
from expertmine.concepts.sense_corpora import TaggedText
from expertmine.concepts.senses import Selection, sense_draft
from expertmine.concepts.wordnet import WordNet, wordnet_texts
from expertmine.corpus.drafts import Draft, Refusals
from expertmine.corpus.reader import Corpus
from expertmine.corpus.writer import write_corpus
from expertmine.errors import UserError

DOG, WOLF, PUPPY, CAT = "dog%1:05:00::", "wolf%1:05:00::", "puppy%1:05:00::", "cat%1:05:00::"
FRANK, BARK = "dog%1:13:01::", "bark%2:32:00::"
TAGGED = [
    ("the dog sleeps", (DOG,)),
    ("a dog barks at the wolf", (DOG, BARK, WOLF)),
    ("the puppy plays", (PUPPY,)),
    ("a wolf howls", (WOLF,)),
    ("a cat sits", (CAT,)),
    ("a hot dog with mustard", (FRANK,)),
    ("nothing here", ()),
    ("an old key", ("dog%1:77:00::",)),
]


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet.load()


def tagged(pairs: Sequence[tuple[str, tuple[str, ...]]] = TAGGED) -> list[TaggedText]:
    return [TaggedText(text, keys, f"line {at}") for at, (text, keys) in enumerate(pairs)]


def labels(
    wordnet: WordNet,
    folder: Path,
    selection: Selection,
    labelling: Labelling,
    texts: Sequence[TaggedText] | None = None,
) -> dict[str, tuple[set[str], set[str]]]:
    draft = sense_draft(tagged() if texts is None else texts, wordnet, selection, labelling, ["test"], Refusals())
    write_corpus(draft, folder)
    corpus = Corpus.open(folder)
    return {concept.name: labels_of(corpus, concept.name) for concept in corpus.concepts}


def test_the_senses_of_the_test_are_wordnets(wordnet: WordNet) -> None:
    found = [wordnet.resolve(key) for key in (DOG, WOLF, PUPPY, CAT, FRANK, BARK)]
    assert found == ["dog.n.01", "wolf.n.01", "puppy.n.01", "cat.n.01", "frank.n.02", "bark.v.04"]


def test_by_key(wordnet: WordNet, tmp_path: Path) -> None:
    found = labels(wordnet, tmp_path, Selection("key"), Labelling(("others",), min_positives=2))
    assert set(found) == {DOG, WOLF}
    assert found[DOG][0] == {"the dog sleeps", "a dog barks at the wolf"}
    assert len(found[DOG][1]) == 6
    corpus = Corpus.open(tmp_path)
    assert corpus.concept(DOG).description == wordnet.synsets["dog.n.01"].definition
    assert (corpus.concept(DOG).sense_keys, corpus.concept(DOG).group) == ((DOG,), "sense")
    refused = {(row["kind"], row["name"], row["reason"]) for row in corpus.table("refused").to_pylist()}
    assert ("sense key", "dog%1:77:00::", "not in WordNet; kept without a gloss") in refused
    assert ("concept", CAT, "fewer than 2 positives") in refused


def test_by_synset_and_by_closure(wordnet: WordNet, tmp_path: Path) -> None:
    alone = labels(wordnet, tmp_path / "1", Selection("synset", parts=("noun",)), Labelling(("others",)))
    assert alone["dog.n.01"][0] == {"the dog sleeps", "a dog barks at the wolf"}
    assert set(alone) == {"dog.n.01", "wolf.n.01", "puppy.n.01", "cat.n.01", "frank.n.02"}
    below = labels(
        wordnet, tmp_path / "2", Selection("closure", parts=("noun",)), Labelling(("others",), min_positives=3)
    )
    assert below["dog.n.01"][0] == alone["dog.n.01"][0] | {"the puppy plays"}
    assert below["canine.n.02"][0] == below["dog.n.01"][0] | {"a wolf howls"}
    assert below["carnivore.n.01"][0] == below["canine.n.02"][0] | {"a cat sits"}
    assert below["carnivore.n.01"][1] == {"a hot dog with mustard", "nothing here", "an old key"}
    corpus = Corpus.open(tmp_path / "2")
    assert corpus.concept("dog.n.01").sense_keys == wordnet.synsets["dog.n.01"].sense_keys
    refused = {(row["kind"], row["name"], row["reason"]) for row in corpus.table("refused").to_pylist()}
    assert ("sense key", "dog%1:77:00::", "not in WordNet; dropped") in refused


def test_parts_of_speech_depths_and_names(wordnet: WordNet, tmp_path: Path) -> None:
    def names(selection: Selection) -> set[str]:
        return set(labels(wordnet, tmp_path, selection, Labelling(("others",))))

    assert names(Selection("synset", parts=("verb",))) == {"bark.v.04"}
    assert names(Selection("key", parts=("verb",))) == {BARK}
    assert names(Selection("synset", under="canine.n.02")) == {"dog.n.01", "wolf.n.01", "puppy.n.01"}
    assert names(Selection("key", under="canine.n.02")) == {DOG, WOLF, PUPPY}
    assert names(Selection("closure", under="canine.n.02", max_depth=1)) == {"canine.n.02", "dog.n.01", "wolf.n.01"}
    assert names(Selection("closure", under="canine.n.02", min_depth=2)) == {"puppy.n.01"}
    assert "entity.n.01" in names(Selection("closure", max_depth=0))
    assert names(Selection("closure", names=("dog.n.01", "bark.v.04"))) == {"dog.n.01", "bark.v.04"}
    assert names(Selection("key", names=(CAT,))) == {CAT}


def test_sisters_and_homographs(wordnet: WordNet, tmp_path: Path) -> None:
    sisters = labels(wordnet, tmp_path / "1", Selection(names=("dog.n.01",)), Labelling(("sisters",)))
    assert sisters["dog.n.01"][1] == {"a wolf howls"}, "the sentence with both is a positive"
    for by in ("synset", "closure"):
        homographs = labels(wordnet, tmp_path / by, Selection(by, names=("dog.n.01",)), Labelling(("homographs",)))
        assert homographs["dog.n.01"][1] == {"a hot dog with mustard"}
    by_key = labels(wordnet, tmp_path / "key", Selection("key", names=(DOG,)), Labelling(("homographs",)))
    assert by_key[DOG][1] == {"a hot dog with mustard", "an old key"}
    both = labels(wordnet, tmp_path / "2", Selection("key", names=(DOG,)), Labelling(("homographs", "sisters")))
    assert both[DOG][1] == {"a hot dog with mustard", "an old key", "a wolf howls"}


@pytest.mark.parametrize("selection, labelling, message", [
    (Selection(names=("dgo.n.01",)), Labelling(), "no concept 'dgo.n.01' in WordNet 3.0 .*did you mean"),
    (Selection(under="animals.n.01"), Labelling(), "no concept 'animals.n.01' in WordNet"),
    (Selection(names=("whale.n.02",)), Labelling(), "concept 'whale.n.02' cannot be made: no sentence carries it"),
    (Selection(names=("dog%1:05:00::",)), Labelling(), "with --by closure, concepts are synsets such as"),
    (Selection("key", names=("dog.n.01",)), Labelling(), "with --by key, concepts are sense keys such as"),
    (Selection(under="whale.n.02"), Labelling(), "carries a selected sense; widen --pos"),
    (Selection("key", names=("whale%1:05:00::",)), Labelling(), "cannot be made: no sentence carries it"),
    (Selection(names=("dog.n.01",)), Labelling(min_positives=9), r"fewer than 9 positives \(3\)"),
    (Selection("synset", names=("bark.v.04",)), Labelling(("sisters",)), r"no negatives \(sisters\)"),
])  # fmt: skip
def test_unknown_and_unavailable_names_are_errors(
    selection: Selection, labelling: Labelling, message: str, wordnet: WordNet
) -> None:
    with pytest.raises(UserError, match=message):
        sense_draft(tagged(), wordnet, selection, labelling, [], Refusals())


def of_wordnet(wordnet: WordNet, selection: Selection, labelling: Labelling) -> Draft:
    return sense_draft(wordnet_texts(wordnet), wordnet, selection, labelling, [], Refusals())


def test_wordnets_own_closures_have_complete_and_disjoint_labels(wordnet: WordNet, tmp_path: Path) -> None:
    names = ("bird.n.01", "animal.n.01", "dog.n.01")
    found = labels(
        wordnet, tmp_path, Selection(names=names), Labelling(cap=50, negatives_size=300), list(wordnet_texts(wordnet))
    )
    definitions = {name: wordnet.synsets[name].definition for name in wordnet.synsets}
    for name, (on, off) in found.items():
        below = {definitions[synset] for synset in wordnet.closure(name)}
        assert len(on) == 50
        assert on <= below
        assert not off & below
    assert len(Corpus.open(tmp_path).pools[0]) == 300


@pytest.mark.slow
def test_a_limited_number_of_concepts_is_drawn_by_seed(wordnet: WordNet) -> None:
    def names(seed: int) -> list[str]:
        labelling = Labelling(min_positives=20, max_positives=500, limit=12, seed=seed)
        return [concept.name for concept in of_wordnet(wordnet, Selection(under="animal.n.01"), labelling).concepts]

    first, again, other = names(1), names(1), names(2)
    assert first == again != other
    assert len(first) == len(other) == 12
    assert all(20 <= len(wordnet.closure(name)) <= 510 for name in first)


def test_the_fingerprint_is_the_same_on_any_machine(wordnet: WordNet, tmp_path: Path) -> None:
    """A corpus of the embedded WordNet with both kinds of samples; a changed hash would change every user's corpora."""
    draft = of_wordnet(wordnet, Selection(under="bird.n.01", max_depth=2), Labelling(("pool", "own"), 50, 10, cap=40))
    identity = write_corpus(draft, tmp_path, held_out_percent=25)
    assert identity.sentences == 1693
    assert identity.fingerprint == "09404ec656536b09075c32d77496d831d3d45ae68b5018198c63467974baee31"
