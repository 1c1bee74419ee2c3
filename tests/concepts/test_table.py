"""The user's own tables: CSV, TSV, JSON lines and Parquet give the same corpus; errors name the line."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import labels_of

from expertmine.concepts.kinds import Negatives
from expertmine.concepts.labelling import Labelling, label
from expertmine.concepts.table import Columns, read_tables
from expertmine.corpus.drafts import Refusals
from expertmine.corpus.reader import Corpus
from expertmine.corpus.texts import Texts
from expertmine.corpus.writer import write_corpus
from expertmine.errors import UserError

ROWS = [
    {"text": "a dog, \"barking\"", "concept": "animal", "label": 1, "group": "test", "description": "living\nthings"},
    {"text": "a cat", "concept": "animal", "label": 1, "group": "", "description": ""},
    {"text": "a saw", "concept": "animal", "label": 0, "group": "", "description": ""},
    {"text": "a saw", "concept": "tool", "label": 1, "group": "", "description": ""},
    {"text": " a  cat", "concept": "tool", "label": 0, "group": "", "description": ""},
]  # fmt: skip


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def build(folder: Path, *paths: Path, columns: Columns = Columns(), negatives: Negatives = "listed") -> Corpus:  # noqa: B008
    texts, refusals = Texts(), Refusals()
    candidates = read_tables(paths, columns, texts, refusals)
    write_corpus(label(candidates, texts, Labelling((negatives,)), refusals, ["table"]), folder)
    return Corpus.open(folder)


@pytest.mark.parametrize(
    "name", ["t.csv", "t.tsv", "t.jsonl", "t.ndjson", "t.parquet", "T.CSV", "t.csv.gz", "t.jsonl.gz"]
)
def test_every_format_gives_the_same_corpus(name: str, tmp_path: Path) -> None:
    corpus = build(tmp_path / "corpus", write(tmp_path / name, ROWS))
    assert labels_of(corpus, "animal") == ({'a dog, "barking"', "a cat"}, {"a saw"})
    assert labels_of(corpus, "tool") == ({"a saw"}, {"a cat"})
    assert (corpus.concept("animal").group, corpus.concept("animal").description) == ("test", "living things")
    assert corpus.identity == build(tmp_path / "again", write(tmp_path / "other.csv", ROWS)).identity


def test_a_name_in_two_spellings_is_one_concept(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "concept": name, "text": name} for name in ("caf\u00e9", " cafe\u0301 ")]
    corpus = build(tmp_path / "corpus", write(tmp_path / "t.csv", [*rows, {**ROWS[2], "concept": "caf\u00e9"}]))
    assert labels_of(corpus, "caf\u00e9") == ({"caf\u00e9"}, {"a saw"})


def test_group_and_description_do_not_depend_on_order(tmp_path: Path) -> None:
    rows = [{**row, "group": group, "description": group * 2} for row, group in zip(ROWS, "zyabc", strict=True)]
    one, back = (build(tmp_path / n, write(tmp_path / f"{n}.csv", r)) for n, r in (("1", rows), ("2", rows[::-1])))
    assert one.identity == back.identity
    assert (one.concept("animal").group, one.concept("animal").description) == ("a", "aa")


def test_order_of_rows_and_files_means_nothing(tmp_path: Path) -> None:
    one = build(tmp_path / "1", write(tmp_path / "all.csv", ROWS))
    parts = write(tmp_path / "b.csv", ROWS[3:]), write(tmp_path / "a.jsonl", ROWS[2::-1])
    assert build(tmp_path / "2", *parts).identity == one.identity


def test_other_names_of_columns_and_no_labels(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"sentence": row["text"], "topic": row["concept"]} for row in ROWS]
    path = write(tmp_path / "t.csv", rows)
    corpus = build(tmp_path / "corpus", path, columns=Columns("sentence", "topic", None), negatives="others")
    assert [concept.name for concept in corpus.concepts] == ["tool"], "every text is an animal: no negative is left"
    assert labels_of(corpus, "tool") == ({"a saw", "a cat"}, {'a dog, "barking"'})


@pytest.mark.parametrize("given, positive", [
    ([1, 0], True), (["1", "0"], True), ([True, False], True), (["TRUE", "False"], True), ([1.0, 0.0], True),
    (["positive", "negative"], True),
])  # fmt: skip
def test_spellings_of_labels(given: list[object], positive: bool, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"t{i}", "concept": "c", "label": value} for i, value in enumerate(given)]
    corpus = build(tmp_path / "corpus", write(tmp_path / "t.jsonl", rows))
    assert labels_of(corpus, "c") == ({"t0"}, {"t1"})


HEAD = "text,concept,label\n"


@pytest.mark.parametrize("name, content, message", [
    ("t.csv", "", r"t\.csv: holds no row"),
    ("t.csv", HEAD, r"t\.csv: holds no row"),
    ("t.jsonl", "\n\n", r"t\.jsonl: holds no row"),
    ("t.csv", HEAD + "a,c,1\nb,c,maybe\n", r"t\.csv, line 3: label is 'maybe'; expected 0 or 1"),
    ("t.csv", HEAD + "a,c,1\nb,c,true\n", r"t\.csv, line 3: label is 'true', but labels before it are 0 and 1"),
    ("t.csv", HEAD + "a,c,\n", r"t\.csv, line 2: label is ''"),
    ("t.csv", HEAD + "a,c,0.5\n", r"t\.csv, line 2: label is '0.5'"),
    ("t.csv", HEAD + 'a,c,1\n"two\nlines",c,1\nx, y,c,0\n', r"t\.csv, line 5: 4 fields, expected 3"),
    ("t.csv", HEAD + 'a,c,1\n"never closed,c,1\n', r"t\.csv, line 3: not CSV"),
    ("t.csv", "sentence,concept,label\na,c,1\n", "no column 'text' among 'sentence, .*; name it with --text"),
    ("t.jsonl", '{"text": "a", "concept": "c", "label": 1}\n{"text": ', r"t\.jsonl, line 2: not JSON"),
    ("t.jsonl", '{"text": "a", "concept": "c", "label": 1}\n[1]\n', r"t\.jsonl, line 2: list, expected an object"),
    ("t.jsonl", '{"text": "a", "label": 1}\n', "line 1: has no 'concept' among 'text, label'; name it with"),
    ("t.jsonl", '{"text": 7, "concept": "c", "label": 1}\n', r"line 1: text is 7 \(int\), expected text"),
    ("t.jsonl", '{"text": "a", "concept": "c", "label": 1}\n{"text": "b", "concept": "c", "label": true}\n',
     r"line 2: label is True, but labels before it are 0 and 1"),
    ("t.jsonl", '{"text": "a", "concept": "c", "label": [1]}\n', r"line 1: label is \[1\]"),
    ("t.parquet", "no parquet", r"t\.parquet: cannot be read as Parquet"),
    ("t.csv", "text,concept,label,text\na,c,1,b\n", "two columns are named 'text'"),
    ("t.csv", "text,concept,lable\na,c,1\n", "no column 'label' among .*--label-column, or use --no-labels"),
    ("t.jsonl", '{"text": "a", "concept": "c", "label": 1}\n{"text": "b", "concept": "c"}\n', "line 2: has no 'label'"),
    ("t.csv", HEAD + "a,../../etc/passwd,1\n", r"t\.csv, line 2: concept name '../../etc/passwd' is a path"),
    ("t.jsonl", "[" * 200_000 + "\n", "line 1: not JSON"),
    ("t.csv", HEAD + "a,c," + "x" * 10**6 + "\n", r"t\.csv, line 2: label is 'x{78}…; expected 0 or 1"),
    ("t.xls", "", r"t\.xls: expected a name that ends in"),
])  # fmt: skip
def test_bad_tables_are_named_with_the_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        build(tmp_path / "corpus", tmp_path / name)
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_invalid_utf_8_and_torn_gzip_are_named(name: str, tmp_path: Path) -> None:
    good = write(tmp_path / name, ROWS).read_bytes()
    (tmp_path / name).write_bytes(good.replace(b"a cat", b"a c\xe4t", 1))
    with pytest.raises(UserError, match=rf"{name}, line \d: not UTF-8 .*0xe4"):
        build(tmp_path / "corpus", tmp_path / name)
    (tmp_path / name).write_bytes(gzip.compress(good)[:-9])
    with pytest.raises(UserError, match="cut short"):
        build(tmp_path / "corpus", tmp_path / name)
    with pytest.raises(UserError, match="is not a file"):
        build(tmp_path / "corpus", tmp_path / "none.csv")


def test_blank_and_endless_texts_are_refused_with_their_line(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "text": "  "}, {**ROWS[0], "text": "word " * 2_000_000}]
    for name, places in (("t.csv", "line"), ("t.jsonl", "line"), ("t.parquet", "row")):
        corpus = build(tmp_path / "corpus", write(tmp_path / name, rows))
        listed = corpus.table("refused").to_pylist()
        assert [row["reason"] for row in listed] == ["empty", "longer than 10,000 characters"]
        assert places in listed[0]["name"]
        assert corpus.identity.sentences == 3


def test_concepts_without_negatives_are_refused_by_name(tmp_path: Path) -> None:
    lonely: dict[str, object] = {"text": "only this", "concept": "lonely", "label": 1, "group": "", "description": ""}
    corpus = build(tmp_path / "corpus", write(tmp_path / "t.csv", [*ROWS, lonely]))
    assert [concept.name for concept in corpus.concepts] == ["animal", "tool"]
    assert corpus.table("refused").to_pylist() == [
        {"kind": "concept", "name": "lonely", "reason": "no negatives (listed)", "detail": ""}
    ]
    with pytest.raises(UserError, match=r"no concept to write.*1 × concept: no negatives \(listed\)"):
        build(tmp_path / "none", write(tmp_path / "lonely.csv", [lonely]))
