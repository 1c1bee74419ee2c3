"""Kernels are compiled before Hypothesis measures time."""

import numpy as np
import pytest
from support.kernel_inputs import FLOATS

from expertmine_kernels import average_precision


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Compile for every dtype."""
    for dtype in FLOATS:
        average_precision(np.array([1, 2], dtype), [0, 1])
