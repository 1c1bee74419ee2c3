"""The judge of a concept: what it learns from, and how good it says it is."""

from __future__ import annotations

import numpy as np
import pytest

from expertmine.corpus.reader import Corpus
from expertmine.errors import UserError
from expertmine.evaluate.classifier import train


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
