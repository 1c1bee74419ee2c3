"""The radix sort against NumPy's stable one."""

from __future__ import annotations

import numpy as np
import pytest

from expertmine_kernels.sort import RADIX, radix_sort


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("size", [0, 1, 2, 255, 5000])
def test_radix_sort_is_stable(dtype: type, size: int) -> None:
    draws = np.random.default_rng(size)
    few = draws.integers(0, np.iinfo(dtype).max, 1 + size // 3, dtype, endpoint=True)
    keys = draws.choice(few, size)
    order = np.argsort(keys, kind="stable")
    ours, rows = keys.copy(), np.arange(size, dtype=np.uint32)
    scratch = np.full((keys.itemsize, RADIX), 7, np.uint32)
    radix_sort(ours, rows, np.empty_like(ours), np.empty_like(rows), scratch)
    assert np.array_equal(ours, keys[order])
    assert np.array_equal(rows, order)
