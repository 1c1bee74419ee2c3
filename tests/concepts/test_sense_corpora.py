"""Streams of annotated corpora: the two XML layouts, the key file, and their possible errors."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sense_data import DATA, KEYS, SAMPLE

from expertmine.concepts import sense_corpora
from expertmine.concepts.sense_corpora import TaggedText, read_all_words, read_lexical_sample
from expertmine.corpus.drafts import Refusals
from expertmine.errors import UserError


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    data, keys = tmp_path / "c.data.xml", tmp_path / "c.gold.key.txt"
    data.write_text(DATA)
    keys.write_text(KEYS)
    return data, keys


def read(files: tuple[Path, Path]) -> tuple[list[TaggedText], list[tuple[str, str, str]]]:
    refusals = Refusals()
    found = list(read_all_words(*files, refusals))
    return found, [(one.kind, one.name, one.reason) for one in refusals.listed]


def test_all_words(files: tuple[Path, Path]) -> None:
    found, refused = read(files)
    assert found == [
        TaggedText(
            "The Grand Jury said &",
            ("grand_jury%1:14:00::", "jury%1:14:00::", "say%2:32:00::"),
            f"{files[0]}, line 4",
        ),
        TaggedText("Dogs bark", ("dog%1:05:00::", "bark%2:32:00::"), f"{files[0]}, line 10"),
    ]
    assert not refused


def test_gzip_is_seen_by_its_first_bytes(files: tuple[Path, Path]) -> None:
    plain, _ = read(files)
    for path in files:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert read(files)[0] == plain


def test_keys_may_come_in_another_order_and_on_several_lines(files: tuple[Path, Path]) -> None:
    plain, _ = read(files)
    keys = files[1]
    keys.write_text("".join(reversed(KEYS.splitlines(keepends=True))))
    assert read(files)[0] == plain
    keys.write_text(KEYS.replace("grand_jury%1:14:00:: jury", "grand_jury%1:14:00::\n\nd000.s000.t000 jury"))
    assert read(files)[0] == plain


def test_keys_without_instances_and_instances_without_keys_are_recorded(files: tuple[Path, Path]) -> None:
    files[1].write_text(KEYS.replace("d000.s000.t002", "d000.s000.t001"))
    found, refused = read(files)
    assert found[0].sense_keys == ("grand_jury%1:14:00::", "jury%1:14:00::")
    assert found[1].sense_keys == ("dog%1:05:00::", "bark%2:32:00::")
    assert refused == [
        ("instance", "d000.s000.t002", "no line in the key file"),
        ("key", "d000.s000.t001", "no such instance in the data"),
    ]


@pytest.mark.parametrize("change, message", [
    (lambda data, keys: data.write_text(DATA.replace("</sentence>", "", 1)), r"c\.data\.xml, line 14: not well-formed"),
    (lambda data, keys: data.write_text(DATA.replace("&amp;", "&", 2)), r"c\.data\.xml, line 8: not well-formed"),
    (lambda data, keys: data.write_bytes(DATA.replace("Dogs", "D\xe9").encode("latin-1")), r"line 11: not well-formed"),
    (lambda data, keys: data.write_text(""), r"c\.data\.xml, line 1: not well-formed XML \(no element found\)"),
    (lambda data, keys: data.write_text("<corpus></corpus>"), "holds no <sentence>"),
    (lambda data, keys: data.write_text(DATA.replace(' id="d000.s001.t000"', "")), "line 11: <instance> without an id"),
    (lambda data, keys: data.write_text('<!DOCTYPE a [<!ENTITY b "c">]><a/>'), "line 1: defines the entity 'b'"),
    (lambda data, keys: data.write_bytes(gzip.compress(DATA.encode())[:-20]), r"c\.data\.xml: the gzip file is cut"),
    (lambda data, keys: keys.write_bytes(gzip.compress(KEYS.encode())[:-20]), r"key\.txt: the gzip file is cut"),
    (lambda data, keys: keys.write_text(""), "matches none of the 4 instances"),
    (lambda data, keys: keys.write_text(KEYS.replace("d000", "d001")), "check that the two files belong together"),
    (lambda data, keys: keys.write_text(KEYS + "d000.s002.t000\n"), "line 5: 'd000.s002.t000' has no sense key"),
    (lambda data, keys: keys.write_bytes(KEYS.replace("dog", "d\xf6g").encode("latin-1")), "line 3: not UTF-8"),
    (lambda data, keys: data.write_text(DATA.replace("UTF-8", "foo-8")), "unknown encoding: foo-8; save the file as"),
    (lambda data, keys: data.unlink(), r"c\.data\.xml: cannot be read \(No such file"),
    (lambda data, keys: keys.unlink(), r"c\.gold\.key\.txt: cannot be read \(No such file"),
])  # fmt: skip
def test_bad_files_are_named_with_the_line(change: object, message: str, files: tuple[Path, Path]) -> None:
    change(*files)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        read(files)


def test_a_lexical_sample(tmp_path: Path) -> None:
    path = tmp_path / "football.xml"
    path.write_text(SAMPLE)
    refusals = Refusals()
    first, second = read_lexical_sample(path, refusals)
    assert " ".join(first.text.split()) == "They play football in the park <here> ."
    assert first.sense_keys == ("football%1:04:00::",)
    assert second.sense_keys == ("football%1:06:00::", "football%1:04:00::")
    path.write_text(SAMPLE.replace('senseid="football%1:06:00::"', ""))
    with pytest.raises(UserError, match=r"football\.xml, line 11: <answer> without a senseid"):
        list(read_lexical_sample(path, refusals))
    assert not refusals.listed


def test_instances_without_answer_or_context_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / "football.xml"
    path.write_text(SAMPLE.replace('<answer instance="football.0" senseid="football%1:04:00::"/>', "", 1))
    refusals = Refusals()
    assert [bool(tagged.sense_keys) for tagged in read_lexical_sample(path, refusals)] == [False, True]
    path.write_text(DATA)
    assert list(read_lexical_sample(path, refusals)) == []
    assert [(one.name, one.reason) for one in refusals.listed[:2]] == [
        (f"{path}, line 5", "no <answer>"), (f"{path}, line 6", "no <context>"),
    ]  # fmt: skip
    assert refusals.counts["instance", "no <context>"] == 4


def long_files(tmp_path: Path, sentences: int) -> tuple[Path, Path]:
    data, keys = tmp_path / f"{sentences}.xml", tmp_path / f"{sentences}.txt"
    with data.open("w") as xml, keys.open("w") as key_lines:
        xml.write("<corpus><text>\n")
        for i in range(sentences):
            xml.write(
                f'<sentence id="s{i}"><wf>word</wf>\n<instance id="s{i}.t0">dog number {i}</instance></sentence>\n'
            )
            key_lines.write(f"s{i}.t0 dog%1:05:00::\n")
        xml.write("</text></corpus>\n")
    return data, keys


def peak_while_reading(files: tuple[Path, Path]) -> tuple[int, int]:
    """Return the number of sentences read, and the peak bytes of reading."""
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_all_words(*files, Refusals()))
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    few, at_few = peak_while_reading(long_files(tmp_path, 30_000))
    many, at_many = peak_while_reading(long_files(tmp_path, 90_000))
    assert (few, many) == (30_000, 90_000)
    assert at_many < 1.05 * at_few < 10e6


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(sense_corpora, "WINDOW", 100)
    yield 100


def test_keys_without_instances_do_not_stop_the_stream(tmp_path: Path, small_window: int) -> None:
    data, keys = long_files(tmp_path, 500)
    keys.write_text(
        "".join(f"{line}\nextra{i} cat%1:05:00::\n" for i, line in enumerate(keys.read_text().split("\n")[:90]))
    )
    refusals = Refusals()
    found = list(read_all_words(data, keys, refusals))
    assert sum(bool(tagged.sense_keys) for tagged in found) == 90
    assert refusals.counts["key", "no such instance in the data"] == 90
    assert refusals.counts["instance", "no line in the key file"] == 410


def test_too_different_an_order_is_refused(tmp_path: Path, small_window: int) -> None:
    data, keys = long_files(tmp_path, 500)
    lines = keys.read_text().splitlines(keepends=True)
    keys.write_text("".join([lines[0], *reversed(lines[1:])]))
    with pytest.raises(UserError, match=r"100 entries from line 2 \(s499\.t0\) on match no instance"):
        list(read_all_words(data, keys, Refusals()))
