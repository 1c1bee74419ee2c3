"""Measures of text, and statistics of them, against own computations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from expertmine.evaluate.diversity import distinct, self_bleu
from expertmine.evaluate.lexical import Lemmas, lemmas_of
from expertmine.evaluate.perplexity import losses, mean_perplexity, perplexity
from expertmine.evaluate.statistics import interval, sign_flip_p
from expertmine.model.load import LoadedModel
from expertmine.specs.settings import ResponseSpec


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
