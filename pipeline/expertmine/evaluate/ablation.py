"""Do experts matter more than chance? Compares success with experts set to success with as many other units set.

All texts are generated with another seed than the texts that k was chosen on, where the best of several k looks better
than it is. Knows nothing of how a task runs.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from expertmine.errors import UserError
from expertmine.evaluate.cells import CellSettings, NewMeasurer, SteeringCell, decisive, provenance
from expertmine.evaluate.concept import drawn_concepts
from expertmine.evaluate.results import (
    Ablation,
    CellResult,
    Comparison,
    Success,
    Variant,
    rebuilt,
    result_path,
    write_result,
)
from expertmine.evaluate.statistics import interval, sign_flip_p
from expertmine.evaluate.tasks import Runtime, run_tasks
from expertmine.index.experts import Experts
from expertmine.index.units import require_k
from expertmine.run.links import require_own
from expertmine.run.open_run import open_corpus, open_run
from expertmine.specs.choices import DEFAULT_K
from expertmine.specs.settings import Pooling
from expertmine.steering.assignment import assign, usual_k
from expertmine.storage.locations import Location, absolute

UNSTEERED, EXPERTS = "unsteered", "experts"
FRESH = 2**31
"""Distance between the seed for concepts and the seed for texts; large, so that no k was chosen with the latter."""


def variants(index: Experts, max_k: int) -> tuple[Variant, ...]:
    """The variants to compare: nothing set, experts, two kinds of random units, later blocks of experts, worst units.

    Args:
        max_k: the largest k of any concept; blocks that some concept does not have are left out.
    """
    found = [
        Variant(UNSTEERED, "experts", 0),
        Variant(EXPERTS, "experts", 1),
        Variant("random", "random", 1),
        Variant("matched", "matched", 1),
    ]
    blocks = index.top_k // max_k
    found += [Variant(f"block {block}", "experts", block) for block in sorted({2, 3, blocks}) if 1 < block <= blocks]
    return (*found, Variant("worst", "worst", 1))


def evaluate(
    run: Location,
    names: Sequence[str],
    count: int,
    k: int | None,
    settings: CellSettings | None = None,
    pooling: Pooling | None = None,
    runtime: Runtime | None = None,
) -> Ablation:
    """Measure success with each variant's units set; the result is saved in the run's folder.

    Args:
        names: concepts; by default `count` concepts at random, from those that `evaluate concept` evaluated, if any.
        settings: its seed draws the concepts; texts are generated with another seed.
        k: units to set; None for the k that `evaluate concept` chose for each concept.
        pooling: which of the run's indexes; by default that of its first pooling.

    Raises:
        UserError: unknown concept, k out of range, or no held-out sentences to train a classifier on.
    """
    run = absolute(run)
    require_own(run)
    settings = settings or CellSettings()
    index = Experts.load(run, pooling)
    if not names and index.steering:  # concepts whose k is known
        names = sorted(random.Random(settings.seed).sample(list(index.steering), min(count, len(index.steering))))
    concepts = drawn_concepts(open_corpus(open_run(run)), index, names, count, settings.seed)
    settings = replace(settings, seed=(settings.seed + FRESH) % 2**32)
    usual = {concept: usual_k(index, [concept], replace(settings.steering, block=1)) for concept in concepts}
    ks = {concept: k or usual[concept][0] for concept in concepts}
    for concept_k in ks.values():
        require_k(concept_k, index.top_k)
    chosen = sum(evaluated for _, evaluated in usual.values())
    k_rule = (
        f"k = {k} for every concept"
        if k
        else f"k chosen by `evaluate concept` ({chosen} of {len(concepts)} concepts), {DEFAULT_K} where it chose none"
    )
    compared = variants(index, max(ks.values()))
    steering_cells = [
        SteeringCell(name, ks[name], variant.units, variant.block) if variant.block else SteeringCell(name, 0)
        for name in concepts
        for variant in compared
    ]
    for cell in steering_cells:  # raises before hours of work, not after
        steering = replace(settings.steering, k=cell.k, block=cell.block)
        assign([index.units(cell.concept, cell.units)], steering)
    found = provenance(index, settings)
    folder = result_path(run, found.pooling, Ablation).parent
    worker = NewMeasurer(run, pooling, settings)
    documents = run_tasks(folder, decisive(index, settings), worker, steering_cells, runtime or Runtime(), "ablation")
    successes = [rebuilt(Success, each["success"]) for each in documents]
    names_of = [variant.name for _ in concepts for variant in compared]
    cells = tuple(
        CellResult(cell.concept, cell.k, name, success)
        for cell, name, success in zip(steering_cells, names_of, successes, strict=True)
    )
    result = Ablation(found, k_rule, compared, cells, compare(cells, compared, settings.seed))
    write_result(run, result)
    return result


def compare(cells: Sequence[CellResult], compared: Sequence[Variant], seed: int) -> tuple[Comparison, ...]:
    """Compare each variant with the experts over all concepts."""
    by_variant: dict[str, dict[str, Success]] = defaultdict(dict)
    for cell in cells:
        by_variant[cell.variant][cell.concept] = cell.success
    experts, unsteered = by_variant[EXPERTS], by_variant[UNSTEERED]
    if not experts:
        raise UserError("there are no concepts to compare")
    found = []
    for variant in compared:
        own = by_variant[variant.name]
        lexical = [each.lexical for each in own.values() if each.lexical is not None]
        ratios = [
            own[name].perplexity / unsteered[name].perplexity  # type: ignore[operator]
            for name in own
            if own[name].perplexity is not None and unsteered[name].perplexity
        ]
        differences = [experts[name].share - own[name].share for name in own]
        is_other = variant.name != EXPERTS
        wins = sum((each > 0) + 0.5 * (each == 0) for each in differences)
        found.append(
            Comparison(
                variant=variant.name,
                share=interval([each.share for each in own.values()], seed),
                lexical=interval(lexical, seed) if lexical else None,
                perplexity_ratio=statistics.median(ratios) if ratios else None,
                beaten=wins / len(differences) if is_other else None,
                difference=interval(differences, seed) if is_other else None,
                p_value=sign_flip_p(differences, seed) if is_other else None,
            )
        )
    return tuple(found)
