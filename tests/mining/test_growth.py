"""Runs whose corpus grows: what is stored is kept, what is new is added, and nothing is computed twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import animal_and_tool
from sklearn.metrics import average_precision_score
from support.corpora import LabelledTexts, write_lists
from support.plans import plan_new, request

from expertmine.corpus.reader import Corpus
from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.mining import extract
from expertmine.mining.growth import plan_run
from expertmine.mining.mine import run_all
from expertmine.model import load as models
from expertmine.run import sentences
from expertmine.run.ledger import missing_tasks
from expertmine.run.open_run import open_corpus, open_run
from expertmine.run.store import Store
from expertmine.runtime.cluster import Cluster

SERIAL = ("serial", Cluster())


def colours() -> LabelledTexts:
    """A concept of new sentences, against old ones."""
    texts = [f"a {shade} {colour} wall" for shade in ("pale", "deep") for colour in ("red", "blue", "green", "brown")]
    return LabelledTexts("colour", "test", "what walls have", texts, animal_and_tool()[0].positives)


def over_stored_sentences() -> LabelledTexts:
    """A concept all of whose sentences are there."""
    animals, tools = animal_and_tool()
    return LabelledTexts("cat or saw", "test", "", [*animals.positives[:3], *tools.positives[3:6]], tools.positives[9:])


@pytest.fixture
def two_concepts(tiny_model: Path, tmp_path: Path) -> Path:
    """A run of two concepts, taken to its end."""
    write_lists(animal_and_tool(), tmp_path / "small", held_out_percent=0)
    plan_new(tmp_path / "run", tiny_model, tmp_path / "small")
    run_all(tmp_path / "run", SERIAL, SERIAL, top_k=30)
    return tmp_path / "run"


def grow(run: Path, model: Path, concepts: list[LabelledTexts], folder: Path) -> Corpus:
    write_lists(concepts, folder, held_out_percent=0)
    corpus = Corpus.open(folder)
    plan_run(run, corpus, request(model), force=False)
    return corpus


def stored_by_text(run: Path) -> dict[str, np.ndarray]:
    """Responses of every sentence of the run's corpus."""
    plan = open_run(run).plan
    corpus = open_corpus(open_run(run))
    responses = Store(open_run(run)).read_responses("max", range(plan.layout.units))
    texts = corpus.texts(range(corpus.identity.sentences))
    return dict(zip(texts, responses[sentences.rows_of(open_run(run), corpus)], strict=True))


def test_only_new_sentences_are_run(two_concepts: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = two_concepts
    before = open_run(run).plan
    shards = {path: path.read_bytes() for path in (run / "store.zarr" / "responses" / "max" / "c").rglob("*/0")}
    old = stored_by_text(run)
    grow(run, tiny_model, [*animal_and_tool(), colours()], tmp_path / "grown")
    plan = open_run(run).plan
    assert [segment.sentences for segment in plan.segments] == [72, 8]
    assert extract.plan(open_run(run)) == [before.layout.partitions]
    run_all(run, SERIAL, SERIAL, top_k=30)
    assert all(path.read_bytes() == content for path, content in shards.items())
    found = stored_by_text(run)
    assert all(np.array_equal(found[text], responses) for text, responses in old.items())

    afresh = tmp_path / "afresh"
    plan_new(afresh, tiny_model, tmp_path / "grown")
    run_all(afresh, SERIAL, SERIAL, top_k=30)
    expected = stored_by_text(afresh)
    assert found.keys() == expected.keys()
    for text, responses in expected.items():  # other batches: the last bits may differ before they are rounded
        np.testing.assert_allclose(found[text].astype(float), responses.astype(float), rtol=2e-3, atol=1e-5)
    assert list(Experts.load(run)) == ["animal", "colour", "tool"] == list(Experts.load(afresh))


def test_new_concepts_over_stored_sentences_load_no_model(
    two_concepts: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    for name in ("load_model", "load_tokenizer"):
        monkeypatch.setattr(models, name, never)
    monkeypatch.setattr("expertmine.mining.planning.load_model", never)
    concepts = [*animal_and_tool(), over_stored_sentences()]
    grow(two_concepts, tiny_model, concepts, tmp_path / "grown")
    assert missing_tasks(open_run(two_concepts), "extract") == []
    run_all(two_concepts, SERIAL, SERIAL, top_k=30)
    assert "cat or saw" in Experts.load(two_concepts)


def test_scores_of_a_grown_run_are_those_of_its_rows(two_concepts: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Rows are in another order than sentences in the corpus, with gaps; scikit-learn takes them by text."""
    grow(two_concepts, tiny_model, [*animal_and_tool(), colours(), over_stored_sentences()], tmp_path / "grown")
    run_all(two_concepts, SERIAL, SERIAL, top_k=30)
    plan = open_run(two_concepts).plan
    corpus = open_corpus(open_run(two_concepts))
    assert sentences.rows_of(open_run(two_concepts), corpus).tolist() != list(range(80))
    responses = stored_by_text(two_concepts)
    ap = Store(open_run(two_concepts)).read_scores("max", "ap", range(plan.layout.units))
    for concept in corpus.concepts:
        rows = corpus.rows(concept.concept_id)
        texts = [corpus.texts(range(row, row + 1))[0] for row in [*rows.positives, *rows.negatives]]
        scores = np.stack([responses[text] for text in texts]).astype(float)
        labels = np.repeat([1, 0], [len(rows.positives), len(rows.negatives)])
        expected = [average_precision_score(labels, scores[:, unit]) for unit in range(0, plan.layout.units, 7)]
        np.testing.assert_allclose(ap[concept.concept_id, ::7], expected, rtol=1e-12)


def test_a_corpus_may_shrink_and_change_and_come_back(two_concepts: Path, tiny_model: Path, tmp_path: Path) -> None:
    first = (two_concepts / "experts" / "experts.parquet").read_bytes()
    grow(two_concepts, tiny_model, [over_stored_sentences()], tmp_path / "other")
    run_all(two_concepts, SERIAL, SERIAL, top_k=30)
    assert list(Experts.load(two_concepts)) == ["cat or saw"]
    assert len(list((two_concepts / "corpus").iterdir())) == 1
    grow(two_concepts, tiny_model, animal_and_tool(), tmp_path / "back")
    run_all(two_concepts, SERIAL, SERIAL, top_k=30)
    assert (two_concepts / "experts" / "experts.parquet").read_bytes() == first


def test_growth_that_died_before_its_plan_changes_nothing(
    two_concepts: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_run(two_concepts).plan

    def dies(path: Path, document: object) -> None:
        raise UserError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("expertmine.run.freezing.write_json", dies)
        with pytest.raises(UserError, match="no space"):
            grow(two_concepts, tiny_model, [*animal_and_tool(), colours()], tmp_path / "grown")
    assert open_run(two_concepts).plan == before
    run_all(two_concepts, SERIAL, SERIAL, top_k=30)
    assert list(Experts.load(two_concepts)) == ["animal", "tool"]
    grow(two_concepts, tiny_model, [*animal_and_tool(), colours()], tmp_path / "grown")
    run_all(two_concepts, SERIAL, SERIAL, top_k=30)
    assert "colour" in Experts.load(two_concepts)


def test_a_corpus_that_leaves_a_concept_without_sentences_is_refused(
    two_concepts: Path, tiny_model: Path, tmp_path: Path
) -> None:
    before = open_run(two_concepts).plan
    long = LabelledTexts("long", "test", "", ["word " * 100], animal_and_tool()[0].positives)
    with pytest.raises(UserError, match="'long' keeps no positive sentence"):
        grow(two_concepts, tiny_model, [*animal_and_tool(), long], tmp_path / "grown")
    assert open_run(two_concepts).plan == before
