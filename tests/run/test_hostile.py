"""Runs, corpora and tables that somebody made to do harm: each is refused with one message, in a moment."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from support.commands import refused
from support.corpora import LabelledTexts, write_lists
from support.made_indexes import make_index
from support.made_runs import make_corpus, make_run
from support.refusals import little_memory, refusal

import expertmine
import expertmine_kernels
from expertmine.cli.show import experts as show_experts
from expertmine.cli.show import run as show_run
from expertmine.corpus.reader import FILES, Corpus
from expertmine.index.experts import Experts
from expertmine.mining.mine import driven
from expertmine.run import lease as leases
from expertmine.run.inspection import progress_of, verify, workers_of
from expertmine.run.lease import LeaseHolder, driving
from expertmine.run.ledger import read_receipts
from expertmine.run.links import require_own
from expertmine.run.open_run import open_run
from expertmine.run.side_tables import (
    has_selection,
    read_assessments,
    read_selection,
    write_assessment,
    write_selection,
)
from expertmine.run.store import Store, create_store
from expertmine.specs.layout import Layout
from expertmine.specs.plan import Plan
from expertmine.storage.files import write_json
from expertmine.storage.tables import read_table, write_table
from expertmine.storage.untrusted import mismatch, schema_of, visible

Document = dict[str, Any]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is extracted, small; copy it before use (`run`)."""
    folder = tmp_path_factory.mktemp("foreign")
    make_run(folder / "run", make_corpus(folder / "corpus", 40, 2, 6, 20), 64)
    return folder / "run"


@pytest.fixture
def run(foreign: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(foreign, tmp_path / "run"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_lists([LabelledTexts("animal", "", "", ["a cat", "a dog"], ["a saw"])], tmp_path / "corpus")
    return tmp_path / "corpus"


def edit(path: Path, change: Callable[[Document], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def forge_plan(run: Path, change: Callable[[Document], object]) -> None:
    """Change a plan, and give it the fingerprint that it then has: anybody can."""

    def forge(plan: Document) -> None:
        change(plan)
        body = {name: value for name, value in plan.items() if name not in ("format", "fingerprint")}
        plan["fingerprint"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    edit(run / "plan.json", forge)


# Names that would be paths.


def test_a_forged_plan_is_read_where_it_says_nothing_wrong(run: Path) -> None:
    forge_plan(run, lambda plan: plan["scoring"].update(permutations=7))
    assert open_run(run).plan.scoring.permutations == 7


@pytest.mark.parametrize("change, message", [
    (lambda plan: plan["responses"].update(poolings=["../../elsewhere"]), "pooling is '../../elsewhere'"),
    (lambda plan: plan["corpus"].update(fingerprint="../../../elsewhere"), "fingerprint is '../../../elsewhere'"),
    (lambda plan: plan["corpus"].update(fingerprint="/etc"), "fingerprint is '/etc'"),
    (lambda plan: plan["corpus"].update(fingerprint=""), "fingerprint is ''"),
    (lambda plan: plan["hookpoints"][0].update(name="a\x1b[2Jb"), r"hookpoint 'a\\x1b\[2Jb'"),
    (lambda plan: plan["hookpoints"][0].update(width=2**40), "does not follow|the hookpoints have"),
    (lambda plan: plan["hookpoints"][1].update(name=plan["hookpoints"][0]["name"]), "the same name"),
    (lambda plan: plan["layout"].update(units=2**50), "tasks in a stage|rows and shards"),
    (lambda plan: plan["layout"].update(partition_rows=2**50), "rows and shards"),
    (lambda plan: plan["layout"].update(segments=[2**50]), "tasks in a stage"),
    (lambda plan: plan["layout"].update(segments=[1] * 100_000), "100,000 segments"),
    (lambda plan: plan["layout"].update(shard_units=0), "nothing to store"),
    (lambda plan: plan["layout"].update(segments=[24]), "the segments differ from the layout"),
    (lambda plan: plan["layout"].update(units="64"), "layout.units is not a whole number"),
    (lambda plan: plan["layout"].update(units=float("nan")), "layout.units is not a whole number"),
    (lambda plan: plan["scoring"].update(permutations=10**400), "scoring.permutations is not a whole number"),
    (lambda plan: plan["scoring"].update(resamples=2**40), "resamples is 1099511627776"),
    (lambda plan: plan.update(hookpoints={"a": 1}), "hookpoints is not a list"),
    (lambda plan: plan["model"].update(remote_code=True), "not a plan"),
])  # fmt: skip
def test_a_forged_plan_is_refused(change: Callable[[Document], object], message: str, run: Path) -> None:
    forge_plan(run, change)
    with refusal(message):
        open_run(run)


def test_a_plan_of_endless_brackets_or_digits_is_refused(run: Path) -> None:
    for content in ("[" * 10**6, '{"format": ' + "9" * 10**6 + "}", '{"format": {"a": NaN}}'):
        (run / "plan.json").write_text(content)
        with refusal("plan.json"):
            open_run(run)


def test_of_a_key_that_comes_twice_in_a_plan_both_readers_take_the_same(run: Path) -> None:
    text = (run / "plan.json").read_text()
    (run / "plan.json").write_text(text.replace('"format": 3', '"fingerprint": "0", "format": 3', 1))
    assert open_run(run).plan  # the last one counts, and is the one that is checked
    (run / "plan.json").write_text(text.rstrip().removesuffix("}") + ', "patterns": ["*"]}')
    with refusal("do not match its fingerprint"):
        open_run(run)


def test_a_corpus_cannot_choose_a_folder_of_the_run(corpus: Path, tmp_path: Path) -> None:
    bystander = tmp_path / "precious" / "thesis.tex"
    bystander.parent.mkdir()
    bystander.write_text("years")
    edit(corpus / "corpus.json", lambda metadata: metadata.update(fingerprint="../../precious"))
    with refusal(r"corpus\.json: corpus fingerprint is '../../precious': expected a hash"):
        Corpus.open(corpus)
    assert bystander.read_text() == "years"


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "null/../../plan.json", "tokens/c/..", "a\\b", "a"])
def test_a_receipt_cannot_have_files_elsewhere_read(key: str, run: Path) -> None:
    receipt = run / "receipts" / "extract" / "00000.json"
    edit(receipt, lambda document: document.update(checksums={key: "0" * 64}))
    with refusal("is no object of a run; remove this receipt"):
        list(read_receipts(open_run(run), "extract"))
    with refusal("is no object of a run"):
        list(verify(run))


@pytest.mark.parametrize("change", [
    {"checksums": ["tokens/c/0"]}, {"checksums": {"tokens/c/0": 7}}, {"seconds": float("nan")}, {"seconds": "1"},
    {"counts": {"sentences": "many"}}, {"counts": None}, {"finished": 10**400}, {"worker": ["a"]}, {"more": 1},
])  # fmt: skip
def test_a_receipt_of_other_types_counts_as_not_written(change: Document, run: Path) -> None:
    before = len(list(read_receipts(open_run(run), "extract")))
    edit(run / "receipts" / "extract" / "00000.json", lambda document: document.update(change))
    assert len(list(read_receipts(open_run(run), "extract"))) == before - 1
    progress_of(run)


# Links.


@pytest.mark.parametrize("place", [
    "store.zarr", "store.zarr/responses", "receipts", "receipts/extract", "workers", "lock", "experts", "sentences",
    "corpus", "evaluation", "null",
])  # fmt: skip
def test_a_link_out_of_the_run_is_refused_before_anything_is_done(place: str, run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (run / place).exists():
        shutil.move(run / place, elsewhere)
    else:
        elsewhere.mkdir()
    before = sorted(path.stat().st_mtime_ns for path in elsewhere.rglob("*"))
    (run / place).parent.mkdir(exist_ok=True)
    (run / place).symlink_to(elsewhere)
    message = rf"{place} is a link that leads out of the run folder, to .*elsewhere.*link the run folder itself"
    with refusal(message), driven(run, "score"):
        raise AssertionError("it is driven")
    with refusal(message):
        list(verify(run))
    assert sorted(path.stat().st_mtime_ns for path in elsewhere.rglob("*")) == before


def test_a_linked_file_and_a_hanging_link_are_refused_too(run: Path, tmp_path: Path) -> None:
    for name, target in (("plan.bak", "/etc/passwd"), ("hanging", "../nothing/there"), ("up", "..")):
        (run / name).symlink_to(target)
        with refusal(f"{name} is a link that leads out"):
            require_own(run)
        (run / name).unlink()


def test_a_pipe_in_a_run_is_refused_not_waited_for(run: Path) -> None:
    os.mkfifo(run / "receipts" / "extract" / "00009.json")
    with refusal("00009.json is neither a file nor a folder"):
        require_own(run)


def test_links_within_the_run_and_to_the_run_are_fine(run: Path, tmp_path: Path) -> None:
    (run / "latest").symlink_to(run / "receipts")
    (run / "round").symlink_to(".")
    (tmp_path / "by another name").symlink_to(run)
    require_own(run)
    require_own(tmp_path / "by another name")
    require_own(tmp_path / "not there yet")


def test_a_folder_whose_name_begins_like_the_runs_is_not_the_run(run: Path) -> None:
    (run.parent / "run-2").mkdir()
    (run / "store").symlink_to(run.parent / "run-2")
    with refusal("leads out of the run folder"):
        require_own(run)


def test_the_command_line_says_it_in_one_message(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (run / "workers").symlink_to(tmp_path / "elsewhere")
    assert "is a link that leads out of the run folder" in refused("score", run, "--executor", "serial")
    assert not list((tmp_path / "elsewhere").iterdir())


# The store.


def description(run: Path, name: str = "responses/max") -> Path:
    return run / "store.zarr" / name / "zarr.json"


@pytest.mark.parametrize("change", [
    {"shape": [2**60, 2**60]}, {"shape": [-1, 64]}, {"shape": "x"}, {"data_type": "float64"}, {"data_type": "object"},
    {"data_type": {"name": "numpy.datetime64", "configuration": {}}}, {"fill_value": 1.0}, {"fill_value": "NaN"},
    {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]}, {"codecs": []}, {"node_type": "group"},
    {"codecs": [{"name": "bytes"}, {"name": "os.system", "configuration": {"command": "true"}}]},
    {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1]}}}, {"zarr_format": 2},
    {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}}}, {"attributes": {"a": 1}},
    {"storage_transformers": [{"name": "any"}]}, {"consolidated_metadata": {}}, {"dimension_names": ["a", "b"]},
])  # fmt: skip
def test_a_store_whose_description_is_not_the_plans_is_refused(change: Document, run: Path) -> None:
    opened = open_run(run)
    edit(description(run), lambda document: document.update(change))
    for opening in (Store, create_store):
        with refusal(r"responses/max has another layout than the plan"):
            opening(opened)


@pytest.mark.parametrize("content", [
    b"", b"[]", b"null", b"\xff\xfe", b"[" * 60_000, b"9" * 60_000, b'{"a": NaN}',
], ids=["empty", "list", "null", "bytes", "brackets", "digits", "nan"])  # fmt: skip
def test_a_description_that_is_none_is_refused(content: bytes, run: Path) -> None:
    description(run).write_bytes(content)
    with refusal("another layout than the plan"):
        Store(open_run(run))


def test_a_description_of_gigabytes_is_not_read(run: Path) -> None:
    with description(run).open("ab") as file:
        file.truncate(1 << 36)  # a sparse file: it takes no disk
    for opening in (Store, create_store):
        with refusal("another layout than the plan"):
            opening(open_run(run))


def test_a_store_of_the_older_format_beside_ours_is_not_looked_at(run: Path) -> None:
    before = Store(open_run(run)).read_tokens()
    older = {"shape": [2**40], "chunks": [1], "dtype": "|O", "filters": [{"id": "pickle"}], "zarr_format": 2,
             "compressor": None, "fill_value": 0, "order": "C"}  # fmt: skip
    for name in ("tokens", "responses/max"):
        (run / "store.zarr" / name / ".zarray").write_text(json.dumps(older))
    (run / "store.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    bomb = {"kind": "inline", "must_understand": False, "metadata": {str(at): {} for at in range(10_000)}}
    edit(description(run, ""), lambda group: group.update(consolidated_metadata=bomb))
    np.testing.assert_array_equal(Store(open_run(run)).read_tokens(), before)


def test_what_goes_without_saying_in_a_description_may_be_left_out(run: Path) -> None:
    edit(description(run), lambda document: [document.pop(name) for name in ("attributes", "storage_transformers")])
    Store(open_run(run))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # zarr adds the two up
@pytest.mark.parametrize("start, length", [(0, 2**63 - 1), (2**63, 5), (2**64 - 2, 2**64 - 3), (5, 2**42)])
def test_a_shard_that_points_into_the_void_is_damaged(start: int, length: int, run: Path) -> None:
    plan = open_run(run).plan
    chunks = plan.layout.shard_units // plan.layout.block_units
    shard = run / "store.zarr" / "responses" / "max" / "c" / "0" / "0"
    index = struct.pack("<QQ", start, length) * chunks
    checksum = struct.pack("<I", google_crc32c.value(index))
    shard.write_bytes(shard.read_bytes()[: -len(index) - 4] + index + checksum)
    with refusal(r"store\.zarr is damaged or cannot be read"):
        Store(open_run(run)).read_responses("max", plan.layout.block(0))


def test_zarr_by_itself_reads_a_store_of_ours(run: Path) -> None:
    plan = open_run(run).plan
    array = zarr.open_group(run / "store.zarr", mode="r")["responses/max"]
    assert isinstance(array, zarr.Array)
    units = plan.layout.block(1)
    np.testing.assert_array_equal(array[:, units.start : units.stop], Store(open_run(run)).read_responses("max", units))


# Tables.


def write_bomb(path: Path, columns: Document, **options: Any) -> None:
    """A table whose columns are each one value many times over, without a word of how long that will be."""
    table = pa.table({name: pa.DictionaryArray.from_arrays(*parts) for name, parts in columns.items()})
    pq.write_table(table, path, store_schema=False, compression="zstd", row_group_size=1 << 30, **options)


def repeated(value: pa.Array, times: int) -> tuple[Any, pa.Array]:
    return np.zeros(times, np.int32), value


def test_a_table_that_expands_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    for columns in (
        {"text": repeated(pa.array(["y" * 1000]), 3_000_000)},
        {"id": repeated(pa.array([7], pa.int64()), 30_000_000)},
    ):
        write_bomb(path, columns, write_statistics=False)
        assert path.stat().st_size < 100_000
        with little_memory(), pytest.raises(pa.ArrowInvalid, match="expand to more than"):
            read_table(path)


def test_a_table_of_zeros_that_a_file_of_its_size_may_hold_is_read(tmp_path: Path) -> None:
    table = pa.table({"id": np.zeros(1_000_000, np.int64), "text": pa.array([None, *["a"] * 999_999], pa.string())})
    pq.write_table(table, tmp_path / "zeros.parquet", compression="zstd", row_group_size=300_000)
    assert read_table(tmp_path / "zeros.parquet").equals(table)
    assert read_table(tmp_path / "zeros.parquet", ["text"], 1).equals(table.select(["text"]).slice(300_000, 300_000))
    empty = table.slice(0, 0)
    pq.write_table(empty, tmp_path / "empty.parquet")
    assert read_table(tmp_path / "empty.parquet").equals(empty)


def test_a_bomb_among_a_corpus_s_tables_is_one_message(corpus: Path) -> None:
    ids = repeated(pa.array([0], pa.int32()), 30_000_000)
    write_bomb(corpus / "pools.parquet", {"pool_id": ids, "sentence_id": ids}, write_statistics=False)
    with refusal(r"pools\.parquet: cannot be read \(it has 30,000,000 rows, expected 0"):
        _ = Corpus.open(corpus).pools
    edit(corpus / "corpus.json", lambda metadata: metadata.update(pools=[30_000_000]))
    with refusal(r"pools\.parquet: cannot be read \(its .* bytes expand to more than"):
        _ = Corpus.open(corpus).pools


def nested(depth: int) -> pa.DataType:
    kind: pa.DataType = pa.int32()
    for _ in range(depth):
        kind = pa.struct([("a", kind)])
    return kind


@pytest.mark.parametrize("kind, value", [
    (pa.list_(pa.struct([("a", pa.string())])), [{"a": "x"}]), (pa.int64(), 1), (pa.binary(), b"x"), (nested(50), None),
])  # fmt: skip
def test_a_column_of_another_type_is_one_message(kind: pa.DataType, value: object, corpus: Path) -> None:
    table = pq.read_table(corpus / "sentences.parquet")
    column = pa.array([value] * table.num_rows, kind)
    pq.write_table(table.set_column(1, "text", column), corpus / "sentences.parquet")
    with refusal(r"sentences\.parquet: cannot be read \(columns are .*, expected .*text string"):
        Corpus.open(corpus).texts(range(1))


@pytest.mark.parametrize("table, column, values, message", [
    ("labels", "sentence_id", [0, 1, 2**31 - 1], "it has ids from 0 to 2147483647, expected ids below 3"),
    ("labels", "sentence_id", [-1, 0, 1], "it has ids from -1 to 1"),
    ("labels", "concept_id", [0, 0, 1], "it has ids from 0 to 1, expected ids below 1"),
    ("labels", "label", [1, None, 0], "it has null values"),
    ("concepts", "pool", [0], "it has ids from 0 to 0, expected ids below 0"),
    ("concepts", "name", ["a\x1b]0;owned\x07"], r"the name 'a\\x1b\]0;owned\\x07' is not printable"),
    ("concepts", "name", [None], "it has null values"),
])  # fmt: skip
def test_ids_of_nothing_are_refused(table: str, column: str, values: list[Any], message: str, corpus: Path) -> None:
    path = corpus / f"{table}.parquet"
    found = pq.read_table(path)
    at = found.column_names.index(column)
    pq.write_table(found.set_column(at, column, pa.array(values, found.schema.field(column).type)), path)
    with refusal(rf"{table}\.parquet is damaged: {message}"):
        opened = Corpus.open(corpus)
        _ = opened.concepts, opened.pools, opened.labels(0)


def test_pools_without_an_owner_are_refused(corpus: Path) -> None:
    pq.write_table(pa.table({"pool_id": pa.array([2**31 - 1], pa.int32()), "sentence_id": pa.array([0], pa.int32())}),
                   corpus / "pools.parquet")  # fmt: skip
    edit(corpus / "corpus.json", lambda metadata: metadata.update(pools=[1]))
    with refusal("ids from 2147483647 to 2147483647, expected ids below 1"):
        _ = Corpus.open(corpus).pools


@pytest.mark.parametrize("change", [
    {"sentences": "3"}, {"sentences": 10**400}, {"concepts": float("inf")}, {"pools": {"a": 1}}, {"sources": [1]},
    {"refused": [{"kind": "a"}]}, {"fingerprint": None}, {"labels": 1.5}, {"sentences": -1}, {"format": True},
])  # fmt: skip
def test_a_corpus_of_other_facts_is_refused(change: Document, corpus: Path) -> None:
    edit(corpus / "corpus.json", lambda metadata: metadata.update(change))
    with refusal(r"corpus\.json"):
        Corpus.open(corpus)


def test_a_corpus_with_more_rows_than_it_promises_is_refused(corpus: Path) -> None:
    edit(corpus / "corpus.json", lambda metadata: metadata.update(sentences=10**9))
    with refusal(r"sentences\.parquet: cannot be read \(it has 3 rows, expected 1,000,000,000"):
        Corpus.open(corpus).check()


def test_a_corpus_may_be_links_since_it_is_only_read(corpus: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in FILES:
        (linked / name).symlink_to(corpus / name)
    Corpus.open(linked).check()


def test_an_index_whose_table_expands_without_end_is_refused(tmp_path: Path) -> None:
    index = make_index(tmp_path / "pack", np.arange(8).reshape(2, 4), width=2)
    kept = 2_000_000
    values = {
        field.name: repeated(pa.array(["n" * 2000] if field.type == pa.string() else [1]).cast(field.type), 2 * kept)
        for field in index.table.schema
    }
    path = tmp_path / "pack" / "experts.parquet"
    write_bomb(path, values, write_statistics=False)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()

    def promise(metadata: Document) -> None:
        metadata.update(top_k=kept, units=4 * kept)
        metadata["checksums"]["experts"] = checksum
        metadata["hookpoints"] = [{**each, "width": kept, "first_unit": at * kept}
                               for at, each in enumerate(metadata["hookpoints"])]  # fmt: skip

    edit(tmp_path / "pack" / "index.json", promise)
    with refusal(r"experts\.parquet cannot be read \(its .* bytes expand"):
        _ = Experts.load(tmp_path / "pack").table


@pytest.mark.parametrize("columns", [
    {"units": pa.array([[1, 2], [3, 4]])}, {"units": pa.array(["a", "b"])}, {"other": pa.array([1, 2])},
    {"units": pa.array([[1, 2], None], pa.list_(pa.int64(), 2))},
])  # fmt: skip
def test_a_selection_of_other_columns_is_refused(columns: Document, run: Path) -> None:
    write_selection(open_run(run), "max", np.array([[1, 2], [3, 4]]))
    assert has_selection(open_run(run), "max")
    write_table(run / "selection" / "max" / "00000.parquet", pa.table(columns))
    with refusal(r"selection/max/00000\.parquet is no table of this kind"):
        read_selection(open_run(run), "max")


@pytest.mark.parametrize("concept, place", [(2, 0), (-1, 0), (0, 2**40), (0, -1)])
def test_an_assessment_of_what_was_not_selected_is_refused(concept: int, place: int, run: Path) -> None:
    plan = open_run(run).plan
    write_selection(open_run(run), "max", np.array([[1], [1]]))
    for block in range(plan.layout.blocks):
        one, drawn = np.array([1]), np.zeros((1, plan.scoring.resamples), np.float32)
        write_assessment(
            open_run(run), "max", block, (np.array([concept]), np.array([place])), one, drawn, np.zeros((1, 2))
        )
    with refusal("does not match the units selected in"):
        read_assessments(open_run(run), "max")


# What is shown.


ESCAPES = "\x1b]8;;http://evil\x07[link=http://evil]here[/link]\r[red]\u202e"


def test_a_strangers_text_is_shown_as_it_is_and_steers_nothing() -> None:
    assert visible("grün 漢字 [red]\u200d") == "grün 漢字 [red]\u200d"
    assert visible("a\x1b[2J\r\n\x9b\u202eb\ud800") == "a\\x1b[2J\\r\\n\\x9b\\u202eb\\ud800"


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    shown = "".join(capsys.readouterr())
    assert not set(shown) & {"\x1b", "\x07", "\r", "\u202e"}
    assert "[link=http://evil]here[/link]" in shown.replace("\n", "")
    return shown


def test_status_shows_a_strangers_workers_and_failures_harmlessly(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "receipts" / "extract" / "00000.json").unlink()
    worker = {"stage": ESCAPES, "machine": ESCAPES, "process": 1, "platform": ESCAPES, "since": 0.0, "doing": ESCAPES}
    write_json(run / "workers" / "a.json", {**worker, "tasks": 1})
    failure = {"stage": "extract", "task": 0, "reason": ESCAPES, "attempts": 1, "sentences": []}
    write_json(run / "failures" / "extract" / "00000.json", failure)
    show_run.status(run, progress_of(run), workers_of(run), [], json_=False)
    assert "gave up task" in printed(capsys)


@pytest.mark.parametrize("change", [{"since": float("nan")}, {"process": "1"}, {"doing": None}, {"tasks": 10**400}])
def test_a_worker_s_word_of_other_types_is_nobodys(change: Document, run: Path) -> None:
    worker = {"stage": "extract", "machine": "m", "process": 1, "platform": "p", "since": 0.0, "doing": "d", "tasks": 1}
    write_json(run / "workers" / "a.json", worker)
    assert len(workers_of(run)) == 1
    write_json(run / "workers" / "a.json", {**worker, **change})
    assert workers_of(run) == []


def test_a_concept_is_described_harmlessly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_index(tmp_path / "pack", np.arange(8).reshape(2, 4), width=2)
    edit(tmp_path / "pack" / "index.json", lambda metadata: metadata["concepts"][0].update(description=ESCAPES))
    index = Experts.load(tmp_path / "pack")
    show_experts.one_concept(index, "concept 0", 2, json_=False)
    printed(capsys)


@pytest.mark.parametrize("place", ["concepts", "hookpoints"])
def test_an_index_with_names_that_steer_a_terminal_is_refused(place: str, tmp_path: Path) -> None:
    make_index(tmp_path / "pack", np.arange(8).reshape(2, 4), width=2)
    edit(tmp_path / "pack" / "index.json", lambda metadata: metadata[place][0].update(name="a\x1b[2Jb"))
    with refusal(r"index\.json .*the name 'a\\x1b\[2Jb' cannot be printed"):
        Experts.load(tmp_path / "pack")


@pytest.mark.parametrize("since", [-1e15, 0.0, 1e15])
def test_a_driver_of_any_time_is_told_harmlessly(since: float) -> None:
    told = str(LeaseHolder(1, f"machine{ESCAPES}", "home", 1, "1", f"rm{ESCAPES}", since))
    assert "[link=http://evil]here[/link]" in told and not set(told) & {"\x1b", "\x07", "\r", "\u202e"}


@pytest.mark.parametrize("change", [
    {"since": float("nan")}, {"since": 10**400}, {"process": "../../etc"}, {"term": None}, {"ended": "no"},
    {"more": 1}, {"heartbeats": "many"},
])  # fmt: skip
def test_a_lock_of_other_types_is_nobodys(change: Document, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "STALE", 0.2)  # seconds that whoever writes the file is waited for
    monkeypatch.setattr(leases, "POLL", 0.05)
    driver = {"term": 7, "machine": "m", "home": "h", "process": 1, "born": "1", "command": "c", "since": 0.0,
              "heartbeats": 0, "ended": False}  # fmt: skip
    write_json(run / "lock" / "00000007.json", {**driver, **change})
    with driving(run, "test") as lease:
        assert (lease.holder.command, lease.holder.term) == ("test", 8)
        assert lease.after is None


# Shapes.


def test_the_shape_of_a_dataclass_is_that_of_its_json() -> None:
    shape = schema_of(Plan)
    assert shape["model"]["revision"] == (str, None)
    assert shape["hookpoints"] == [{"name": str, "width": int, "first_unit": int}]
    assert shape["layout"]["segments"] == [int]
    assert shape["scoring"]["keep"] == (int, None)
    assert mismatch({"segments": [1, "2"]}, {"segments": [int]}) == "segments[1] is not a whole number"
    assert mismatch({"a": True}, {"a": int}) == "a is not a whole number"


def test_a_layout_that_is_planned_is_one_that_is_read() -> None:
    with refusal("tasks in a stage"):
        Layout((10**9,), 64, partition_rows=1, block_units=64, shard_units=64)


# What is never called.


def calls() -> Iterator[tuple[str, ast.Call]]:
    packages = [Path(package.__file__ or "").parent for package in (expertmine, expertmine_kernels)]
    for path in sorted(path for package in packages for path in package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.name}:{node.lineno} {ast.unparse(node.func)}", node


UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
RUNNING = {"eval", "exec", "compile", "__import__"}
LOADING = {"torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "pd.read_pickle"}


def test_nothing_that_could_run_what_it_reads_is_called() -> None:
    found = list(calls())
    assert len(found) > 3000
    for where, call in found:
        name = where.split(" ")[1]
        assert name not in RUNNING | LOADING, where
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("trust_remote_code", "False") == "False", where
        assert given.get("allow_pickle", "False") == "False", where
        assert given.get("weights_only", "True") == "True", where
        if name.endswith(".from_pretrained") and name.startswith("Auto"):
            assert given["trust_remote_code"] == "False", where


def test_no_module_that_unpickles_is_imported() -> None:
    packages = [Path(package.__file__ or "").parent for package in (expertmine, expertmine_kernels)]
    for path in sorted(path for package in packages for path in package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in (*names, *module)} & UNPICKLING, path
