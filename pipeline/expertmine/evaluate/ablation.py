"""Do experts matter more than chance? The same number of other units set instead, and what becomes of success.

All texts are drawn with another seed than those that a k was chosen on: the best of several k looks better there than
it is.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from expertmine.errors import UserError
from expertmine.evaluate import cells as measured
from expertmine.evaluate.cells import CellSettings, NewMeasurer, decisive, provenance
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
"""Lies between the seed that draws concepts and the one that draws texts; so far off that nobody chose a k with it."""


def variants(index: Experts, most_k: int) -> tuple[Variant, ...]:
    """What is set: nothing, the experts, units drawn by lot in two ways, the k after the experts, later ones, worst.

    Args:
        most_k: the largest k of any concept; blocks that some concept does not have are left out.
    """
    found = [
        Variant(UNSTEERED, "experts", 0),
        Variant(EXPERTS, "experts", 1),
        Variant("random", "random", 1),
        Variant("matched", "matched", 1),
    ]
    blocks = index.top_k // most_k
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
    """Success with each variant's units set; kept beside the run's index.

    Args:
        names: concepts; unless given, `count` of those that `evaluate concept` was asked about, or else of all, by lot.
        settings: its seed draws concepts; texts are drawn with another.
        k: units to set; None for what `evaluate concept` chose for each concept.
        pooling: by which the experts were found; the run's first unless given.

    Raises:
        UserError: unknown concept, k out of range, or no held-out sentences to train a classifier on.
    """
    run = absolute(run)
    require_own(run)
    settings = settings or CellSettings()
    index = Experts.load(run, pooling)
    if not names and index.steering:  # those whose k is known
        names = sorted(random.Random(settings.seed).sample(list(index.steering), min(count, len(index.steering))))
    concepts = drawn_concepts(open_corpus(open_run(run)), index, names, count, settings.seed)
    settings = replace(settings, seed=(settings.seed + FRESH) % 2**32)
    usual = {concept: usual_k(index, [concept], replace(settings.steering, block=1)) for concept in concepts}
    ks = {concept: k or usual[concept][0] for concept in concepts}
    for each in ks.values():
        require_k(each, index.top_k)
    chosen = sum(evaluated for _, evaluated in usual.values())
    k_rule = (
        f"k = {k} for every concept"
        if k
        else f"what `evaluate concept` chose for each ({chosen} of {len(concepts)}), {DEFAULT_K} where it chose none"
    )
    compared = variants(index, max(ks.values()))
    asked = [
        measured.SteeringCell(name, ks[name], each.units, each.block) if each.block else measured.SteeringCell(name, 0)
        for name in concepts
        for each in compared
    ]
    for one in asked:  # before hours of work, not after
        steering = replace(settings.steering, k=one.k, block=one.block)
        assign([index.units(one.concept, one.units)], steering)
    found = provenance(index, settings)
    folder = result_path(run, found.pooling, Ablation).parent
    worker = NewMeasurer(run, pooling, settings)
    documents = run_tasks(folder, decisive(index, settings), worker, asked, runtime or Runtime(), "ablation")
    successes = [rebuilt(Success, each["success"]) for each in documents]
    names_of = [variant.name for _ in concepts for variant in compared]
    cells = tuple(
        CellResult(one.concept, one.k, name, success)
        for one, name, success in zip(asked, names_of, successes, strict=True)
    )
    result = Ablation(found, k_rule, compared, cells, compare(cells, compared, settings.seed))
    write_result(run, result)
    return result


def compare(cells: Sequence[CellResult], compared: Sequence[Variant], seed: int) -> tuple[Comparison, ...]:
    """Each variant over all concepts, beside the experts."""
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
