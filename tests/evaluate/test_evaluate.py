"""Evaluations: judges, measures of text, and the experiments; against own computations of what they say."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import refused, succeed
from support.corpora import LabelledTexts, write_lists
from support.plans import plan_new

from expertmine import Experts, steer
from expertmine.corpus.reader import Corpus
from expertmine.errors import UserError
from expertmine.evaluate import ablation, concept, parity
from expertmine.evaluate import cells as measured
from expertmine.evaluate.cells import CellSettings
from expertmine.evaluate.classifier import train
from expertmine.evaluate.contexts import OCCUPATIONS, TEMPLATES, Context, contexts, read_occupations
from expertmine.evaluate.diversity import distinct, self_bleu
from expertmine.evaluate.lexical import Lemmas, lemmas_of
from expertmine.evaluate.perplexity import losses, mean_perplexity, perplexity
from expertmine.evaluate.pronouns import HE, SHE, begins_with, next_word_mass, word_tokens
from expertmine.evaluate.results import (
    Ablation,
    CellResult,
    ConceptEvaluation,
    ContextCurve,
    Parity,
    Point,
    Success,
    Variant,
    read_result,
    result_path,
)
from expertmine.evaluate.statistics import interval, sign_flip_p
from expertmine.evaluate.tasks import Runtime, key_of
from expertmine.mining.mine import run_all
from expertmine.model.load import EMBEDDED_FOLDER, LoadedModel, load_model
from expertmine.runtime.cluster import Cluster
from expertmine.specs.choices import DEFAULT_K
from expertmine.specs.settings import ResponseSpec
from expertmine.steering.assignment import Steering
from expertmine.steering.generation import GenerationRequest, Generator


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two concepts with words of their own, and negatives, half of all held out."""
    rng = np.random.default_rng(0)
    colours, metals, other = ["red", "blue", "green"], ["iron", "copper", "zinc"], ["walk", "sing", "think", "hope"]

    def texts(words: list[str], count: int) -> list[str]:
        return [f"{rng.choice(words)} and {rng.choice(words)} {i}" for i in range(count)]

    folder = tmp_path_factory.mktemp("corpus")
    negatives = texts(other, 200)
    concepts = [
        LabelledTexts(name, "", "", texts(words, 80), negatives)
        for name, words in (("colour", colours), ("metal", metals))
    ]
    write_lists([*concepts, LabelledTexts("rare", "", "", texts(["gold"], 6), negatives)], folder, 50)
    return Corpus.open(folder)


def test_the_classifier_tells_a_concept_from_others_it_learned_as_negatives(corpus: Corpus) -> None:
    classifier = train(corpus, corpus.concept("colour").concept_id, seed=0)
    assert classifier(["red and blue 7", "zinc and copper 7", "sing and hope 3"]).tolist() == [True, False, False]
    assert classifier.quality.recall > 0.9
    assert classifier.quality.false_positives <= 0.02
    held = corpus.held_out
    rows = corpus.rows(corpus.concept("colour").concept_id)
    assert classifier.quality.positives == held[rows.positives].sum()
    metal = corpus.rows(corpus.concept("metal").concept_id).positives
    rare = corpus.rows(corpus.concept("rare").concept_id).positives
    assert classifier.quality.negatives == held[rows.negatives].sum() + held[metal].sum() + held[rare].sum()


def test_the_classifier_never_sees_a_mined_sentence(corpus: Corpus) -> None:
    classifier = train(corpus, corpus.concept("metal").concept_id, seed=0)
    words = set(classifier.pipeline.named_steps["words"].get_feature_names_out())
    texts = corpus.texts(range(corpus.identity.sentences))
    mined_only = {t.split()[-1] for t in np.array(texts)[~corpus.held_out]} - {
        t.split()[-1] for t in np.array(texts)[corpus.held_out]
    }
    assert mined_only
    assert not words & mined_only


def test_too_few_held_out_sentences_are_refused(corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"'rare' has \d held-out positives, but its classifier needs 10"):
        train(corpus, corpus.concept("rare").concept_id, seed=0)


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model), device="cpu")


def test_perplexity_is_that_of_a_loop_over_tokens(loaded: LoadedModel) -> None:
    texts = ["the dog ran", "", "a hammer made of steel and brass", "x"]
    own: list[list[float]] = []
    for text in texts:
        ids = loaded.tokenizer(text)["input_ids"]
        own.append([])
        for at in range(1, len(ids)):
            with torch.no_grad():
                logits = loaded.model(torch.tensor([ids[:at]])).logits[0, -1]
            own[-1].append(-torch.log_softmax(logits.double(), 0)[ids[at]].item())
    found = losses(loaded, texts, ResponseSpec(max_tokens=12, batch_tokens=12))
    assert [each.tokens for each in found] == [len(each) for each in own]
    together = math.exp(sum(map(sum, own)) / sum(map(len, own)))
    assert perplexity(found) == pytest.approx(together, rel=1e-5)
    assert mean_perplexity(found) == pytest.approx(np.mean([math.exp(np.mean(each)) for each in own if each]), rel=1e-5)
    assert perplexity(losses(loaded, [""])) is None is mean_perplexity([])


def test_distinct_counts_different_pairs() -> None:
    assert distinct(["a b a b", "c"], 2) == pytest.approx(2 / 3)
    assert distinct([], 2) == 0


def bleu_by_hand(text: str, others: Sequence[str], n: int) -> float:
    """Papineni et al. (2002): clipped n-gram precision, the closest length of a reference, zeros as 0.1 / count."""

    def grams(words: list[str], size: int) -> list[tuple[str, ...]]:
        return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]

    own, references = text.split(), [other.split() for other in others]
    logs = []
    for size in range(1, n + 1):
        found = grams(own, size)
        clipped = sum(
            min(found.count(gram), max(grams(each, size).count(gram) for each in references)) for gram in set(found)
        )
        if size == 1 and not clipped:
            return 0.0
        logs.append(math.log((clipped or 0.1) / max(len(found), 1)))
    closest = min((abs(len(each) - len(own)), len(each)) for each in references)[1]
    brevity = 1.0 if len(own) > closest else math.exp(1 - closest / len(own))
    return brevity * math.exp(sum(logs) / n)


@pytest.mark.parametrize("n", [3, 4])
def test_self_bleu_equals_a_computation_by_hand(n: int) -> None:
    texts = [
        "the cat sat on the mat",
        "the cat sat on a red mat today",
        "a dog and the cat ran on",
        "the mat sat on it",
    ]
    expected = np.mean([bleu_by_hand(text, texts[:at] + texts[at + 1 :], n) for at, text in enumerate(texts)])
    assert self_bleu(texts, n) == pytest.approx(expected, abs=1e-12)
    assert self_bleu(["The same text as ever, here!"] * 3, n) == pytest.approx(1)
    assert self_bleu(["alone", "  "], n) is None
    many = [f"text {at} of many {at % 3}" for at in range(30)]
    one, again, other = (self_bleu(many, n, max_texts=5, seed=seed) for seed in (1, 1, 2))
    assert one == again != other


def test_words_of_a_concept_are_whole_words_in_any_number() -> None:
    lemmas = Lemmas(["bird", "bird_of_prey", "canary", "thrush", "O2", "he"])
    for text in ("A Bird, it sang", "two canaries", "some birds of prey? no: birds", "the thrushes", "a bird of prey"):
        assert lemmas.found_in(text), text
    for text in ("birdcage", "he had o2", "", "canar", "of prey"):
        assert not lemmas.found_in(text), text
    assert len(lemmas) == 4  # those of fewer than 3 letters say too little
    of_phrase = Lemmas(["bird_of_prey"])
    assert of_phrase.found_in("Birds of prey") is False and of_phrase.found_in("one bird of prey.")


def test_lemmas_are_those_of_the_closure() -> None:
    birds = lemmas_of("bird.n.01", ())
    assert birds is not None and birds.found_in("a robin") and birds.found_in("emperor penguins")
    assert not birds.found_in("a wooden table")
    by_key = lemmas_of("any name", ("bird%1:05:00::",))
    assert by_key is not None and by_key.lemmas == birds.lemmas
    assert lemmas_of("no such thing", ()) is None


def success(share: float, perplexity: float | None = 10.0) -> Success:
    return Success(share, None, perplexity, 1.0, 1.0, None, None, ())


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


def test_the_interval_is_about_two_standard_errors_wide_and_p_counts_signs() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 200).tolist()
    found = interval(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(values) / math.sqrt(200), rel=0.05)
    few = [0.3, 0.1, -0.05, 0.2]
    sums = [abs(np.dot(signs, few)) for signs in itertools.product([1, -1], repeat=4)]
    assert sign_flip_p(few) == pytest.approx(np.mean([each >= sum(few) - 1e-9 for each in sums]))
    assert sign_flip_p(values) == pytest.approx(1 / 10_000)
    assert sign_flip_p([0.0, 0.0]) == 1


def test_experts_are_compared_pair_by_pair() -> None:
    variants = [Variant("unsteered", "experts", 0), Variant("experts", "experts", 1), Variant("random", "random", 1)]
    shares = {"a": (0.0, 0.6, 0.1), "b": (0.2, 0.4, 0.4), "c": (0.1, 0.2, 0.3)}
    cells = [
        CellResult(name, 10, variant.name, success(share, 10.0 * (at + 1)))
        for name, row in shares.items()
        for at, (variant, share) in enumerate(zip(variants, row, strict=True))
    ]
    unsteered, experts, random = ablation.compare(cells, variants, seed=0)
    assert (experts.beaten, experts.difference, experts.perplexity_ratio) == (None, None, 2.0)
    assert unsteered.beaten == 1 and random.beaten == pytest.approx(0.5)
    assert random.difference is not None and random.difference.mean == pytest.approx((0.5 + 0 - 0.1) / 3)
    assert random.p_value == sign_flip_p([0.5, 0.0, -0.1])


# The experiments themselves, on a run whose concepts have sentences enough for judges.


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A mined run of concepts named as WordNet's, one of them with too few held-out sentences; to be written to."""
    folder = tmp_path_factory.mktemp("evaluated")
    rng = np.random.default_rng(0)
    words = {
        "man.n.01": ["he", "his", "man", "father", "boy", "king"],
        "woman.n.01": ["she", "her", "woman", "mother", "girl", "queen"],
        "metallic_element.n.01": ["iron", "copper", "zinc", "gold", "silver", "tin"],
    }

    def texts(of: list[str], count: int) -> list[str]:
        return [f"{rng.choice(of)} and {rng.choice(of)} of the {rng.choice(of)} {at}" for at in range(count)]

    negatives = texts(["walk", "sing", "think", "hope", "run"], 80)
    lists = [LabelledTexts(name, "wordnet", f"what {name} is", texts(of, 40), negatives) for name, of in words.items()]
    write_lists([*lists, LabelledTexts("rare", "", "", texts(["ruby"], 5), negatives)], folder / "corpus", 50)
    plan_new(folder / "run", tiny_model, folder / "corpus")
    run_all(folder / "run", ("serial", Cluster()), ("serial", Cluster()), top_k=60)
    return folder / "run"


SMALL = CellSettings(samples=4, max_new_tokens=5)


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


def test_an_ablation_sets_other_units_of_the_same_concepts(evaluated: Path) -> None:
    found = ablation.evaluate(evaluated, ["metallic_element.n.01", "man.n.01"], 1, 20, SMALL)
    names = [variant.name for variant in found.variants]
    assert names == ["unsteered", "experts", "random", "matched", "block 2", "block 3", "worst"]
    assert [cell.variant for cell in found.cells] == names * 2
    assert [comparison.variant for comparison in found.comparisons] == names
    generator = Generator(evaluated, "cpu")
    index = Experts.load(evaluated)
    others = (("random", 0), ("matched", 0), ("experts", 20), ("experts", 40), ("worst", 0))
    for cell, (units, first) in zip(found.cells[2:7], others, strict=True):
        chosen = index.units("metallic_element.n.01", units)[first : first + 20]  # type: ignore[arg-type]
        by_hand = replace(index["metallic_element.n.01"], experts=tuple(chosen))
        sampled = GenerationRequest(count=4, max_new_tokens=5, seed=2**31)  # not the seed that a k was chosen with
        with steer(generator.loaded.model, by_hand, 20):
            assert tuple(text.strip() for text in generator(sampled)) == cell.success.examples, cell.variant
    assert found == read_result(evaluated, "max", Ablation)
    assert f"{DEFAULT_K} where it chose none" in ablation.evaluate(evaluated, ["man.n.01"], 1, None, SMALL).k_rule


def test_an_ablation_takes_the_concepts_and_the_k_that_were_evaluated(evaluated: Path) -> None:
    Experts.load(evaluated).keep_chosen({"woman.n.01": 7, "metallic_element.n.01": None}, "a rule")
    found = ablation.evaluate(evaluated, (), 2, None, SMALL)
    ks = {(cell.concept, cell.k) for cell in found.cells if cell.variant == "experts"}
    assert ks == {("woman.n.01", 7), ("metallic_element.n.01", DEFAULT_K)}
    assert "(1 of 2 concepts)" in found.k_rule
    (evaluated / "experts" / "steering.json").unlink()


def test_words_that_begin_a_continuation() -> None:
    for text in (" she was", " She was", " her,", " he's", " his;", " he.", " he:"):
        assert begins_with(text, (*SHE, *HE)), text
    for text in ("she was", " shed", " the he", " hers ", "", " he", " this"):
        assert not begins_with(text, (*SHE, *HE)), text
    assert begins_with(" she ", SHE) and not begins_with(" she ", HE)


def test_the_contexts_are_every_occupation_in_every_template() -> None:
    every = contexts()
    assert len(every) == 17 * 51 == len({context.text for context in every})
    assert Context("The {} yelled because", "nurse").text == "The nurse yelled because"
    assert len(TEMPLATES) == 17 and len(OCCUPATIONS) == 51


@pytest.mark.parametrize("differences, point", [
    ([0.4, 0.2, -0.2, 0.1], 6.5),
    ([-0.3, -0.3, 0.0, -0.1], 10.0),
    ([0.4, 0.3, 0.2, 0.1], None),
    ([0.1, -0.3, 0.2, 0.1], 0.75),
    ([-0.1, -0.1, -0.1, 0.3], 15.0),
])  # fmt: skip
def test_the_parity_point_is_the_first_change_of_sign(differences: list[float], point: float | None) -> None:
    found = parity.parity_point((0, 3, 10, 30), differences)
    assert found is None if point is None else found == pytest.approx(point)


FEW = [
    Context("The {} said that", "nurse"),
    Context("The {} ate because", "doctor"),
    Context("The {} ran because", "poet"),
]


@pytest.fixture(scope="module")
def experiment(evaluated: Path) -> Parity:
    settings = replace(SMALL, samples=6, max_new_tokens=4)
    return parity.evaluate(evaluated, which=FEW, ladder=(0, 5, 40), settings=settings)


def test_the_parity_experiment_reports_every_context_by_both_estimates(experiment: Parity, evaluated: Path) -> None:
    assert [(curve.estimate, curve.context) for curve in experiment.curves] == [
        (estimate, context.text) for estimate in ("sampled", "exact") for context in FEW
    ]
    for curve in experiment.curves:
        assert len(curve.she) == len(curve.he) == 3
        assert curve.concept == {"she": "man.n.01", "he": "woman.n.01", "none": None}[curve.lean]
        assert (curve.lean == "none") == (curve.she[0] == curve.he[0])
        assert (curve.parity_k is not None) <= (curve.lean != "none")
        if curve.lean != "none":
            assert (curve.she[0] > curve.he[0]) == (curve.lean == "she")
        assert len(curve.perplexity) == (3 if curve.estimate == "sampled" else 0)
    counted = dict.fromkeys(("sampled", "exact"), 0)
    for summary in experiment.summaries:
        own = [each for each in experiment.curves if (each.estimate, each.lean) == (summary.estimate, summary.lean)]
        assert summary.contexts == len(own)
        assert summary.reached == sum(each.parity_k is not None for each in own)
        counted[summary.estimate] += len(own)
    assert counted == {"sampled": 3, "exact": 3}
    assert read_result(evaluated, "max", Parity) == experiment


def test_the_exact_estimate_is_the_mass_of_the_next_token(experiment: Parity, evaluated: Path) -> None:
    generator = Generator(evaluated, "cpu")
    loaded, index = generator.loaded, Experts.load(evaluated)

    def mass(prompt: str, words: Sequence[str]) -> float:
        """Word by word, token by token, each in a pass of its own."""
        total = 0.0
        for word in words:
            ids, whole = (loaded.tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {word}"))
            share = 1.0
            for at in range(len(ids), len(whole)):
                with torch.no_grad():
                    logits = loaded.model(torch.tensor([whole[:at]])).logits[0, -1]
                share *= logits.double().softmax(0)[whole[at]].item()
            total += share
        return total

    curves = [curve for curve in experiment.curves if curve.estimate == "exact"]
    assert any(curve.concept for curve in curves)
    for curve in curves:
        for at, k in enumerate((0, 5, 40)):
            if curve.concept is None:
                continue
            with steer(loaded.model, index[curve.concept], k):
                assert curve.she[at] == pytest.approx(mass(curve.context, SHE), rel=1e-5)
                assert curve.he[at] == pytest.approx(mass(curve.context, HE), rel=1e-5)


@pytest.mark.parametrize("tokens", ["all", "last"])
def test_both_ways_of_setting_units_move_the_exact_estimate(tokens: str, evaluated: Path) -> None:
    settings = CellSettings(steering=Steering(0, tokens=tokens, strength=0.7))  # type: ignore[arg-type]
    found = parity.evaluate(evaluated, which=FEW, ladder=(40,), settings=settings, estimates=("exact",))
    generator, index = Generator(evaluated, "cpu"), Experts.load(evaluated)
    for curve in found.curves:
        assert curve.concept is not None and curve.she[0] != curve.she[1]
        ids = torch.tensor([generator.loaded.tokenizer(curve.context)["input_ids"]])
        she = [generator.loaded.tokenizer(f"{curve.context} {word}")["input_ids"][-1] for word in SHE]
        steered = steer(generator.loaded.model, index[curve.concept], 40, strength=0.7, tokens=tokens)  # type: ignore[arg-type]
        with steered, torch.no_grad():
            shares = generator.loaded.model(ids).logits[0, -1].double().softmax(0)
        assert curve.she[1] == pytest.approx(float(shares[she].sum()), rel=1e-5)


def test_a_word_of_several_tokens_takes_their_product(loaded: LoadedModel) -> None:
    """Words that the tokenizer splits, one of them beginning as another goes on."""
    words = ("she", "xylophonist", "xylophone")
    prompt, added = word_tokens(loaded, "The poet said that", words)
    assert len(added[0]) == 1 and len(added[1]) > 2
    found = next_word_mass(loaded, prompt, added, 2)
    for at, word in enumerate(added):
        expected = 1.0
        for length, token in enumerate(word):
            with torch.no_grad():
                logits = loaded.model(torch.tensor([[*prompt, *word[:length]]])).logits[0, -1]
            expected *= logits.double().softmax(0)[token].item()
        assert found[:, at].tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_a_summary_is_over_the_contexts_of_one_lean() -> None:
    def curve(she: tuple[float, float], he: tuple[float, float], perplexity: tuple[float, float]) -> ContextCurve:
        lean, point = ("she", 5.0) if she[0] > he[0] else ("he", None)
        at_parity = parity.value_at((0, 20), perplexity, point)
        return ContextCurve("", "", "", "sampled", lean, "c", she, he, perplexity, point, at_parity)  # type: ignore[arg-type]

    curves = [
        (curve((0.6, 0.1), (0.2, 0.4), (10.0, 30.0)), [["a b c d"], ["e f g h"]]),
        (curve((0.5, 0.2), (0.3, 0.3), (20.0, 40.0)), [["a b c d"], ["i j k l"]]),
        (curve((0.1, 0.2), (0.3, 0.3), (1.0, 1.0)), [[], []]),
    ]
    found = parity.summarize("sampled", "she", curves, (0, 20), 0)
    assert found is not None
    assert (found.contexts, found.reached, found.median_parity_k) == (2, 2, 5.0)
    assert found.mean_difference == pytest.approx((0.3, -0.2))
    assert found.mean_perplexity == (15.0, 35.0)
    assert found.parity_perplexity == pytest.approx((15 + 25) / 2)
    assert found.self_bleu_3[0] == pytest.approx(1) and (found.self_bleu_3[1] or 0) < 0.5
    other = parity.summarize("sampled", "he", curves, (0, 20), 0)
    assert other is not None and (other.contexts, other.reached, other.median_parity_k) == (1, 0, None)
    assert parity.summarize("exact", "she", curves, (0, 20), 0) is None


def test_the_sampled_estimate_counts_generations(experiment: Parity, evaluated: Path) -> None:
    generator = Generator(evaluated, "cpu")
    for curve in experiment.curves[:3]:
        request = GenerationRequest(prompt=curve.context, count=6, max_new_tokens=4)
        texts = generator(request)
        assert curve.she[0] == pytest.approx(sum(begins_with(text, SHE) for text in texts) / 6)
        own = losses(generator.loaded, [curve.context + text for text in texts])
        assert curve.perplexity[0] == pytest.approx(mean_perplexity(own))


def test_the_embedded_model_changes_its_pronoun_when_experts_are_set() -> None:
    """The rule and the estimate on a model that knows the words: mass beyond rounding, and of both."""
    loaded = load_model(str(EMBEDDED_FOLDER), device="cpu")
    prompt, words = word_tokens(loaded, "The nurse said that", (*SHE, *HE))
    found = next_word_mass(loaded, prompt, words, 2)
    assert torch.equal(found[0], found[1])
    assert (found > 1e-5).all() and found.sum() < 2


@pytest.mark.slow
def test_on_ray_and_in_one_process_the_results_are_the_same(
    experiment: Parity, evaluated: Path, ray_address: str
) -> None:
    settings = replace(SMALL, samples=6, max_new_tokens=4)
    for path in (result_path(evaluated, "max", Parity).parent / "tasks").iterdir():
        path.unlink()
    runtime = Runtime("ray", ray_address, workers=2)
    assert parity.evaluate(evaluated, which=FEW, ladder=(0, 5, 40), settings=settings, runtime=runtime) == experiment


def test_bad_requests_are_refused_before_anything_is_generated(mined: Path, evaluated: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="k is 99: expected 0 to 60"):
        concept.evaluate(evaluated, ["man.n.01"], 1, ladder=(0, 99))
    with pytest.raises(UserError, match="no concept 'animal'"):
        concept.evaluate(evaluated, ["animal"], 1, (5,))
    with pytest.raises(UserError, match=r"no concept has 10 held-out positives"):
        concept.evaluate(mined, (), 1, (5,))
    with pytest.raises(UserError, match=r"no concept 'man\.n\.01'.*mine it, or name other"):
        parity.evaluate(mined)
    with pytest.raises(UserError, match="no k above 0 is given"):
        parity.evaluate(evaluated, ladder=(0,))
    (tmp_path / "none.txt").write_text("# nothing\n\n")
    with pytest.raises(UserError, match="has no occupations"):
        read_occupations(tmp_path / "none.txt")


def test_the_commands_print_write_and_draw(evaluated: Path, tmp_path: Path) -> None:
    small = ("-n", 3, "--max-new-tokens", 4)
    printed = succeed("evaluate", "concept", evaluated, "--concept", "metallic_element.n.01", "-k", 5, *small)
    assert "k = 5" in printed and "metallic_element.n.01" in printed and "figure: " in printed
    figure = evaluated / "evaluation" / "max" / "concept.svg"
    assert figure.read_text().lstrip().startswith("<?xml")
    found = json.loads(succeed("evaluate", "ablation", evaluated, "--count", 2, "-k", 20, *small, "--json"))
    assert {each["variant"] for each in found["comparisons"]} >= {"experts", "random", "matched", "worst"}
    occupations = tmp_path / "occupations.txt"
    occupations.write_text("nurse\ndoctor\n")
    arguments = ("--occupations", occupations, "--contexts", 3, "-k", 5, *small, "--figure", tmp_path / "parity.png")
    printed = succeed("evaluate", "parity", evaluated, *arguments)
    assert "exact" in printed and "sampled" in printed
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
    assert "--estimate is 'guessed'" in refused("evaluate", "parity", evaluated, "--estimate", "guessed")
    assert "--executor is 'dask'" in refused("evaluate", "concept", evaluated, "--executor", "dask")
