"""Which sentences mining will not see: a share of every concept, and never one text on both sides.

A held-out flag belongs to the sentence, not to a concept, so no text can be mined for one concept and held out for
another. To give every concept its share all the same, the sets of sentences (each concept's positives, each set of
negatives) are gone through from the smallest to the largest; each draws what it lacks by lot among its sentences that
no smaller set has decided on. This is the iterative stratification of Sechidis, Tsoumakas and Vlahavas (2011) for two
subsets, with sets in place of labels and lots in place of random ties.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from expertmine.corpus.draws import Ids


def choose_held_out(
    concept_sets: Sequence[Ids], pools: Sequence[Ids], lots: NDArray[np.uint64], percent: float
) -> NDArray[np.bool_]:
    """(sentences,) whether each is held out.

    A set of at least two sentences has its share rounded, but one held out at least where other sets allow it, and
    never all of them.

    Args:
        concept_sets: rows of sentences.
        pools: rows of sentences.
        lots: (sentences,) the lowest are held out.
    """
    held_out = np.zeros(len(lots), np.bool_)
    if not percent:
        return held_out
    decided = np.zeros(len(lots), np.bool_)
    sets = sorted((rows for rows in (*concept_sets, *pools) if len(rows)), key=lambda rows: (len(rows), rows.tobytes()))
    for rows in sets:
        quota = min(max(1, round(len(rows) * percent / 100)), len(rows) - 1)
        free = rows[~decided[rows]]
        lacking = max(0, quota - int(held_out[rows].sum()))
        held_out[free[np.argsort(lots[free], kind="stable")[:lacking]]] = True
        decided[rows] = True
    for rows in sets:  # small sets may have claimed all of another small one
        if held_out[rows].all():
            held_out[rows[np.argmax(lots[rows])]] = False
    return held_out
