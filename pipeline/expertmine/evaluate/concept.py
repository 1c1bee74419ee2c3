"""Does do(c, k) produce the concept, and at what cost in fluency? Measures success and perplexity against k."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from scipy.stats import fisher_exact

from expertmine.corpus.reader import Corpus
from expertmine.errors import UserError
from expertmine.evaluate.cells import CellSettings, NewMeasurer, SteeringCell, decisive, provenance
from expertmine.evaluate.classifier import MIN_POSITIVES
from expertmine.evaluate.results import (
    ClassifierQuality,
    ConceptCurve,
    ConceptEvaluation,
    Point,
    Success,
    rebuilt,
    result_path,
    write_result,
)
from expertmine.evaluate.tasks import Runtime, run_tasks
from expertmine.index.experts import Experts
from expertmine.index.units import require_k
from expertmine.run.links import require_own
from expertmine.run.open_run import open_corpus, open_run
from expertmine.specs.settings import Pooling
from expertmine.storage.locations import Location, absolute

LADDER = (0, 10, 20, 30, 50, 70, 100, 150, 200, 300)
FLUENCY = 3.0
ALPHA = 0.05


def rule(fluency: float) -> str:
    """The rule for k in words; stored with the chosen k, which are valid for this very text."""
    return (
        f"of the k whose perplexity is at most {fluency:g} times that at k = 0 and whose share of generations that the "
        "classifier assigns to the concept is above that at k = 0 (Fisher's exact test, one-sided, 5 % over all k that "
        "were tried), the one with the highest share, and of equal ones the smallest; none where there is no such k"
    )


def choose_k(points: Sequence[Point], samples: int, fluency: float) -> int | None:
    """Choose k by `rule` from a curve whose first point is at k = 0; None if no k meets it.

    Args:
        samples: generations per point.
    """
    unsteered, steered = points[0].success, points[1:]
    if unsteered.perplexity is None:
        return None
    max_perplexity = fluency * unsteered.perplexity
    eligible = [
        point
        for point in steered
        if point.success.perplexity is not None
        and point.success.perplexity <= max_perplexity
        and _p_above(point.success.share, unsteered.share, samples) <= ALPHA / len(steered)
    ]
    return max(eligible, key=lambda point: (point.success.share, -point.k)).k if eligible else None


def _p_above(share: float, other: float, samples: int) -> float:
    """One-sided p-value of Fisher's exact test that one share of the samples is above another."""
    hits, others = round(share * samples), round(other * samples)
    return float(fisher_exact([[hits, samples - hits], [others, samples - others]], alternative="greater").pvalue)


def drawn_concepts(corpus: Corpus, index: Experts, names: Sequence[str], count: int, seed: int) -> list[str]:
    """The named concepts; if none is named, some at random that have enough sentences for a classifier.

    Raises:
        UserError: an unknown concept, or no concept has enough sentences.
    """
    for name in names:
        index.concept_metadata(name)
    if names:
        return list(dict.fromkeys(names))
    positives, negatives = corpus.counts(corpus.held_out)
    eligible = np.minimum(positives, negatives) >= MIN_POSITIVES
    candidates = [concept.name for concept in corpus.concepts if eligible[concept.concept_id]]
    if not candidates:
        raise UserError(
            f"no concept has {MIN_POSITIVES} held-out positives and {MIN_POSITIVES} held-out negatives to train a "
            "classifier on; build the corpus with more, for example --held-out 33"
        )
    return sorted(random.Random(seed).sample(candidates, min(count, len(candidates))))


def evaluate(
    run: Location,
    names: Sequence[str],
    count: int,
    ladder: Sequence[int] = LADDER,
    settings: CellSettings | None = None,
    fluency: float = FLUENCY,
    pooling: Pooling | None = None,
    runtime: Runtime | None = None,
) -> ConceptEvaluation:
    """Measure the curves of concepts, or of `count` at random; saves the result, and the chosen k in the index.

    Args:
        ladder: values of k; 0 is always added.
        fluency: perplexity allowed for the chosen k, as a multiple of the perplexity at k = 0.
        pooling: which of the run's indexes; by default that of its first pooling.

    Raises:
        UserError: unknown concept, k out of range, or no held-out sentences to train a classifier on.
    """
    run = absolute(run)
    require_own(run)
    settings = settings or CellSettings()
    index = Experts.load(run, pooling)
    ks = sorted({0, *ladder})
    require_k(ks[-1], index.top_k)
    concepts = drawn_concepts(open_corpus(open_run(run)), index, names, count, settings.seed)
    found = provenance(index, settings)
    cells = [SteeringCell(concept, k) for concept in concepts for k in ks]
    folder = result_path(run, found.pooling, ConceptEvaluation).parent
    worker = NewMeasurer(run, pooling, settings)
    documents = run_tasks(folder, decisive(index, settings), worker, cells, runtime or Runtime(), "evaluate")
    curves = []
    for at, concept in enumerate(concepts):
        own = documents[at * len(ks) : (at + 1) * len(ks)]
        points = tuple(Point(k, rebuilt(Success, each["success"])) for k, each in zip(ks, own, strict=True))
        quality = rebuilt(ClassifierQuality, own[0]["classifier"])
        description = index.concept_metadata(concept)["description"]
        curves.append(
            ConceptCurve(
                concept, description, quality, own[0]["lemmas"], points, choose_k(points, settings.samples, fluency)
            )
        )
    result = ConceptEvaluation(found, rule(fluency), fluency, tuple(curves))
    chosen = {curve.concept: curve.chosen_k for curve in curves}
    index.keep_chosen(chosen, result.rule, settings.steering.manner)
    write_result(run, result)
    return result
