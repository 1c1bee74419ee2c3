"""Does do(c, k) bring the concept about, and at what cost in fluency? Success and perplexity against k."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expertmine.errors import UserError
from expertmine.evaluate.classifier import Classifier, ClassifierQuality, train
from expertmine.evaluate.perplexity import perplexity
from expertmine.experts import Forcing
from expertmine.generate import GenerationRequest, Generator
from expertmine.ledger import load_plan, open_corpus
from expertmine.progress import track
from expertmine.specs import Pooling

LADDER = (0, 10, 30, 100, 200, 300, 400)


@dataclass(frozen=True, slots=True)
class Point:
    """Generations at one k."""

    k: int
    share: float
    """Of the generations that the classifier assigns to the concept; an empty one is none of them."""
    perplexity: float
    """Of the generations, under the unsteered model."""
    distinct_2: float
    """Different word pairs as a share of all word pairs: low means repetitive."""
    example: str


@dataclass(frozen=True, slots=True)
class ConceptCurve:
    """One concept along the ladder of k."""

    concept: str
    classifier: ClassifierQuality
    samples: int
    forcing: Forcing
    points: tuple[Point, ...]


def evaluate(
    run: Path,
    concepts: Sequence[str],
    count: int,
    ladder: Sequence[int] = LADDER,
    samples: int = 100,
    forcing: Forcing = "mean",
    seed: int = 0,
    pooling: Pooling | None = None,
) -> list[ConceptCurve]:
    """Curves of the concepts, or of `count` drawn by seed.

    Args:
        pooling: by which the experts were found; the run's first unless given.

    Raises:
        UserError: unknown concept, k out of range, or no held-out sentences to train a classifier on.
    """
    plan = load_plan(run)
    corpus = open_corpus(run, plan)
    generator = Generator(run, pooling=pooling)
    for k in ladder:
        if not 0 <= k <= generator.experts.top_k:
            raise UserError(f"k is {k}: expected 0 to {generator.experts.top_k}, the experts that the index keeps")
    names = list(concepts) or sorted(
        random.Random(seed).sample(list(generator.experts), min(count, len(generator.experts)))
    )
    chosen = [corpus.concept(name) for name in names]
    classifiers = {concept.name: train(corpus, concept.concept_id, seed) for concept in chosen}

    cells = [(name, k) for name in names for k in ladder]

    points: dict[str, list[Point]] = {name: [] for name in names}
    for name, k in track(cells, "evaluate", len(cells)):
        points[name].append(_point(generator, classifiers[name], name, k, samples, forcing, seed))
    return [ConceptCurve(name, classifiers[name].quality, samples, forcing, tuple(points[name])) for name in names]


def _point(
    generator: Generator, classifier: Classifier, concept: str, k: int, samples: int, forcing: Forcing, seed: int
) -> Point:
    texts = generator(GenerationRequest(concept, k, count=samples, forcing=forcing, seed=seed))
    written = [text for text in texts if text]
    successes = int(classifier(written).sum()) if written else 0
    return Point(
        k=k,
        share=successes / len(texts),
        perplexity=perplexity(generator.loaded, written),
        distinct_2=distinct(written, 2),
        example=texts[0],
    )


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words as a share of all, over all texts (Li et al., NAACL 2016); 0 when there are none."""
    grams = [
        tuple(words[at : at + n])
        for text in texts
        for words in [text.lower().split()]
        for at in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0
