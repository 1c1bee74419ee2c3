from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmine.corpus import Corpus, LabelledTexts, is_held_out, normalise, text_key, write_corpus
from expertmine.errors import UserError


def concept(name: str, positives: Sequence[str], negatives: Sequence[str]) -> LabelledTexts:
    return LabelledTexts(name, "test", "", positives, negatives)


def labels_of(corpus: Corpus, name: str) -> tuple[set[str], set[str]]:
    rows = corpus.rows(corpus.concept(name).concept_id)
    texts = corpus.texts(range(corpus.identity.sentences))
    return {texts[row] for row in rows.positives}, {texts[row] for row in rows.negatives}


def test_a_sentence_is_stored_once_however_many_concepts_use_it(tmp_path: Path) -> None:
    write_corpus([concept("a", ["x", "y"], ["z"]), concept("b", ["z"], ["y ", "  w"])], tmp_path, [])
    corpus = Corpus.open(tmp_path)
    assert sorted(corpus.texts(range(4))) == ["w", "x", "y", "z"]
    assert labels_of(corpus, "a") == ({"x", "y"}, {"z"})
    assert labels_of(corpus, "b") == ({"z"}, {"y", "w"})


def test_shared_negatives_lie_first(tmp_path: Path) -> None:
    pool = [f"pool {i}" for i in range(20)]
    write_corpus([concept(c, [f"{c} {i}" for i in range(9)], [*pool, f"own {c}"]) for c in "ba"], tmp_path, [])
    texts = Corpus.open(tmp_path).texts(range(40))
    assert set(texts[:20]) == set(pool)
    assert {text[0] for text in texts[20:29]} == {"a"}


def test_a_positive_is_never_a_negative_and_the_conflict_is_counted(tmp_path: Path) -> None:
    write_corpus([concept("a", ["x", "x"], ["x", "y"])], tmp_path, [])
    corpus = Corpus.open(tmp_path)
    assert labels_of(corpus, "a") == ({"x"}, {"y"})
    assert (corpus.facts["conflicts_resolved"], corpus.facts["repeats_dropped"]) == (1, 1)


words = st.text(alphabet="abc de", min_size=1, max_size=6).filter(lambda text: text.strip())


@given(
    sides=st.dictionaries(
        st.sampled_from("pqrs"),
        st.tuples(st.lists(words, min_size=1, max_size=8), st.lists(words, min_size=1, max_size=8)),
        min_size=1,
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_the_fingerprint_does_not_depend_on_order_and_labels_survive(
    sides: dict[str, tuple[list[str], list[str]]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sides = {name: (on, [*off, "never positive"]) for name, (on, off) in sides.items()}
    folder = tmp_path_factory.mktemp("corpus")
    first = write_corpus([concept(name, *texts) for name, texts in sides.items()], folder / "1", [])
    rng = random.Random(seed)
    shuffled = [concept(name, rng.sample(on, len(on)), rng.sample(off, len(off))) for name, (on, off) in sides.items()]
    rng.shuffle(shuffled)
    assert write_corpus(shuffled, folder / "2", []) == first
    for name in ("sentences", "concepts", "labels"):
        assert (folder / "1" / f"{name}.parquet").read_bytes() == (folder / "2" / f"{name}.parquet").read_bytes()
    corpus = Corpus.open(folder / "1")
    for name, (on, off) in sides.items():
        positives = {normalise(text) for text in on}
        assert labels_of(corpus, name) == (positives, {normalise(text) for text in off} - positives)


def test_the_fingerprint_sees_every_change(tmp_path: Path) -> None:
    base = [concept("a", ["x", "y"], ["z"]), concept("b", ["z"], ["x"])]
    variants = [
        [concept("a", ["x"], ["z"]), base[1]],
        [concept("a", ["x", "y!"], ["z"]), base[1]],
        [concept("c", ["x", "y"], ["z"]), base[1]],
        [concept("a", ["x", "y"], ["z"]), concept("b", ["z"], ["y"])],
    ]
    prints = {write_corpus(c, tmp_path / str(i), []).fingerprint for i, c in enumerate([base, *variants])}
    assert len(prints) == 5


def test_held_out_is_decided_by_text_alone(tmp_path: Path) -> None:
    texts = [f"sentence number {i}" for i in range(400)]
    write_corpus([concept("a", texts[:200], texts[200:])], tmp_path, [], held_out_percent=25)
    corpus = Corpus.open(tmp_path)
    expected = [is_held_out(text_key(text), 25) for text in corpus.texts(range(400))]
    assert corpus.held_out.tolist() == expected
    assert 0.15 < np.mean(expected) < 0.35


@pytest.mark.parametrize("bad, message", [
    ([concept("a", [], ["x"])], "no positive"),
    ([concept("a", ["x"], [])], "no negative"),
    ([concept("a", ["x"], ["x"])], "no negative"),
    ([concept("a", ["x", "  "], ["y"])], "positive sentence 1 is empty"),
    ([concept("a", ["x"], ["y"]), concept("a", ["x"], ["y"])], "appears twice"),
    ([concept("a\nb", ["x"], ["y"])], "printable"),
    ([concept("a", ["x", "half \ud800 a"], ["y"])], "positive sentence 1 holds half a character"),
    ([], "no concept"),
])  # fmt: skip
def test_bad_concepts_are_refused(bad: list[LabelledTexts], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_corpus(bad, tmp_path, [])
    assert not (tmp_path / "corpus.json").exists()


def test_an_edited_table_is_noticed(tmp_path: Path) -> None:
    write_corpus([concept("a", ["x"], ["y", "z"])], tmp_path, [])
    table = pq.read_table(tmp_path / "labels.parquet")
    pq.write_table(table.set_column(2, "label", pa.array([1, 1, 1], pa.int8())), tmp_path / "labels.parquet")
    with pytest.raises(UserError, match="do not match"):
        Corpus.open(tmp_path).check()


def test_an_edited_text_and_a_renamed_column_are_noticed(tmp_path: Path) -> None:
    write_corpus([concept("a", ["x"], ["y", "z"])], tmp_path, [])
    path = tmp_path / "sentences.parquet"
    table = pq.read_table(path)
    edited = pa.array(["something else", *table["text"].to_pylist()[1:]])
    pq.write_table(table.set_column(1, "text", edited), path)
    with pytest.raises(UserError, match="do not match"):
        Corpus.open(tmp_path).check()
    pq.write_table(table.rename_columns(["sentence_id", "words", "key", "held_out"]), path)
    with pytest.raises(UserError, match=r"columns are .*words.*, expected .*text"):
        Corpus.open(tmp_path).check()


def test_a_half_written_corpus_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus([concept("a", ["x"], ["y"])], tmp_path, [])

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("expertmine.corpus.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_corpus([concept("b", ["p"], ["q"])], tmp_path, [])
    with pytest.raises(UserError, match=r"corpus\.json: no such file"):
        Corpus.open(tmp_path)


def test_the_corpus_of_a_run_is_not_overwritten(planned: Path) -> None:
    before = (planned / "corpus" / "sentences.parquet").read_bytes()
    with pytest.raises(UserError, match="belongs to the run"):
        write_corpus([concept("b", ["p"], ["q"])], planned / "corpus", [])
    assert (planned / "corpus" / "sentences.parquet").read_bytes() == before


def test_a_torn_table_is_named(tmp_path: Path) -> None:
    write_corpus([concept("a", ["x"], ["y", "z"])], tmp_path, [])
    path = tmp_path / "sentences.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"sentences\.parquet"):
        Corpus.open(tmp_path).check()


def test_an_unknown_concept_gets_a_suggestion(tmp_path: Path) -> None:
    write_corpus([concept("bird.n.01", ["x"], ["y"])], tmp_path, [])
    with pytest.raises(UserError, match=r"did you mean bird\.n\.01") as raised:
        Corpus.open(tmp_path).concept("brid.n.01")
    assert isinstance(raised.value, KeyError)
