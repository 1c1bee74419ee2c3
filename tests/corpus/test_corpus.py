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
from support.corpora import LabelledTexts, labels_of, write_lists

from expertmine.corpus.reader import COLUMNS, FILES, Corpus
from expertmine.corpus.texts import normalise
from expertmine.errors import UserError
from expertmine.specs.identity import CorpusIdentity
from expertmine.storage.files import write_atomically


def concept(name: str, positives: Sequence[str], negatives: Sequence[str]) -> LabelledTexts:
    return LabelledTexts(name, "test", "", positives, negatives)


def test_a_sentence_is_stored_once_however_many_concepts_use_it(tmp_path: Path) -> None:
    write_lists([concept("a", ["x", "y"], ["z"]), concept("b", ["z"], ["y ", "  w"])], tmp_path)
    corpus = Corpus.open(tmp_path)
    assert sorted(corpus.texts(range(4))) == ["w", "x", "y", "z"]
    assert labels_of(corpus, "a") == ({"x", "y"}, {"z"})
    assert labels_of(corpus, "b") == ({"z"}, {"y", "w"})


def test_shared_negatives_come_first(tmp_path: Path) -> None:
    pool = [f"pool {i}" for i in range(20)]
    write_lists([concept(c, [f"{c} {i}" for i in range(9)], [*pool, f"own {c}"]) for c in "ba"], tmp_path)
    texts = Corpus.open(tmp_path).texts(range(40))
    assert set(texts[:20]) == set(pool)
    assert {text[0] for text in texts[20:29]} == {"a"}


def test_a_positive_is_never_a_negative_and_the_conflict_is_counted(tmp_path: Path) -> None:
    write_lists([concept("a", ["x", "x"], ["x", "y"])], tmp_path)
    corpus = Corpus.open(tmp_path)
    assert labels_of(corpus, "a") == ({"x"}, {"y"})
    assert (corpus.metadata["conflicts_resolved"], corpus.metadata["repeats_dropped"]) == (1, 2)


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
    first = write_lists([concept(name, *texts) for name, texts in sides.items()], folder / "1")
    rng = random.Random(seed)
    shuffled = [concept(name, rng.sample(on, len(on)), rng.sample(off, len(off))) for name, (on, off) in sides.items()]
    rng.shuffle(shuffled)
    assert write_lists(shuffled, folder / "2") == first
    for name in COLUMNS:
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
    prints = {write_lists(c, tmp_path / str(i)).fingerprint for i, c in enumerate([base, *variants])}
    assert len(prints) == 5


def test_every_concept_has_its_share_held_out(tmp_path: Path) -> None:
    texts = [f"sentence number {i}" for i in range(400)]
    few = texts[:5]
    concepts = [concept("a", texts[:200], texts[200:]), concept("few", few, texts[200:])]
    write_lists(concepts, tmp_path, held_out_percent=25)
    corpus = Corpus.open(tmp_path)
    for name, positives in (("a", 50), ("few", 1)):
        rows = corpus.rows(corpus.concept(name).concept_id)
        assert (corpus.held_out[rows.positives].sum(), corpus.held_out[rows.negatives].sum()) == (positives, 50)
    assert corpus.metadata["held_out_sentences"] == 100


def test_a_pool_is_stored_once_and_gives_negatives(tmp_path: Path) -> None:
    pool = [f"pool {i}" for i in range(6)]
    concepts = [
        LabelledTexts("a", "", "", ["x", "pool 0"], [], pool=1, neither=["pool 1", "nowhere else"]),
        LabelledTexts("b", "", "", ["y"], ["x", "pool 5"], pool=1),
        LabelledTexts("c", "", "", ["y"], ["x"]),
    ]
    write_lists(concepts, tmp_path, pools=[["never used"], pool])
    corpus = Corpus.open(tmp_path)
    assert labels_of(corpus, "a") == ({"x", "pool 0"}, set(pool[2:]))
    assert labels_of(corpus, "b") == ({"y"}, {"x", *pool})
    assert labels_of(corpus, "c") == ({"y"}, {"x"})
    assert [len(pool) for pool in corpus.pools] == [6]
    assert set(corpus.texts(range(7))) == {*pool, "x"}, "shared negatives come first"
    assert corpus.identity.sentences == 8
    assert corpus.metadata["texts_not_used"] == 2


@given(
    drawn=st.lists(
        st.tuples(
            st.sets(st.integers(0, 11), min_size=1, max_size=6),
            st.sets(st.integers(0, 11), max_size=6),
            st.sets(st.integers(0, 11), max_size=6),
            st.sampled_from([None, 0, 1]),
        ),
        min_size=1,
        max_size=4,
    ),
    second_pool=st.sets(st.integers(0, 15), min_size=5),
)
@settings(max_examples=60, deadline=None)
def test_labels_match_python_sets(
    drawn: list[tuple[set[int], set[int], set[int], int | None]],
    second_pool: set[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Positive wins over neither, neither over negative; negatives are the listed ones and the pool's."""
    pools = [set(range(12, 20)), second_pool]
    expected: dict[str, tuple[set[str], set[str]]] = {}
    concepts = []
    for at, (on, off, neither, pool) in enumerate(drawn):
        negatives = (off | {20} | (pools[pool] if pool is not None else set())) - on - neither
        texts = [sorted(map(str, split)) for split in (on, off | {20}, neither)]
        concepts.append(LabelledTexts(f"c{at}", "", "", texts[0], texts[1], pool, texts[2]))
        expected[f"c{at}"] = set(map(str, on)), set(map(str, negatives))
    folder = tmp_path_factory.mktemp("corpus")
    write_lists(concepts, folder, pools=[sorted(map(str, pool)) for pool in pools])
    corpus = Corpus.open(folder)
    corpus.check()
    even = np.arange(corpus.identity.sentences) % 2 == 0
    counted = np.array(corpus.counts(even))
    for name, sides in expected.items():
        assert labels_of(corpus, name) == sides
        concept_id = corpus.concept(name).concept_id
        rows = corpus.rows(concept_id)
        assert counted[:, concept_id].tolist() == [even[rows.positives].sum(), even[rows.negatives].sum()]


def test_the_order_of_pools_does_not_matter(tmp_path: Path) -> None:
    def one(order: list[int]) -> CorpusIdentity:
        pools = [["p", "q"], ["q", "r"]]
        concepts = [LabelledTexts(f"c{i}", "", "", [f"x{i}"], [], pool=order.index(i)) for i in (0, 1)]
        return write_lists(concepts, tmp_path / str(order), pools=[pools[i] for i in order])

    assert one([0, 1]) == one([1, 0])


@pytest.mark.parametrize("bad, message", [
    ([concept("a", [], ["x"])], "no positive"),
    ([concept("a", ["x"], [])], "no negative"),
    ([concept("a", ["x"], ["x"])], "no negative"),
    ([concept("a", ["x"], ["y"]), concept("a", ["x"], ["y"])], "appears twice"),
    ([concept("a\nb", ["x"], ["y"])], "printable"),
    ([concept("a" * 201, ["x"], ["y"])], "at most 200"),
    ([concept("../../etc/passwd", ["x"], ["y"])], "a path that leads elsewhere"),
    ([concept("/etc/passwd", ["x"], ["y"])], "a path that leads elsewhere"),
    ([concept("a\\..\\b", ["x"], ["y"])], "a path that leads elsewhere"),
    ([concept("half \ud800", ["x"], ["y"])], "printable"),
    ([concept("C:\\secret", ["x"], ["y"])], "a path that leads elsewhere"),
    ([], "no concept"),
])  # fmt: skip
def test_bad_concepts_are_refused(bad: list[LabelledTexts], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_lists(bad, tmp_path)
    assert not (tmp_path / "corpus.json").exists()


def test_names_may_hold_slashes_and_dots(tmp_path: Path) -> None:
    names = ["TCP/IP", "Q: why", "and so on...", "dog.n.01", "football%1:04:00::"]
    write_lists([concept(name, ["x"], ["y"]) for name in names], tmp_path)
    assert [found.name for found in Corpus.open(tmp_path).concepts] == sorted(names)


def test_bad_texts_are_refused_counted_and_listed(tmp_path: Path) -> None:
    texts = ["fine", "  ", "half \ud800 a", "x" * 10_001, "", "x" * 10_000]
    write_lists([concept("a", texts, ["y"])], tmp_path)
    corpus = Corpus.open(tmp_path)
    assert labels_of(corpus, "a")[0] == {"fine", "x" * 10_000}
    counts = {one["reason"]: one["count"] for one in corpus.metadata["refused"]}
    assert counts == {"empty": 2, "holds half a character (a lone surrogate)": 1, "longer than 10,000 characters": 1}
    listed = corpus.table("refused").to_pylist()
    assert [row["name"] for row in listed] == ["text 1", "text 2", "text 3", "text 4"]


def test_a_text_of_ten_megabytes_is_refused(tmp_path: Path) -> None:
    write_lists([concept("a", ["fine", "word " * 2_000_000], ["y"])], tmp_path)
    assert Corpus.open(tmp_path).identity.sentences == 2


def test_an_edited_table_is_noticed(tmp_path: Path) -> None:
    write_lists([concept("a", ["x"], ["y", "z"])], tmp_path)
    table = pq.read_table(tmp_path / "labels.parquet")
    pq.write_table(table.set_column(2, "label", pa.array([1, 1, 1], pa.int8())), tmp_path / "labels.parquet")
    with pytest.raises(UserError, match="do not match"):
        Corpus.open(tmp_path).check()


def test_an_edited_text_and_a_renamed_column_are_noticed(tmp_path: Path) -> None:
    write_lists([concept("a", ["x"], ["y", "z"])], tmp_path)
    path = tmp_path / "sentences.parquet"
    table = pq.read_table(path)
    edited = pa.array(["something else", *table["text"].to_pylist()[1:]])
    pq.write_table(table.set_column(1, "text", edited), path)
    with pytest.raises(UserError, match="do not match"):
        Corpus.open(tmp_path).check()
    pq.write_table(table.rename_columns(["sentence_id", "words", "key", "held_out"]), path)
    with pytest.raises(UserError, match=r"columns are .*words.*, expected .*text"):
        Corpus.open(tmp_path).check()


def test_a_half_written_corpus_is_not_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lists([concept("a", ["x"], ["y"])], tmp_path)

    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target == tmp_path / "labels.parquet":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_lists([concept("b", ["p"], ["q"])], tmp_path)
    with pytest.raises(UserError, match=r"corpus\.json: no such file"):
        Corpus.open(tmp_path)


def test_a_full_disk_leaves_the_old_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_lists([concept("a", ["x"], ["y"])], tmp_path)
    written = []

    def full(path: Path, content: bytes) -> None:
        if len(written) == 3:
            raise UserError(f"{path}: cannot be written (No space left on device)")
        written.append(path)
        write_atomically(path, content)

    monkeypatch.setattr("expertmine.storage.tables.write_atomically", full)
    with pytest.raises(UserError, match="No space left"):
        write_lists([concept("b", ["p"], ["q"])], tmp_path)
    corpus = Corpus.open(tmp_path)
    corpus.check()
    assert corpus.identity == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "loop"):
        with pytest.raises(UserError, match="exists and is not a folder"):
            write_lists([concept("a", ["x"], ["y"])], tmp_path / name)


def test_the_corpus_of_a_run_is_not_overwritten(planned: Path) -> None:
    (own,) = (planned / "corpus").iterdir()
    before = (own / "sentences.parquet").read_bytes()
    for place in (own, planned / "corpus", planned):
        with pytest.raises(UserError, match="belongs to the run"):
            write_lists([concept("b", ["p"], ["q"])], place)
    assert (own / "sentences.parquet").read_bytes() == before


def test_a_torn_table_is_named(tmp_path: Path) -> None:
    write_lists([concept("a", ["x"], ["y", "z"])], tmp_path)
    path = tmp_path / "sentences.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"sentences\.parquet"):
        Corpus.open(tmp_path).check()


def test_an_unknown_concept_gets_a_suggestion(tmp_path: Path) -> None:
    write_lists([concept("bird.n.01", ["x"], ["y"])], tmp_path)
    with pytest.raises(UserError, match=r"did you mean bird\.n\.01") as raised:
        Corpus.open(tmp_path).concept("brid.n.01")
    assert isinstance(raised.value, KeyError)
