"""A simple classifier of text, independent of the steered model: TF-IDF and logistic regression.

It decides whether a generated text is about a concept, and is trained on sentences that mining did not see. Knows
nothing of steering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline

from expertmine.corpus.reader import Corpus
from expertmine.errors import UserError
from expertmine.evaluate.results import ClassifierQuality

FALSE_POSITIVES = 0.01
"""Share of negatives that the classifier may call positive; sets its threshold."""
FOLDS = 5
MIN_POSITIVES = 10
"""Held-out positives, and held-out negatives, that a classifier needs."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """A trained classifier for one concept."""

    pipeline: Pipeline
    threshold: float
    quality: ClassifierQuality

    def __call__(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """(texts,) whether each is about the concept."""
        decided: NDArray[np.bool_] = self.pipeline.decision_function(list(texts)) > self.threshold
        return decided


def train(corpus: Corpus, concept_id: int, seed: int) -> Classifier:
    """Train a classifier on a concept's held-out sentences.

    Its negatives are the concept's held-out negatives, and the held-out positives of concepts that share no sentence
    with it.

    Raises:
        UserError: too few held-out positives.
    """
    positives, negatives = _sentences(corpus, concept_id)
    for kind, texts in (("positives", positives), ("negatives", negatives)):
        if len(texts) < MIN_POSITIVES:
            raise UserError(
                f"concept {corpus.concepts[concept_id].name!r} has {len(texts)} held-out {kind}, but its classifier "
                f"needs {MIN_POSITIVES}; build the corpus with more, for example --held-out 33"
            )
    texts = [*positives, *negatives]
    labels = np.repeat([1, 0], [len(positives), len(negatives)])
    pipeline = Pipeline(
        [
            ("words", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)),
            ("judge", LogisticRegression(C=10, class_weight="balanced", max_iter=1000)),
        ]
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    decisions = cross_val_predict(pipeline, texts, labels, cv=folds, method="decision_function")
    threshold = float(np.quantile(decisions[labels == 0], 1 - FALSE_POSITIVES))
    quality = ClassifierQuality(
        positives=len(positives),
        negatives=len(negatives),
        false_positives=float((decisions[labels == 0] > threshold).mean()),
        recall=float((decisions[labels == 1] > threshold).mean()),
    )
    return Classifier(pipeline.fit(texts, labels), threshold, quality)


def _sentences(corpus: Corpus, concept_id: int) -> tuple[list[str], list[str]]:
    """Held-out positive and negative texts."""
    own = corpus.rows(concept_id)
    positive = np.zeros(corpus.identity.sentences, np.bool_)
    positive[own.positives] = True
    negative = np.zeros_like(positive)
    negative[own.negatives] = True
    for other in corpus.concepts:
        rows = corpus.labels(other.concept_id).positives
        if not positive[rows].any():
            negative[rows] = True
    texts = corpus.texts(range(corpus.identity.sentences))

    def chosen(mask: NDArray[np.bool_]) -> list[str]:
        return [texts[row] for row in np.flatnonzero(mask & corpus.held_out)]

    return chosen(positive), chosen(negative & ~positive)
