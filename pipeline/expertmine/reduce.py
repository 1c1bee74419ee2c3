"""Stage 3: expertise → expert index: the top K units of every concept.

Streams over blocks of units and keeps K candidates a concept; merging is associative, and ties go to the lower unit id,
so the index does not depend on the order in which blocks were scored or merged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expertmine.corpus import Corpus
from expertmine.errors import UserError
from expertmine.experts import SCHEMA, index_folder, write_index
from expertmine.ledger import load_plan, open_corpus, require_complete
from expertmine.progress import track
from expertmine.specs import Plan, Pooling
from expertmine.store import STATISTICS, Store
from expertmine_kernels import top_k


def merge_top(
    ap: NDArray[np.floating], units: NDArray[np.int64], more_ap: NDArray[np.floating], first_unit: int, k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Merge a block into the best so far: by average precision descending, unit id ascending.

    Args:
        ap, units: (concepts, kept) the best so far.
        more_ap: (concepts, width) of the units from `first_unit` on.

    Returns:
        (concepts, at most k): places in the two put side by side, and unit ids.
    """
    all_ap = np.concatenate([ap, more_ap], axis=1)
    new_units = np.broadcast_to(np.arange(first_unit, first_unit + more_ap.shape[1]), more_ap.shape)
    all_units = np.concatenate([units, new_units], axis=1)
    by_unit = np.argsort(all_units, axis=1)  # top_k prefers what comes first among equals
    ap_by_unit = np.take_along_axis(all_ap, by_unit, axis=1)
    best = np.stack([top_k(scores, min(k, scores.size)) for scores in ap_by_unit])
    places = np.take_along_axis(by_unit, best, axis=1)
    return places, np.take_along_axis(all_units, places, axis=1)


def require_top_k(plan: Plan, kept: int) -> None:
    """Check how many experts are to be kept.

    Raises:
        UserError: more than there are units, or none.
    """
    if not 1 <= kept <= plan.layout.units:
        raise UserError(f"--top-k is {kept}: expected 1 to {plan.layout.units}, the model's units")


def reduce(run: Path, kept: int) -> list[Path]:
    """Write the expert index of a scored run, one for each pooling; returns their folders.

    Raises:
        UserError: scoring is not complete, or `kept` is out of range.
    """
    plan = load_plan(run)
    require_complete(run, plan, "score")
    require_top_k(plan, kept)
    store = Store(run, plan)
    concepts = _concepts(open_corpus(run, plan))
    folders = []
    for pooling in plan.responses.poolings:
        units, best = _best(store, plan, pooling, kept)
        table = _table(plan, concepts, units, best)
        folders.append(write_index(index_folder(run, plan, pooling), table, plan, pooling, concepts))
    return folders


def _best(
    store: Store, plan: Plan, pooling: Pooling, kept: int
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.floating]]]:
    """The best units of every concept, and their statistics, each (concepts, kept)."""
    concepts = plan.corpus.concepts
    units = np.empty((concepts, 0), np.int64)
    best: dict[str, NDArray[np.floating]] = {name: np.empty((concepts, 0), dtype) for name, dtype in STATISTICS.items()}
    label = "reduce" if len(plan.responses.poolings) == 1 else f"reduce {pooling}"
    for block in track(range(plan.layout.blocks), label, plan.layout.blocks):
        span = plan.layout.block(block)
        found = {name: store.read_scores(pooling, name, span) for name in STATISTICS}
        places, units = merge_top(best["ap"], units, found["ap"], span.start, kept)
        best = {
            name: np.take_along_axis(np.concatenate([best[name], found[name]], axis=1), places, axis=1)
            for name in STATISTICS
        }
    return units, best


def _concepts(corpus: Corpus) -> list[dict[str, Any]]:
    """What the index says of each concept."""
    positives, negatives = corpus.counts(np.ones(corpus.identity.sentences, np.bool_))
    held_out = np.sum(corpus.counts(corpus.held_out), axis=0)
    return [
        {
            "name": concept.name,
            "group": concept.group,
            "description": concept.description,
            "positives": int(positives[concept.concept_id]),
            "negatives": int(negatives[concept.concept_id]),
            "held_out": int(held_out[concept.concept_id]),
        }
        for concept in corpus.concepts
    ]


def _table(
    plan: Plan, concepts: list[dict[str, Any]], units: NDArray[np.int64], best: dict[str, NDArray[np.floating]]
) -> pa.Table:
    """The index as a table, a row for each concept and rank."""
    ranks = units.shape[1]
    flat = units.ravel()
    starts = np.array([hookpoint.first_unit for hookpoint in plan.hookpoints])
    at = np.searchsorted(starts, flat, side="right") - 1
    hookpoints = np.array([hookpoint.name for hookpoint in plan.hookpoints])
    columns = {
        "concept": pa.array(np.repeat(np.array([concept["name"] for concept in concepts], dtype=object), ranks)),
        "group": pa.array(np.repeat(np.array([concept["group"] for concept in concepts], dtype=object), ranks)),
        "rank": pa.array(np.tile(np.arange(1, ranks + 1, dtype=np.int32), len(concepts))),
        "unit": pa.array(flat),
        "hookpoint": pa.array(hookpoints[at]),
        "channel": pa.array((flat - starts[at]).astype(np.int32)),
        **{name: pa.array(values.ravel()) for name, values in best.items()},
    }
    return pa.table(columns, schema=SCHEMA)
