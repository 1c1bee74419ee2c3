"""Merging corpora, splitting one again, and measuring overlap."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from support.corpora import LabelledTexts, labels_of, write_lists

from expertmine.concepts.merge import merge
from expertmine.concepts.overlap import Overlap, lengths
from expertmine.corpus.reader import Corpus
from expertmine.corpus.writer import write_corpus
from expertmine.errors import UserError


@pytest.fixture
def two(tmp_path: Path) -> tuple[Corpus, Corpus]:
    write_lists(
        [
            LabelledTexts("dog", "one", "it barks", ["a dog", "shared"], [], pool=0, neither=["p 1"]),
            LabelledTexts("cat", "one", "", ["a cat", " "], ["a dog"]),
        ],
        tmp_path / "1",
        pools=[[f"p {i}" for i in range(4)]],
    )
    write_lists(
        [
            LabelledTexts("dog", "two", "", ["p 0", "another dog"], ["shared", "far off"], pool=0),
            LabelledTexts("tool", "two", "", ["a saw"], ["a cat"]),
        ],
        tmp_path / "2",
        pools=[["p 3", "p 9"]],
    )
    return Corpus.open(tmp_path / "1"), Corpus.open(tmp_path / "2")


def test_concepts_of_one_name_are_joined_when_asked(two: tuple[Corpus, Corpus], tmp_path: Path) -> None:
    identity = write_corpus(merge(two, "join"), tmp_path / "both")
    both = Corpus.open(tmp_path / "both")
    both.check()
    assert labels_of(both, "dog") == ({"a dog", "shared", "p 0", "another dog"}, {"p 2", "p 3", "p 9", "far off"})
    assert labels_of(both, "cat") == ({"a cat"}, {"a dog"})
    assert labels_of(both, "tool") == ({"a saw"}, {"a cat"})
    assert (both.concept("dog").description, both.concept("dog").group) == ("it barks", "one")
    assert both.metadata["sources"] == ["test"]
    assert both.metadata["refused"] == [{"kind": "sentence", "reason": "empty", "count": 1}]
    texts = both.texts(range(both.identity.sentences))
    assert len(texts) == len(set(texts))
    assert write_corpus(merge(two[::-1], "join"), tmp_path / "back") == identity, "the order of corpora means nothing"


def test_members_that_a_cap_left_out_do_not_become_negatives_by_joining(tmp_path: Path) -> None:
    """Also members whose texts the capped corpus does not hold: it knows them by their hash."""
    birds = [f"bird {i}" for i in range(6)]
    write_lists([LabelledTexts("bird", "", "", birds[:2], ["car"], neither=birds[2:])], tmp_path / "a")
    write_lists([LabelledTexts("bird", "", "", ["bird 99"], [*birds, "tree"])], tmp_path / "b")
    assert Corpus.open(tmp_path / "a").identity.sentences == 3
    corpora = [Corpus.open(tmp_path / name) for name in "ab"]
    identities = [write_corpus(merge(order, "join"), tmp_path / "ab") for order in (corpora, corpora[::-1])]
    assert identities[0] == identities[1]
    joined = Corpus.open(tmp_path / "ab")
    assert labels_of(joined, "bird") == ({*birds[:2], "bird 99"}, {"car", "tree"})
    write_lists([LabelledTexts("bird", "", "", ["bird 7"], birds)], tmp_path / "c")
    write_lists([LabelledTexts("bird", "", "", ["bird 8"], ["bush"])], tmp_path / "d")
    carried = merge([corpora[0], Corpus.open(tmp_path / "d")], "join")
    write_corpus(carried, tmp_path / "ad")
    both = merge([Corpus.open(tmp_path / "ad"), Corpus.open(tmp_path / "c")], "join")
    write_corpus(both, tmp_path / "acd")
    assert labels_of(Corpus.open(tmp_path / "acd"), "bird")[1] == {"car", "bush"}


def test_one_name_twice_is_refused_unless_asked_for(two: tuple[Corpus, Corpus]) -> None:
    with pytest.raises(UserError, match=r"concept 'dog' is in .*/1 and in .*/2; --same-name join"):
        merge(two)


def test_bounds_hold_after_joining(two: tuple[Corpus, Corpus]) -> None:
    draft = merge(two, "join", min_positives=2)
    assert [concept.name for concept in draft.concepts] == ["dog"]
    assert draft.refusals.counts["concept", "fewer than 2 positives"] == 2


def test_a_torn_corpus_is_not_merged(two: tuple[Corpus, Corpus]) -> None:
    path = two[0].path / "labels.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"labels\.parquet"):
        merge(two, "join")


def test_splitting_again_changes_only_the_split(tiny_corpus: Path, tmp_path: Path) -> None:
    before = Corpus.open(tiny_corpus)
    write_corpus(merge([before]), tmp_path / "a", held_out_percent=25)
    assert Corpus.open(tmp_path / "a").identity == before.identity
    write_corpus(merge([before]), tmp_path / "b", held_out_percent=40, seed=7)
    after = Corpus.open(tmp_path / "b")
    for name in ("animal", "tool"):
        assert labels_of(after, name) == labels_of(before, name)
    held_out = [before.held_out.sum(), after.held_out.sum()]
    assert held_out == [18, 28]
    assert not after.held_out[before.held_out].all()


def naive_similar(corpus: Corpus) -> dict[tuple[str, str], tuple[int, float]]:
    sets = {c.name: set(corpus.labels(c.concept_id).positives.tolist()) for c in corpus.concepts}
    return {
        (one, other): (len(sets[one] & sets[other]), len(sets[one] & sets[other]) / len(sets[one] | sets[other]))
        for one, other in itertools.combinations(sorted(sets), 2)
        if sets[one] & sets[other]
    }


def test_overlaps_match_python_sets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    concepts = [
        LabelledTexts(
            f"c{i:02d}", "", "", [f"{n} x" for n in rng.choice(60, rng.integers(1, 25), replace=False)], ["no"]
        )
        for i in range(20)
    ]
    write_lists(concepts, tmp_path)
    corpus = Corpus.open(tmp_path)
    expected = naive_similar(corpus)
    overlap = Overlap(corpus)
    found = overlap.most_similar(1000)
    assert {(pair.concept, pair.other): (pair.shared, pair.jaccard) for pair in found} == expected
    assert [pair.jaccard for pair in found] == sorted((jaccard for _, jaccard in expected.values()), reverse=True)
    assert overlap.most_similar(5) == found[:5]
    for concept in corpus.concepts:
        near = overlap.nearest(concept.concept_id, 1000)
        own = {pair: value for pair, value in expected.items() if concept.name in pair}
        assert {tuple(sorted((pair.concept, pair.other))): (pair.shared, pair.jaccard) for pair in near} == own
        assert overlap.nearest(concept.concept_id, 2) == near[:2]
    everywhere = [set(corpus.labels(c.concept_id).positives.tolist()) for c in corpus.concepts]
    expected_served = [sum(row in rows for rows in everywhere) for row in range(corpus.identity.sentences)]
    assert overlap.served.tolist() == expected_served


def test_lengths_are_in_words(tmp_path: Path) -> None:
    write_lists([LabelledTexts("a", "", "", ["one", "one two", "one two three"], ["a b c d e"])], tmp_path)
    corpus = Corpus.open(tmp_path)
    assert lengths(corpus) == (1, 2, 3, 5)
    assert lengths(corpus, corpus.rows(0).negatives) == (5, 5, 5, 5)
