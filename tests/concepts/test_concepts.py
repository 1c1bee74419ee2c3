"""Readers of concepts: WordNet's files, the embedded WordNet, the reference's JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expertmine.concepts.labelling import Candidate
from expertmine.concepts.selfcond_json import read_concepts
from expertmine.concepts.wndb import read_wndb, split_gloss
from expertmine.concepts.wordnet import WordNet, wordnet_texts
from expertmine.corpus.drafts import Refusals
from expertmine.corpus.texts import Texts
from expertmine.errors import UserError

NOUNS = """  1 This software and database is being provided to you
00000001 05 n 01 beast 0 001 ~ 00000002 n 0000 | a living thing; "the beast slept"
00000002 05 n 02 dog 0 hound a 003 @ 00000001 n 0000 ~i 00000003 n 0000 + 00000001 v 0101 | it barks
00000003 18 n 01 Rex 0 001 @i 00000002 n 0000 | a king: "Rex ruled"; "all hail"
"""
NOUN_INDEX = """  1 This software
beast n 1 1 ~ 1 0 00000001
dog n 1 2 @ ~ 1 0 00000002
hound n 1 2 @ ~ 1 0 00000002
rex n 1 1 @ 1 0 00000003
"""
ADJECTIVES = """00000007 00 a 01 big(p) 2 001 & 00000008 a 0000 | of size
00000008 00 s 01 huge 0 001 & 00000007 a 0000 | very big
"""
ADJECTIVE_INDEX = "big a 1 1 & 1 0 00000007\nhuge a 1 1 & 1 0 00000008\n"


@pytest.fixture
def wndb(tmp_path: Path) -> Path:
    files = {"noun": (NOUNS, NOUN_INDEX), "adj": (ADJECTIVES, ADJECTIVE_INDEX), "verb": ("", ""), "adv": ("", "")}
    for part, (data, index) in files.items():
        (tmp_path / f"data.{part}").write_text(data)
        (tmp_path / f"index.{part}").write_text(index)
    return tmp_path


def test_wndb_lines_become_synsets(wndb: Path) -> None:
    synsets = {synset.name: synset for synset in read_wndb(wndb)}
    assert list(synsets) == ["beast.n.01", "dog.n.01", "rex.n.01", "big.a.01", "huge.s.01"]
    dog = synsets["dog.n.01"]
    assert (dog.lemmas, dog.lexname, dog.hypernyms) == (("dog", "hound"), "noun.animal", ("beast.n.01",))
    assert dog.sense_keys == ("dog%1:05:00::", "hound%1:05:10::")
    assert synsets["rex.n.01"].instance_hypernyms == ("dog.n.01",)
    assert synsets["rex.n.01"].examples == ("Rex ruled", "all hail")
    assert synsets["big.a.01"].lemmas == ("big",)
    assert synsets["huge.s.01"].sense_keys == ("huge%5:00:00:big:02",)


def test_a_malformed_line_is_named(wndb: Path) -> None:
    (wndb / "data.noun").write_text("00000001 05 n zz beast\n")
    with pytest.raises(UserError, match=r"data\.noun.*00000001"):
        WordNet.load(wndb)


@pytest.mark.parametrize("file, before, after, message", [
    ("index.noun", "dog n 1 2 @ ~ 1 0 00000002\n", "", r"index\.noun: lemma 'dog' does not lead to offset 00000002"),
    ("data.noun", "@ 00000001 n", "@ 00000099 n", r"data\.noun: the line at offset 00000002 points at nothing \(99\)"),
    ("data.noun", "00000003 18 n", "00000003 77 n", r"data\.noun: the line at offset 00000003"),
])  # fmt: skip
def test_lines_that_point_at_nothing_are_named(file: str, before: str, after: str, message: str, wndb: Path) -> None:
    text = (wndb / file).read_text()
    assert before in text
    (wndb / file).write_text(text.replace(before, after))
    with pytest.raises(UserError, match=message):
        WordNet.load(wndb)


def test_a_file_is_not_a_dictionary_folder(wndb: Path) -> None:
    with pytest.raises(UserError, match="--dict expects a folder"):
        WordNet.load(wndb / "data.noun")


def test_a_folder_that_is_not_wordnets_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.noun"):
        WordNet.load(tmp_path)


@pytest.mark.parametrize("gloss, definition, examples", [
    ("a thing", "a thing", ()),
    ('a thing; "one"; "two, three"', "a thing", ("one", "two, three")),
    ('a thing: "one"', "a thing", ("one",)),
    ('expressed as "on behalf of"', 'expressed as "on behalf of"', ()),
    ('a thing; "never closed', "a thing", ("never closed",)),
])  # fmt: skip
def test_glosses(gloss: str, definition: str, examples: tuple[str, ...]) -> None:
    assert split_gloss(gloss) == (definition, examples)


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet.load()


def test_the_embedded_wordnet_is_wordnet_3_0(wordnet: WordNet) -> None:
    assert len(wordnet.synsets) == 117_659
    parts = [synset.pos for synset in wordnet.synsets.values()]
    counts = {pos: parts.count(pos) for pos in "nvasr"}
    # wnstats(7WN): 82,115 nouns, 13,767 verbs, 18,156 adjectives, 3,621 adverbs.
    assert (counts["n"], counts["v"], counts["a"] + counts["s"], counts["r"]) == (82_115, 13_767, 18_156, 3_621)
    assert wordnet.synsets["dog.n.01"].hypernyms == ("canine.n.02", "domestic_animal.n.01")
    assert wordnet.synsets["dog.n.01"].sense_keys[0] == "dog%1:05:00::"
    assert wordnet.synsets["dog.n.01"].examples == ("the dog barked all night",)


def test_closures_hold_instances_and_stop_at_cycles(wordnet: WordNet) -> None:
    assert {"paris.n.01", "city.n.01"} <= wordnet.closure("city.n.01")
    assert len(wordnet.closure("bird.n.01")) == 872
    loop = WordNet(
        {
            name: wordnet.synsets["dog.n.01"].__class__(name, "n", "", (), (), "", (), (above,), ())
            for name, above in (("a", "b"), ("b", "a"))
        }
    )
    assert loop.closure("a") == {"a", "b"}


def test_levels_sisters_and_sense_keys(wordnet: WordNet) -> None:
    levels = wordnet.levels("canine.n.02")
    assert (levels["canine.n.02"], levels["dog.n.01"], levels["puppy.n.01"]) == (0, 1, 2)
    assert {"wolf.n.01", "fox.n.01"} <= wordnet.sisters("dog.n.01")
    assert "dog.n.01" not in wordnet.sisters("dog.n.01")
    assert wordnet.resolve("dog%1:05:00::") == "dog.n.01"
    assert wordnet.resolve("dog%1:99:00::") is None


def test_satellites_resolve_with_and_without_the_marker_of_their_head(wordnet: WordNet) -> None:
    found = wordnet.resolve("every%5:00:00:all:00")
    assert found is not None
    assert wordnet.resolve("every%5:00:00:all(a):00") == found


def test_wordnets_own_texts(wordnet: WordNet) -> None:
    one = WordNet({"dog.n.01": wordnet.synsets["dog.n.01"]})
    definition, example = wordnet.synsets["dog.n.01"].definition, "the dog barked all night"
    assert [tagged.text for tagged in wordnet_texts(one)] == [definition]
    assert [tagged.text for tagged in wordnet_texts(one, "examples")] == [example]
    both = list(wordnet_texts(one, "both", with_lemma=True))
    assert [tagged.text for tagged in both] == [f"dog: {definition}", example]
    assert both[0].sense_keys == wordnet.synsets["dog.n.01"].sense_keys


def read(*paths: Path) -> tuple[list[Candidate], Texts, Refusals]:
    texts, refusals = Texts(), Refusals()
    return list(read_concepts(paths, texts, refusals)), texts, refusals


def write_concept(path: Path, **changes: object) -> Path:
    document = {"concept": "a", "group": "sense", "sentences": {"positive": ["x"], "negative": ["y"]}, **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def test_a_folder_with_a_list_gives_the_listed_concepts(tmp_path: Path) -> None:
    write_concept(tmp_path / "sense" / "a.json")
    write_concept(tmp_path / "sense" / "b.json", concept="b")
    (tmp_path / "concept_list.csv").write_text("group,concept\nsense,b\n")
    assert [concept.name for concept in read(tmp_path)[0]] == ["b"]
    (tmp_path / "concept_list.csv").write_text("group,concept\nsense,b\n", encoding="utf-8-sig")
    assert [concept.name for concept in read(tmp_path)[0]] == ["b"]
    (tmp_path / "concept_list.csv").write_bytes("group,concept\nsense,b\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"line 2: not UTF-8 .*save the file as UTF-8"):
        read(tmp_path)[0]
    (tmp_path / "concept_list.csv").unlink()
    assert [concept.name for concept in read(tmp_path)[0]] == ["a", "b"]


@pytest.mark.parametrize("text, message", [
    ("{", r"bad\.json, line 1: not JSON"),
    ("[]", '"concept" is missing'),
    ('{"concept": "../b", "sentences": {"positive": ["x"], "negative": ["y"]}}', "bad.json: concept name '../b' is a"),
    ('{"concept": "\\ud800", "sentences": {"positive": ["x"], "negative": ["y"]}}', "expected a printable"),
    ("[" * 200_000, "cannot be read"),
    ("9" * 5000, "cannot be read"),
    ('{"concept": "a"}', '"sentences" is missing'),
    ('{"concept": "a", "sentences": {"positive": ["x"]}}', "sentences.negative"),
    ('{"concept": "a", "sentences": {"positive": ["x", 3], "negative": ["y"]}}', r"positive\[1\] is int"),
])  # fmt: skip
def test_malformed_concept_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "bad.json")[0]


def test_missing_files_and_paths_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read(tmp_path / "none.json")[0]
    with pytest.raises(UserError, match="holds no"):
        read(tmp_path)[0]
    (tmp_path / "concept_list.csv").write_text("group,concept\n..,secret\n")
    with pytest.raises(UserError, match="line 2: 'secret' leads out"):
        read(tmp_path)[0]
    (tmp_path / "concept_list.csv").write_text("name\nx\n")
    with pytest.raises(UserError, match="expected group,concept"):
        read(tmp_path)[0]


def test_bad_texts_are_refused_with_file_and_key(tmp_path: Path) -> None:
    path = write_concept(tmp_path / "a.json", sentences={"positive": ["x", " "], "negative": ["x" * 10_001, "y", "x"]})
    (found,), texts, refusals = read(path)
    assert (found.members.tolist(), found.hard_negatives["listed"]().tolist(), len(texts)) == ([0], [1, 0], 2)
    assert [(one.name, one.reason) for one in refusals.listed] == [
        (f"{path}, sentences.positive[1]", "empty"),
        (f"{path}, sentences.negative[0]", "longer than 10,000 characters"),
    ]


def test_two_files_of_one_concept_are_refused(tmp_path: Path) -> None:
    first, second = write_concept(tmp_path / "1.json"), write_concept(tmp_path / "2.json")
    with pytest.raises(UserError, match=rf"{second}: concept 'a' appears twice, first in {first}"):
        read(tmp_path)
