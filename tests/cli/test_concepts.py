"""`expertmine concepts` from outside: every source to a corpus, joined, split, shown; and all kinds of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import expertmine, refused, succeed
from support.corpora import labels_of
from support.sense_data import DATA, KEYS, SAMPLE

from expertmine.corpus.reader import Corpus

TABLE = """text,concept,label
a dog barks,animal,1
a cat purrs,animal,1
a saw cuts,animal,0
a saw cuts,tool,1
a drill turns,tool,1
a dog barks,tool,0
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name, content in (("d.xml", DATA), ("k.txt", KEYS), ("s.xml", SAMPLE), ("t.csv", TABLE)):
        (tmp_path / name).write_text(content)
    return tmp_path


def test_every_source_becomes_a_corpus_and_corpora_join(sources: Path) -> None:
    one, two, three, joined = (sources / name for name in ("one", "two", "three", "joined"))
    few = ("--min-positives", 1, "--held-out", 0)
    assert "5 concepts, 2 unique sentences" in succeed(
        "concepts", "raganato", sources / "d.xml", sources / "k.txt", "--out", one, *few, "--negatives", "others"
    )
    assert "1 concepts, 2 unique" in succeed(
        "concepts", "lexical-sample", sources / "s.xml", "--out", two, *few, "--negatives", "homographs"
    )
    on, off = labels_of(Corpus.open(two), "football%1:06:00::")
    assert (on, off) == ({"A leather football ."}, {"They play football in the park <here> ."})
    assert "2 concepts, 4 unique" in succeed("concepts", "table", sources / "t.csv", "--out", three)
    assert "8 concepts, 8 unique" in succeed("concepts", "merge", one, two, three, "--out", joined)
    again = succeed("concepts", "split", joined, "--held-out", 50, "--out", sources / "split")
    assert "8 concepts, 8 unique" in again
    shown = json.loads(succeed("concepts", "show", joined, "--json"))
    assert {concept["concept"] for concept in shown["concepts"]} >= {"animal", "dog%1:05:00::", "football%1:06:00::"}
    assert shown["words"] == {"shortest": 2, "median": 3, "p90": 5, "longest": 8}
    for wanted in ("most similar", "bark%2:32:00::", "positives of several concepts: ", "words per sentence: 2 to 8"):
        assert wanted in succeed("concepts", "show", joined)
    one_concept = succeed("concepts", "show", joined, "animal")
    assert "2 positive (0 held out) of 3 to 3 words" in one_concept
    assert "a cat purrs" in one_concept


def test_wordnet_with_its_options(tmp_path: Path) -> None:
    said = succeed(
        "concepts", "wordnet", "--under", "bird.n.01", "--max-depth", 1, "--text", "both", "--lemma", "--pos", "noun",
        "--cap", 60, "--negatives", "own", "--negatives", "sisters", "--negatives-size", 80, "--out", tmp_path,
    )  # fmt: skip
    assert "× concept: fewer than 100 positives" in said
    corpus = Corpus.open(tmp_path)
    assert "bird.n.01" in {concept.name for concept in corpus.concepts}
    on, off = labels_of(corpus, "bird.n.01")
    assert len(on) == 60
    assert 80 < len(off) <= 160
    assert sum(": " in text for text in on) > 40, "lemmas lead their definitions"
    refused_json = json.loads(succeed("concepts", "show", tmp_path, "--refused", "--json"))
    assert {"kind": "concept", "reason": "fewer than 100 positives"}.items() <= refused_json["counts"][0].items()


def test_refused_input_is_counted_and_listed(sources: Path) -> None:
    (sources / "k.txt").write_text(KEYS.replace("say%2:32:00::", "say%2:99:00::").replace("d000.s001.t001", "d9.s9.t9"))
    said = succeed(
        "concepts", "raganato", sources / "d.xml", sources / "k.txt", "--by", "synset", "--min-positives", 1,
        "--negatives", "others", "--held-out", 0, "--out", sources / "c",
    )  # fmt: skip
    for wanted in ("1 × sense key: not in WordNet; dropped", "1 × instance: no line", "1 × key: no such instance"):
        assert wanted in said
    listed = succeed("concepts", "show", sources / "c", "--refused")
    for wanted in ("sense key\tsay%2:99:00::\tnot in WordNet; dropped", "d000.s001.t001", "d9.s9.t9", "3 refused"):
        assert wanted in listed


def test_bad_input_ends_with_one_message_and_leaves_nothing(sources: Path) -> None:
    out = ("--out", sources / "corpus")
    data, keys = sources / "d.xml", sources / "k.txt"
    assert "no concept to write" in refused("concepts", "raganato", data, keys, *out)
    assert "expected listed, pool, own or others" in refused(
        "concepts", "table", sources / "t.csv", *out, "--negatives", "sisters"
    )
    assert "did you mean" in refused("concepts", "wordnet", "--concept", "brid.n.01", *out)
    assert "did you mean" in refused("concepts", "wordnet", "--under", "brid.n.01", *out)
    assert "expected 0 to 90" in refused("concepts", "table", sources / "t.csv", *out, "--held-out", 95)
    assert "--dict expects a folder" in refused("concepts", "wordnet", "--dict", data, *out)
    data.write_text(DATA[:-30])
    assert "d.xml, line 13: not well-formed XML" in refused("concepts", "raganato", data, keys, *out)
    (sources / "t.csv").write_text(TABLE + "x,../../etc/passwd,1\ny,../../etc/passwd,0\n")
    assert "a path that leads elsewhere" in refused("concepts", "table", sources / "t.csv", *out)
    assert not (sources / "corpus").exists()
    assert "corpus.json: no such file" in refused("concepts", "merge", sources / "none", *out)
    (sources / "t.csv").write_text(TABLE)
    assert "exists and is not a folder" in refused("concepts", "table", sources / "t.csv", "--out", data)
    assert "--no-labels" in refused("concepts", "table", sources / "t.csv", *out, "--label-column", "lable")
    succeed("concepts", "table", sources / "t.csv", *out)
    assert "one of the corpora to read" in refused("concepts", "split", sources / "corpus", *out)
    assert "No such option" in expertmine("concepts", "table", sources / "t.csv", *out, "--negative", "x").stderr


def test_a_corpus_that_exists_survives_a_failed_rebuild(sources: Path) -> None:
    out = ("--out", sources / "corpus")
    succeed("concepts", "table", sources / "t.csv", *out)
    before = {path.name: path.read_bytes() for path in (sources / "corpus").iterdir()}
    (sources / "t.csv").write_text(TABLE + "broken,line\n")
    assert "t.csv, line 8: 2 fields, expected 3" in refused("concepts", "table", sources / "t.csv", *out)
    assert {path.name: path.read_bytes() for path in (sources / "corpus").iterdir()} == before
