"""Every case that is benchmarked gives what its oracle gives, on fewer concepts and units of the same sizes."""

from __future__ import annotations

import numpy as np
import pytest
from support.kernel_cases import CASES, KernelCase
from support.kernel_inputs import TIGHT


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_kernel_gives_what_its_oracle_gives(case: KernelCase) -> None:
    block, rows = case.draw(concepts=min(case.concepts, 3), units=3)
    expected = np.empty((rows.concepts, block.shape[1]))
    for concept in range(rows.concepts):
        on, off = rows.positives(concept), rows.negatives(concept)
        labels = np.repeat([1, 0], [on.size, off.size])
        for unit in range(block.shape[1]):
            expected[concept, unit] = case.oracle(labels, block[np.concatenate([on, off]), unit])
    np.testing.assert_allclose(case.kernel(block, rows)(), expected, **TIGHT)
