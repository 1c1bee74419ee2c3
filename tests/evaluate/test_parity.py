"""Pronouns after occupations: contexts, both estimates, and the k at which they are even."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.evaluations import SMALL

from expertmine import Experts, steer
from expertmine.evaluate import parity
from expertmine.evaluate.cells import CellSettings
from expertmine.evaluate.contexts import OCCUPATIONS, TEMPLATES, Context, contexts
from expertmine.evaluate.perplexity import losses, mean_perplexity
from expertmine.evaluate.pronouns import HE, SHE, begins_with, next_word_mass, word_tokens
from expertmine.evaluate.results import (
    ContextCurve,
    Parity,
    read_result,
    result_path,
)
from expertmine.evaluate.tasks import Runtime
from expertmine.model.load import EMBEDDED_FOLDER, LoadedModel, load_model
from expertmine.steering.assignment import Steering
from expertmine.steering.generation import GenerationRequest, Generator


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
