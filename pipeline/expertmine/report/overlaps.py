"""How similar the concepts of an index are, by shared experts. Knows no run and no page."""

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
    """Similarity of all pairs of concepts: Jaccard index of their k best experts.

    Args:
        concepts: the concepts to compare, in this order; all by default.

    Returns:
        Their names, and the index (concepts, concepts), 1 on the diagonal.

    Raises:
        UnknownConcept: a concept is not in the index.
        UserError: k out of range.
    """
    names, units = list(experts), expert_units(experts, k)
    if concepts is not None:
        for concept in concepts:
            experts.concept_metadata(concept)  # raises UnknownConcept
        positions = {name: position for position, name in enumerate(names)}
        names = list(concepts)
        units = units[[positions[name] for name in names]]
    rows, k = units.shape
    # Incidence of concepts and units; only units that are experts of some concept get a column.
    columns = np.unique(units, return_inverse=True)[1].ravel()
    incidence = csr_array((np.ones(units.size, np.int32), columns, np.arange(rows + 1) * k))
    shared = (incidence @ incidence.T).toarray().astype(np.float64)
    return names, shared / (2 * k - shared)
