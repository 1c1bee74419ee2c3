"""How alike all concepts of an index are, by the experts that they share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from expertmine.index.experts import Experts
from expertmine.index.lookup import expert_units


def overlaps(
    experts: Experts, k: int | None = None, concepts: Sequence[str] | None = None
) -> tuple[list[str], NDArray[np.float64]]:
    """How alike all pairs of concepts are: shared experts by the experts of either (Jaccard), among their k best.

    Args:
        concepts: those to compare, in this order; all unless given.

    Returns:
        Their names, and (concepts, concepts), 1 on the diagonal.

    Raises:
        UnknownConcept: there is none of a name.
        UserError: k out of range.
    """
    names, units = list(experts), expert_units(experts, k)
    if concepts is not None:
        for concept in concepts:
            experts.concept_metadata(concept)  # refuses one that is not there
        places = {name: at for at, name in enumerate(names)}
        names = list(concepts)
        units = units[[places[name] for name in names]]
    rows, k = units.shape
    # Which concepts have which units; only the units that any has are columns.
    columns = np.unique(units, return_inverse=True)[1].ravel()
    incidence = csr_array((np.ones(units.size, np.int32), columns, np.arange(rows + 1) * k))
    shared = (incidence @ incidence.T).toarray().astype(np.float64)
    return names, shared / (2 * k - shared)
