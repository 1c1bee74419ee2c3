"""Chooses the held-out sentences, which mining does not see: a share of every concept. Knows rows, not texts.

A held-out flag belongs to the sentence, not to a concept, so no text is mined for one concept and held out for
another. To still give every concept its share, the sets of sentences (each concept's positives, each set of negatives)
are visited from the smallest to the largest; each draws what its share lacks at random from its sentences that no
smaller set has decided. This is the iterative stratification of Sechidis, Tsoumakas and Vlahavas (2011) for two
subsets, with sets in place of labels and hash priorities in place of random ties.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from expertmine.corpus.draws import Ids


def choose_held_out(
    concept_sets: Sequence[Ids], pools: Sequence[Ids], priorities: NDArray[np.uint64], percent: float
) -> NDArray[np.bool_]:
    """Return (sentences,) whether each is held out.

    The share of a set of at least two sentences is rounded; at least one sentence is held out if other sets allow it,
    and never all.

    Args:
        concept_sets: rows of sentences, one array per set.
        pools: rows of sentences, one array per pool.
        priorities: (sentences,) hash priorities; the lowest are held out.
    """
    held_out = np.zeros(len(priorities), np.bool_)
    if not percent:
        return held_out
    decided = np.zeros(len(priorities), np.bool_)
    sets = sorted((rows for rows in (*concept_sets, *pools) if len(rows)), key=lambda rows: (len(rows), rows.tobytes()))
    for rows in sets:
        quota = min(max(1, round(len(rows) * percent / 100)), len(rows) - 1)
        free = rows[~decided[rows]]
        lacking = max(0, quota - int(held_out[rows].sum()))
        held_out[free[np.argsort(priorities[free], kind="stable")[:lacking]]] = True
        decided[rows] = True
    for rows in sets:  # smaller sets may have held out all of another small set
        if held_out[rows].all():
            held_out[rows[np.argmax(priorities[rows])]] = False
    return held_out
