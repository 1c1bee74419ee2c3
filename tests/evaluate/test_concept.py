"""Success and fluency of a concept along k: cells, what is kept of them, and the k that is chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.evaluations import SMALL, success

from expertmine import Experts
from expertmine.corpus.reader import Corpus
from expertmine.evaluate import cells as measured
from expertmine.evaluate import concept
from expertmine.evaluate.cells import CellSettings
from expertmine.evaluate.classifier import train
from expertmine.evaluate.lexical import lemmas_of
from expertmine.evaluate.perplexity import losses, perplexity
from expertmine.evaluate.results import (
    ConceptEvaluation,
    Point,
    read_result,
)
from expertmine.evaluate.tasks import key_of
from expertmine.model.load import load_model
from expertmine.steering.assignment import Steering
from expertmine.steering.generation import GenerationRequest, Generator


@pytest.mark.parametrize("points, chosen", [
    ([(0, 0.1, 10), (10, 0.3, 12), (20, 0.5, 29), (30, 0.9, 31)], 20),
    ([(0, 0.1, 10), (10, 0.5, 12), (20, 0.5, 12)], 10),
    ([(0, 0.5, 10), (10, 0.5, 12), (20, 0.4, 12)], None),
    ([(0, 0.1, 10), (10, 0.9, 31), (20, 0.9, None)], None),
    ([(0, 0.1, None), (10, 0.9, 31)], None),
    ([(0, 0.02, 10), (10, 0.06, 11), (20, 0.09, 12)], None),  # 9 of 100 against 2 may be luck, of two that were tried
    ([(0, 0.02, 10), (20, 0.09, 12), (30, 0.12, 12)], 30),
])  # fmt: skip
def test_the_chosen_k_succeeds_most_often_within_the_bound_of_perplexity(
    points: list[tuple[int, float, float | None]], chosen: int | None
) -> None:
    assert concept.choose_k([Point(k, success(share, found)) for k, share, found in points], 100, 3.0) == chosen


def test_concepts_are_drawn_among_those_with_enough_sentences(evaluated: Path) -> None:
    found = concept.evaluate(evaluated, (), 10, (5, 20), SMALL)
    assert [curve.concept for curve in found.curves] == ["man.n.01", "metallic_element.n.01", "woman.n.01"]
    assert [[point.k for point in curve.points] for curve in found.curves] == [[0, 5, 20]] * 3
    assert found == read_result(evaluated, "max", ConceptEvaluation)


def test_a_cell_measures_its_texts(evaluated: Path) -> None:
    """One point of a curve, measured again by hand from the same texts."""
    found = concept.evaluate(evaluated, ["metallic_element.n.01"], 1, (30,), replace(SMALL, samples=12, seed=3))
    point = found.curves[0].points[1].success
    generator = Generator(evaluated, "cpu")
    request = GenerationRequest(("metallic_element.n.01",), Steering(30), count=12, max_new_tokens=5, seed=3)
    texts = [text.strip() for text in generator(request)]
    assert list(point.examples) == texts[:5]
    corpus = Corpus.open(next((evaluated / "corpus").iterdir()))
    judge = train(corpus, corpus.concept("metallic_element.n.01").concept_id, seed=3)
    assert point.share == pytest.approx(np.mean([bool(text) and bool(judge([text])[0]) for text in texts]))
    assert point.perplexity == pytest.approx(perplexity(losses(generator.loaded, texts)))
    metals = lemmas_of("metallic_element.n.01", ())
    assert metals is not None and point.lexical == pytest.approx(np.mean([metals.found_in(text) for text in texts]))
    assert found.curves[0].lemmas == len(metals)


def test_a_cell_uses_its_steering_and_its_judge_model(evaluated: Path) -> None:
    steering = Steering(0, "p90", 0.5, "last", (1,))
    settings = replace(SMALL, samples=12, seed=5, steering=steering, judge_model="embedded")
    found = concept.evaluate(evaluated, ["man.n.01"], 1, (15,), settings)
    generator = Generator(evaluated, "cpu")
    request = GenerationRequest(("man.n.01",), replace(steering, k=15), count=12, max_new_tokens=5, seed=5)
    texts = [text.strip() for text in generator(request)]
    point = found.curves[0].points[1].success
    assert list(point.examples) == texts[:5]
    own = losses(load_model("embedded", device="cpu"), texts)
    assert point.perplexity == pytest.approx(perplexity(own), rel=1e-5)
    kept = found.provenance
    assert (kept.forcing, kept.strength, kept.tokens, kept.layers) == ("p90", 0.5, "last", (1,))
    assert (kept.judge_model, kept.reader) == ("embedded", "embedded")
    assert found == read_result(evaluated, "max", ConceptEvaluation)


def test_everything_that_decides_a_cells_result_is_in_its_key(evaluated: Path) -> None:
    index = Experts.load(evaluated)
    base = CellSettings()

    def key(settings: CellSettings, cell: measured.SteeringCell) -> str:
        return key_of(measured.decisive(index, settings), cell)

    cell = measured.SteeringCell("man.n.01", 5)
    others = [
        key(replace(base, samples=3), cell),
        key(replace(base, max_new_tokens=3), cell),
        key(replace(base, seed=3), cell),
        key(replace(base, judge_model="embedded"), cell),
        *(
            key(replace(base, steering=replace(base.steering, **change)), cell)
            for change in ({"forcing": "p50"}, {"strength": 0.5}, {"tokens": "last"}, {"layers": (1,)})
        ),
        *(
            key(base, replace(cell, **change))  # type: ignore[arg-type]
            for change in ({"concept": "a"}, {"k": 6}, {"units": "random"}, {"block": 2})
        ),
    ]
    assert len({*others, key(base, cell)}) == len(others) + 1
    assert key(replace(base, steering=Steering(7)), cell) == key(base, cell)  # a cell's k is its own
    index.metadata = {**index.metadata, "plan": "another"}
    assert key(base, cell) not in {*others, key_of(measured.decisive(Experts.load(evaluated), base), cell)}


def test_finished_tasks_do_not_run_again(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SMALL, seed=7)
    first = concept.evaluate(evaluated, ["metallic_element.n.01"], 1, (5,), settings)
    calls: list[int] = []
    real = Generator.write
    monkeypatch.setattr(Generator, "write", lambda self, requests: calls.append(len(requests)) or real(self, requests))  # type: ignore[func-returns-value]
    assert concept.evaluate(evaluated, ["metallic_element.n.01"], 1, (5,), settings) == first
    assert calls == []
    concept.evaluate(evaluated, ["metallic_element.n.01"], 1, (5, 10), settings)
    assert len(calls) == 1
    concept.evaluate(evaluated, ["metallic_element.n.01"], 1, (5,), replace(settings, seed=8))
    assert len(calls) == 3


def test_a_stopped_evaluation_resumes(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SMALL, seed=11)
    real, calls = Generator.write, []

    def write(self: Generator, requests: Sequence[GenerationRequest]) -> list[list[str]]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, requests)

    monkeypatch.setattr(Generator, "write", write)
    with pytest.raises(KeyboardInterrupt):
        concept.evaluate(evaluated, ["metallic_element.n.01"], 1, (5, 10, 20), settings)
    concept.evaluate(evaluated, ["metallic_element.n.01"], 1, (5, 10, 20), settings)
    assert len(calls) == 5  # two before the interruption, the one that was interrupted, and the two that were left


def test_the_chosen_k_is_kept_until_the_index_is_made_again(evaluated: Path) -> None:
    index = Experts.load(evaluated)
    index.keep_chosen({"metallic_element.n.01": 20, "man.n.01": None}, "a rule")
    index.keep_chosen({"woman.n.01": 7}, "a rule")
    again = Experts.load(evaluated)
    assert [again.chosen_k(name) for name in ("metallic_element.n.01", "man.n.01", "woman.n.01", "rare")] == [
        20,
        None,
        7,
        None,
    ]
    manner = Steering(0, strength=0.5).manner
    assert again.chosen_k("metallic_element.n.01", Steering(3).manner) == 20
    assert again.chosen_k("metallic_element.n.01", manner) is None
    again.keep_chosen({"rare": 3}, "a rule", manner)  # under another manner, what was chosen before means nothing
    assert dict(again.steering) == {"rare": 3} and again.chosen_k("rare", manner) == 3
    index.keep_chosen({"metallic_element.n.01": 20}, "a rule")
    path = evaluated / "experts" / "steering.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "experts": "0" * 64}))
    assert Experts.load(evaluated).chosen_k("metallic_element.n.01") is None
    path.unlink()
