"""The best units of a concept, against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import naive
from support.kernel_inputs import relaxed

from expertmine_kernels import top_k


@relaxed
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, -0.0]), min_size=1, max_size=40), st.data())
def test_top_k_matches_a_full_sort(ap: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(ap)))
    ours = top_k(np.array(ap), k)
    assert ours.dtype == np.int64
    assert ours.tolist() == naive.top_k(ap, k)


def test_top_k_keeps_the_order_of_many_ties() -> None:
    ap = np.random.default_rng(0).integers(0, 5, 10_000) / 4
    for k in (1, 1000, 9_999, 10_000):
        assert top_k(ap, k).tolist() == naive.top_k(ap.tolist(), k)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_top_k_refuses_an_impossible_k(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}; expected 1 to 3"):
        top_k(np.ones(3), k)


def test_top_k_refuses_nan() -> None:
    with pytest.raises(ValueError, match="ap of unit 1 is NaN"):
        top_k(np.array([1.0, np.nan, 0.0]), 1)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        top_k(np.ones((2, 2)), 1)
