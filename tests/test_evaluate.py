from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import LabelledTexts, write_lists

from expertmine.corpus import Corpus
from expertmine.errors import UserError
from expertmine.evaluate.classifier import train
from expertmine.evaluate.concept import distinct, evaluate
from expertmine.evaluate.perplexity import perplexity
from expertmine.models import load_model
from expertmine.specs import ResponseSpec


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
    with pytest.raises(UserError, match=r"'rare' has \d held-out positives and a classifier needs 10"):
        train(corpus, corpus.concept("rare").concept_id, seed=0)


def test_perplexity_is_that_of_a_loop_over_tokens(tiny_model: Path) -> None:
    loaded = load_model(str(tiny_model), device="cpu")
    texts = ["the dog ran", "", "a hammer made of steel and brass", "x"]
    total, count = 0.0, 0
    for text in texts:
        ids = loaded.tokenizer(text)["input_ids"]
        for at in range(1, len(ids)):
            with torch.no_grad():
                logits = loaded.model(torch.tensor([ids[:at]])).logits[0, -1]
            total -= torch.log_softmax(logits.double(), 0)[ids[at]].item()
            count += 1
    assert perplexity(loaded, texts, ResponseSpec(max_tokens=12, batch_tokens=12)) == pytest.approx(
        math.exp(total / count), rel=1e-5
    )
    assert math.isnan(perplexity(loaded, [""]))


def test_distinct_counts_different_pairs() -> None:
    assert distinct(["a b a b", "c"], 2) == pytest.approx(2 / 3)
    assert distinct([], 2) == 0


def test_k_beyond_the_index_is_refused_before_anything_is_generated(mined: Path) -> None:
    with pytest.raises(UserError, match="k is 99: expected 0 to 40"):
        evaluate(mined, ["animal"], 1, ladder=(0, 99))
