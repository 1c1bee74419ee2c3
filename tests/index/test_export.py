"""Exports, against scikit-learn and NumPy on the stored responses, and as pandas reads them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from support.commands import refused, succeed
from support.corpora import LabelledTexts, write_lists
from support.made_runs import make_corpus, make_run
from support.plans import plan_new

from expertmine.corpus.drafts import MAX_NAME
from expertmine.corpus.reader import Corpus
from expertmine.errors import UnknownConcept, UserError
from expertmine.index import export
from expertmine.index.experts import Experts
from expertmine.mining.mine import run_all
from expertmine.run import sentences
from expertmine.run.open_run import open_corpus, open_run
from expertmine.run.selfcond import export_selfcond
from expertmine.run.store import Store
from expertmine.runtime.cluster import Cluster
from expertmine.storage.file_names import file_name, file_names

COLUMNS = ["ap", "off_mean", "on_p50", "on_p90", "layer", "unit", "uuid", "concept", "group"]
SERIAL = ("serial", Cluster())


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_corpus: Path) -> Path:
    run = tmp_path_factory.mktemp("reference") / "run"
    plan_new(run, tiny_model, tiny_corpus, poolings=("reference",), dtype="float32")
    run_all(run, SERIAL, SERIAL, top_k=20)
    return run


@pytest.fixture(scope="module")
def exported(reference_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported")
    folders = export_selfcond(open_run(reference_run), out)
    model = Path(open_run(reference_run).plan.model.name).name
    assert folders == [out / model / "test" / name / "expertise" for name in ("animal", "tool")]
    return out / model / "test"


def stored(run: Path, concept: str) -> tuple[np.ndarray, np.ndarray]:
    """Mined responses (sentences, units) as stored, and their labels (sentences,)."""
    plan = open_run(run).plan
    corpus = open_corpus(open_run(run))
    labelled = corpus.rows(corpus.concept(concept).concept_id)
    ids = np.concatenate([labelled.positives, labelled.negatives])
    labels = np.repeat([1, 0], [len(labelled.positives), len(labelled.negatives)])
    mined = ~corpus.held_out[ids]
    responses = Store(open_run(run)).read_responses(plan.responses.poolings[0], range(plan.layout.units))
    return responses[sentences.rows_of(open_run(run), corpus)[ids[mined]]], labels[mined]


@pytest.mark.parametrize("concept", ["animal", "tool"])
def test_numbers_are_those_of_scikit_learn_and_numpy(concept: str, reference_run: Path, exported: Path) -> None:
    found = pd.read_csv(exported / concept / "expertise" / "expertise.csv")
    responses, labels = stored(reference_run, concept)
    assert 0 < labels.sum() < len(labels)
    hookpoints = open_run(reference_run).plan.hookpoints
    by_name = sorted(hookpoints, key=lambda hookpoint: hookpoint.name + ":0")
    assert [each.name for each in by_name] == sorted(each.name for each in hookpoints)
    units = np.concatenate([np.array(hookpoint.units) for hookpoint in by_name])
    on, off = responses[labels == 1][:, units], responses[labels == 0][:, units]
    close = {"rtol": 1e-6, "atol": 1e-6}
    # scikit-learn's sum for a unit that makes no mistake ends one bit above 1.
    aps = np.minimum([average_precision_score(labels, responses[:, unit]) for unit in units], 1)
    np.testing.assert_allclose(found["ap"], aps, **close)
    np.testing.assert_allclose(found["on_p50"], np.percentile(on, 50, axis=0), **close)
    np.testing.assert_allclose(found["on_p90"], np.percentile(on, 90, axis=0), **close)
    np.testing.assert_allclose(found["off_mean"], off.mean(axis=0, dtype=np.float64), **close)
    info = json.loads((exported / concept / "expertise" / "expertise_info.json").read_text())
    assert info["max_ap"] == pytest.approx(max(aps), abs=1e-12)
    assert info["neurons_at_ap"] == {f"{at:.5f}": int((aps > at).sum()) for at in np.linspace(0.5, 1, 501)}


def test_pandas_reads_the_references_columns_and_types(reference_run: Path, exported: Path) -> None:
    found = pd.read_csv(exported / "animal" / "expertise" / "expertise.csv")
    assert list(found.columns) == COLUMNS
    kinds = {name: found[name].dtype for name in COLUMNS}
    assert all(kinds[name] == np.float64 for name in COLUMNS[:4])
    assert kinds["unit"] == kinds["uuid"] == np.int64
    assert all(pd.api.types.is_string_dtype(kinds[name]) for name in ("layer", "concept", "group"))
    assert (found["concept"] == "animal").all() and (found["group"] == "test").all()
    assert (found["uuid"] == np.arange(576)).all()
    info = json.loads((exported / "animal" / "expertise" / "expertise_info.json").read_text())
    assert list(info) == ["concept", "group", "max_ap", "layer_names", "total_neurons", "neurons_at_ap"]
    assert info["layer_names"] == found["layer"].unique().tolist() == sorted(found["layer"].unique())
    assert info["layer_names"][0] == "transformer.h.0.attn.c_attn:0"
    assert info["total_neurons"] == len(found)
    assert len(info["neurons_at_ap"]) == 501
    assert list(info["neurons_at_ap"])[:2] + list(info["neurons_at_ap"])[-1:] == ["0.50000", "0.50100", "1.00000"]
    for _, of_layer in found.groupby("layer"):
        assert (of_layer["unit"] == np.arange(len(of_layer))).all()


def test_every_float32_is_read_back_as_it_is_stored(reference_run: Path, exported: Path) -> None:
    plan = open_run(reference_run).plan
    store, units = Store(open_run(reference_run)), range(plan.layout.units)
    found = pd.read_csv(exported / "tool" / "expertise" / "expertise.csv")
    order = np.concatenate([np.array(each.units) for each in sorted(plan.hookpoints, key=lambda each: each.name)])
    for name in COLUMNS[:4]:
        expected = store.read_scores("reference", name, units)[1][order].astype(np.float32)
        np.testing.assert_array_equal(found[name].to_numpy(np.float32), expected)


def test_the_file_is_what_pandas_would_write(exported: Path) -> None:
    path = exported / "animal" / "expertise" / "expertise.csv"
    table = pd.read_csv(path).astype(dict.fromkeys(COLUMNS[:4], np.float32))
    theirs = table.to_csv(index=False).splitlines()
    ours = path.read_text().splitlines()
    assert ours[0] == theirs[0]
    for line, other in zip(ours[1:], theirs[1:], strict=True):
        numbers, others = line.split(",")[:4], other.split(",")[:4]
        assert line.split(",")[4:] == other.split(",")[4:]
        assert [np.float32(each) for each in numbers] == [np.float32(each) for each in others]


def test_little_memory_changes_nothing_and_only_the_chosen_are_written(
    reference_run: Path, exported: Path, tmp_path: Path
) -> None:
    export_selfcond(open_run(reference_run), tmp_path / "little", gathered=1)
    for path in sorted(exported.rglob("*.*")):
        assert (
            tmp_path / "little" / exported.parent.name / "test" / path.relative_to(exported)
        ).read_bytes() == path.read_bytes()
    (folder,) = export_selfcond(open_run(reference_run), tmp_path / "one", ["tool", "tool"])
    assert {path.name for path in folder.parents[1].iterdir()} == {"tool"}
    assert (folder / "expertise.csv").read_bytes() == (exported / "tool" / "expertise" / "expertise.csv").read_bytes()


def test_strange_names_stay_below_the_folder_and_are_read_back(tmp_path: Path, tiny_model: Path) -> None:
    names = ["a/b", "a%2Fb", 'say "so", or', ".hidden", "Bird", "bird", "...", "ü" * MAX_NAME]
    texts = [f"sentence {at} of some" for at in range(24)]
    drawn = [
        LabelledTexts(name, "../../g" if at % 2 else "g", "", texts[at : at + 8], texts[at + 8 : at + 16])
        for at, name in enumerate(names)
    ]
    write_lists(drawn, tmp_path / "corpus")
    plan_new(tmp_path / "run", tiny_model, tmp_path / "corpus", scoring={"permutations": 0, "resamples": 0})
    run_all(tmp_path / "run", SERIAL, SERIAL, top_k=5)
    folders = export_selfcond(open_run(tmp_path / "run"), tmp_path / "out" / "there")
    assert len(set(folders)) == len(names)
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "run", "out"}
    for folder, name in zip(folders, [each.name for each in Corpus.open(tmp_path / "corpus").concepts], strict=True):
        assert len(folder.relative_to(tmp_path / "out" / "there").parts) == 4
        assert set(pd.read_csv(folder / "expertise.csv")["concept"]) == {name}
        assert json.loads((folder / "expertise_info.json").read_text())["concept"] == name


NAMES = st.text(st.sampled_from("aAbBİiéÉ./\\%2F~ \0\n‰") | st.characters(codec="utf-8"), max_size=8)


@given(st.lists(NAMES, max_size=6))
def test_names_never_meet_as_files_nor_mean_anything(names: list[str]) -> None:
    found = file_names(names)
    assert found.keys() == set(names)
    folded = {unicodedata.normalize("NFC", file.casefold()) for file in found.values()}
    assert len(folded) == len(found)
    for file in found.values():
        assert PurePosixPath("x", file).parts == ("x", file)
        assert not set(file) & set('/\\:*?"<>|\0') and not file.startswith(".") and len(file.encode()) <= 255


def test_long_names_differ_by_their_hash() -> None:
    one, two = file_name("x" * 300 + "1"), file_name("x" * 300 + "2")
    assert one != two and len(one) < 255
    assert file_name("") == "%empty"
    assert file_name("bird.n.01") == "bird.n.01"


def test_what_cannot_be_exported_is_refused(
    mined: Path, planned: Path, tmp_path: Path, reference_run: Path, edit_json: Callable[..., None]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"score tasks are not done.*expertmine score"):
        export_selfcond(open_run(planned), out)
    with pytest.raises(UnknownConcept, match="did you mean tool"):
        export_selfcond(open_run(mined), out, ["tol"])
    with pytest.raises(UserError, match="has no mean pooling; it has max"):
        export_selfcond(open_run(mined), out, pooling="mean")
    with pytest.raises(UserError, match="no such file"):
        export_selfcond(open_run(mined / "experts"), out)
    corpus = make_corpus(tmp_path / "corpus", texts=60, concepts=2, positives=10, pool=30)
    make_run(tmp_path / "kept", corpus, units=64, block_units=32, keep=2)
    with pytest.raises(UserError, match=r"keeps statistics .* for only 4 units per block.*--keep all"):
        export_selfcond(open_run(tmp_path / "kept"), out)
    assert not out.exists()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_have_the_requested_part_of_the_index(form: export.TableFormat, mined: Path, tmp_path: Path) -> None:
    experts, read = Experts.load(mined), {"csv": pyarrow.csv.read_csv, "parquet": pq.read_table}[form]
    assert export.export_table(experts, tmp_path / "all", form) == 80
    whole = read(tmp_path / "all")
    assert whole.column_names == experts.table.column_names
    assert whole.cast(experts.table.schema).to_pandas().equals(experts.table.to_pandas())
    assert export.export_table(experts, tmp_path / "some", form, ["tool"], "worst", k=3) == 3
    some = read(tmp_path / "some").to_pylist()
    assert [row["unit"] for row in some] == [unit.unit for unit in experts.units("tool", "worst")[:3]]
    assert {row["concept"] for row in some} == {"tool"}
    if form == "parquet":
        assert whole.equals(experts.table)
    with pytest.raises(UserError, match="is a folder; give a file"):
        export.export_table(experts, tmp_path, form)


def test_the_command_writes_each_format(mined: Path, tmp_path: Path) -> None:
    assert "expertise of 1 concepts" in succeed(
        "export", mined, "--format", "selfcond", "--out", tmp_path / "s", "--concept", "tool"
    )
    assert len(list((tmp_path / "s").rglob("expertise.csv"))) == 1
    found = json.loads(succeed("export", mined / "experts", "--format", "csv", "--out", tmp_path / "t.csv", "--json"))
    assert found["rows"] == 80 and pd.read_csv(tmp_path / "t.csv").shape == (80, 16)
    assert "remove --units and -k" in refused("export", mined, "--format", "selfcond", "--out", tmp_path, "-k", 3)
