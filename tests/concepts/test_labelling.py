"""Negatives of every kind, caps, bounds and limits, on hand-made candidates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import labels_of

from expertmine.concepts.kinds import LISTED_NEGATIVES, Negatives, known
from expertmine.concepts.labelling import Candidate, Labelling, label
from expertmine.corpus.drafts import Draft, Refusals
from expertmine.corpus.reader import Corpus
from expertmine.corpus.texts import Texts
from expertmine.corpus.writer import write_corpus
from expertmine.errors import UserError

TOTAL = 60


def candidate(name: str, members: Sequence[int], **hard_negatives: Sequence[int]) -> Candidate:
    kinds = {kind: partial(np.array, ids, np.int32) for kind, ids in hard_negatives.items()}
    return Candidate(name, "", "", np.array(members, np.int32), kinds)  # type: ignore[arg-type]


def draft(candidates: Sequence[Candidate], **settings_: object) -> Draft:
    texts = Texts()
    for i in range(TOTAL):
        texts.add(f"text {i}")
    return label(candidates, texts, Labelling(**settings_), Refusals(), [])  # type: ignore[arg-type]


def labels(candidates: Sequence[Candidate], folder: Path, **settings_: object) -> dict[str, tuple[set[int], set[int]]]:
    """Read back the numbers of each concept's positive and negative texts."""
    write_corpus(draft(candidates, **settings_), folder)
    corpus = Corpus.open(folder)

    def numbers(texts: set[str]) -> set[int]:
        return {int(text.removeprefix("text ")) for text in texts}

    return {c.name: tuple(map(numbers, labels_of(corpus, c.name))) for c in corpus.concepts}  # type: ignore[misc]


A = candidate("a", range(10), listed=[20, 21, 9], sisters=range(5, 30), homographs=[40])
B = candidate("b", range(5, 15), listed=[20])


def test_others_are_all_texts_but_members(tmp_path: Path) -> None:
    found = labels([A, B], tmp_path, negatives=("others",))
    assert found == {
        "a": (set(range(10)), set(range(10, TOTAL))),
        "b": (set(range(5, 15)), {*range(5), *range(15, TOTAL)}),
    }
    corpus = Corpus.open(tmp_path)
    assert corpus.table("labels").num_rows == 20, "all other sentences cost no label"
    assert [len(pool) for pool in corpus.pools] == [TOTAL]


def test_a_pool_is_shared_without_members(tmp_path: Path) -> None:
    found = labels([A, B], tmp_path, negatives=("pool",), negatives_size=30)
    (pool,) = Corpus.open(tmp_path).pools
    assert len(pool) == 30
    assert found["a"][1] | set(range(10)) >= found["b"][1]
    assert not found["a"][1] & set(range(10))
    assert len(found["a"][1] | found["b"][1]) > 20


def test_own_samples_have_the_requested_size_and_differ(tmp_path: Path) -> None:
    found = labels([A, B], tmp_path, negatives=("own",), negatives_size=20)
    assert [len(off) for _, off in found.values()] == [20, 20]
    assert found["a"][1] != found["b"][1]
    assert not found["a"][1] & set(range(10))


def test_members_among_hard_negatives_are_conflicts(tmp_path: Path) -> None:
    labels([A], tmp_path, negatives=("sisters",))
    assert Corpus.open(tmp_path).metadata["conflicts_resolved"] == 5
    labels([A], tmp_path, negatives=("listed",))
    assert Corpus.open(tmp_path).metadata["conflicts_resolved"] == 1


def test_hard_negatives_come_from_the_source(tmp_path: Path) -> None:
    assert labels([A], tmp_path, negatives=("listed",))["a"][1] == {20, 21}
    assert labels([A], tmp_path, negatives=("sisters",))["a"][1] == set(range(10, 30))
    assert labels([A], tmp_path, negatives=("homographs", "listed"))["a"][1] == {20, 21, 40}
    assert len(labels([A], tmp_path, negatives=("sisters",), negatives_size=7)["a"][1]) == 7


def test_members_that_the_cap_leaves_out_are_neither(tmp_path: Path) -> None:
    for negatives in ("others", "pool", "own"):
        on, off = labels([A], tmp_path, negatives=(negatives,), cap=4, negatives_size=TOTAL)["a"]
        assert len(on) == 4
        assert on < set(range(10))
        assert off == set(range(10, TOTAL))


def test_nested_concepts_draw_the_same_positives(tmp_path: Path) -> None:
    """Samples are consistent: members of both that the wider concept draws, the narrower one draws too."""
    found = labels([candidate("wide", range(40)), candidate("narrow", range(20))], tmp_path, cap=10, negatives=("own",))
    assert found["wide"][0] & set(range(20)) <= found["narrow"][0]


def test_bounds_and_limits_are_recorded() -> None:
    made = draft([A, B, candidate("few", [1]), candidate("many", range(50))], min_positives=2, max_positives=20)
    assert [concept.name for concept in made.concepts] == ["a", "b"]
    assert [(r.name, r.reason, r.detail) for r in made.refusals.listed] == [
        ("few", "fewer than 2 positives", "1"), ("many", "more than 20 positives", "50"),
    ]  # fmt: skip
    limited = [draft([A, B], limit=1, seed=seed).concepts[0].name for seed in range(12)]
    assert set(limited) == {"a", "b"}


def test_a_concept_left_without_negatives_is_recorded() -> None:
    made = draft([A, candidate("all", range(TOTAL)), candidate("no sister", [1])], negatives=("sisters",))
    assert [concept.name for concept in made.concepts] == ["a"]
    assert {(r.name, r.reason) for r in made.refusals.listed} == {
        ("all", "no negatives (sisters)"), ("no sister", "no negatives (sisters)"),
    }  # fmt: skip


@given(
    members=st.lists(st.sets(st.integers(0, TOTAL - 1), min_size=1, max_size=30), min_size=1, max_size=5),
    kind=st.sampled_from(["pool", "own", "others", "listed", "sisters"]),
    cap=st.integers(1, 20),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_member_is_never_a_negative(
    members: list[set[int]], kind: Negatives, cap: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    candidates = [
        candidate(f"c{at}", sorted(own), listed=range(TOTAL), sisters=range(TOTAL)) for at, own in enumerate(members)
    ]
    found = labels(
        candidates, tmp_path_factory.mktemp("c"), negatives=(kind,), cap=cap, seed=seed, negatives_size=TOTAL
    )
    for at, own in enumerate(members):
        on, off = found[f"c{at}"]
        assert on <= own
        assert len(on) == min(cap, len(own))
        assert not off & own
        assert off


def test_invalid_settings_are_refused() -> None:
    for wrong in ({"min_positives": 0}, {"min_positives": 5, "max_positives": 4}, {"cap": 0}, {"negatives_size": 0}):
        with pytest.raises(UserError, match="expected"):
            Labelling(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--negatives is 'sisters': expected listed, pool, own or others"):
        known("--negatives", ["pool", "sisters"], LISTED_NEGATIVES)
    assert known("--negatives", ["own", "pool", "own"], LISTED_NEGATIVES) == ("pool", "own")
