"""Does do(c, k) bring the concept about, and at what cost in fluency? Success and perplexity against k."""

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
    """How k is chosen, in words."""
    return (
        f"of the k whose perplexity is at most {fluency:g} times that at k = 0 and whose share of generations that the "
        "classifier assigns to the concept is above that at k = 0 (Fisher's exact test, one-sided, 5 % over all k that "
        "were tried), the one with the highest share, and of equal ones the smallest; none where there is no such k"
    )


def choose_k(points: Sequence[Point], samples: int, fluency: float) -> int | None:
    """The k of a curve by `rule`; the first point is at k = 0.

    Args:
        samples: generations that each point is of.
    """
    unsteered, steered = points[0].success, points[1:]
    if unsteered.perplexity is None:
        return None
    most = fluency * unsteered.perplexity
    able = [
        each
        for each in steered
        if each.success.perplexity is not None
        and each.success.perplexity <= most
        and _p_above(each.success.share, unsteered.share, samples) <= ALPHA / len(steered)
    ]
    return max(able, key=lambda each: (each.success.share, -each.k)).k if able else None


def _p_above(share: float, other: float, samples: int) -> float:
    """One-sided p-value of Fisher's exact test that one share of so many is above another."""
    hits, others = round(share * samples), round(other * samples)
    return float(fisher_exact([[hits, samples - hits], [others, samples - others]], alternative="greater").pvalue)


def drawn_concepts(corpus: Corpus, index: Experts, names: Sequence[str], count: int, seed: int) -> list[str]:
    """The concepts that are named, or else some by lot of those with sentences enough for a judge.

    Raises:
        UserError: an unknown concept, or none to draw from.
    """
    for name in names:
        index.concept_metadata(name)
    if names:
        return list(dict.fromkeys(names))
    positives, negatives = corpus.counts(corpus.held_out)
    able = np.minimum(positives, negatives) >= MIN_POSITIVES
    among = [concept.name for concept in corpus.concepts if able[concept.concept_id]]
    if not among:
        raise UserError(
            f"no concept has {MIN_POSITIVES} held-out positives and negatives, which its judge learns from; build the "
            "corpus with --held-out 33, say"
        )
    return sorted(random.Random(seed).sample(among, min(count, len(among))))


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
    """Curves of the concepts, or of `count` drawn by lot; kept, with the k that is best, beside the run's index.

    Args:
        ladder: values of k; 0 is always among them.
        fluency: perplexity that the chosen k may have, as a multiple of that at k = 0.
        pooling: by which the experts were found; the run's first unless given.

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
