"""Bitmaps that count members below a number, against a set."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.kernel_inputs import relaxed

from expertmine_kernels.bitmap import contains, index, insert, smaller, words_for


@relaxed
@given(st.sets(st.integers(0, 299)))
def test_bitmap_counts_smaller_members(members: set[int]) -> None:
    words, before = np.zeros(words_for(300), np.uint64), np.full(words_for(300), 9, np.uint32)
    for member in [*members, *members]:
        insert(words, np.uint32(member))
    assert index(words, before) == len(members)
    for number in range(300):
        assert smaller(words, before, np.uint32(number)) == sum(member < number for member in members)
        assert contains(words, np.uint32(number)) == (number in members)
