"""The sentences with the highest responses of a concept's experts, and its positives with the lowest.

Reads stored responses, each block of units once; knows no model. `marks` finds the token that a response comes from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from expertmine.corpus.reader import Corpus
from expertmine.index.units import Expert
from expertmine.mining.scored_rows import LabelSplit, mined_and_held_out
from expertmine.run.open_run import OpenRun
from expertmine.run.store import Store
from expertmine.specs.settings import Pooling
from expertmine.telemetry.progress import track

Label = Literal["positive", "negative", "neither"]
LABELS: tuple[Label, ...] = ("negative", "neither", "positive")

CONTRARY = 3
"""Maximum number of positives with the lowest, and of negatives with the highest response."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A sentence and a unit's response to it."""

    sentence_id: int
    text: str
    label: Label
    """Its label for the concept."""
    response: float
    """Pooled, as stored."""


@dataclass(frozen=True, slots=True)
class UnitSentences:
    """Sentences for one expert of a concept."""

    expert: Expert
    highest: tuple[Shown, ...]
    """Of all mined sentences, the highest response first."""
    lowest_positives: tuple[Shown, ...]
    """Of the concept's positives, the lowest response first."""
    highest_negatives: tuple[Shown, ...]


def extreme_sentences(
    run: OpenRun, corpus: Corpus, pooling: Pooling, experts: Mapping[str, Sequence[Expert]], count: int
) -> dict[str, tuple[UnitSentences, ...]]:
    """Find sentences for some experts of each concept, in the given order.

    Equal responses are ordered by their rows in the store. Holds one block of responses in memory at a time.

    Args:
        experts: the experts of each concept to find sentences for.
        count: number of sentences with the highest response.

    Raises:
        UserError: the store is damaged.
    """
    plan, store = run.plan, Store(run)
    mined, _, rows_of = mined_and_held_out(run, corpus, store)
    ids = np.flatnonzero(mined.usable)
    ids = ids[np.argsort(rows_of[ids], kind="stable")]  # by row, and so are ties
    wanted: dict[int, list[tuple[str, Expert]]] = defaultdict(list)
    for concept, chosen in experts.items():
        for expert in chosen:
            wanted[expert.unit // plan.layout.block_units].append((concept, expert))
    found: dict[tuple[str, int], UnitSentences] = {}
    ids_by_name = {concept.name: concept.concept_id for concept in corpus.concepts}
    for block in track(sorted(wanted), "sentences", len(wanted)):
        units = plan.layout.block(block)
        responses = store.read_responses(pooling, units)
        for concept, expert in wanted[block]:
            values = responses[rows_of[ids], expert.unit - units.start]
            labels = _labels(mined, ids_by_name[concept])[ids]
            found[concept, expert.rank] = _of_unit(corpus, expert, ids, values, labels, count)
    return {concept: tuple(found[concept, expert.rank] for expert in chosen) for concept, chosen in experts.items()}


def _labels(mined: LabelSplit, concept_id: int) -> NDArray[np.int8]:
    """(sentences of the corpus,) 1 for a concept's mined positives, -1 for its mined negatives, 0 for neither."""
    labels = np.zeros(len(mined.usable), np.int8)
    _, pool, removed = mined.pool_of(concept_id)
    labels[pool] = -1
    labels[removed] = 0
    labels[mined.positives_of(concept_id)] = 1
    return labels


def _of_unit(
    corpus: Corpus,
    expert: Expert,
    ids: NDArray[np.int64],
    values: NDArray[np.floating[Any]],
    labels: NDArray[np.int8],
    count: int,
) -> UnitSentences:
    def shown(among: NDArray[np.int64], sign: int, max_count: int) -> tuple[Shown, ...]:
        chosen = among[first_by(sign * values[among].astype(np.float64), max_count)]
        return tuple(
            Shown(int(ids[at]), corpus.texts(range(ids[at], ids[at] + 1))[0], LABELS[labels[at] + 1], float(values[at]))
            for at in chosen
        )

    few = min(count, CONTRARY)
    return UnitSentences(
        expert,
        shown(np.arange(len(ids)), -1, count),
        shown(np.flatnonzero(labels == 1), 1, few),
        shown(np.flatnonzero(labels == -1), -1, few),
    )


def first_by(keys: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of the `count` lowest keys, lowest first; equal keys by index."""
    count = min(count, len(keys))
    if not count:
        return np.empty(0, np.int64)
    bound = np.partition(keys, count - 1)[count - 1]
    below, equal = np.flatnonzero(keys < bound), np.flatnonzero(keys == bound)
    candidates = np.concatenate([below, equal[: count - len(below)]])
    return candidates[np.lexsort([candidates, keys[candidates]])]
